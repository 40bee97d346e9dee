"""The laws of a proximal operator, each as the worst violation that was found.

A law takes a `PenaltyUnderTest`, which is a penalty on plain vectors with points to try it at;
`penalties.check` makes one, and compares with tolerances. Nonnegative numbers are violations; laws that
compare objectives may be negative where they hold.

Source: Moreau 1965; Bauschke & Combettes, Convex Analysis and Monotone Operator Theory, 2nd edition, 2017.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from proxlm.penalties.checking._penalty_under_test import PenaltyUnderTest, count, example, worst

__all__ = [
    "constant_metric",
    "finite_value",
    "firm_nonexpansiveness",
    "grid",
    "idempotence",
    "longer_steps",
    "metric_optimality",
    "moreau",
    "nan_in_nan_out",
    "no_step",
    "optimality",
    "positive_zeros",
    "stationarity",
    "uncompiled",
]

_example = example  # of the docstrings


def optimality(tried: PenaltyUnderTest) -> float:
    """F(z) = g(z) + |z - x|²/2t is nowhere below F(prox(x)), relative to 1 + |F|.

    >>> optimality(_example()) < 1e-6
    True
    """
    return _excess(tried, tried.step_size)


def metric_optimality(tried: PenaltyUnderTest) -> float:
    """The same for F(z) = g(z) + Σ_i (z_i - x_i)²/2t_i, the steps differing by coordinate.

    >>> metric_optimality(_example()) < 1e-6
    True
    """
    return _excess(tried, _uneven(tried))


def constant_metric(tried: PenaltyUnderTest) -> float:
    """Equal step sizes for all coordinates are one step size, relative to |x|.

    >>> constant_metric(_example())
    0.0
    """
    equal = np.full(tried.x.shape[1], tried.step_size)
    gap = np.abs(tried.prox(tried.x, equal) - tried.prox(tried.x, tried.step_size))
    return worst(gap / np.abs(tried.x).max())


def _uneven(tried):
    return tried.step_size * np.linspace(0.25, 1.0, tried.x.shape[1])


def _excess(tried, steps):
    best = tried.prox(tried.x, steps)
    # Results of the prox elsewhere lie in the domain, whatever it is.
    elsewhere = np.concatenate([best, tried.prox(tried.others, steps)])
    worst = -np.inf
    for x, goal in zip(tried.x, best, strict=True):
        near = tried.prox(x + 0.1 * tried.noise, steps)
        probes = [goal[None], *_structured(x, goal), *_noisy(goal, tried.noise), elsewhere, near]
        probes = np.concatenate(probes)
        if tried.is_set:  # points within the tolerance of the set, but outside, would be nearer
            probes[1:] = tried.prox(probes[1:], steps)
        distance = 0.5 * np.square(probes.astype(np.float64) - x) / steps
        objective = tried.value(probes) + np.sum(distance, axis=1)
        lowest = np.nanmin(objective)
        worst = np.maximum(worst, (objective[0] - lowest) / (1.0 + np.abs(lowest)))
    return float(worst)


def _structured(x, best):
    """Points that wrong formulas tend to return."""
    off = np.eye(x.size, dtype=x.dtype)
    scaled = [np.zeros_like(x), x, -best, 0.99 * best, 1.01 * best, 0.5 * (x + best), 0.9 * x]
    spread = [best * (1 - off), x * (1 - off), best * off, x * off]
    return np.stack(scaled), *spread, best + 0.05 * off, best - 0.05 * off


def _noisy(best, noise):
    sparse = np.where(best == 0, 0, noise)
    return best + 0.1 * noise, best + 0.01 * noise, best + 0.1 * sparse, best + 0.01 * sparse


def firm_nonexpansiveness(tried: PenaltyUnderTest) -> float:
    """|Px - Py|² ≤ ⟨Px - Py, x - y⟩, relative to |x - y|²: true of convex g alone.

    >>> firm_nonexpansiveness(_example()) < 1e-6
    True
    """
    # Far pairs and near ones.
    x = np.concatenate([tried.x, tried.x, tried.x])
    y = np.concatenate([tried.others, tried.x + 0.1 * tried.others, -tried.x])
    moved = tried.prox(x, tried.step_size) - tried.prox(y, tried.step_size)
    excess = np.sum(moved * (moved - (x - y)), axis=1, dtype=np.float64)
    return worst(excess / np.sum(np.square(x - y), axis=1, dtype=np.float64))


def longer_steps(tried: PenaltyUnderTest) -> float:
    """The larger the step, the smaller g at its end, relative to 1 + |g|.

    >>> longer_steps(_example()) <= 0
    True
    """
    steps = tried.step_size * np.array([0.1, 0.3, 1.0])
    values = np.stack([tried.value(tried.prox(tried.x, t)) for t in steps])
    return worst(np.diff(values, axis=0) / (1.0 + np.abs(values[:-1])))


def no_step(tried: PenaltyUnderTest) -> float:
    """At t = 0 a point of the domain stays where it is, bit for bit; at a tiny t, almost.

    >>> no_step(_example()) < 1e-5
    True
    """
    inside = tried.prox(tried.prox(tried.x, tried.step_size), 0.0)
    if not _stays(tried, inside):
        return np.inf
    if not tried.is_set:  # coordinates of very different sizes, which a set mixes by rounding
        sizes = np.resize(np.array([1e-25, 1e-3, 1.0, 1e20], inside.dtype), inside.shape[1])
        if not _stays(tried, tried.prox(np.sort(sizes) * tried.x, 0.0)):
            return np.inf
    return worst(np.abs(tried.prox(inside, 1e-6 * tried.step_size) - inside))


def _stays(tried, inside):
    return tried.prox(inside, 0.0).tobytes() == inside.tobytes()


def finite_value(tried: PenaltyUnderTest) -> float:
    """The prox lands where g is finite: how often it does not.

    >>> finite_value(_example())
    0.0
    """
    return count(~np.isfinite(tried.value(tried.prox(tried.x, tried.step_size))))


def stationarity(tried: PenaltyUnderTest) -> float:
    """(x - prox(x))/t is a subgradient at prox(x): its residual, relative to 1 + |x|/t.

    >>> stationarity(_example()) < 1e-6
    True
    """
    x, t = tried.x, tried.step_size
    moved = tried.prox(x, t)
    assert tried.residual is not None
    left = tried.residual(moved, (x - moved) / t)
    return worst(np.abs(left) / (1.0 + np.abs(x).max() / t))


def positive_zeros(tried: PenaltyUnderTest) -> float:
    """A zero that the prox makes is +0: how many are -0.

    >>> positive_zeros(_example())
    0.0
    """
    moved = tried.prox(tried.x, tried.step_size)
    return count((moved == 0) & np.signbit(moved))


def nan_in_nan_out(tried: PenaltyUnderTest) -> float:
    """NaN in gives NaN out, in the value too; returns the number of times that it does not.

    >>> nan_in_nan_out(_example())
    0.0
    """
    x = tried.x[3]
    spoilt = np.where(np.eye(x.size, dtype=bool), x.dtype.type(np.nan), x)
    value, moved = tried.evaluate(spoilt, tried.step_size)
    return count(~np.isnan(np.diagonal(moved))) + count(~np.isnan(value))


def uncompiled(tried: PenaltyUnderTest) -> float:
    """Alone and op by op the prox is what it is compiled and in a batch, relative to |x|.

    >>> uncompiled(_example()) < 1e-6
    True
    """
    together = tried.prox(tried.x[:2], tried.step_size)
    rows = map(jnp.asarray, tried.x[:2])
    alone = np.stack([tried.penalty.prox(x, tried.step_size) for x in rows])
    return worst(np.abs(together - alone) / np.abs(tried.x).max())


def idempotence(tried: PenaltyUnderTest) -> float:
    """A projection leaves its results where they are, for every step size, relative to |x|.

    >>> idempotence(_example()) > 0.01  # the lasso's prox is no projection
    True
    """
    once = tried.prox(tried.x, tried.step_size)
    twice = tried.prox(once, 0.5 * tried.step_size)
    return worst(np.abs(twice - once) / np.abs(tried.x).max())


def moreau(tried: PenaltyUnderTest, dual_prox: Callable[[np.ndarray, float], np.ndarray]) -> float:
    """prox_tg(x) + t prox_(g*/t)(x/t) = x, relative to |x|.

    >>> moreau(_example(), lambda y, s: np.clip(y, -0.5, 0.5)) < 1e-6
    True
    """
    x, t = tried.x, tried.step_size
    dual = np.stack([dual_prox(row / t, 1.0 / t) for row in x.astype(np.float64)])
    return worst(np.abs(tried.prox(x, t) + t * dual - x) / np.abs(x).max())


def grid(tried: PenaltyUnderTest, pointwise: Callable[[np.ndarray], np.ndarray]) -> float:
    """The objective of no coordinate of a separable g is lower on a grid than at the prox.

    >>> grid(_example(), lambda z: 0.5 * np.abs(z)) < 1e-6
    True
    """
    worst, t = -np.inf, tried.step_size
    for x, best in zip(tried.x, tried.prox(tried.x, t), strict=True):
        reach = 1.0 + 2.0 * np.abs(x).max()
        cells = np.linspace(-reach, reach, 20001)[:, None] * np.ones(x.shape)
        objective = lambda z, x=x: pointwise(z) + 0.5 * np.square(z - x) / t
        excess = objective(best[None].astype(np.float64))[0] - objective(cells).min(axis=0)
        worst = np.maximum(worst, excess.max())
    return float(worst)
