"""Shares of what an accelerator can do: training, decoding, and 32 runs of PPO in one vmap.

    python -m experiments.benchmarks.accelerator --chip h200     # minutes
    python -m experiments.benchmarks.accelerator --tiny          # on a CPU, where its shares mean nothing

Training is a step of AdamW in bfloat16 on float32 weights, its share that of the chip's products (MFU).
Decoding is bound by memory: for each token all weights in bfloat16 and the filled half of the cache are
read, which is what its share is of. Not yet measured on a GPU.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.benchmarks import clock, matmul, sweeps
from experiments.plan import known
from experiments.support.models import language_model
from experiments.support.run import tables
from proxlm import lm, training

MODELS = {
    "124M": {"vocab_size": 50_304, "num_layers": 12, "width": 768, "num_heads": 12},
    "1B": known.MODELS["llama-1b"],
}
TINY = {"tiny": known.MODELS["tiny"]}


@dataclasses.dataclass(frozen=True)
class Config:
    chip: str = "h200"  # one of experiments.plan.known.CHIPS
    tiny: bool = False  # a small model and few tokens
    batch: int = 8  # rows of a training step
    length: int = 1024  # tokens of a row, trained and decoded
    decoded: tuple[int, ...] = (1, 64)  # rows that are decoded
    repeats: int = 5


def shape_of(name: str, length: int, **how: Any) -> lm.ModelConfig:
    """A model of the table, in bfloat16."""
    shape = (MODELS | TINY)[name] | {"max_length": length, "compute_dtype": "bfloat16"}
    return lm.ModelConfig(**shape | how)


def trained(model: lm.ModelConfig, batch: int, length: int) -> Callable[[], Any]:
    """A function that makes a step of AdamW."""
    optimizer = optax.adamw(3e-4)
    step = training.make_step(functools.partial(language_model.loss, config=model), optimizer)
    advance = jax.jit(step, donate_argnums=0)
    state = jax.jit(lambda key: training.init(lm.init(key, model), optimizer))(jax.random.key(0))
    rows = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, model.vocab_size)

    def call():
        nonlocal state
        state, metrics = advance(state, rows)
        return jax.block_until_ready(metrics.loss)

    return call


def decoded(model: lm.ModelConfig, batch: int, length: int) -> Callable[[], Any]:
    """A function that samples `length` − 16 tokens after prompts of 16."""
    params = jax.jit(lambda key: lm.init(key, model))(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    sample = jax.jit(functools.partial(lm.sample, config=model, num_tokens=length - 16))
    prompts = jnp.zeros((batch, 16), jnp.int32)
    return lambda: jax.block_until_ready(sample(jax.random.key(1), params, prompts))


def bytes_read(model: lm.ModelConfig, batch: int, length: int) -> float:
    """Bytes that sampling reads: the weights for each token, and half of the full cache."""
    cache = 2 * model.num_layers * batch * length * model.num_kv_heads * model.head_width
    return 2.0 * (length - 16) * (lm.num_params(model) + cache / 2)


def rows_of(name: str, config: Config, chip: known.Chip, settings: clock.Settings) -> list[list[Any]]:
    """Rows of the table, of one model."""
    length, found = config.length, []
    half = functools.partial(shape_of, name, length)
    for attention in ("einsum", "cudnn"):
        model = half(attention=attention, remat="dots_with_no_batch_dims_saveable", unroll=1)
        flops = matmul.training_step(model, config.batch, length)
        time_of = clock.measure({0: trained(model, config.batch, length)}, settings)[0].median
        rate = config.batch * length / time_of
        found.append([name, f"training, {attention}", time_of, rate, 100 * flops / time_of / chip.flops])
    for batch in config.decoded:
        time_of = clock.measure({0: decoded(half(), batch, length)}, settings)[0].median
        share = 100 * bytes_read(half(), batch, length) / time_of / chip.bandwidth
        found.append([name, f"decoding, {batch} rows", time_of, batch * (length - 16) / time_of, share])
    return found


def seeds(settings: clock.Settings, tiny: bool) -> str:
    """A line on an iteration of PPO of many seeds in one vmap, and of one."""
    job = next(iter(sweeps.JOBS.values()))
    many = dataclasses.replace(job, runs=2 if tiny else 32)
    calls = {job.runs: sweeps.together(job) for job in (many, dataclasses.replace(many, runs=1))}
    times = {count: timing.median for count, timing in clock.measure(calls, settings).items()}
    return (
        f"an iteration of PPO, {many.runs} seeds in one vmap: {times[many.runs]:.3g} s, one: {times[1]:.3g} s"
    )


def main(config: Config) -> str:
    """Measures and prints; returns the text."""
    if config.tiny:
        config = dataclasses.replace(config, length=32, batch=2, decoded=(2,), repeats=1)
    settings = clock.Settings("wall", config.repeats, 0.0 if config.tiny else 0.2)
    start, rows = time.perf_counter(), []
    for name in TINY if config.tiny else MODELS:
        rows += rows_of(name, config, known.CHIPS[config.chip], settings)
    headers = ["model", "what", "s", "tokens/s", f"% of {config.chip}"]
    lines = [clock.hardware(settings), tables.table(rows, headers), seeds(settings, config.tiny)]
    text = "\n\n".join([*lines, f"{time.perf_counter() - start:.0f} s in all"])
    print(text)
    return text


if __name__ == "__main__":
    sys.exit(not main(tyro.cli(Config)))
