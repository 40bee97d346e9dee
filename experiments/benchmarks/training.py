"""One AdamW step of a language model on windows of random tokens.

Where the time goes. `small`, one core of an Intel Xeon with other work beside it, XLA and MKL held to AVX2:
91 % of a step are products, and the step reaches 0.89 of their speed at these shapes alone; 4.46 CPU s
against 6.08 of PyTorch, `tiny` 0.451 against 0.556. With AVX-512 `tiny` takes 0.35 against 0.38.

What was tried, and what it brought (the same core with AVX-512; flags are those of jaxlib 0.10.2):

    gradient's norm behind a barrier           AdamW of 53M weights and the norm 0.142, not 0.195 CPU s,
    (is so now)                                without a copy of g² (best of 7); a step of 10 layers of
                                               SmolLM2-135M's sizes on 32 tokens 0.43 in place of 0.55 (5)
    glibc.malloc.hugetlb=1                     that step 0.42 in place of 0.56 CPU s (6)
    (is so in the Makefile)
    --xla_cpu_experimental_ynn_fusion_type=    `tiny` 5 % faster, a fifth more compilation
    weight gradients, narrow operand first     that product 30 % faster, 2.5 % of a step: not done, it takes a
                                               barrier in every model on every device
    -O1 and fusion emitters off                `tiny` compiles in 2.8 in place of 4.4 s, steps 4 % slower
    layers rolled up                           13 % slower, and compiles no faster: kernels of equal layers
                                               are compiled once already

Compilation takes 25 to 40 ms for each kernel that differs from all others, half of it in LLVM, so their
number decides: of an iteration of PPO `base` 160 sample, 170 prepare and 260 update.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import clock, matmul
from experiments.support.models import language_model
from experiments.support.run import tables
from proxlm import lm, training

LEARNING_RATE, B2, WEIGHT_DECAY = 3e-4, 0.95, 0.1


@dataclasses.dataclass(frozen=True)
class Job:
    """A model, a batch, and how many steps one call makes."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    batch: int
    length: int
    steps: int = 3

    @property
    def model(self) -> lm.ModelConfig:
        return language_model.shape(self, self.vocab_size, max_length=self.length)

    @property
    def flops(self) -> int:
        """Of one step."""
        return matmul.training_step(self.model, self.batch, self.length)

    @property
    def shapes(self) -> dict[matmul.Shape, int]:
        return matmul.shapes(self.model, self.batch * self.length)


JOBS = {"tiny": Job(4, 128, 4, 256, batch=64, length=64), "small": Job(6, 384, 6, 4096, batch=16, length=256)}


def windows(job: Job) -> np.ndarray:
    """Random tokens `[steps, B, T + 1]`."""
    shape = (job.steps, job.batch, job.length + 1)
    return np.random.default_rng(0).integers(0, job.vocab_size, shape, dtype=np.int32)


def ours(job: Job):
    """A function of no arguments that makes a call's steps and returns their losses."""
    optimizer = optax.adamw(LEARNING_RATE, b2=B2, weight_decay=WEIGHT_DECAY)
    step = training.make_step(functools.partial(language_model.loss, config=job.model), optimizer)
    run = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    batches = jnp.asarray(windows(job))
    state = training.init(lm.init(jax.random.key(0), job.model), optimizer)

    def call():
        nonlocal state
        state, metrics = run(state, batches)
        return np.asarray(metrics.loss)

    return call


def torch_eager(job: Job):
    """The same by PyTorch, from the same parameters."""
    from experiments.benchmarks import torch_peer

    params = lm.init(jax.random.key(0), job.model)
    return torch_peer.training(params, job.model, windows(job), LEARNING_RATE, B2, WEIGHT_DECAY)


def compare(jobs: dict[str, Job], limits: dict[str, matmul.Limit], settings: clock.Settings) -> str:
    """A table of all the jobs."""
    rows = []
    for name, job in jobs.items():
        calls = {"proxlm": ours(job)}
        if clock.torch_fits():
            calls["torch eager"] = torch_eager(job)
        timings = clock.measure(calls, settings)
        rows += _rows(name, job, limits[name], timings)
    headers = ["training", "by", "tokens/s", "(best)", "GFLOP/s", "% of best square"]
    headers += ["time / proxlm's", "(best)"]
    return f"{tables.table(rows, headers)}\n{clock.caption(timings)}; forward, backward and AdamW"


def _rows(name, job, limit, timings):
    tokens = job.batch * job.length
    seconds = clock.seconds_of(timings, job.steps)
    seconds |= {by: (s, s) for by, s in matmul.floors(job.flops, limit).items()}
    ratios = clock.ratios(seconds, "proxlm")
    return [
        [
            name,
            by,
            round(tokens / median),
            round(tokens / best),
            round(job.flops / median / 1e9, 1),
            round(100 * job.flops / median / limit.square),
            *ratios[by],
        ]
        for by, (median, best) in seconds.items()
    ]
