"""An iteration of PPO: sample, score, then 4 epochs of 4 minibatches, with a separate critic.

The reward is the share of the sampled tokens below V/2, which costs nothing to compute.

Where the time of `base` goes, CPU s on one core of an Intel Xeon (AVX-512) under much other work, best of 3
or 4: sampling 0.18; what is learnt from, with scores of policy, reference and critic, 0.39, of which 0.23
are those of policy and critic; update 3.14. So to take old scores from the sampler would bring 3 %. Of the
update products are 73 %, SwiGLU 8, copies, slices and rope 6, norms and the residual stream 5, softmax 3,
Adam 2 (lower quartiles of 16 minibatches of one traced call). Of PyTorch's iteration (1 profiled, load 6)
products are 38 %, attention 15, copies 8, silu 5, Adam 2, all else that is elementwise 33. In a quieter hour
an iteration took 3.16 to 3.38 s, PyTorch's 3.73.

With attention that divides after its product and reduces in two stages (`training`; the numbers above are
from before) an iteration takes 2.72 in place of 2.94 CPU s, median 2.87 in place of 3.01 (n=4, by turns), so
the goal of 2.8 s is met by the best and not by the median. Products left to Eigen (the flag in `training`)
took as long before that: 3.41 CPU s against 3.23, median 3.46 against 3.62 (n=3), and compilation 26.4 in
place of 22.4 s.

`tiny`: 0.058 (0.064) CPU s an iteration, PyTorch's 0.235 (0.242), products at own shapes 0.011 (best and
median of 2, load 10). Side by side in another busy hour (load 7, n=3), best (median):

                proxlm           PyTorch          products at own shapes
    `tiny`      0.074 (0.082)    0.307 (0.355)    0.011
    `base`      3.45 (3.71)      4.21 (4.57)      1.79, at 102 GFLOP a second

`base` by tunix 0.1.7's PPOLearner, in an environment of its own (`grpo`) soon after: 6.61 (7.57), n=2.

The first call, less an iteration: 24.3 and 23.8 CPU s before layers shared their slices (`training`), 22.3
and 21.2 with that (by turns, load 5), 508 and 460 distinct kernels; 2 s of it to trace and lower, all of it
JAX's own work, of which sampling's layers, traced once and no longer one by one, save 0.2. Fusions of several
results (`training`) took 12.2 and 15.3 in place of 20.5 s of compilation (n=1). The kernels by kind,
counted by the shapes they write:

    records [B], [B, R] and scalars    74 + 61    scores of the whole batch           24
    a minibatch, there and back        61         a token in two loops                21
    its records [16, R]                34         attention's products, not shared    19
    random numbers                     46         slices of layers                    16
    Adam, gradients, norms             40         a prompt                            11
    sums in two stages                 27         the rest                            26

The means of an update reported one by one, not packed, are 10 kernels less, but no less time (2). A shuffle
by itself takes 0.9 s, as long with its epochs in a loop (3). The goal of 10 s would take 260. Of the
optimised program's 1,343 loop fusions 420 differ, 408 but for their constants and 319 but for every number in
them, so shapes made equal would not reach it. Keys split by 3 and 4 alike would spare some six kernels. Of
single flags none helps: of the program that prepares, 5.2 CPU s of compilation, -O0 takes 3.8, -O1 and a
single LLVM module 5.2 (n=1).
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import clock, matmul
from experiments.support.models import language_model
from experiments.support.run import tables
from proxlm import lm
from proxlm.policy import ppo, recipes
from proxlm.policy._configuration.config import PPOConfig

COMPILED = "/jax/core/compile/backend_compile_duration"
ADAM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Job:
    """Models, prompts and updates; what is not here is the default of `PPOConfig`."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    prompt: int
    response: int
    batch: int = 64
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-4
    kl_coef: float = 0.05

    @property
    def policy(self) -> lm.ModelConfig:
        return self._model(tie_embeddings=False)

    @property
    def critic(self) -> lm.ModelConfig:
        return self._model(lm_head=False, value_head=True)

    def _model(self, **heads):
        return language_model.shape(self, self.vocab_size, max_length=self.prompt + self.response, **heads)

    @property
    def settings(self) -> PPOConfig:
        counts = {"num_epochs": self.epochs, "num_minibatches": self.minibatches}
        return recipes.make("ppo", kl_coef=self.kl_coef, **counts)

    @property
    def flops(self) -> int:
        """Of one iteration."""
        return matmul.ppo(self.policy, self.critic, self.batch, self.prompt, self.response, self.epochs)

    @property
    def shapes(self) -> dict[matmul.Shape, int]:
        """Of a minibatch, where most of the work is."""
        rows = self.batch // self.minibatches * (self.prompt + self.response)
        return matmul.shapes(self.policy, rows)


JOBS = {"tiny": Job(2, 32, 2, 16, prompt=4, response=8), "base": Job(4, 128, 4, 256, prompt=16, response=48)}


def actor(job: Job) -> lm.Actor:
    """The job's policy and critic."""
    return lm.make_actor(job.policy, job.response, critic=job.critic)


def make_step(
    job: Job, optimizer: optax.GradientTransformation, settings: PPOConfig, own: lm.Actor | None = None
):
    """An iteration of the job, `(state, key) -> (state, metrics)`, by its `actor` or by another."""
    shape = (job.batch, job.prompt)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, shape, 0, job.vocab_size))
    below = lambda samples: samples.tokens[:, job.prompt :] < job.vocab_size // 2
    reward = lambda samples: jnp.mean(below(samples), axis=1)
    return ppo.make_step(own or actor(job), reward, prompts, optimizer, settings)


def ours(job: Job):
    """A function of no arguments that does an iteration and returns its mean reward."""
    optimizer = optax.adam(job.learning_rate, eps=ADAM_EPSILON)
    state = ppo.init(actor(job).init(jax.random.key(0)), optimizer, job.settings)
    return iterating(make_step(job, optimizer, job.settings), state)


def iterating(step, state):
    """A function of no arguments that makes a step, with a key of its own, and returns its mean reward."""
    key = jax.random.key(1)
    advance = jax.jit(lambda state: step(state, jax.random.fold_in(key, state.iteration)), donate_argnums=0)

    def call():
        nonlocal state
        state, metrics = advance(state)
        return float(metrics.reward)

    return call


def torch_by_hand(job: Job):
    """The same by PyTorch, from the same parameters."""
    from experiments.benchmarks import torch_ppo

    models = torch_ppo.build(actor(job).init(jax.random.key(0)), job.policy, job.critic)
    optimizer = torch_ppo.adam(models, job.learning_rate, ADAM_EPSILON)
    shape = (job.batch, job.prompt)
    return lambda: torch_ppo.iterate(models, optimizer, shape, job.response, job.settings)


@contextlib.contextmanager
def compilations():
    """Yields a list that grows by one whenever XLA compiles something."""
    seen = []

    def listen(event: str, duration_secs: float, **_: str | int):
        if event == COMPILED:
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def compare(jobs: dict[str, Job], limits: dict[str, matmul.Limit], settings: clock.Settings) -> str:
    """A table of all the jobs, and what compiling them costs."""
    rows, notes = [], []
    for name, job in jobs.items():
        calls = {"proxlm": ours(job)}
        if clock.torch_fits():
            calls["torch by hand"] = torch_by_hand(job)
        with compilations() as seen:
            timings = clock.measure(calls, settings, after_first=seen.clear)
        notes.append(f"{name}: first call {timings['proxlm'].first:.1f} s, compilations after it {len(seen)}")
        rows += _rows(name, job, limits[name], timings)
    headers = ["PPO", "by", "s/iteration", "(best)", "tokens/s", "time / proxlm's", "(best)"]
    lines = [tables.table(rows, headers), clock.caption(timings), *notes]
    return "\n".join(lines)


def _rows(name, job, limit, timings):
    tokens = job.batch * job.response
    seconds = clock.seconds_of(timings)
    seconds |= {by: (s, s) for by, s in matmul.floors(job.flops, limit).items()}
    ratios = clock.ratios(seconds, "proxlm")
    return [
        [name, by, median, best, round(tokens / median), *ratios[by]]
        for by, (median, best) in seconds.items()
    ]
