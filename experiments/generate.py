"""Samples text, token by token, from a language model: one that `lm.load` reads, or of a run.

    python -m experiments.generate --prompt "The capital of France is"
    python -m experiments.generate --model DIR --chat --prompt "What is the capital of France?"
    python -m experiments.generate --model runs/train_lm/TIME --prompt "ROMEO" --samples 3

2 CPU cores (AMD EPYC, 2.6 GHz) that did other work too: SmolLM2-135M goes on with " Paris." by its
likeliest tokens, the first 0.05 s after the prompt, in the first sample 0.9 s with compilation, and
then 32 tokens a second (35 ms of CPU time each). Reading the model takes 8 s before.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.models import pretrained
from experiments.support.run import cli, configs, model_store, runs
from proxlm import _validation, lm


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    model: str = (
        pretrained.SMOLLM2
    )  # or a folder, GGUF file or hf: name; or a run that trained a language model
    prompt: str = "The capital of France is"  # the beginning of every text
    chat: bool = False  # the prompt is a user's message, which the model answers
    num_tokens: int = 64  # at most: a model may end its text
    samples: int = 1  # texts
    temperature: float = 0.7  # 0: always the likeliest token
    top_k: int | None = None  # sample from so many of the likeliest tokens
    top_p: float | None = 0.95  # sample from the likeliest tokens of so much probability
    min_p: float | None = None  # sample from tokens of so much of the highest probability
    seed: int = 0  # of the samples

    def validate(self) -> None:
        """Validates the configuration before any work starts."""
        if not self.prompt:
            raise _validation.invalid("prompt", "", "the beginning of a text")
        sampling(self)


def sampling(config: Config) -> lm.SamplingConfig:
    """The truncation asked for; temperature 0 is greedy."""
    rest = {name: getattr(config, name) for name in ("top_k", "top_p", "min_p")}
    if config.temperature == 0:
        return lm.SamplingConfig(greedy=True, **rest)
    return lm.SamplingConfig(temperature=config.temperature, **rest)


def show(piece: str) -> None:
    """Prints a piece of text at once."""
    print(piece, end="", flush=True)


def main(
    config: Config = Config(),
    options: runs.Options = runs.Options(),
    on_text: tyro.conf.Suppress[Callable[[str], None]] = show,
) -> dict[str, Any]:
    """Writes every sample through `on_text` while it grows; returns the texts and the speed."""
    if options.resume:
        raise Refusal("resume: generate has no run to continue; leave it out")
    if not options.smoke:
        return write(model_store.load(config.model, pathlib.Path(options.data)), config, on_text)
    with cli.quick_compilation(True), tempfile.TemporaryDirectory() as folder:
        model = untrained(pathlib.Path(folder), config)
        return write(model, dataclasses.replace(config, num_tokens=40), on_text)


def write(model: model_store.LoadedModel, config: Config, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Samples one text after another."""
    if config.chat and model.chat is None:
        raise Refusal("chat: the model has no chat template; leave it out")
    prompt = model.chat(config.prompt) if config.chat and model.chat else model.encode(config.prompt)
    longest = model.config.max_length - 1
    if not 1 <= len(prompt) <= longest:
        raise Refusal(
            f"prompt has {len(prompt)} tokens: expected 1 to {longest}, which leaves room in the "
            f"context of {model.config.max_length}"
        )
    params = {**model.params, "blocks": lm.unstack(model.params["blocks"])}
    model = model._replace(params=params)
    texts, clocks = [], []
    for i, key in enumerate(jax.random.split(jax.random.key(config.seed), config.samples)):
        on_text(f"{'' if i == 0 else chr(10)}[{i + 1}] {config.prompt}")
        clock = [time.perf_counter()]
        pieces = []
        for piece in decoded(timed(tokens(key, model, prompt, config), clock), model.decode):
            on_text(piece)
            pieces.append(piece)
        texts.append(config.prompt + "".join(pieces))
        clocks.append(clock)
        on_text("\n")
    numbers = speed(clocks)
    on_text(
        "\nfirst token after {first_seconds:.2f} s, in the first sample {cold_seconds:.2f} s with "
        "compilation; then {tokens_per_second:.1f} tokens a second\n".format(**numbers)
    )
    return {"texts": texts, **numbers}


def tokens(key, model: model_store.LoadedModel, prompt: list[int], config: Config) -> Iterator[int]:
    """Tokens up to a stop token, which is left out.

    Where the context is full, the model goes on from the last half of it: it learnt no longer one.
    """
    text, length = list(prompt), model.config.max_length
    end = len(text) + config.num_tokens
    while len(text) < end:
        key, key_now = jax.random.split(key)
        recent = text if len(text) < length and len(text) == len(prompt) else text[-length // 2 :]
        count = min(end - len(text), length - len(recent))
        stream = lm.stream(
            key_now,
            model.params,
            jnp.asarray([recent], jnp.int32),
            model.config,
            count,
            sampling=sampling(config),
        )
        for token in stream:
            if int(token[0]) in model.stops:
                return
            text.append(int(token[0]))
            yield text[-1]


def timed(stream: Iterable[int], clock: list[float]) -> Iterator[int]:
    """Records the time of each token."""
    for token in stream:
        clock.append(time.perf_counter())
        yield token


def decoded(stream: Iterable[int], decode) -> Iterator[str]:
    """Pieces of text, each as soon as its tokens make whole characters."""
    seen, shown = [], 0
    text = ""
    for token in stream:
        seen.append(token)
        text = decode(seen)
        # bytes of a character that is still to be completed
        if not text.endswith("\ufffd"):
            yield text[shown:]
            shown = len(text)
    yield text[shown:]


def speed(clocks: list[list[float]]) -> dict[str, float]:
    """Seconds to the first token, without and with compilation, and tokens a second after it."""
    first = [clock[1] - clock[0] for clock in clocks if len(clock) > 1]
    gaps = np.concatenate([np.diff(clock[1:]) for clock in clocks])
    median = float(np.median(gaps)) if len(gaps) else float("nan")
    return {
        "first_seconds": min(first, default=float("nan")),
        "cold_seconds": first[0] if first else float("nan"),
        "tokens_per_second": 1 / median,
    }


def untrained(folder: pathlib.Path, config: Config) -> model_store.LoadedModel:
    """A small untrained model, saved and loaded again, for --smoke."""
    alphabet = tokenization.Characters(config.prompt + "abcdefghij")
    model = lm.ModelConfig(len(alphabet.alphabet), num_layers=2, width=16, num_heads=2, max_length=32)
    model_store.save(folder, lm.init(jax.random.key(config.seed), model), model, alphabet)
    return model_store.load(str(folder), folder)


if __name__ == "__main__":
    cli.call(main, "generate", __doc__)
