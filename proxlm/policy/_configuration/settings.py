"""Settings of the KL penalty, of the critic's loss and of whitening."""

import dataclasses
from typing import Any

import jax

from proxlm import _validation
from proxlm.policy.advantages import temporal
from proxlm.policy.kl import ESTIMATORS

__all__ = ["KL", "Value", "Whitening", "plain", "static"]


def static(default: Any) -> Any:
    """A field that decides the structure of the program and cannot be traced."""
    return dataclasses.field(default=default, metadata={"static": True})


def plain(settings: Any, *names: str) -> dict[str, Any]:
    """The fields that are plain numbers: JAX also makes configs of gradients and of placeholders."""
    return {name: x for name in names if isinstance(x := getattr(settings, name), int | float | str)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KL:
    """The penalty on the KL divergence from the reference policy.

    Attributes:
      coef: β ≥ 0, its weight; the initial one if it adapts. At a plain 0 no reference is kept or
        evaluated, unless `ppo.init` is given one, to which the KL is then measured all the same.
      placement: "reward" or "loss" (static).
      estimator: "k1", "k2", "k3", "exact" over the whole vocabulary, or another of `kl.ESTIMATORS`
        (static). In the loss, k1 has an expected gradient of 0. In the reward, "exact" teaches what a
        token does to the KL after it, but nothing of the KL at its own place, which does not depend on the
        token drawn: that part of the gradient is missing, and k1 has both. An actor of `lm.make_actor`
        computes the exact one by chunks of tokens, for which the loss runs the reference's head anew.
      target: nats per response that β adapts to, or None for a constant β.
      horizon: sequences over which β adapts; None is 10,000 if there is a target.

    >>> KL(placement="prior")
    Traceback (most recent call last):
        ...
    ValueError: KL: placement must be one of 'reward', 'loss', got 'prior'.
    """

    coef: float | jax.Array = 0.05
    placement: str = static("reward")
    estimator: str = static("k1")
    target: float | jax.Array | None = None
    horizon: float | jax.Array | None = None

    def __post_init__(self):
        """Checks what is a plain number; traced values cannot be checked."""
        _validation.one_of(("reward", "loss"), "KL", placement=self.placement)
        names = dict.fromkeys(("k1", "k2", "k3", "exact", *ESTIMATORS))
        _validation.one_of(tuple(names), "KL", estimator=self.estimator)
        _validation.at_least(0, "KL", **plain(self, "coef"))
        _validation.positive("KL", **plain(self, "target", "horizon"))
        _validation.finite("KL", **plain(self, "coef", "target", "horizon"))
        if self.target is None and self.horizon is not None:
            raise _validation.invalid(
                "horizon", self.horizon, "None without a target", "Give a target, or leave it out.", "KL"
            )
        if self.target is not None and plain(self, "coef").get("coef") == 0:
            raise _validation.invalid(
                "coef",
                self.coef,
                "a number > 0 with a target",
                "The controller multiplies it, so that it would stay 0: give a positive initial kl_coef.",
                "KL",
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Value:
    """The loss of the critic.

    Attributes:
      coef: its weight beside the policy's loss.
      clip: how far a value may move from the old one before its loss stops helping, or None.

    >>> Value(coef=0.5).clip
    0.2
    """

    coef: float | jax.Array = 0.1
    clip: float | jax.Array | None = 0.2

    def __post_init__(self):
        """Checks what is a plain number; traced values cannot be checked."""
        _validation.at_least(0, "Value", **plain(self, "coef", "clip"))
        _validation.finite("Value", **plain(self, "coef"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Whitening:
    """Whitening over the whole batch, (x - μ) / √(σ² + ε): of advantages, of rewards, or of both.

    Attributes:
      advantages: to mean 0 and variance 1 (static).
      rewards: to variance 1, the mean kept (static).
      ddof: 0 divides by n, 1 by n - 1 (static).
      epsilon: added to the variance inside the root.

    >>> Whitening(advantages=False)
    Traceback (most recent call last):
        ...
    ValueError: Whitening: advantages must be True where rewards is False, got False. For no ...
    """

    advantages: bool = static(True)
    rewards: bool = static(False)
    ddof: int = static(0)
    epsilon: float | jax.Array = 1e-8

    def __post_init__(self):
        """Checks what is a plain number; traced values cannot be checked."""
        _validation.one_of((True, False), "Whitening", advantages=self.advantages, rewards=self.rewards)
        _validation.integer(0, "Whitening", ddof=self.ddof)
        _validation.positive("Whitening", **plain(self, "epsilon"))
        _validation.finite("Whitening", **plain(self, "epsilon"))
        if not (self.advantages or self.rewards):
            raise _validation.invalid(
                "advantages",
                self.advantages,
                "True where rewards is False",
                "For no whitening give whitening=None.",
                "Whitening",
            )

    def __call__(self, x: jax.Array, mask: jax.Array, shift_mean: bool = True) -> jax.Array:
        """Whitens by this convention over the whole batch, as `advantages.whiten`."""
        return temporal.whiten(x, mask, shift_mean=shift_mean, ddof=self.ddof, epsilon=self.epsilon)
