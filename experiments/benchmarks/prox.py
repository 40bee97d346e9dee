"""Proximal operators against a memory copy, against peers, and swept over strengths.

Errors against float64 stand beside the times. What writes anew pays for fresh memory, as its peers
do; a donated step does not.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import clock
from experiments.benchmarks.operators import PEERS, Job, Operator, compiled, normal, operators
from experiments.support.run import tables
from proxlm import penalties

JOBS = {
    "small": Job(300_000, matrices=((128, 128), (512, 64)), swept_entries=10_000),
    "large": Job(10_000_000, matrices=((1024, 1024), (8192, 512))),
}
SWEPT = {
    "l1": penalties.l1,
    "group lasso, rows": functools.partial(penalties.group_lasso, axis=1),
    "linf": penalties.linf,
    "simplex": penalties.simplex,
    "l1 ball": penalties.l1_ball,
    "l1 ball, rows": functools.partial(penalties.l1_ball, axis=1),
}


def compare(jobs: dict[str, Job], settings: clock.Settings) -> Iterator[str]:
    """The tables of all the jobs, one after another."""
    for name, job in jobs.items():
        rows, problems = [], []
        for title, build in operators(job).items():
            more_rows, more_problems = measure(title, build(), settings)
            rows, problems = rows + more_rows, problems + more_problems
        headers = [f"{name} operators", "by", "ms", "(best)", "time / copy", "(best)", "error"]
        caption = f"median (best) of n={settings.repeats} interleaved samples; error: max, float64"
        yield "\n".join([tables.table(rows, headers), caption, *problems])
        yield sweeps(name, job, settings)


def measure(title: str, operator: Operator, settings: clock.Settings) -> tuple[list, list[str]]:
    """Rows of a table for one operator, and a line for each peer that could not compute it."""
    errors, problems = {}, []
    for by, call in operator.calls.items():
        try:
            errors[by] = float(np.max(np.abs(np.asarray(call(), np.float64) - operator.right)))
        except Exception as problem:
            if by not in PEERS:
                raise
            problems.append(f"{title}: {by} fails with {type(problem).__name__}: {problem}")
    calls = {by: operator.calls[by] for by in errors}
    timings = clock.measure({"copy": copying(operator.x), **calls}, settings)
    ratios = clock.ratios(clock.seconds_of(timings), "copy")
    rows = [
        [title, by, 1e3 * t.median, 1e3 * t.best, *ratios[by], f"{errors.get(by, 0.0):.0e}"]
        for by, t in timings.items()
    ]
    return rows, problems


def copying(x: np.ndarray) -> Callable[[], object]:
    """Copies x into memory that is there already, on the device."""
    if jax.default_backend() == "cpu":
        return functools.partial(np.copyto, np.empty_like(x), x)
    run = jax.jit(lambda old, x: x + 0.0 * old[:1], donate_argnums=0)
    held, source = jnp.array(x), jnp.asarray(x)

    def call():
        nonlocal held
        held = run(held, source).block_until_ready()

    return call


def sweeps(name: str, job: Job, settings: clock.Settings) -> str:
    """One call vmapped over strengths or radii against as many single calls."""
    x = jnp.asarray(normal(job.swept_entries // 100, 100))
    strengths = jnp.geomspace(0.01, 1.0, job.strengths)
    rows = []
    for title, make in SWEPT.items():
        one = jax.jit(lambda s, x, make=make: make(s).prox(x, 1.0))
        swept = compiled(jax.vmap(one, in_axes=(0, None)), strengths, x)
        single = lambda one=one: [one(s, x).block_until_ready() for s in strengths]
        difference = float(np.max(np.abs(swept() - jnp.stack(single()))))
        timings = clock.measure({"single": single, "vmap": swept}, settings)
        ratios = clock.ratios(clock.seconds_of(timings), "single")
        milliseconds = [1e3 * timings[by].median for by in ("single", "vmap")]
        rows.append([title, *milliseconds, *ratios["vmap"], f"{difference:.0e}"])
    calls = f"{job.strengths} calls"
    headers = [f"{name} sweep", f"{calls}, ms", "one vmap, ms", "vmap / calls", "(best)", "apart"]
    return f"{tables.table(rows, headers)}\n{x.shape[0]} x {x.shape[1]} entries, float32"
