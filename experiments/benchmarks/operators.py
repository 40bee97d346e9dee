"""Proximal operators to be timed: an input, who computes them, and what is right in float64.

To add an operator, write a function like those below and name it in `operators`.
"""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm import penalties

Call = Callable[[], Any]
PEERS = ("jaxopt", "copt", "pyproximal", "proxop", "skglm")


@dataclasses.dataclass(frozen=True)
class Job:
    """Numbers of entries, lengths of groups and rows, shapes of matrices."""

    entries: int
    group: int = 1000
    row: int = 1024
    matrices: tuple[tuple[int, int], ...] = ()
    strengths: int = 32
    swept_entries: int = 100_000


class Operator(NamedTuple):
    """An input, functions of no arguments that compute the same from it, and the right result."""

    x: np.ndarray
    calls: dict[str, Call]
    right: np.ndarray


def operators(job: Job) -> dict[str, Callable[[], Operator]]:
    """Name ↦ what builds the operator to measure; one after another, for the memory."""
    return {
        "soft threshold": lambda: soft_threshold(job),
        "group lasso": lambda: group_lasso(job),
        "simplex": lambda: on_simplex(job),
        "simplex, rows": lambda: on_simplex_rows(job),
        "l1 ball": lambda: on_l1_ball(job),
        **{f"nuclear {n} x {m}": lambda n=n, m=m: nuclear((n, m)) for n, m in job.matrices},
    }


def soft_threshold(job: Job) -> Operator:
    x, t = normal(job.entries), np.float32(0.5)
    ours = lambda x: penalties.l1(1.0).prox(x, t)
    calls = {"proxlm, donated": donated(ours, x), "proxlm": compiled(ours, x)}
    calls |= installed(
        jaxopt=lambda of: compiled(lambda x: of("jaxopt").prox.prox_lasso(x, t), x),
        copt=lambda of: functools.partial(of("copt.penalty").L1Norm(1.0).prox, x, t),
        pyproximal=lambda of: functools.partial(of("pyproximal").L1().prox, x, t),
        proxop=lambda of: functools.partial(of("proxop").L1Norm().prox, x, float(t)),
        skglm=lambda of: functools.partial(of("skglm.utils.prox_funcs").ST_vec, x, t),
    )
    return Operator(x, calls, np.sign(x) * np.maximum(np.abs(x.astype(np.float64)) - t, 0))


def group_lasso(job: Job) -> Operator:
    x, t = normal(job.entries // job.group, job.group), np.float32(np.sqrt(job.group))
    ours = lambda x: penalties.group_lasso(1.0, axis=1, weight="none").prox(x, t)
    calls = {"proxlm, donated": donated(ours, x), "proxlm": compiled(ours, x)}
    by_row = lambda prox: jax.vmap(lambda row: prox(row, t))
    across = np.ascontiguousarray(x.T).ravel()
    l21 = lambda of: of("pyproximal").L21(ndim=job.group)
    calls |= installed(
        jaxopt=lambda of: compiled(by_row(of("jaxopt").prox.prox_group_lasso), x),
        pyproximal=lambda of: lambda: l21(of).prox(across, t).reshape(job.group, -1).T,
        proxop=lambda of: functools.partial(of("proxop").L21rows().prox, x, float(t)),
    )
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return Operator(x, calls, x * np.maximum(1 - t / norms, 0))


def on_simplex(job: Job) -> Operator:
    x = normal(job.entries)
    calls = {
        "proxlm": compiled(lambda x: penalties.simplex().prox(x, 1.0), x),
        "optax": compiled(optax.projections.projection_simplex, x),
    }
    calls |= installed(
        jaxopt=lambda of: compiled(of("jaxopt").projection.projection_simplex, x),
        copt=lambda of: functools.partial(of("copt.constraint").euclidean_proj_simplex, x),
        pyproximal=lambda of: functools.partial(of("pyproximal").Simplex(x.size, 1.0).prox, x, 1.0),
        proxop=lambda of: functools.partial(of("proxop").Simplex(eta=1.0).prox, x),
    )
    return Operator(x, calls, simplex_by_sorting(x, 1.0))


def on_simplex_rows(job: Job) -> Operator:
    x = normal(job.entries // job.row, job.row)
    calls = {
        "proxlm": compiled(lambda x: penalties.simplex(axis=1).prox(x, 1.0), x),
        "optax": compiled(jax.vmap(optax.projections.projection_simplex), x),
    }
    calls |= installed(jaxopt=lambda of: compiled(jax.vmap(of("jaxopt").projection.projection_simplex), x))
    return Operator(x, calls, np.stack([simplex_by_sorting(row, 1.0) for row in x]))


def on_l1_ball(job: Job) -> Operator:
    x, r = normal(job.entries), np.float32(job.entries / 20)
    calls = {
        "proxlm": compiled(lambda x: penalties.l1_ball(r).prox(x, 1.0), x),
        "optax": compiled(lambda x: optax.projections.projection_l1_ball(x, r), x),
    }
    jaxopt_ball = lambda of: lambda x: of("jaxopt").projection.projection_l1_ball(x, r)
    calls |= installed(
        jaxopt=lambda of: compiled(jaxopt_ball(of), x),
        copt=lambda of: functools.partial(of("copt.constraint").euclidean_proj_l1ball, x, float(r)),
        pyproximal=lambda of: functools.partial(of("pyproximal").L1Ball(x.size, r).prox, x, 1.0),
    )
    return Operator(x, calls, np.sign(x) * simplex_by_sorting(np.abs(x), float(r)))


def nuclear(shape: tuple[int, int]) -> Operator:
    """Rank 64 and noise; the threshold takes most of the noise away."""
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(shape[0], 64)) @ rng.normal(size=(64, shape[1])) / 8
    x = (low_rank + rng.normal(size=shape)).astype(np.float32)
    u, values, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    t = np.float32(values[min(80, values.size // 2)])

    def by_svd(x):
        u, values, v = jnp.linalg.svd(x, full_matrices=False)
        return (u * jnp.maximum(values - t, 0)[None]) @ v

    routes = {
        f"proxlm, {route}": compiled(
            lambda x, route=route: penalties.nuclear(t, method=route).prox(x, 1.0), x
        )
        for route in ("svd", "qr", "gram")
    }
    calls = routes | {"jnp.linalg.svd": compiled(by_svd, x)}
    flat = lambda prox: lambda: prox(x.ravel(), float(t)).reshape(shape)
    calls |= installed(
        copt=lambda of: flat(of("copt.penalty").TraceNorm(1.0, shape).prox),
        pyproximal=lambda of: flat(of("pyproximal").Nuclear(shape, 1.0).prox),
        proxop=lambda of: functools.partial(of("proxop").NuclearNorm().prox, x, float(t)),
    )
    return Operator(x, calls, (u * np.maximum(values - t, 0)) @ v)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def compiled(function, *arguments) -> Call:
    """Calls a compiled function on its arguments, into new memory each time."""
    run, arguments = jax.jit(function), [jnp.asarray(argument) for argument in arguments]
    return lambda: run(*arguments).block_until_ready()


def donated(function, x) -> Call:
    """Calls a compiled function on its own last result, in place, as a training step does."""
    run, x = jax.jit(function, donate_argnums=0), jnp.array(x)

    def call():
        nonlocal x
        x = run(x).block_until_ready()
        return x

    return call


def installed(**makers: Callable[[Callable[[str], Any]], Call]) -> dict[str, Call]:
    """The calls of the peers that are there, each made from `importlib.import_module`."""
    there = {name: make for name, make in makers.items() if importlib.util.find_spec(name)}
    return {name: make(importlib.import_module) for name, make in there.items()}


def simplex_by_sorting(x: np.ndarray, total: float) -> np.ndarray:
    x = x.astype(np.float64)
    ordered = np.sort(x)[::-1]
    taus = (np.cumsum(ordered) - total) / np.arange(1, x.size + 1)
    return np.maximum(x - taus[ordered > taus][-1], 0)
