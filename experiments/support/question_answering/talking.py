"""Questions in natural language, answered by SmolLM2 as it is."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import smollm
from proxlm import lm

TOKENS = 48  # of an answer, at most


def reader(question: str, data: pathlib.Path) -> tuple[str, Callable[[], object]]:
    """The likeliest answer by the chat template, and `first()`, which computes its first token."""
    model = smollm.load(data)
    prompt = jnp.asarray([model.chat([{"role": "user", "content": question}])])
    params = {**model.params, "blocks": lm.unstack(model.params["blocks"])}
    sampling = lm.SamplingConfig(greedy=True, stop_token=model.stops)
    begin = lambda: lm.stream(jax.random.key(0), params, prompt, model.config, TOKENS, sampling=sampling)
    said = [int(token[0]) for token in begin()]
    tokenizer: Any = model.tokenizer
    return tokenizer.decode([i for i in said if i not in model.stops]).strip(), lambda: next(begin())


def latency(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 95th percentile of the milliseconds that a call takes, once it is compiled."""
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return float(np.median(taken)), float(np.percentile(taken, 95))
