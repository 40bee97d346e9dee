"""Many settings of PPO at once: the whole iteration under one vmap, beside one run after another.

Learning rate, weight of the KL, clip and λ differ from run to run. They are numbers that are
traced, so that all the runs, one by one, share one compilation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import clock, ppo
from experiments.support.run import tables
from proxlm.policy import ppo as ppo_lib


@dataclasses.dataclass(frozen=True)
class Job:
    """So many settings of one job of PPO."""

    ppo: ppo.Job
    runs: int = 32


JOBS = {"tiny": Job(ppo.JOBS["tiny"])}


def settings_of(job: Job) -> dict[str, jax.Array]:
    """The numbers of every run, `[runs]` each, every one on a grid of its own in its own order."""
    rng = np.random.default_rng(0)
    grids = {
        "learning_rate": np.geomspace(3e-5, 1e-3, job.runs),
        "kl_coef": np.geomspace(1e-3, 0.3, job.runs),
        "clip": np.linspace(0.05, 0.4, job.runs),
        "gae_lambda": np.linspace(0.8, 1.0, job.runs),
    }
    return {name: jnp.asarray(rng.permutation(grid), jnp.float32) for name, grid in grids.items()}


def make_optimizer(numbers) -> optax.GradientTransformation:
    return optax.adam(numbers["learning_rate"], eps=ppo.ADAM_EPSILON)


def iteration(job: Job, state, numbers):
    """An iteration with settings that are traced: `(state, mean reward)`."""
    settings = job.ppo.settings.replace(
        kl_coef=numbers["kl_coef"],
        clip_low=numbers["clip"],
        clip_high=numbers["clip"],
        gae_lambda=numbers["gae_lambda"],
    )
    step = ppo.make_step(job.ppo, make_optimizer(numbers), settings)
    state, metrics = step(state, jax.random.fold_in(jax.random.key(1), state.iteration))
    return state, metrics.reward


def begin(job: Job, numbers) -> ppo_lib.PPOState:
    """The state before the first iteration of a run."""
    params = ppo.actor(job.ppo).init(jax.random.key(0))
    state = ppo_lib.init(params, make_optimizer(numbers), job.ppo.settings)
    return state._replace(kl_coef=numbers["kl_coef"])


def together(job: Job, over=jax.vmap):
    """A function that does an iteration of every run in one call; returns the rewards `[runs]`."""
    numbers = settings_of(job)
    states = jax.jit(jax.vmap(functools.partial(begin, job)))(numbers)
    advance = jax.jit(over(functools.partial(iteration, job)), donate_argnums=0)

    def call():
        nonlocal states
        states, rewards = advance(states, numbers)
        return np.asarray(rewards)

    return call


def one_after_another(job: Job):
    """The same, a call for each run."""
    numbers = settings_of(job)
    rows = [{name: x[i] for name, x in numbers.items()} for i in range(job.runs)]
    start, advance = jax.jit(functools.partial(begin, job)), functools.partial(iteration, job)
    states, advance = [start(row) for row in rows], jax.jit(advance, donate_argnums=0)

    def call():
        rewards = np.zeros(job.runs)
        for i, row in enumerate(rows):
            states[i], reward = advance(states[i], row)
            rewards[i] = reward
        return rewards

    return call


def by_map(fn):
    """`fn` of rows of trees, one row after another within one call."""
    return lambda *trees: jax.lax.map(lambda row: fn(*row), trees)


def compare(jobs: dict[str, Job], settings: clock.Settings) -> str:
    """A table of all the jobs, and whether other settings compiled anything."""
    rows, notes = [], []
    for name, job in jobs.items():
        calls = {
            "one after another": one_after_another(job),
            "lax.map": together(job, by_map),
            "vmap": together(job),
        }
        with ppo.compilations() as seen:
            timings = clock.measure(calls, settings, after_first=seen.clear)
        seconds = clock.seconds_of(timings)
        ratios = clock.ratios(seconds, "one after another")
        rows += [
            [f"{name} x {job.runs}", by, median, best, *ratios[by]] for by, (median, best) in seconds.items()
        ]
        notes.append(f"{name}: compilations after the first call of each {len(seen)}")
    headers = ["settings of PPO", "by", "s/iteration of all", "(best)", "time / single runs'"]
    lines = [tables.table(rows, [*headers, "(best)"]), clock.caption(timings), *notes]
    return "\n".join(lines)
