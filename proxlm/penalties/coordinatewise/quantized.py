"""Weights on few levels: as a set, or drawn towards it; shared arguments as in `proxlm.penalties`."""

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, base

__all__ = ["binary", "prox_quant", "quantization_grid", "ternary"]

LARGEST_CHAIN = 64  # number of levels up to which comparing with each is faster than a search
TOLERANCE = 2e-3  # bfloat16 rounds by at most 2⁻⁹ of a number


@_validation.typed
def binary(scale: base.Strength = 1.0, tolerance: float = TOLERANCE) -> base.Penalty:
    """Weights of one size: g(x) = 0 if all x_i ∈ {-s, s}, else +inf.

    prox_tg(x)_i = s if x_i ≥ 0, else -s, whatever the step size.

    Args:
      tolerance: the largest distance to the set, in units of s, at which g is 0.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Courbariaux, Bengio & David 2015; as a prox, Bai, Wang & Liberty 2019.

    >>> binary(0.5).prox(jnp.array([-3.0, 0.0, 0.25]), 1.0).tolist()
    [-0.5, 0.5, 0.5]
    """
    return _set("binary", np.array([-1.0, 1.0]), scale, tolerance)


@_validation.typed
def ternary(scale: base.Strength = 1.0, tolerance: float = TOLERANCE) -> base.Penalty:
    """Weights of one size or zero: g(x) = 0 if all x_i ∈ {-s, 0, s}, else +inf.

    prox_tg(x)_i is the nearest of the three, whatever the step size; of two equally near ones the
    upper.

    Args:
      tolerance: the largest distance to the set, in units of s, at which g is 0.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Li, Zhang & Liu 2016.

    >>> ternary(jnp.array([[1.0], [4.0]])).prox(jnp.array([[-3.0, 0.75], [-3.0, 0.75]]), 1.0)
    Array([[-1.,  1.],
           [-4.,  0.]], dtype=float32)
    """
    return _set("ternary", np.array([-1.0, 0.0, 1.0]), scale, tolerance)


@_validation.typed
def quantization_grid(
    values: chex.Array, scale: base.Strength = 1.0, tolerance: float = TOLERANCE
) -> base.Penalty:
    """Weights on given levels: g(x) = 0 if all x_i ∈ {s v_1, ..., s v_L}, else +inf.

    prox_tg(x)_i is the nearest level, whatever the step size; of two equally near ones the upper.

    Args:
      values: v, L ≥ 1 finite numbers in ascending order. May be traced; then the order is not checked.
      tolerance: the largest distance to the set, in units of s max|v|, at which g is 0. The
        default suits bfloat16; with hundreds of levels in float32, give a smaller one.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: one pass with L comparisons a
    coordinate, or log L look-ups for more than 64 levels.

    Source: Bai, Wang & Liberty 2019 (ProxQuant), section 3.

    >>> quantization_grid([-1.0, 0.0, 0.5], scale=2.0).prox(jnp.array([-3.0, -1.0, 0.4, 0.5]), 1.0).tolist()
    [-2.0, 0.0, 0.0, 1.0]
    """
    made = _set("quantization_grid", _ascending("quantization_grid", values), scale, tolerance)
    return made.described("quantization_grid", values=values, scale=scale, tolerance=tolerance)


def prox_quant(strength: base.Strength, values: chex.Array, scale: base.Strength = 1.0) -> base.Penalty:
    """Distance to given levels, the W of ProxQuant: g(x) = Σ_i λ min_l |x_i - s v_l|.

    prox_tg(x)_i moves towards the nearest level q by tλ, and stops there: the soft threshold of
    x - q. This is the minimiser everywhere, also beside the midpoints: towards a level at distance
    d the objective falls to the Huber function of d, which grows with d, so that no other level
    can do better. At a midpoint both neighbours are minimisers, and the upper is taken.

    Args:
      values: v, as in `quantization_grid`.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: as `quantization_grid`.

    Source: Bai, Wang & Liberty 2019 (ProxQuant).

    >>> prox_quant(0.25, [-1.0, 1.0]).prox(jnp.array([-3.0, -0.9, 0.0, 0.5]), 1.0).tolist()
    [-2.75, -1.0, 0.25, 0.75]
    >>> float(prox_quant(2.0, [-1.0, 1.0]).value(jnp.array([-3.0, -1.0, 0.0])))
    6.0
    """
    values = _ascending("prox_quant", values)

    def value(x, strength, scale):
        return jnp.sum(base.times(strength, jnp.abs(x - _nearest(x, values, scale))))

    def prox(x, step_size, strength, scale):
        threshold, level = base.pull(step_size, strength), _nearest(x, values, scale)
        away = x - level
        moved = x - jnp.clip(away, -threshold, threshold)
        return jnp.where(jnp.abs(away) <= threshold, level, moved)

    def residual(x, v, strength, scale):
        away = x - _nearest(x, values, scale)
        on_level = v - jnp.clip(v, -strength, strength)
        return jnp.where(away == 0, on_level, v - base.times(strength, jnp.sign(away)))

    _validation.tree_at_least(0, "prox_quant", strength=strength)
    _validation.tree_positive("prox_quant", scale=scale)
    parameters = {"strength": (strength, _slots.coordinates), "scale": (scale, _slots.coordinates)}
    made = base.leafwise("prox_quant", value, prox, parameters, _slots.coordinates, residual)
    return made.described("prox_quant", strength=strength, values=values, scale=scale)


def _set(name, values, scale, tolerance):
    def value(x, scale):
        unit = scale * abs(values).max().astype(x.dtype)
        distance = jnp.abs(x - _nearest(x, values, scale)) / jnp.where(unit > 0, unit, 1.0)
        return _indicator.indicator(jnp.max(distance, initial=0.0), tolerance)

    def prox(x, step_size, scale):
        del step_size
        return _nearest(x, values, scale)

    _validation.tree_positive(name, scale=scale)
    parameters = {"scale": (scale, _slots.coordinates)}
    made = base.leafwise(name, value, prox, parameters, _slots.coordinates)
    return made.described(name, scale=scale, tolerance=tolerance)


def _nearest(x, values, scale):
    # Levels that are known stay NumPy's, so that they become constants and not operations.
    values = values.astype(x.dtype)
    middles = 0.5 * values[1:] + 0.5 * values[:-1]
    place = x / scale
    if values.size <= LARGEST_CHAIN:
        nearest = jnp.full(x.shape, values[0])
        for middle, value in zip(middles, values[1:], strict=True):
            nearest = jnp.where(place >= middle, value, nearest)
    else:
        # Behind the barrier, for XLA would fold the first look-ups of known levels while compiling.
        middles = jax.lax.optimization_barrier(jax.lax.stop_gradient(jnp.asarray(middles)))
        above = jnp.searchsorted(middles, place, side="right", method="scan_unrolled")
        nearest = jnp.asarray(values)[above]
    return jnp.where(jnp.isnan(x), x, scale * nearest)


def _ascending(name, values):
    """Gives levels as an array; ValueError unless at least one, finite, and in order if known."""
    leaves = jax.tree.leaves(values)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    if leaves:
        _validation.known(name, "values", values)
    array = jnp.asarray(values) if traced else np.asarray(values)
    line = array.ndim == 1 and array.size > 0
    if not line or not (traced or (np.isfinite(array).all() and np.all(np.diff(array) >= 0))):
        expected = "one or more finite numbers in ascending order"
        raise _validation.invalid("values", values, expected, "Sort them.", name)
    return array
