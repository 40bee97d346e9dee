"""The laws of a proximal operator, each as a number that must not exceed a tolerance.

A law takes a `Subject`, a penalty on plain vectors with points to try it at, and gives the worst
violation it found.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from proxlm.penalties.checking._subject import Subject


def optimality(subject: Subject) -> float:
    """F(z) = g(z) + |z - x|²/2t is nowhere below F(prox(x)), relative to 1 + |F|."""
    return _excess(subject, subject.step_size)


def metric_optimality(subject: Subject) -> float:
    """The same for F(z) = g(z) + Σ_i (z_i - x_i)²/2t_i, the steps differing by coordinate."""
    return _excess(subject, _uneven(subject))


def constant_metric(subject: Subject) -> float:
    """Equal step sizes for all coordinates are one step size, relative to |x|."""
    equal = np.full(subject.x.shape[1], subject.step_size)
    gap = np.abs(subject.prox(subject.x, equal) - subject.prox(subject.x, subject.step_size))
    return _worst(gap / np.abs(subject.x).max())


def _uneven(subject):
    return subject.step_size * np.linspace(0.25, 1.0, subject.x.shape[1])


def _excess(subject, steps):
    best = subject.prox(subject.x, steps)
    # The results of the prox elsewhere lie in the domain, whatever it is.
    elsewhere = np.concatenate([best, subject.prox(subject.others, steps)])
    worst = -np.inf
    for x, goal in zip(subject.x, best, strict=True):
        near = subject.prox(x + 0.1 * subject.noise, steps)
        probes = [goal[None], *_structured(x, goal), *_noisy(goal, subject.noise), elsewhere, near]
        probes = np.concatenate(probes)
        if subject.is_set:  # The tolerance of a set would let in what is nearer.
            probes[1:] = subject.prox(probes[1:], steps)
        distance = 0.5 * np.square(probes.astype(np.float64) - x) / steps
        objective = subject.value(probes) + np.sum(distance, axis=1)
        lowest = np.nanmin(objective)
        worst = np.maximum(worst, (objective[0] - lowest) / (1.0 + np.abs(lowest)))
    return float(worst)


def _structured(x, best):
    """Points that a wrong formula tends to return, as probes."""
    off = np.eye(x.size, dtype=x.dtype)
    scaled = [np.zeros_like(x), x, -best, 0.99 * best, 1.01 * best, 0.5 * (x + best), 0.9 * x]
    spread = [best * (1 - off), x * (1 - off), best * off, x * off]
    return np.stack(scaled), *spread, best + 0.05 * off, best - 0.05 * off


def _noisy(best, noise):
    sparse = np.where(best == 0, 0, noise)
    return best + 0.1 * noise, best + 0.01 * noise, best + 0.1 * sparse, best + 0.01 * sparse


def firm_nonexpansiveness(subject: Subject) -> float:
    """|Px - Py|² ≤ ⟨Px - Py, x - y⟩, relative to |x - y|²: true of convex g alone."""
    # Far pairs and near ones.
    x = np.concatenate([subject.x, subject.x, subject.x])
    y = np.concatenate([subject.others, subject.x + 0.1 * subject.others, -subject.x])
    moved = subject.prox(x, subject.step_size) - subject.prox(y, subject.step_size)
    excess = np.sum(moved * (moved - (x - y)), axis=1, dtype=np.float64)
    return _worst(excess / np.sum(np.square(x - y), axis=1, dtype=np.float64))


def symmetric_jacobian(subject: Subject) -> float:
    """The Jacobian of a prox is symmetric: it is the Hessian of a function."""
    jacobians = subject.forwards(subject.x)
    return _worst(np.abs(jacobians - jacobians.swapaxes(1, 2)))


def spectrum(subject: Subject) -> float:
    """The eigenvalues of the Jacobian lie in [0, 1] for a convex g."""
    eigenvalues = _eigenvalues(subject)
    return _worst(np.maximum(-eigenvalues, eigenvalues - 1.0))


def monotone(subject: Subject) -> float:
    """The eigenvalues of the Jacobian are ≥ 0 for every g."""
    return _worst(-_eigenvalues(subject))


def _eigenvalues(subject):
    jacobians = subject.forwards(subject.x).astype(np.float64)
    finite = np.all(np.isfinite(jacobians))
    return np.linalg.eigvalsh(jacobians) if finite else np.full(1, np.nan)


def envelope_gradient(subject: Subject) -> float:
    """The derivative of min_z g(z) + |z - x|²/2t is (x - prox(x))/t, relative to 1 + |x|/t."""
    x, t = subject.x, subject.step_size
    gap = np.abs(subject.envelope_slope(x) - (x - subject.prox(x, t)) / t)
    return _worst(gap / (1.0 + np.abs(x).max() / t))


def longer_steps(subject: Subject) -> float:
    """The larger the step, the smaller g at its end, relative to 1 + |g|."""
    steps = subject.step_size * np.array([0.1, 0.3, 1.0])
    values = np.stack([subject.value(subject.prox(subject.x, t)) for t in steps])
    return _worst(np.diff(values, axis=0) / (1.0 + np.abs(values[:-1])))


def no_step(subject: Subject) -> float:
    """At t = 0 a point of the domain stays where it is, bit for bit; at a tiny t, almost."""
    inside = subject.prox(subject.prox(subject.x, subject.step_size), 0.0)
    if not np.array_equal(subject.prox(inside, 0.0), inside):
        return np.inf
    return _worst(np.abs(subject.prox(inside, 1e-6 * subject.step_size) - inside))


def finite_value(subject: Subject) -> float:
    """The prox lands where g is finite: how often it does not."""
    return _count(~np.isfinite(subject.value(subject.prox(subject.x, subject.step_size))))


def stationarity(subject: Subject) -> float:
    """(x - prox(x))/t is a subgradient at prox(x): its residual, relative to 1 + |x|/t."""
    x, t = subject.x, subject.step_size
    moved = subject.prox(x, t)
    left = subject.residual(moved, (x - moved) / t)
    return _worst(np.abs(left) / (1.0 + np.abs(x).max() / t))


def finite_derivatives(subject: Subject) -> float:
    """Derivatives at 0 and at results of the prox hold no NaN or infinity: how many do."""
    moved = subject.prox(subject.x, subject.step_size)
    points = np.concatenate([np.zeros_like(subject.x[:1]), moved])
    functions = (subject.forwards, subject.backwards, subject.slope, subject.envelope_slope)
    return sum(_count(~np.isfinite(function(points))) for function in functions)


def positive_zeros(subject: Subject) -> float:
    """A zero that the prox makes is +0: how many are -0."""
    moved = subject.prox(subject.x, subject.step_size)
    return _count((moved == 0) & np.signbit(moved))


def nan_in_nan_out(subject: Subject) -> float:
    """NaN in gives NaN out, in the value too; returns the number of times that it does not."""
    x = subject.x[3]
    spoilt = np.where(np.eye(x.size, dtype=bool), x.dtype.type(np.nan), x)
    moved = subject.prox(spoilt, subject.step_size)
    return _count(~np.isnan(np.diagonal(moved))) + _count(~np.isnan(subject.value(spoilt)))


def uncompiled(subject: Subject) -> float:
    """Alone and op by op the prox is what it is compiled and in a batch, relative to |x|."""
    together = subject.prox(subject.x[:2], subject.step_size)
    rows = map(jnp.asarray, subject.x[:2])
    alone = np.stack([subject.penalty.prox(x, subject.step_size) for x in rows])
    return _worst(np.abs(together - alone) / np.abs(subject.x).max())


def idempotence(subject: Subject) -> float:
    """A projection leaves its results where they are, for every step size, relative to |x|."""
    once = subject.prox(subject.x, subject.step_size)
    twice = subject.prox(once, 0.5 * subject.step_size)
    return _worst(np.abs(twice - once) / np.abs(subject.x).max())


def moreau(subject: Subject, dual_prox: Callable) -> float:
    """prox_tg(x) + t prox_(g*/t)(x/t) = x, relative to |x|."""
    x, t = subject.x, subject.step_size
    dual = np.stack([dual_prox(row / t, 1.0 / t) for row in x.astype(np.float64)])
    return _worst(np.abs(subject.prox(x, t) + t * dual - x) / np.abs(x).max())


def grid(subject: Subject, pointwise: Callable) -> float:
    """The objective of no coordinate of a separable g is lower on a grid than at the prox."""
    worst, t = -np.inf, subject.step_size
    for x, best in zip(subject.x, subject.prox(subject.x, t), strict=True):
        reach = 1.0 + 2.0 * np.abs(x).max()
        cells = np.linspace(-reach, reach, 20001)[:, None] * np.ones(x.shape)
        objective = lambda z, x=x: pointwise(z) + 0.5 * np.square(z - x) / t
        excess = objective(best[None].astype(np.float64))[0] - objective(cells).min(axis=0)
        worst = np.maximum(worst, excess.max())
    return float(worst)


def _worst(violations):
    return float(np.max(violations))


def _count(bad):
    return float(np.sum(bad))
