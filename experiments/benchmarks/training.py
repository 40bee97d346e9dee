"""One AdamW step of a language model on windows of random tokens.

One core of an Intel Xeon (AVX-512), much other work beside it, huge pages for all, three steps a call, CPU s
a step, best (median), by turns; losses are the same to 6 or 7 digits:

              proxlm, products     proxlm, by YNNPACK     PyTorch, eager     products at own
              by Eigen (below)     (XLA's own choice)                        shapes alone
    `tiny`    0.279 (0.356)        0.311 (0.331)          0.345 (0.352)                     n=7
    `small`   3.81 (3.82)          3.91 (4.20)            3.52 (3.85)        2.7            n=3

So `tiny` is ahead by 1.24 by Eigen, 1.11 by YNNPACK (best; medians 0.99 and 1.06), and `small`, where the
goal is 1.1, is not: 0.92 (1.01). Held to AVX2, which the kernels of XLA's products may not heed, with
attention as it was, `tiny` took 0.349 (0.366) by Eigen, 0.400 (0.615) by YNNPACK, 0.551 (0.576) by PyTorch.
As it is now, with AVX-512 in a busier hour (load 6, n=2), 0.363 (0.446), 0.551 (0.569) and 0.504 (0.578).

Where the time of `small` goes, by Eigen, CPU ms a step with attention as it was (4.27 s; perf's samples of
CPU time laid over jax.profiler's trace, 6 steps), GFLOP/s in the step and of the product alone (best of 5):

    products with weights     ms     in the step    alone    all else                     ms
    forward, D x D, F x D     436    111            155      attention's products         434 (67 GFLOP/s)
    forward, D x F            403     96            132      its softmax, 9 passes        254
    input gradients           730    119            118-145  SwiGLU                       161
    weight, D x F             339    114            130      norms, residual stream       170
    weight, D x D             291    100            117      cross-entropy                144
    weight, F x D (down)      238     81             95      rotations, heads, copies     131
    head: forward, input      247    104                     AdamW, gradient's norm       60
    head: weight              184     70             83      (pages first touched, in     250)
                                                              the above

Products with weights are 2.87 s of it, at 72 to 88 % of their rate alone. Weight gradients with the wide
operand first (down, head) are the slow ones. With attention as it is now softmax takes 131, attention's
products 409, those with weights 2,920 (3 steps in a busier hour, 600 of pages). Pages of 1.2 GB of
temporaries are touched anew in each call: 0.25 to 0.6 s a step, of three a call, and by PyTorch 0.44 to 1.1;
on a day when huge pages were at hand 0.07 of 4.9 and 0.13 of 4.1 (below). A step by PyTorch (3 profiled, load
6): products 58 %, attention 10, softmax and loss 6, copies 4, silu 2, the rest 20.

What was tried, and what it brought (the same core with AVX-512; flags are those of jaxlib 0.10.2):

    cosines looked up in a table               they were computed in every rotation of every head, row and
    (is so now)                                layer: 11 % of what is traced of `tiny`
    activations anew in the gradient           `tiny` 0.446 -> 0.414 CPU s (7); `small` 6.2 -> 5.8 (4), and
    (is so now)                                once 6.5 -> 7.0 (3); 6 to 7 % less memory for temporaries
    attention divides by the weights' sums     `small` 4.51 -> 3.81 CPU s by Eigen, 4.89 -> 3.91 by YNNPACK
    after the product, reduces in two          (3); `tiny` 0.300 -> 0.279, 0.301 -> 0.311 (7), medians 0.394
    stages, and by blocks of 128 queries       -> 0.356, 0.430 -> 0.331; of temporaries 1,200 -> 1,087 MB
    (is so now)
    attention head by head, scores anew in     16 x 6 heads of 256 tokens 127 CPU ms, all heads at once 121,
    the gradient, by such blocks               without blocks 140 (5); blocks of 64 no clear gain over 128,
                                               for 1.5 times the compilation
    a rule of its own for SwiGLU's gradient    as fast as that, and no forward mode: not done
    gradient's norm behind a barrier           AdamW of 53M weights and the norm 0.142, not 0.195 CPU s,
    (is so now)                                without a copy of g² (best of 7); a step of 10 layers of
                                               SmolLM2-135M's sizes on 32 tokens 0.43 in place of 0.55 (5)
    glibc.malloc.hugetlb=1                     that step 0.42 in place of 0.56 CPU s (6)
    (is so in the Makefile)
    glibc.malloc.arena_max=1 and mmap_ and     page faults a step of `small` 1,300 -> 0, by PyTorch 10,600 ->
    trim_threshold of 4 GB, so that pages      0; of `tiny` 740 -> 110 and 5,500 -> 80: XLA seems to allocate
    are kept                                   in a thread, whose own arena holds no block above 64 MB. `tiny`
                                               0.473 -> 0.470 CPU s, median 0.515 -> 0.490, PyTorch 0.525 ->
                                               0.494, 0.593 -> 0.572 (7); `small` no faster (2). Memory of
                                               `tiny` 725 -> 956 MB: not done
    jemalloc, tcmalloc, mimalloc preloaded     faults of `tiny` 210 -> 0, 0 and 7,900; best of 4 to 6 calls
                                               0.37 to 0.52 (3 runs), 0.39 and 0.44; without 0.38 to 0.42 (3)
    norms in two stages, as softmax            `tiny` 0.385 in place of 0.386 CPU s, median 0.428, not 0.440
                                               (7), first call 5.2, not 5.5 (1): for one row only (`sampling`)
    --xla_cpu_experimental_ynn_fusion_type=    products by Eigen: as above; PPO `base` no faster (3), sampling
    (in INSTALL)                               neither (5); compilation a fifth more; last digits change. A
                                               layer of SwiGLU with its gradient, widths 128, 384 and 576,
                                               took 1.2 to 1.6 of YNNPACK's time for 32 rows, 0.9 to 1.1 for
                                               128, 1.0 for 512, 0.9 to 1.0 for 1,024 and 0.9 for 4,096
                                               (best of 5). Left to the user: `train_lm` has 768 rows a step,
                                               and SmolLM2 on 32 tokens takes 1.03 in place of 0.63
    weight gradients, narrow operand first     those of down 34 -> 26, of the head 154 -> 100 ms (5), at most
                                               3 % of a step: not done, it takes a barrier and a transposed
                                               copy of the kernel; in 8 chunks of rows 10 to 40 % slower
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
