"""Proximal steps next to Adam: one donated update of a transformer's weights, as ratios to Adam's.

The tree has the shapes of a small transformer; gradients are random numbers. What is timed is the
optimizer alone, `optimizer.update` and `optax.apply_updates`, compiled together.

On a CPU each array is one loop, so passes over memory decide: Adam makes 10 (read g, m, write m; g,
v, v; x, m, v, x), its l1 in either geometry 10, dual averaging 14, clip_by_global_norm 15, group
lasso 14, and `every` between two proxes 12, since its branch needs the update as an array. What is
not fused also costs fresh memory for every leaf at once, since XLA begins all leaves together;
XLA_FLAGS=--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED takes them in turn.

Time / adam, 23M float32 weights, one core of an AMD EPYC with other work beside it, huge pages,
best of 11 (21 for the first three, without the flag), and with the flag: clip_by_global_norm 1.75,
1.37; group lasso of rows 1.73, 1.32; of columns 1.78, 1.43; l1 1.06, 1.07; in Adam's metric 1.16,
1.16, nearly half of the 0.16 a second division; dual averaging 1.46, 1.44; nuclear, between two
proxes, 1.83, 1.77 (1.60 when quieter; 1.29 where malloc keeps its memory from step to step). A
training step of a small transformer takes as long with the flag as without.

On a GPU steps are fused across arrays, and a link costs next to nothing: on an H100 (jax 0.11.2,
the same weights, median and best of 5) clip_by_global_norm 1.05, 1.00; group lasso of rows 1.08,
1.00, of columns 1.00, 0.99; l1 1.02, 1.03; in Adam's metric 1.04, 1.02; dual averaging 1.24, 1.33;
nuclear by its Gram matrix every 400 steps, with the proxes, 0.99, 1.06. Adam takes 1.28, 1.19 ms.
"""

import dataclasses
from collections.abc import Callable, Iterator

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import clock
from experiments.support.run import tables
from proxlm import penalties, transforms

RATE, STRENGTH = 1e-3, 1e-3


@dataclasses.dataclass(frozen=True)
class Job:
    """Sizes of the transformer, and how seldom the dear prox is applied."""

    width: int
    layers: int
    vocabulary: int
    every: int = 400


JOBS = {
    "small": Job(width=128, layers=2, vocabulary=1024),
    "large": Job(width=512, layers=6, vocabulary=8192),
}


def compare(jobs: dict[str, Job], settings: clock.Settings) -> Iterator[str]:
    """A table for each job and dtype of the params."""
    for name, job in jobs.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            yield table(f"{name} {jnp.dtype(dtype).name}", job, dtype, settings)


def table(title: str, job: Job, dtype: jnp.dtype, settings: clock.Settings) -> str:
    """Times every chain on one tree; the lazy one by whole cycles, a prox in each."""
    params, gradients = weights(job, dtype, 0), weights(job, dtype, 1)
    steps = {name: stepping(make(), params, gradients) for name, make in chains().items()}
    lazy = stepping(nuclear(job.every), params, gradients, job.every)
    timings = clock.measure(steps, settings)
    once = dataclasses.replace(settings, seconds=0.0, repeats=min(settings.repeats, 2))
    cycle = clock.measure({"lazy": lazy}, once)["lazy"]
    seconds = clock.seconds_of(timings)
    seconds[f"adam, nuclear every {job.every}"] = cycle.median / job.every, cycle.best / job.every
    ratios = clock.ratios(seconds, "adam")
    rows = [[by, *(1e3 * x for x in pair), *ratios[by]] for by, pair in seconds.items()]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    headers = [f"{title} chain", "ms", "(best)", "time / adam", "(best)"]
    return f"{tables.table(rows, headers)}\n{clock.caption(timings)}; {size / 1e6:.1f}M weights"


def chains() -> dict[str, Callable[[], optax.GradientTransformation]]:
    """The optimizers that are compared, each built when asked for."""
    adam, link = optax.adam(RATE), transforms.apply_prox
    l1, rows = penalties.l1(STRENGTH), penalties.group_lasso(STRENGTH, axis=-1)
    columns = penalties.group_lasso(STRENGTH, axis=0)
    metric = transforms.proximal_adam
    return {
        "adam": lambda: adam,
        "adamw": lambda: optax.adamw(RATE),
        "adam after clip_by_global_norm": lambda: optax.chain(optax.clip_by_global_norm(1.0), adam),
        "adam, l1": lambda: optax.chain(adam, link(l1, RATE)),
        "adam, l1 in its metric": lambda: metric(RATE, l1),
        "adam, l1 in its metric, floor": lambda: metric(RATE, l1, floor=1e-2),
        "adam, group lasso of rows": lambda: optax.chain(adam, link(rows, RATE)),
        "adam, group lasso of columns": lambda: optax.chain(adam, link(columns, RATE)),
        "dual averaging adam, l1": lambda: transforms.dual_averaging_adam(RATE, l1),
    }


def nuclear(every: int) -> optax.GradientTransformation:
    """Adam with a nuclear norm on the matrices, seldom, by eigenvalues of their Gram matrices."""
    link = transforms.apply_prox(penalties.nuclear(STRENGTH, method="gram"), RATE, every=every)
    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.chain(optax.adam(RATE), optax.masked(link, matrices))


def stepping(
    optimizer: optax.GradientTransformation, params: chex.ArrayTree, gradients: chex.ArrayTree, steps: int = 1
) -> Callable[[], chex.ArrayTree]:
    """Takes so many steps in each call, on weights of its own whose memory is used again."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step, donate_argnums=(0, 1))
    held = jax.tree.map(jnp.copy, params)
    held = (held, jax.jit(optimizer.init)(held))

    def call():
        nonlocal held
        for _ in range(steps):
            held = run(*held, gradients)
        return jax.block_until_ready(held)[0]

    return call


def weights(job: Job, dtype: jnp.dtype, seed: int) -> chex.ArrayTree:
    """Random numbers in the shapes of a transformer's weights."""
    d = job.width
    block = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    block |= {"norm_1": (d,), "norm_2": (d,)}
    shapes = {f"block_{i}": block for i in range(job.layers)}
    shapes |= {"embedding": (job.vocabulary, d), "norm": (d,)}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draw = lambda key, shape: (0.02 * jax.random.normal(key, shape)).astype(dtype)
    return jax.tree.unflatten(structure, list(map(draw, keys, leaves)))
