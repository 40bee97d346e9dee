"""Penalties on single coordinates that, unlike the lasso, hardly shrink what they keep.

Shared arguments as in `proxlm.penalties`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _slots, base

__all__ = ["l0", "log_sum", "mcp", "scad"]


def l0(strength: base.Strength = 1.0) -> base.Penalty:
    """Number of nonzero coordinates: g(x) = Σ_i λ_i [x_i ≠ 0].

    prox_tg(x)_i = x_i if |x_i| > √(2tλ_i), else 0: hard thresholding. A coordinate on the
    threshold, where both are minimisers, becomes 0. What is kept keeps its bits.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Donoho & Johnstone 1994 (hard thresholding); Attouch, Bolte & Svaiter 2013 (as a prox).

    >>> l0(0.5).prox(jnp.array([-3.0, 0.9, 1.0, 1.1]), 1.0).tolist()
    [-3.0, 0.0, 0.0, 1.100000023841858]
    >>> float(l0(0.5).value(jnp.array([-3.0, 0.0, 1.1])))
    1.0
    """

    def value(x, strength):
        return jnp.sum(jnp.where(jnp.isnan(x), x, jnp.where(x == 0, 0.0, strength)))

    def prox(x, step_size, strength):
        return _keep_above(jnp.sqrt(2.0 * base.pull(step_size, strength)), x, x)

    def residual(x, v, strength):
        del strength
        return jnp.where(x == 0, 0.0, v)

    _validation.tree_at_least(0, "l0", strength=strength)
    parameters = {"strength": (strength, _slots.coordinates)}
    return base.leafwise("l0", value, prox, parameters, _slots.coordinates, residual)


def mcp(strength: base.Strength = 1.0, gamma: base.Strength = 3.0) -> base.Penalty:
    """Minimax concave penalty: g(x) = Σ_i λ|x_i| - x_i²/2γ where |x_i| ≤ γλ, else γλ²/2.

    For t < γ the prox is firm thresholding: 0 up to |x| = tλ, sign(x) (|x| - tλ) / (1 - t/γ) up to
    γλ, and x beyond. For t ≥ γ the objective is concave up to γλ, so that the minimum is at 0 or at
    x itself: hard thresholding at λ√(γt). A coordinate on a threshold becomes 0.

    Args:
      gamma: γ > 0, in the forms of the strength. The lasso is the limit γ → ∞, l0 of strength s that of
        λ = √(2s/γ), γ → 0.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal, on either side of γ. Cost: one pass.

    Source: Zhang 2010; the firm threshold is Gao & Bruce 1997.

    >>> mcp(1.0, gamma=2.0).prox(jnp.array([-3.0, 1.0, 1.5, 2.5]), 1.0).tolist()
    [-3.0, 0.0, 1.0, 2.5]
    >>> mcp(1.0, gamma=2.0).prox(jnp.array([4.0, 4.1]), 8.0).tolist()
    [0.0, 4.099999904632568]
    >>> float(mcp(1.0, gamma=2.0).value(jnp.array([-3.0, 1.0])))
    1.75
    """

    def value(x, strength, gamma):
        return jnp.sum(_concave(jnp.abs(x), strength, gamma))

    def prox(x, step_size, strength, gamma):
        firm = step_size < gamma
        short = jnp.where(firm, step_size, 0.0)
        threshold = base.pull(jnp.where(firm, step_size, jnp.sqrt(base.pull(gamma, step_size))), strength)
        shrunk = (x - jnp.sign(x) * base.pull(short, strength)) / (1.0 - short / gamma)
        between = firm & (jnp.abs(x) < base.pull(gamma, strength))
        return _keep_above(threshold, x, jnp.where(between, shrunk, x))

    def residual(x, v, strength, gamma):
        slope = jnp.maximum(strength - jnp.abs(x) / gamma, 0.0)
        return _subtract_slope(x, v, slope, strength)

    _validation.tree_at_least(0, "mcp", strength=strength)
    _validation.tree_positive("mcp", gamma=gamma)
    parameters = {"strength": (strength, _slots.coordinates), "gamma": (gamma, _slots.coordinates)}
    return base.leafwise("mcp", value, prox, parameters, _slots.coordinates, residual)


def scad(strength: base.Strength = 1.0, a: base.Strength = 3.7) -> base.Penalty:
    """Smoothly clipped absolute deviation: g(0) = 0, g'(s) = min(λ, (aλ - s)₊/(a - 1)) for s > 0.

    So g is λ|x| up to λ, (2aλ|x| - x² - λ²) / 2(a - 1) up to aλ, and λ²(a + 1)/2 beyond. Its prox
    is the soft threshold up to a knee κ, and then
      if t < a - 1: κ = (1 + t)λ, (x - sign(x) taλ/(a - 1)) / (1 - t/(a - 1)) up to aλ, then x;
      if t ≥ a - 1: x itself, where κ = λ(a + 1 + t)/2 for t ≤ a + 1, else κ = λ√(t(a + 1)).
    On a knee where the prox jumps, the smaller minimiser is taken.

    Args:
      a: a > 2, in the forms of the strength.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal, on either side of a - 1. Cost: one pass.

    Source: Fan & Li 2001, for t = 1.

    >>> scad(1.0, a=3.0).prox(jnp.array([-5.0, 1.0, 1.5, 2.5]), 1.0).tolist()
    [-5.0, 0.0, 0.5, 2.0]
    >>> float(scad(1.0, a=3.0).value(jnp.array([-5.0, 1.0, 2.0])))
    4.75
    """

    def value(x, strength, a):
        size = jnp.abs(x)
        flattening = _concave(jnp.maximum(size - strength, 0.0), strength, a - 1.0)
        return jnp.sum(base.times(strength, jnp.minimum(size, strength)) + flattening)

    def prox(x, step_size, strength, a):
        smooth, size = step_size < a - 1.0, jnp.abs(x)
        mean, product = 0.5 * (a + 1.0 + step_size), base.pull(a + 1.0, step_size)
        jump = jnp.where(step_size > a + 1.0, jnp.sqrt(product), mean)
        knee = base.pull(jnp.where(smooth, 1.0 + step_size, jump), strength)
        ratio = jnp.where(smooth, step_size, 0.0) / (a - 1.0)
        shrunk = (x - jnp.sign(x) * base.pull(ratio * a, strength)) / (1.0 - ratio)
        beyond = jnp.where(smooth & (size < base.pull(a, strength)), shrunk, x)
        threshold = base.pull(step_size, strength)
        soft = x - jnp.clip(x, -threshold, threshold)
        return jnp.where(size <= knee, soft, beyond)

    def residual(x, v, strength, a):
        slope = jnp.clip((a * strength - jnp.abs(x)) / (a - 1.0), 0.0, strength)
        return _subtract_slope(x, v, slope, strength)

    _validation.tree_at_least(0, "scad", strength=strength)
    if not all(np.all(number > 2) for number in _validation.known("scad", "a", a)):
        raise _validation.invalid("a", a, "a number > 2", "Usual is 3.7.", "scad")
    parameters = {"strength": (strength, _slots.coordinates), "a": (a, _slots.coordinates)}
    return base.leafwise("scad", value, prox, parameters, _slots.coordinates, residual)


def log_sum(strength: base.Strength = 1.0, epsilon: base.Strength = 1.0) -> base.Penalty:
    """Sum of logarithms: g(x) = Σ_i λ log(1 + |x_i|/ε), what reweighted l1 descends.

    With s = |x| + ε, the stationary point furthest from 0 has |z| = |x| - 2tλ/(s + √(s² - 4tλ)).
    That is the prox where it exists, is positive and, if √(tλ) > ε so that g is not outweighed by
    the square, beats 0 by the objective; else the prox is 0, on a tie as well.

    Args:
      epsilon: ε > 0, in the forms of the strength.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: one pass with a root and a logarithm.

    Source: Candès, Wakin & Boyd 2008; the closed form is Prater-Bennette, Shen & Tripp 2022.

    >>> log_sum(1.0, epsilon=1.0).prox(jnp.array([-3.0, 1.0, 1.5]), 0.75).tolist()
    [-2.8027756214141846, 0.5, 1.1513878107070923]
    >>> round(float(log_sum(2.0, epsilon=0.5).value(jnp.array([-0.5, 0.0]))), 4)
    1.3863
    """

    def value(x, strength, epsilon):
        return jnp.sum(base.times(strength, jnp.log1p(jnp.abs(x) / epsilon)))

    def prox(x, step_size, strength, epsilon):
        pull, size = base.pull(step_size, strength), jnp.abs(x)
        root, shifted = jnp.sqrt(pull), size + epsilon
        none = shifted <= 2.0 * root  # no stationary point at all
        still = none | jnp.isinf(size)
        pull, shifted = jnp.where(still, 0.0, pull), jnp.where(still, 1.0, shifted)
        distance = pull / _larger_root(shifted, pull)
        left = size - distance
        cost = pull * jnp.log1p(left / epsilon) / left - distance - 0.5 * left
        beaten = (left <= 0) & (pull > 0) | (root > epsilon) & (cost >= 0)
        return jnp.where(none | beaten, 0.0, x - jnp.sign(x) * distance)

    def residual(x, v, strength, epsilon):
        return _subtract_slope(x, v, strength / (epsilon + jnp.abs(x)), strength / epsilon)

    _validation.tree_at_least(0, "log_sum", strength=strength)
    _validation.tree_positive("log_sum", epsilon=epsilon)
    parameters = {"strength": (strength, _slots.coordinates), "epsilon": (epsilon, _slots.coordinates)}
    return base.leafwise("log_sum", value, prox, parameters, _slots.coordinates, residual)


def _keep_above(threshold, x, moved):
    # A threshold of 0 changes nothing, not even the derivative at 0.
    return jnp.where((jnp.abs(x) <= threshold) & (threshold > 0), 0.0, moved)


def _concave(size, strength, gamma):
    """λs - s²/2γ up to s = γλ, and constant from there."""
    capped = jnp.minimum(size, base.times(gamma, strength))
    return base.times(strength - 0.5 * capped / gamma, capped)


def _larger_root(b, c):
    """The larger root y of y² - by + c = 0, for b ≥ 2√c; one Newton step carries the derivative."""
    b_known, c_known = jax.lax.stop_gradient((b, c))
    half, root = 0.5 * b_known, jnp.sqrt(c_known)
    # √(b/2 - √c) √(b/2 + √c) instead of √(b²/4 - c), which cancels and overflows.
    y = half + jnp.sqrt(half - root) * jnp.sqrt(half + root)
    slope = 1.0 - c_known / jnp.square(y)
    return y - (y - b + c / y) / jnp.maximum(slope, jnp.sqrt(jnp.finfo(y.dtype).eps))


def _subtract_slope(x, v, slope, at_zero):
    """Gives v less the nearest element of ∂g(x), which is [-at_zero, at_zero] at 0."""
    return jnp.where(x == 0, v - jnp.clip(v, -at_zero, at_zero), v - jnp.sign(x) * slope)
