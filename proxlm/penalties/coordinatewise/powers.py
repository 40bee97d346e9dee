"""Sums of powers below 1, which are sharper at zero than the lasso and flatter far from it.

The strength is as in `proxlm.penalties`.
"""

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _slots, base

__all__ = ["l_half", "l_two_thirds"]

ITERATIONS = 5  # from the start at |x|, where Newton is monotone; enough for float64


def l_half(strength: base.Strength = 1.0) -> base.Penalty:
    """Sum of square roots: g(x) = Σ_i λ_i √|x_i|.

    prox_tg(x)_i = 0 for |x_i| ≤ 3/2 (tλ_i)^(2/3), else sign(x_i) w², w the largest root of
    w³ - |x_i| w + tλ_i/2 = 0. The cosine that solves this cubic loses digits in float32; Newton's
    method from √|x_i| is monotone, and the result is within two units in the last place.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: six Newton steps, one power.

    Source: Xu, Chang, Xu & Zhang 2012 (half thresholding).

    >>> l_half(2.0).prox(jnp.array([-1.5, 1.5, 4.25]), 0.5).tolist()
    [0.0, 0.0, 4.0]
    >>> float(l_half(2.0).value(jnp.array([-4.0, 9.0])))
    10.0
    """
    return _power("l_half", strength, 2)


def l_two_thirds(strength: base.Strength = 1.0) -> base.Penalty:
    """Sum of powers 2/3: g(x) = Σ_i λ_i |x_i|^(2/3).

    prox_tg(x)_i = 0 for |x_i| ≤ 2 (2tλ_i/3)^(3/4), else sign(x_i) w³, w the largest root of
    w⁴ - |x_i| w + 2tλ_i/3 = 0, by Newton's method from |x_i|^(1/3), which is monotone; the result
    is within three units in the last place. The closed forms of this quartic cancel in float32.

    Raises:
      ValueError: if an argument is invalid.

    Convex: no. Separable: yes. Metric: any diagonal. Cost: six Newton steps, two powers.

    Source: Cao, Sun & Xu 2013.

    >>> l_two_thirds(3.0).prox(jnp.array([-2.0, 2.0, 8.5]), 0.5).tolist()
    [0.0, 0.0, 8.0]
    >>> float(l_two_thirds(3.0).value(jnp.array([-8.0, 1.0])))
    15.0
    """
    return _power("l_two_thirds", strength, 3)


def _power(name, strength, order):
    """g(x) = λ Σ |x|^q, q = 1 - 1/order.

    In w = z^(1/order) the stationary points z - |x| + tλ q z^(q-1) = 0 solve w^order + c/w = |x|
    with c = tλq; the left side is convex in w. At the threshold z is (2tλ/order)^(order/(order+1)),
    and |x| is (order + 1)/2 as much.
    """
    exponent = 1.0 - 1.0 / order

    def value(x, strength):
        zero = x == 0
        return jnp.sum(
            base.times(strength, jnp.where(zero, 0.0, jnp.abs(jnp.where(zero, 1.0, x)) ** exponent))
        )

    def prox(x, step_size, strength):
        size, pull = jnp.abs(x), base.pull(step_size, strength)
        least = (2.0 / order * jax.lax.stop_gradient(pull)) ** (order / (order + 1.0))
        dead = (size <= 0.5 * (order + 1.0) * least) & (pull > 0)
        still = dead | (size == 0) | jnp.isinf(size)
        distance = _distance(jnp.where(still, 1.0, size), jnp.where(still, 0.0, exponent * pull))
        return jnp.where(dead, 0.0, x - jnp.sign(x) * distance)

    def _distance(size, c):
        def step(w, size, c):
            z, back = w**order, c / w
            # The slope in w is not differentiated: at tiny w the square of it would underflow.
            return w - (z + back - size) * jax.lax.stop_gradient(w / (order * z - back))

        known = jax.lax.stop_gradient((size, c))
        w = known[0] ** (1.0 / order)
        w = jax.lax.fori_loop(0, ITERATIONS, lambda _, w: step(w, *known), w)
        return c / step(jax.lax.stop_gradient(w), size, c)

    def residual(x, v, strength):
        slope = strength * exponent * jnp.abs(jnp.where(x == 0, 1.0, x)) ** (exponent - 1.0)
        return jnp.where(x == 0, 0.0, v - jnp.sign(x) * slope)

    _validation.tree_at_least(0, name, strength=strength)
    parameters = {"strength": (strength, _slots.coordinates)}
    return base.leafwise(name, value, prox, parameters, _slots.coordinates, residual)
