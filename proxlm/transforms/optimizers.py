"""Optimizers that end with a proximal step, under Optax's signatures."""

from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import base
from proxlm.transforms import _arguments, preconditioners
from proxlm.transforms._proximal import Rule, follow

__all__ = ["decoupled_proximal_adamw", "proximal_adam", "proximal_sgd"]


@_validation.typed
def proximal_sgd(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    momentum: chex.Numeric | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent on f with a prox of g: x ↦ prox_tg(x - η m).

    m ↦ μ m + ∇f sums gradients with weights 1, μ, μ², ... The threshold sums the learning rate
    alike, t = η (1 - μᵏ)/(1 - μ) at the k-th update, so that fixed points solve min f + g whatever
    the momentum. At strength 0 this is `optax.sgd`.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Duchi & Singer 2009; the sum of step sizes is ours.

    >>> from proxlm import penalties
    >>> tx = proximal_sgd(0.5, penalties.l1(1.0), momentum=0.9)
    >>> x = jnp.array([2.0, 0.3])
    >>> updates, state = tx.update(jnp.array([1.0, 0.1]), tx.init(x), x)
    >>> optax.apply_updates(x, updates).round(4).tolist()
    [1.0, 0.0]
    """
    _arguments.require_step("proximal_sgd", penalty, learning_rate, every)
    inner = optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype)
    rate = learning_rate
    if momentum is None:
        for name, given in {"nesterov": nesterov, "accumulator_dtype": accumulator_dtype}.items():
            if given:
                remedy = "Give a momentum, such as 0.9."
                raise _validation.invalid(name, given, "left out without a momentum", remedy, "proximal_sgd")
    else:
        _validation.tree_at_least(0, "proximal_sgd", momentum=momentum)
        if _validation.is_known(momentum) and not momentum < 1:
            raise ValueError(
                f"proximal_sgd: momentum must be < 1, got {momentum}. 0.9 is common; None is without."
            )
        rate = _summed(learning_rate, momentum)
    return follow(inner, Rule("proximal_sgd", penalty, rate, every=every, anchored=anchored))


@_validation.typed
def proximal_adam(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    floor: chex.Numeric = 0.0,
    cap: chex.Numeric = jnp.inf,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam on f with a prox of g in Adam's metric, which solves min f + g.

    With D = √(v̂ + ε_root) + ε, x ↦ argmin_z g(z) + Σ_i D_i (z_i - x_i + η m̂_i/D_i)²/2η: a prox
    with the step sizes η/D_i, after Adam's step. The threshold of an l1 of strength λ is η λ/D_i:
    λ is compared with gradients, as in the stated problem, and not with 1, as it is by
    `decoupled_proximal_adamw`.

    At strength 0 this is `optax.adam`. `proximal` tells about weights without gradients, about
    the floor and the cap, and why a warm-up is wise.

    The moments are Optax's own, in the dtype of the params. In float16 the default ε is 0, and a weight
    whose gradient is 0 would become NaN: give eps=1e-4 or more. In bfloat16 `optax.inject_hyperparams` rounds
    b2 to 1 unless it is given hyperparam_dtype=jnp.float32. Both are refused where the numbers are known;
    traced ones cannot be checked. `dual_averaging_adam` keeps float32 moments.

    Args:
      penalty: g, which must allow a diagonal metric, as do `l1`, `group_lasso` and most others, but not
        `nuclear`.

    Raises:
      ValueError: if an argument is invalid; on init, if the penalty has no prox in a diagonal metric; on
        update, without params.

    Source: Yun, Lozano & Yang 2021 (ProxGen); Kingma & Ba 2015.

    >>> from proxlm import penalties
    >>> tx = proximal_adam(0.5, penalties.l1(1.0))
    >>> x = jnp.array([3.0, 0.5])
    >>> updates, state = tx.update(jnp.array([2.0, 4.0]), tx.init(x), x)
    >>> optax.apply_updates(x, updates).round(4).tolist()
    [2.25, 0.0]
    """
    _arguments.require_step("proximal_adam", penalty, learning_rate, every)
    _validation.tree_at_least(0, "proximal_adam", floor=floor)
    _validation.tree_positive("proximal_adam", cap=cap)
    _arguments.require_decays("proximal_adam", b1=b1, b2=b2)
    _validation.at_least(0, "proximal_adam", eps=eps, eps_root=eps_root)
    inner = optax.adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    read = preconditioners.adam_preconditioner(b2, eps, eps_root)
    rule = Rule("proximal_adam", penalty, learning_rate, False, read, floor, cap, every, anchored)
    return follow(inner, rule._replace(eps=(eps, eps_root)))


@_validation.typed
def decoupled_proximal_adamw(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    nesterov: bool = False,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AdamW, followed by a prox with the learning rate as step size: x ↦ prox_ηg(x + u).

    Like AdamW's decay, the prox does not use the metric. An l1 of strength λ takes η λ off every weight in
    every step, while Adam's steps are near η: λ is compared with 1, more exactly with |E ∇f|/rms(∇f), and
    useful values lie between 0 and 1. It is a regulariser independent of the scale of the loss, not the
    lasso, which `proximal_adam` solves. At strength 0 this is `optax.adamw`. Any penalty may be used.

    Args:
      mask: which weights decay; the penalty sees all of them.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Loshchilov & Hutter 2019 (AdamW); Zhuang et al. 2022 read its decay as a prox.

    >>> from proxlm import penalties
    >>> tx = decoupled_proximal_adamw(0.5, penalties.l1(1.0), weight_decay=0.0)
    >>> x = jnp.array([3.0, 0.75])
    >>> updates, state = tx.update(jnp.array([2.0, 4.0]), tx.init(x), x)
    >>> optax.apply_updates(x, updates).round(4).tolist()
    [2.0, 0.0]
    """
    _arguments.require_step("decoupled_proximal_adamw", penalty, learning_rate, every)
    _arguments.require_decays("decoupled_proximal_adamw", b1=b1, b2=b2)
    _validation.at_least(0, "decoupled_proximal_adamw", eps=eps, eps_root=eps_root, weight_decay=weight_decay)
    if mask is not None and isinstance(weight_decay, int | float) and weight_decay == 0:
        remedy = "The mask is that of the decay; `penalties.masked` chooses what the penalty sees."
        raise _validation.invalid("mask", mask, "None at weight_decay=0", remedy, "decoupled_proximal_adamw")
    moments = (b1, b2, eps, eps_root, mu_dtype)
    inner = optax.adamw(learning_rate, *moments, weight_decay, mask, nesterov=nesterov)
    rule = Rule("decoupled_proximal_adamw", penalty, learning_rate, every=every, anchored=anchored)
    return follow(inner, rule._replace(eps=(eps, eps_root)))


def _summed(learning_rate, momentum):
    """The learning rate times the weights that the momentum has given to gradients so far."""

    def rate(count):
        given = learning_rate(count) if callable(learning_rate) else learning_rate
        return given * (1.0 - momentum ** (count + 1)) / (1.0 - momentum)

    return rate
