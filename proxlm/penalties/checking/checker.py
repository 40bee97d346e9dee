"""A check of any penalty, the user's own included, against the laws of proximal operators."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util

from proxlm import _validation
from proxlm.penalties import _trees, base
from proxlm.penalties.checking import _derivative_laws, _laws, _penalty_under_test
from proxlm.penalties.checking._penalty_under_test import PenaltyUnderTest

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
    """The verdict of one law.

    Attributes:
      name: the name of the law.
      statement: the law in words.
      violation: the worst found.
      tolerance: the largest violation allowed.

    >>> Law("optimality", "F is lowest at the prox", violation=0.5, tolerance=1e-6).passed
    False
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
    """The verdicts of all laws; printed, a line for each.

    Attributes:
      laws: the verdicts.
      remedy: what to change, where the violations show it; else empty.

    >>> print(Report((Law("optimality", "F is lowest at the prox", 0.5, 1e-6),), "Halve it."))
    BROKEN optimality             5.0e-01 (allowed 1.0e-06)  F is lowest at the prox
    broken: optimality. Halve it.
    """

    laws: tuple[Law, ...]
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether every law holds."""
        return all(law.passed for law in self.laws)

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the laws that do not hold."""
        return tuple(law.name for law in self.laws if not law.passed)

    def __str__(self) -> str:
        """A line for each law, the broken ones with their statement."""
        lines = [_line(law) for law in self.laws]
        remedy = f". {self.remedy}" if self.remedy else ""
        verdict = f"broken: {', '.join(self.broken)}{remedy}" if self.broken else "all laws hold"
        return "\n".join([*lines, verdict])


def check(
    penalty: base.Penalty,
    example: chex.ArrayTree,
    *,
    step_size: float = 0.6,
    convex: bool = True,
    is_set: bool = False,
    metric: bool = False,
    pointwise: Callable[[np.ndarray], np.ndarray] | None = None,
    dual_prox: Callable[[np.ndarray, float], np.ndarray] | None = None,
    seed: int = 0,
) -> Report:
    """Checks a penalty against the laws of proximal operators.

    They are: F(z) = g(z) + |z - x|²/2t is nowhere lower than at z = prox(x), among points that wrong formulas
    tend to return, results of the prox elsewhere, and noise; firm nonexpansiveness; a symmetric Jacobian with
    its spectrum in [0, 1]; the gradient of the Moreau envelope; g decreasing with t; the identity at t = 0;
    finite derivatives, also at and near 0; NaN, signs of zeros, compilation, dtypes. Each catches what others
    miss: optimality, the prox of another value; the Jacobian, a map that is the prox of no function.

    Args:
      penalty: the penalty to check.
      example: an array or tree of the kind it is for, of at most 512 coordinates in all. It is tried at
        random points of about this size.
      step_size: t > 0, for which a nonconvex g still has a unique minimiser nearly everywhere.
      convex: whether g is convex; if not, laws of convex functions alone are left out.
      is_set: whether g is the indicator of a set; prox must then be idempotent.
      metric: whether step sizes shaped like x are allowed; these are then tried too.
      pointwise: (z) ↦ g of single coordinates, in NumPy, of a separable g on one array; its prox
        is then compared with a brute-force search.
      dual_prox: (y, s) ↦ prox of s·g* on arrays in NumPy; Moreau's identity is then tried. Write
        it from the conjugate, not from the prox.
      seed: of the random points.

    Returns:
      A `Report`: `report.passed` is the verdict, `print(report)` gives it law by law.

    Raises:
      ValueError: if `penalty` is not a Penalty, the example is empty or too large, or `step_size` is not > 0.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> check(convex.l1(0.7), jnp.ones(5)).passed
    True
    >>> wrong = convex.l1(0.7)._replace(prox=lambda x, t: convex.l1(1.4).prox(x, t))
    >>> check(wrong, jnp.ones(5)).broken
    ('optimality', 'envelope_gradient', 'stationarity')
    """
    base.require_penalty("check", penalty=penalty)
    if penalty.value is None:
        remedy = f"The laws compare values of g; for a set give its indicator. Mind that {RADIUS}"
        raise _validation.invalid("penalty.value", None, "a function", remedy, "check")
    _validation.tree_positive("check", step_size=step_size)
    _validation.scalar("check", step_size=step_size)
    _validation.one_of((True, False), "check", convex=convex)
    _validation.one_of((True, False), "check", is_set=is_set)
    _validation.one_of((True, False), "check", metric=metric)
    _validation.to_int(0, "check", seed=seed)
    tried = _on_vectors(penalty, example, step_size, is_set, seed)
    asked = ["optimality", "symmetric_jacobian", "spectrum" if convex else "monotone"]
    asked += ["firm_nonexpansiveness"] * convex + ["envelope_gradient", "longer_steps"]
    asked += ["finite_value", "no_step", "finite_derivatives", "positive_zeros"]
    asked += ["nan_in_nan_out", "uncompiled"] + ["idempotence"] * is_set
    asked += ["metric_optimality", "constant_metric"] * metric
    asked += ["stationarity"] * (penalty.residual is not None)
    found = [_try(name, tried) for name in asked]
    if dual_prox is not None:
        found.append(_try("moreau", tried, dual_prox))
    if pointwise is not None:
        found.append(_try("grid", tried, pointwise))
    kept = _keeps_dtypes(penalty, example, step_size)
    found.append(Law("dtypes", "prox keeps structure, shapes and dtypes", float(not kept), 0.0))
    takes_radius = any(not law.passed for law in found) and _step_is_radius(tried)
    return Report(tuple(found), RADIUS if takes_radius else "")


def _on_vectors(penalty, example, step_size, is_set, seed):
    """The penalty on vectors, with points to try it at."""
    wide = _trees.widen("check", example)
    flat, unravel = flatten_util.ravel_pytree(wide)
    if not 1 <= flat.size <= LARGEST:
        given = _validation.Verbatim(f"{flat.size} coordinates")
        remedy = "Give a small one of the same structure."
        raise _validation.invalid("example", given, f"of 1 to {LARGEST} coordinates", remedy, "check")
    ravel = lambda tree: flatten_util.ravel_pytree(tree)[0]
    steps = lambda t: t if jnp.ndim(t) == 0 else unravel(t)
    residual = penalty.residual and (lambda x, v: ravel(penalty.residual(unravel(x), unravel(v))))
    on_vectors = base.Penalty(
        lambda x: penalty.value(unravel(x)), lambda x, t: ravel(penalty.prox(unravel(x), steps(t))), residual
    )
    size = max(np.sqrt(np.mean(np.square(flat))), 1e-30)
    sizes = size * np.repeat([0.3, 1.0, 3.0], 3)[:, None]
    draw = np.random.default_rng(seed)
    x, others = (sizes * draw.normal(size=(9, flat.size)) for _ in range(2))
    noise = draw.normal(size=(60, flat.size))
    x, others, noise = (jnp.asarray(a, flat.dtype) for a in (x, others, noise))
    return _penalty_under_test.under_test(on_vectors, x, others, noise, step_size, is_set)


RADIUS = (
    "prox(x, t) projects x onto a set of radius t: it takes the step size for the radius. A projection is "
    "the prox of an indicator at every step size: prox=lambda x, t: projection(x, radius)."
)


def _step_is_radius(tried: PenaltyUnderTest) -> bool:
    """Whether the prox is a projection, and onto ever smaller sets as t vanishes (a prox: onto x itself)."""
    x, tiny = tried.x, 1e-6 * tried.step_size
    once, shrunk = tried.prox(x, tried.step_size), tried.prox(x, tiny)
    again = tried.prox(once, tried.step_size)
    scale = np.abs(x).max()
    return bool(np.abs(again - once).max() < 1e-5 * scale and np.abs(shrunk).max() < 1e-3 * scale)


def _keeps_dtypes(penalty, example, step_size):
    """Whether bfloat16 and the example's own dtypes come back as they went in."""
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), example)
    for x in (jax.tree.map(jnp.asarray, example), half):
        moved = jax.eval_shape(lambda x: penalty.prox(x, step_size), x)
        described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
        if described != jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), moved):
            return False
    return True


def _try(name, tried, *given):
    law = getattr(_derivative_laws if name in _derivative_laws.__all__ else _laws, name)
    tolerance = TOLERANCES.get(name, 0.0) * float(np.finfo(tried.x.dtype).eps)
    statement = law.__doc__.split("\n\n")[0]
    with np.errstate(invalid="ignore"):  # ∞ - ∞ of values outside a set is NaN, which breaks the law
        return Law(name, " ".join(statement.split()), law(tried, *given), tolerance)


def _line(law):
    verdict = "holds " if law.passed else "BROKEN"
    found = f"{law.violation:.1e} (allowed {law.tolerance:.1e})"
    return f"{verdict} {law.name:22} {found}" + ("" if law.passed else f"  {law.statement}")
