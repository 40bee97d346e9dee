"""The diagonal D by which an Optax optimizer divides, read from its state.

A step x - η m/D of such an optimizer minimises the loss plus a penalty g only with a prox in the
metric D, whose step sizes are η/D. Optax keeps in the state what D is made of, but not b2, ε and
their like: these must be told, with the values the optimizer was given.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from optax._src import transform as optax_transform

from proxlm.penalties import trees

_RMS = (optax.ScaleByRmsState, optax_transform.ScaleByRmsWithCountState)
_CENTRED = (optax.ScaleByRStdDevState, optax_transform.ScaleByRStdDevWithCountState)


class Metric(NamedTuple):
    """How to read the diagonal of a preconditioner.

    Attributes:
      name: for messages.
      types: the states it can read.
      diagonal: (before, after, params, gradients) ↦ D > 0, the divisor of the step that led from
        the state `before` to the state `after`; 0 marks weights that have never had a gradient.
    """

    name: str
    types: tuple[type, ...]
    diagonal: Callable[[Any, Any, chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


def adam_metric(
    b2: chex.Numeric = 0.999, eps: chex.Numeric = 1e-8, eps_root: chex.Numeric = 0.0
) -> Metric:
    """D = √(v̂ + ε_root) + ε, of `optax.adam`, `adamw`, `nadam` and `nadamw`, and of `yogi`.

    `optax.yogi` has eps=1e-3. The state of `optax.radam` looks the same, but its steps are other
    ones; so are those of `lamb`, which rescales every leaf.

    Source: Kingma & Ba 2015; Yun, Lozano & Yang 2021 (ProxGen).

    >>> tx, x = optax.adam(0.1), jnp.array([1.0, 1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0, 0.0]), before)[1]
    >>> adam_metric().diagonal(before[0], after[0], x, None).round(3).tolist()
    [4.0, 0.0]
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = optax.tree.bias_correction(after.nu, b2, after.count)
        return _roots(after.nu, hat, eps, eps_root)

    return Metric("adam_metric", (optax.ScaleByAdamState,), diagonal)


def adamax_metric() -> Metric:
    """D = max(β₂ v, |g| + ε), of `optax.adamax` and `optax.adamaxw`.

    Their state has the type of Adam's, and what Adam's metric makes of it is wrong. A weight that
    has never had a gradient has D = ε, which nothing marks.

    Source: Kingma & Ba 2015.

    >>> tx, x = optax.adamax(0.1), jnp.array([1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0]), before)[1]
    >>> adamax_metric().diagonal(before[0], after[0], x, None).tolist()
    [4.0]
    """
    read = lambda before, after, params, gradients: after.nu
    return Metric("adamax_metric", (optax.ScaleByAdamState,), read)


def amsgrad_metric(eps: chex.Numeric = 1e-8, eps_root: chex.Numeric = 0.0) -> Metric:
    """D = √(max v̂ + ε_root) + ε, of `optax.amsgrad`.

    Source: Reddi, Kale & Kumar 2018.

    >>> amsgrad_metric().types[0].__name__
    'ScaleByAmsgradState'
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        return _roots(after.nu_max, after.nu_max, eps, eps_root)

    return Metric("amsgrad_metric", (optax.ScaleByAmsgradState,), diagonal)


def belief_metric(b2: chex.Numeric = 0.999, eps: chex.Numeric = 1e-16) -> Metric:
    """D = √ŝ + ε, s the moving variance of the gradient about its mean, of `optax.adabelief`.

    Source: Zhuang et al. 2020.

    >>> belief_metric().types[0].__name__
    'ScaleByBeliefState'
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = optax.tree.bias_correction(after.nu, b2, after.count)
        return jax.tree.map(lambda v: jnp.sqrt(v) + eps, hat)

    return Metric("belief_metric", (optax.ScaleByBeliefState,), diagonal)


def rms_metric(
    decay: chex.Numeric = 0.9, eps: chex.Numeric = 1e-8, eps_in_sqrt: bool = True
) -> Metric:
    """D = √(v + ε) or √v + ε, of `optax.rmsprop`; centred, v less the square of the mean.

    With bias correction, which shows in the state, v is v / (1 - decay^count). The momentum of
    `optax.rmsprop` makes steps 1 / (1 - momentum) times as long: give the learning rate so.

    Source: Tieleman & Hinton 2012; Graves 2013 (centred).

    >>> tx, x = optax.rmsprop(0.1), jnp.array([1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([3.0]), before)[1]
    >>> rms_metric().diagonal(before[0], after[0], x, None).round(2).tolist()
    [0.95]
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = lambda moment: moment
        if "count" in after._fields:
            hat = lambda moment: optax.tree.bias_correction(moment, decay, after.count)
        square = hat(after.nu)
        if isinstance(after, _CENTRED):
            square = jax.tree.map(lambda v, m: v - jnp.square(m), square, hat(after.mu))
        inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
        return _roots(after.nu, square, outside, inside)

    return Metric("rms_metric", _RMS + _CENTRED, diagonal)


def adagrad_metric(eps: chex.Numeric = 1e-7) -> Metric:
    """D = √(Σ g² + ε), of `optax.adagrad`.

    Source: Duchi, Hazan & Singer 2011, whose composite update is the prox in this metric.

    >>> adagrad_metric().types[0].__name__
    'ScaleByRssState'
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        return _roots(after.sum_of_squares, after.sum_of_squares, 0.0, eps)

    return Metric("adagrad_metric", (optax.ScaleByRssState,), diagonal)


def adafactor_metric(
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: chex.Numeric | None = 1.0,
    eps: chex.Numeric = 1e-30,
) -> Metric:
    """D = √(r cᵀ / mean(r)) · max(1, rms(g/D)/d) / max(rms(x), 10⁻³), of `optax.adafactor`.

    r and c are the factors of the second moment, and the root of v itself where a leaf is not
    factored. What `optax.adafactor` does next to each whole leaf, clipping at d and scaling by the
    weights, belongs to the divisor. Nothing may change the gradients before it.

    Args:
      multiply_by_parameter_scale: as given to `optax.adafactor`.
      clipping_threshold: as given to `optax.adafactor`; None for none.
      eps: as given to `optax.adafactor`.

    Source: Shazeer & Stern 2018.

    >>> adafactor_metric().types[0].__name__
    'FactoredState'
    """

    def leaf(v_row, v_col, v, x, g):
        divisor, seen = _factored(v_row, v_col, v, x, 10 * eps)
        size = jnp.ones([], divisor.dtype)
        if clipping_threshold is not None:
            size = jnp.maximum(1.0, _rms(g / divisor) / clipping_threshold)
        if multiply_by_parameter_scale:
            size = size / jnp.maximum(_rms(x), 1e-3)
        return jnp.where(seen, divisor * size, 0.0)

    def diagonal(before, after, params, gradients):
        del before
        beside = lambda tree: trees.pair("adafactor_metric", "params", tree, after.v)
        moments = [jax.tree.leaves(moment) for moment in (after.v_row, after.v_col, after.v)]
        leaves = map(leaf, *moments, beside(params), beside(gradients))
        return jax.tree.unflatten(jax.tree.structure(after.v), list(leaves))

    return Metric("adafactor_metric", (optax.FactoredState,), diagonal)


def sophia_metric(
    b1: chex.Numeric = 0.965,
    eps: chex.Numeric = 1e-8,
    gamma: chex.Numeric = 0.01,
    clip_threshold: chex.Numeric | None = 1.0,
) -> Metric:
    """D = max(γ h, ε, |m̂|/c), of `optax.contrib.sophia`, h the diagonal of the Hessian.

    Clipping m̂/max(γ h, ε) at c is dividing by this D. h is the one before the update, which the
    step was made with.

    Args:
      b1: as given to Sophia, as are the others.
      eps: ε.
      gamma: γ.
      clip_threshold: c; None for none.

    Source: Liu et al. 2023.

    >>> sophia_metric().types[0].__name__
    'SophiaState'
    """

    def leaf(h, m):
        divisor = jnp.maximum(gamma * h, eps)
        if clip_threshold is not None:
            divisor = jnp.maximum(divisor, jnp.abs(m) / clip_threshold)
        return jnp.where((h == 0) & (m == 0), 0.0, divisor)

    def diagonal(before, after, params, gradients):
        del params, gradients
        hat = optax.tree.bias_correction(after.mu, b1, after.count)
        return jax.tree.map(leaf, before.nu, hat)

    return Metric("sophia_metric", (contrib.SophiaState,), diagonal)


METRICS = {
    "adam": adam_metric,
    "adamax": adamax_metric,
    "amsgrad": amsgrad_metric,
    "adabelief": belief_metric,
    "rmsprop": rms_metric,
    "adagrad": adagrad_metric,
    "adafactor": adafactor_metric,
    "sophia": sophia_metric,
}


def _roots(moment, hat, outside, inside):
    """√(hat + inside) + outside in Optax's own dtype, which is what the step was divided by."""
    root = lambda v, h: jnp.where(v > 0, jnp.sqrt(h + inside) + outside, 0.0)
    return jax.tree.map(root, moment, hat)


def _factored(v_row, v_col, v, x, unseen):
    """The root of Adafactor's second moment, and where there is more in it than ε."""
    if v.shape == x.shape:
        return jnp.sqrt(v), v > unseen
    small, large = (int(axis) for axis in np.argsort(x.shape)[-2:])
    expand = functools.partial(jnp.expand_dims, axis=large)
    mean = jnp.mean(v_row, axis=small - 1 if small > large else small, keepdims=True)
    columns = jnp.expand_dims(v_col, axis=small)
    seen = jnp.logical_and(expand(v_row) > unseen, columns > unseen)
    return jnp.sqrt(expand(v_row / mean)) * jnp.sqrt(columns), seen


def _rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x)))
