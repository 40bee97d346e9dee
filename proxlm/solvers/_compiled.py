"""Runs and steps of a solver, compiled once for each problem and shape where all numbers are known."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import base
from proxlm.solvers import _iterate
from proxlm.solvers._iterate import Numbers, SolverState, Static

__all__ = ["run", "update"]


def run(static: Static, numbers: Numbers, params: Any, args: tuple) -> tuple[Any, Any, Any, SolverState]:
    """As `_iterate.run`; a second call with the same functions and shapes is not compiled again."""
    snapshot = _snapshot(static, numbers, params, args)
    if snapshot is None:
        return _iterate.run(static, numbers, params, args)
    # No derivative can be asked of numbers that are known.
    return _jitted("run", _compiles_faster())(
        static._replace(implicit=False), snapshot, numbers, params, args
    )


def update(
    static: Static, numbers: Numbers, params: Any, state: SolverState, args: tuple
) -> tuple[Any, SolverState]:
    """As `_iterate.update`, compiled."""
    if not (_are_numbers((params, state, args)) and _is_hashable(static)):
        return _iterate.update(static, numbers, params, state, args)
    return _jitted("update", _compiles_faster())(static, None, numbers, params, state, args)


# They compile a third faster without these emitters, and run as fast.
OPTIONS = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _jitted(name, fast):
    call = lambda static, snapshot, *args: getattr(_iterate, name)(static, *args)
    return jax.jit(call, static_argnums=(0, 1), compiler_options=OPTIONS if fast else None)


def _compiles_faster():
    """Whether a program compiled now may have these options: on CPU, and not inside of another."""
    return _validation.is_known(jnp.zeros(())) and _knows_options(jax.default_backend())


@functools.cache
def _knows_options(backend):
    if backend != "cpu":
        return False
    try:
        jax.jit(lambda x: x, compiler_options=OPTIONS)(0.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _snapshot(static, numbers, params, args):
    """A key for what f and g are now; None where something is traced, or is no key.

    A function may close over what changes between two calls, so its trace belongs to the key.
    """
    if not (_is_hashable(static) and _are_numbers((numbers, params, args))):
        return None
    objective = static.objective
    penalty = objective.penalty
    # A penalty that is equal to any made by the same call holds nothing that is traced.
    prox = (lambda params: None) if base.is_literal(penalty) else lambda params: penalty.prox(params, 1.0)
    traced = jax.make_jaxpr(lambda params, args: (objective.fun(params, *args), prox(params)))(params, args)
    if not _are_numbers(traced.consts):
        return None
    constants = tuple((np.shape(c), hash(np.asarray(c).tobytes())) for c in traced.consts)
    return re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)), constants


def _is_hashable(static):
    try:
        hash(static)
    except TypeError:
        return False
    return True


def _are_numbers(tree):
    """Whether all leaves are numbers that are known."""
    known = lambda leaf: isinstance(leaf, _validation.NUMBERS) and _validation.is_known(leaf)
    return all(known(leaf) for leaf in jax.tree.leaves(tree))
