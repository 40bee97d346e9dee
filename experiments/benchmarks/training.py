"""One AdamW step of a language model on windows of random tokens.

Where the time of `tiny` goes, per cent of what is traced, operation by operation: here lower quartiles of 6
calls of each operation, torch.profiler's own time (median of 3 calls) there; one core of an Intel Xeon
(AVX-512), nine processes on two cores, so that shares hold and seconds do not:

                                    proxlm    proxlm, products    PyTorch, eager
                                              by Eigen (below)
    products with weights           71        64                  40
    attention: products, softmax    9 + 3     9 + 4               9 (fused)
    rotations, heads, copies        4         7                   6 of copies
    SwiGLU                          6         7                   8 of silu
    norms, residual stream          6         6                   33 of all that is elementwise
    AdamW and the rest              2         3                   5

Beyond its products a step takes little, and what decides is their kernel: MKL took 369 ms of what is traced,
YNNPACK 424, Eigen 281. One core of that Xeon, the other busy, huge pages for all, three steps a call, CPU s
a step, best (median): `tiny` by Eigen 0.300 (0.307), by PyTorch 0.344 (0.374), by YNNPACK, XLA's own choice,
0.337 (0.618; n=5); `small` 3.93 (4.02), 3.26 (3.54), 4.81 (4.88; n=3), where products at own shapes alone
take 2.7: so PyTorch leads on `small`. (An earlier hour, whose pages are not on record, had 4.46 against its
6.08.) Losses are the same to 7 digits. The flag is left to the user, since a step of SmolLM2 on 32 tokens
takes 1.03 by Eigen, 0.63 by YNNPACK (`pretrained`, n=3). XLA and MKL held to AVX2, which the kernels of XLA's
products may not heed, `tiny`: 0.349 (0.366) by Eigen, 0.551 (0.576) by PyTorch, 0.400 (0.615) by YNNPACK. A
step of `small` by PyTorch (3 profiled, load 6): products 58, attention 10, softmax and loss 6, copies 4, silu
2, the rest 20.

What was tried, and what it brought (the same core with AVX-512; flags are those of jaxlib 0.10.2):

    cosines looked up in a table               they were computed in every rotation of every head, row and
    (is so now)                                layer: 11 % of what is traced of `tiny`
    activations anew in the gradient           `tiny` 0.446 -> 0.414 CPU s (7); `small` 6.2 -> 5.8 (4), and
    (is so now)                                once 6.5 -> 7.0 (3); 6 to 7 % less memory for temporaries
    a rule of its own for SwiGLU's gradient    as fast as that, and no forward mode: not done
    gradient's norm behind a barrier           AdamW of 53M weights and the norm 0.142, not 0.195 CPU s,
    (is so now)                                without a copy of g² (best of 7); a step of 10 layers of
                                               SmolLM2-135M's sizes on 32 tokens 0.43 in place of 0.55 (5)
    glibc.malloc.hugetlb=1                     that step 0.42 in place of 0.56 CPU s (6)
    (is so in the Makefile)
    --xla_cpu_experimental_ynn_fusion_type=    products by Eigen: as above; PPO `base` no faster (3), sampling
    (in INSTALL)                               neither (5); a quarter less memory for temporaries, compilation
                                               a fifth more; last digits change
    weight gradients, narrow operand first     that product 30 % faster, 2.5 % of a step: not done, it takes a
                                               barrier in every model on every device
    xla_cpu_use_multi_output_fusion,           compilation of `tiny` 2.8 in place of 4.3 s, `small` 2.9 of
    xla_cpu_disable_loop_unrolling             5.1 (best of 2), PPO `base` 15.3 of 20.5 (1; once 12.2); three
    (extra options; in INSTALL)                steps of `tiny` 0.98 of 1.09, 1.18 of 1.21 (best of 5, 6), PPO
                                               `base` 3.11 of 3.49 (5); losses the same to 7 digits; but XLA
                                               aborts on the gradient of a head in chunks (a check on fusions
                                               whose results differ in rank): not done
    these, -O1, no fusion emitters, no         `tiny` compiles in 1.5, `small` in 1.9 s (2); steps of `tiny`
    expensive passes, no SLP vectorizer,       15 % slower (6), PPO `base` about 30 % (3)
    code for size
    -O1 and fusion emitters off                3.4 in place of 4.6 s, the same bits, steps 2 to 7 % slower
    layers rolled up                           13 % slower, and compiles no faster: kernels of equal layers
                                               are compiled once already

Compilation takes 25 to 40 ms for each kernel that differs from all others, half of it in LLVM, so their
number decides. `tiny` had 122, of which 28 were slices of stacked layers and 10 norms by such a slice, one a
leaf and layer, since the layer stood in a kernel as a number; it is a value that XLA does not know now, and
96 are left. Compilation took 3.78 CPU s before and 3.39 now (means of 3, by turns, load 5: 3.4 to 4.1 and
3.0 to 3.7), tracing and lowering 0.6 both times; the first call of `small` less a step 6.2 and 5.0 (1), with
a step of 5.17 (5.60) and 4.82 (4.97), best and median of 4. What is left, per cent of the wall time in
LLVM (one compilation): 21 kernels of Adam, three a shape, 22; 6 concatenations of gradients, 11; 3 of
rotations, 10; 9 slices of layers, 6; the 57 others 1 to 3 each. The goal of 3.0 s needs some 70. Not done:
gradients written layer by layer (fills and writes all of it once more), Adam on one vector (its state is the
user's). Tunables of malloc (hugetlb, mxfast, tcache, trim_threshold) change nothing (2).

Of the two extra options xla_cpu_disable_loop_unrolling alone, by turns with none: first calls less a step
took 4.5 and 5.3 CPU s for `tiny`, 8.1 and 7.1 for `small`, 21.7 and 23.2 for PPO `base` (1 each); three steps
of `tiny` 1.06 and 1.18, median 1.27 and 1.37 (7), a step of `small` 4.81 and 5.24, median 5.46 and 5.54 (5),
PPO `base` 3.30 and 3.37, median 3.47 and 3.49 (5).
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
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}  # products by Eigen, of XLA on a CPU


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


def ours(job: Job, options: dict[str, str] | None = None):
    """A function of no arguments that makes a call's steps and returns their losses; options are XLA's."""
    optimizer = optax.adamw(LEARNING_RATE, b2=B2, weight_decay=WEIGHT_DECAY)
    step = training.make_step(functools.partial(language_model.loss, config=job.model), optimizer)
    run = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0, compiler_options=options)
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
        if jax.default_backend() == "cpu":
            calls["proxlm, products by Eigen"] = ours(job, EIGEN)
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
