"""A check whether a pair (value, prox) obeys the laws of proximal operators, for any penalty."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util

from proxlm.penalties import _trees, base
from proxlm.penalties.checking import _laws
from proxlm.penalties.checking import _subject as trial

__all__ = ["Law", "Report", "check"]

# In units of the dtype's relative precision.
TOLERANCES = {
    "optimality": 30.0,
    "metric_optimality": 30.0,
    "firm_nonexpansiveness": 100.0,
    "symmetric_jacobian": 100.0,
    "spectrum": 100.0,
    "monotone": 100.0,
    "envelope_gradient": 300.0,
    "longer_steps": 30.0,
    "no_step": 1e5,
    "stationarity": 100.0,
    "uncompiled": 10.0,
    "constant_metric": 30.0,
    "idempotence": 10.0,
    "moreau": 100.0,
    "grid": 100.0,
}

LARGEST = 512  # coordinates of an example: the Jacobian has their square


class Law(NamedTuple):
    """Result of one law: the violation that was found, and the one that is tolerated.

    Attributes:
      name: of the law.
      statement: what it says.
      violation: the worst found.
      tolerance: what is allowed.
    """

    name: str
    statement: str
    violation: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the law holds; NaN is no pass."""
        return bool(self.violation <= self.tolerance)


class Report(NamedTuple):
    """Results of all the laws; printed, a line for each."""

    laws: tuple[Law, ...]

    @property
    def passed(self) -> bool:
        """Whether every law holds."""
        return all(law.passed for law in self.laws)

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the laws that do not hold."""
        return tuple(law.name for law in self.laws if not law.passed)

    def __str__(self) -> str:
        """A line for each law, the broken ones with what they say."""
        lines = [_line(law) for law in self.laws]
        verdict = f"broken: {', '.join(self.broken)}" if self.broken else "all laws hold"
        return "\n".join([*lines, verdict])


def check(
    penalty: base.Penalty,
    example: chex.ArrayTree,
    *,
    step_size: float = 0.6,
    convex: bool = True,
    is_set: bool = False,
    metric: bool = False,
    pointwise: Callable | None = None,
    dual_prox: Callable | None = None,
    seed: int = 0,
) -> Report:
    """Tries the laws of a proximal operator on a penalty.

    They are: F(z) = g(z) + |z - x|²/2t is nowhere lower than at z = prox(x), among probes that a
    wrong formula tends to return, results of the prox elsewhere, and noise; firm nonexpansiveness;
    a symmetric Jacobian with its spectrum in [0, 1]; the gradient of the Moreau envelope; g
    decreasing with t; the identity at t = 0; finite derivatives, also at 0; NaN, signs of zeros,
    compilation, dtypes. Each catches what others miss: the optimality of the prox for the value,
    the Jacobian of what is no prox of anything.

    Args:
      penalty: to be tried.
      example: an array or tree of the kind it is for, of at most 512 coordinates in all; the
        points it is tried at are random, of about the size of these.
      step_size: t > 0, for which a nonconvex g still has a unique minimiser nearly everywhere.
      convex: whether g is convex; if not, what holds of convex ones alone is not asked.
      is_set: whether g is the indicator of a set; prox must then be idempotent.
      metric: whether step sizes shaped like x are allowed; these are then tried too.
      pointwise: (z) ↦ g of single coordinates, in NumPy, of a separable g on one array; its prox
        is then compared with a brute-force search.
      dual_prox: (y, s) ↦ prox of s·g* on arrays in NumPy; Moreau's identity is then tried. Write
        it from the conjugate, not from the prox.
      seed: of the points.

    Returns:
      A `Report`; `report.passed` says it all, `print(report)` says it in words.

    Raises:
      ValueError: if `penalty` is not a Penalty, or the example is empty or too large.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> check(convex.l1(0.7), jnp.ones(5)).passed
    True
    >>> wrong = convex.l1(0.7)._replace(prox=lambda x, t: convex.l1(1.4).prox(x, t))
    >>> check(wrong, jnp.ones(5)).broken
    ('optimality', 'envelope_gradient', 'stationarity')
    """
    base.require_penalty("check", penalty=penalty)
    subject = _subject(penalty, example, step_size, is_set, seed)
    asked = ["optimality", "symmetric_jacobian", "spectrum" if convex else "monotone"]
    asked += ["firm_nonexpansiveness"] * convex + ["envelope_gradient", "longer_steps"]
    asked += ["finite_value", "no_step", "finite_derivatives", "positive_zeros"]
    asked += ["nan_in_nan_out", "uncompiled"] + ["idempotence"] * is_set
    asked += ["metric_optimality", "constant_metric"] * metric
    asked += ["stationarity"] * (penalty.residual is not None)
    found = [_try(name, subject) for name in asked]
    if dual_prox is not None:
        found.append(_try("moreau", subject, dual_prox))
    if pointwise is not None:
        found.append(_try("grid", subject, pointwise))
    kept = _keeps_dtypes(penalty, example, step_size)
    found.append(Law("dtypes", "prox keeps structure, shapes and dtypes", float(not kept), 0.0))
    return Report(tuple(found))


def _subject(penalty, example, step_size, is_set, seed):
    """The penalty on vectors, with points to try it at."""
    wide = _trees.widen("check", example)
    flat, unravel = flatten_util.ravel_pytree(wide)
    if not 1 <= flat.size <= LARGEST:
        raise ValueError(
            f"check: example has {flat.size} coordinates: expected 1 to {LARGEST}. Give a small "
            "one of the same structure."
        )
    ravel = lambda tree: flatten_util.ravel_pytree(tree)[0]
    steps = lambda t: t if jnp.ndim(t) == 0 else unravel(t)
    residual = penalty.residual and (lambda x, v: ravel(penalty.residual(unravel(x), unravel(v))))
    on_vectors = base.Penalty(
        lambda x: penalty.value(unravel(x)),
        lambda x, t: ravel(penalty.prox(unravel(x), steps(t))),
        residual,
    )
    size = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(flat))), 1e-30)
    ladder = size * jnp.array([0.3, 1.0, 3.0], flat.dtype).repeat(3)[:, None]
    keys = jax.random.split(jax.random.key(seed), 3)
    x, others = (ladder * jax.random.normal(k, (9, flat.size), flat.dtype) for k in keys[:2])
    noise = jax.random.normal(keys[2], (60, flat.size), flat.dtype)
    return trial.subject_of(on_vectors, x, others, noise, step_size, is_set)


def _keeps_dtypes(penalty, example, step_size):
    """Whether bfloat16 and the example's own dtypes come back as they went in."""
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), example)
    for x in (jax.tree.map(jnp.asarray, example), half):
        moved = jax.eval_shape(lambda x: penalty.prox(x, step_size), x)
        described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
        if described != jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), moved):
            return False
    return True


def _try(name, subject, *given):
    law = getattr(_laws, name)
    tolerance = TOLERANCES.get(name, 0.0) * float(np.finfo(subject.x.dtype).eps)
    statement = law.__doc__.split("\n\n")[0]
    return Law(name, " ".join(statement.split()), law(subject, *given), tolerance)


def _line(law):
    verdict = "holds " if law.passed else "BROKEN"
    found = f"{law.violation:.1e} (allowed {law.tolerance:.1e})"
    return f"{verdict} {law.name:22} {found}" + ("" if law.passed else f"  {law.statement}")
