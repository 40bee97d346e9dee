"""Preconditioners of optimizers that nothing in this library uses: each is tested, and may change.

`adamax`, `amsgrad`, `adabelief`, `rmsprop`, `adagrad`, `sophia` and `adafactor`, as `adam_preconditioner` is
for Adam; `proximal` takes them by the names of the optimizers.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from proxlm import _validation
from proxlm.penalties import _trees
from proxlm.transforms import _arguments
from proxlm.transforms.preconditioners import Preconditioner, roots

__all__ = [
    "adafactor_preconditioner",
    "adagrad_preconditioner",
    "adamax_preconditioner",
    "amsgrad_preconditioner",
    "belief_preconditioner",
    "rms_preconditioner",
    "sophia_preconditioner",
]


def adamax_preconditioner() -> Preconditioner:
    """D = max(β₂ v, |g| + ε), of `optax.adamax` and `optax.adamaxw`.

    Their state has the type of Adam's, and what Adam's metric makes of it is wrong. A weight that
    has never had a gradient has D = ε, which nothing marks.

    Source: Kingma & Ba 2015.

    >>> tx, x = optax.adamax(0.1), jnp.array([1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0]), before)[1]
    >>> adamax_preconditioner().diagonal(before[0], after[0], x, None).tolist()
    [4.0]
    """
    read = lambda before, after, params, gradients: after.nu
    return Preconditioner("adamax_preconditioner", (optax.ScaleByAdamState,), read)


@_validation.typed
def amsgrad_preconditioner(eps: chex.Numeric = 1e-8, eps_root: chex.Numeric = 0.0) -> Preconditioner:
    """D = √(max v̂ + ε_root) + ε, of `optax.amsgrad`.

    Source: Reddi, Kale & Kumar 2018.

    >>> amsgrad_preconditioner().types[0].__name__
    'ScaleByAmsgradState'
    """
    _validation.at_least(0, "amsgrad_preconditioner", eps=eps, eps_root=eps_root)
    read = lambda before, after, params, gradients: roots(after.nu_max, after.nu_max, eps, eps_root)
    return Preconditioner("amsgrad_preconditioner", (optax.ScaleByAmsgradState,), read)


@_validation.typed
def belief_preconditioner(b2: chex.Numeric = 0.999, eps: chex.Numeric = 1e-16) -> Preconditioner:
    """D = √ŝ + ε, s the moving variance of the gradient about its mean, of `optax.adabelief`.

    Source: Zhuang et al. 2020.

    >>> belief_preconditioner().types[0].__name__
    'ScaleByBeliefState'
    """
    _arguments.require_decays("belief_preconditioner", b2=b2)
    _validation.at_least(0, "belief_preconditioner", eps=eps)

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = optax.tree.bias_correction(after.nu, b2, after.count)
        return jax.tree.map(lambda v: jnp.sqrt(v) + eps, hat)

    return Preconditioner("belief_preconditioner", (optax.ScaleByBeliefState,), diagonal)


@_validation.typed
def rms_preconditioner(
    decay: chex.Numeric = 0.9, eps: chex.Numeric = 1e-8, eps_in_sqrt: bool = True
) -> Preconditioner:
    """D = √(v + ε) or √v + ε, of `optax.rmsprop`; centred, v less the square of the mean.

    With bias correction, which shows in the state, v is v / (1 - decay^count). The momentum of
    `optax.rmsprop` makes steps 1 / (1 - momentum) times as long: give the learning rate so.

    Source: Tieleman & Hinton 2012; Graves 2013 (centred).

    >>> tx, x = optax.rmsprop(0.1, decay=0.75, eps=0.0), jnp.array([1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0]), before)[1]
    >>> rms_preconditioner(decay=0.75, eps=0.0).diagonal(before[0], after[0], x, None).tolist()
    [2.0]
    """
    _arguments.require_decays("rms_preconditioner", decay=decay)
    _validation.at_least(0, "rms_preconditioner", eps=eps)

    def diagonal(before, after, params, gradients):
        del before, params, gradients
        hat = lambda moment: moment
        if "count" in after._fields:
            hat = lambda moment: optax.tree.bias_correction(moment, decay, after.count)
        square = hat(after.nu)
        if "mu" in after._fields:
            square = jax.tree.map(lambda v, m: v - jnp.square(m), square, hat(after.mu))
        inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
        return roots(after.nu, square, outside, inside)

    return Preconditioner("rms_preconditioner", _rms_states(), diagonal)


@_validation.typed
def adagrad_preconditioner(eps: chex.Numeric = 1e-7) -> Preconditioner:
    """D = √(Σ g² + ε), of `optax.adagrad`.

    Source: Duchi, Hazan & Singer 2011, whose composite update is the prox in this metric.

    >>> adagrad_preconditioner().types[0].__name__
    'ScaleByRssState'
    """
    _validation.at_least(0, "adagrad_preconditioner", eps=eps)
    read = lambda before, after, params, gradients: roots(
        after.sum_of_squares, after.sum_of_squares, 0.0, eps
    )
    return Preconditioner("adagrad_preconditioner", (optax.ScaleByRssState,), read)


@_validation.typed
def sophia_preconditioner(
    b1: chex.Numeric = 0.965,
    eps: chex.Numeric = 1e-8,
    gamma: chex.Numeric = 0.01,
    clip_threshold: chex.Numeric | None = 1.0,
) -> Preconditioner:
    """D = max(γ h, ε, |m̂|/c), of `optax.contrib.sophia`, h the diagonal of the Hessian.

    Clipping m̂/max(γ h, ε) at c is dividing by this D. h is the one before the update, which the
    step was made with.

    Args:
      b1: as given to Sophia, as are the others.
      eps: ε.
      gamma: γ.
      clip_threshold: c; None for none.

    Source: Liu et al. 2023.

    >>> sophia_preconditioner().types[0].__name__
    'SophiaState'
    """
    _arguments.require_decays("sophia_preconditioner", b1=b1)
    _validation.positive("sophia_preconditioner", eps=eps, gamma=gamma, clip_threshold=clip_threshold)

    def leaf(h, m):
        divisor = jnp.maximum(gamma * h, eps)
        if clip_threshold is not None:
            divisor = jnp.maximum(divisor, jnp.abs(m) / clip_threshold)
        return jnp.where((h == 0) & (m == 0), -1.0, divisor)

    def diagonal(before, after, params, gradients):
        del params, gradients
        hat = optax.tree.bias_correction(after.mu, b1, after.count)
        return jax.tree.map(leaf, before.nu, hat)

    return Preconditioner("sophia_preconditioner", (contrib.SophiaState,), diagonal)


@_validation.typed
def adafactor_preconditioner(
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: chex.Numeric | None = 1.0,
    eps: chex.Numeric = 1e-30,
) -> Preconditioner:
    """D = √(r cᵀ / mean(r)) · max(1, rms(g/D)/d) / max(rms(x), 10⁻³), of `optax.adafactor`.

    r and c are the factors of the second moment, and the root of v itself where a leaf is not
    factored. What `optax.adafactor` does next to each whole leaf, clipping at d and scaling by the
    weights, belongs to the divisor. Nothing may change the gradients before it.

    Args:
      multiply_by_parameter_scale: as given to `optax.adafactor`.
      clipping_threshold: as given to `optax.adafactor`; None for none.
      eps: as given to `optax.adafactor`.

    Source: Shazeer & Stern 2018.

    >>> adafactor_preconditioner().types[0].__name__
    'FactoredState'
    """
    _validation.positive("adafactor_preconditioner", eps=eps, clipping_threshold=clipping_threshold)

    def leaf(v_row, v_col, v, x, g):
        divisor, seen = _factored(v_row, v_col, v, x, 10 * eps)
        size = jnp.ones([], divisor.dtype)
        if clipping_threshold is not None:
            size = jnp.maximum(1.0, _rms(g / divisor) / clipping_threshold)
        if multiply_by_parameter_scale:
            size = size / jnp.maximum(_rms(x), 1e-3)
        return jnp.where(seen, divisor * size, -1.0)

    def diagonal(before, after, params, gradients):
        del before
        beside = lambda tree: _trees.pair("adafactor_preconditioner", "params", tree, after.v)
        moments = [jax.tree.leaves(moment) for moment in (after.v_row, after.v_col, after.v)]
        leaves = map(leaf, *moments, beside(params), beside(gradients))
        return jax.tree.unflatten(jax.tree.structure(after.v), list(leaves))

    return Preconditioner("adafactor_preconditioner", (optax.FactoredState,), diagonal)


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


def _rms_states():
    """The states of RMSProp: plain or centred, without or with a count (no public name in Optax)."""
    makers = (optax.scale_by_rms, optax.scale_by_stddev)
    counted = lambda make: jax.eval_shape(make(bias_correction=True).init, jnp.zeros([]))
    return (optax.ScaleByRmsState, optax.ScaleByRStdDevState, *(type(counted(make)) for make in makers))
