"""The diagonal D by which an Optax optimizer divides, read from its state.

A step x - η m/D of such an optimizer minimises the loss plus a penalty g only with a prox in the
metric D, whose step sizes are η/D. Optax keeps in the state what D is made of, but not b2, ε and
their like: these must be told, with the values the optimizer was given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from optax import contrib


class Metric(NamedTuple):
    """How to read the diagonal of a preconditioner.

    Attributes:
      name: for messages.
      types: the states it can read.
      diagonal: (before, after, params, gradients) ↦ D > 0, the divisor of the step that led from
        the state `before` to the state `after`; -1 marks weights that have never had a gradient.
    """

    name: str
    types: tuple[type, ...]
    diagonal: Callable[[Any, Any, chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


def adam_metric(b2: chex.Numeric = 0.999, eps: chex.Numeric = 1e-8, eps_root: chex.Numeric = 0.0) -> Metric:
    """D = √(v̂ + ε_root) + ε, of `optax.adam`, `adamw`, `nadam` and `nadamw`, and of `yogi`.

    `optax.yogi` has eps=1e-3. The state of `optax.radam` looks the same, but its steps are other
    ones; so are those of `lamb`, which rescales every leaf.

    Source: Kingma & Ba 2015; Yun, Lozano & Yang 2021 (ProxGen).

    >>> tx, x = optax.adam(0.1), jnp.array([1.0, 1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0, 0.0]), before)[1]
    >>> adam_metric().diagonal(before[0], after[0], x, None).round(3).tolist()
    [4.0, -1.0]
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        return adam_divisor(after.nu, after.count, b2, eps, eps_root)

    return Metric("adam_metric", (optax.ScaleByAdamState,), diagonal)


def adam_divisor(
    nu: chex.ArrayTree,
    count: jax.Array,
    b2: chex.Numeric,
    eps: chex.Numeric,
    eps_root: chex.Numeric = 0.0,
) -> chex.ArrayTree:
    """D of the second moment after `count` updates; -1 marks weights that never had a gradient.

    The size |D| of that mark makes the learning rate their step.

    >>> adam_divisor(jnp.array([4.0, 0.0]), jnp.array(1), 0.75, 1.0).tolist()
    [5.0, -1.0]
    """
    return _roots(nu, optax.tree.bias_correction(nu, b2, count), eps, eps_root)


def unbounded(floor: chex.Numeric, cap: chex.Numeric) -> bool:
    """Whether the bounds on D and t are known to be off, which spares passes over each leaf.

    >>> unbounded(0.0, jnp.inf), unbounded(0.1, jnp.inf)
    (True, False)
    """
    known = all(isinstance(number, int | float) for number in (floor, cap))
    return known and (floor, cap) == (0.0, jnp.inf)


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


def rms_metric(decay: chex.Numeric = 0.9, eps: chex.Numeric = 1e-8, eps_in_sqrt: bool = True) -> Metric:
    """D = √(v + ε) or √v + ε, of `optax.rmsprop`; centred, v less the square of the mean.

    With bias correction, which shows in the state, v is v / (1 - decay^count). The momentum of
    `optax.rmsprop` makes steps 1 / (1 - momentum) times as long: give the learning rate so.

    Source: Tieleman & Hinton 2012; Graves 2013 (centred).

    >>> tx, x = optax.rmsprop(0.1, decay=0.75, eps=0.0), jnp.array([1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0]), before)[1]
    >>> rms_metric(decay=0.75, eps=0.0).diagonal(before[0], after[0], x, None).tolist()
    [2.0]
    """

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = lambda moment: moment
        if "count" in after._fields:
            hat = lambda moment: optax.tree.bias_correction(moment, decay, after.count)
        square = hat(after.nu)
        if "mu" in after._fields:
            square = jax.tree.map(lambda v, m: v - jnp.square(m), square, hat(after.mu))
        inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
        return _roots(after.nu, square, outside, inside)

    return Metric("rms_metric", _rms_states(), diagonal)


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
        return jnp.where((h == 0) & (m == 0), -1.0, divisor)

    def diagonal(before, after, params, gradients):
        del params, gradients
        hat = optax.tree.bias_correction(after.mu, b1, after.count)
        return jax.tree.map(leaf, before.nu, hat)

    return Metric("sophia_metric", (contrib.SophiaState,), diagonal)


def _roots(moment, hat, outside, inside):
    """√(hat + inside) + outside in Optax's own dtype, which is what the step was divided by."""
    root = lambda v, h: jnp.where(v > 0, jnp.sqrt(h + inside) + outside, -1.0)
    return jax.tree.map(root, moment, hat)


def _rms_states():
    """The states of RMSProp: plain or centred, without or with a count (no public name in Optax)."""
    makers = (optax.scale_by_rms, optax.scale_by_stddev)
    counted = lambda make: jax.eval_shape(make(bias_correction=True).init, jnp.zeros([]))
    return (optax.ScaleByRmsState, optax.ScaleByRStdDevState, *(type(counted(make)) for make in makers))
