"""The settings of an iteration: PPO's, and the parts that make other algorithms of it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import losses, protocols
from proxlm.policy._configuration import combinations, tracing
from proxlm.policy._configuration import overrides as overrides_lib
from proxlm.policy._configuration.partials import Partial, parameters_of, partial
from proxlm.policy._configuration.settings import KL, Value, Whitening, plain, static
from proxlm.policy.advantages import batch
from proxlm.policy.aggregation import WEIGHTS

__all__ = ["PPOConfig", "check_parts", "override"]

# What is certainly no part, while JAX may put placeholders of its own into a pytree.
_PLAIN = (bool, int, float, str, dict, list, tuple)


_GAE = partial(batch.gae_advantages, discount=1.0, gae_lambda=0.95)
_CLIP = partial(losses.clipped, clip_low=0.2, clip_high=0.2, dual_clip=None, level="token")
_KL, _VALUE, _WHITENING = KL(), Value(), Whitening()
_TOKEN_MEAN = static("token")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The settings of PPO and its relatives, each with the part that uses it. None switches a part off.

    `recipes` holds the algorithms that have a name. Numbers are leaves of a pytree and may be
    traced; the fields marked static decide the structure of the program. A function given for a
    part becomes a `Partial`, whose numbers are traced like the others.

    Attributes:
      advantage: (rewards [B, T], values [B, T] or None, mask [B, T], group_size) -> advantages and
        returns, as those of `advantages.batch`.
      loss: (log_probs, old_log_probs, advantages, mask), [B, T] each -> loss per token [B, T].
      kl: the penalty on the KL from the reference; None without a reference policy, which is then
        neither kept nor evaluated.
      value: the critic's loss; None for an advantage that has no critic.
      whitening: of advantages and rewards, or None.
      entropy_coef: weight of the entropy bonus; a plain 0 costs nothing.
      max_kl: nats per token from the sampling policy beyond which the iteration's remaining
        updates are dropped, or None.
      missing_eos_penalty: taken off the score of a response without a stop token, or None.
      length_penalty: (lengths [B], longest) -> [B], added to the scores, as
        `filters.overlong_share`; or None.
      group_filter: (rewards [G], valid [G], ended [G], lengths [G]) -> bool [G], the responses of a
        group that enter the loss, as `filters.reward_varies`; all stay in the baseline. None keeps
        all.
      correction: (old, sampler log-probs, mask) -> weights, as those of `importance_weights`; with
        it the old log-probs are scored anew, those of the sampler its own. None without.
      reward_weights: name -> weight of each of several rewards (the names static); None weighs all 1.
      reward_normalisation: (rewards [G], valid [G]) -> [G] of each reward by itself, before they are
        weighed and summed, as `advantages.group_relative`; then a reward of tokens counts as that
        of its response. None sums them as they are.
      aggregation: "token", "sequence", "sequence_sum", "constant", or a function of the mask to
        weights (static).
      num_epochs: passes over the batch (static).
      num_minibatches: optimizer steps per pass (static).
      num_microbatches: slices of a minibatch, to bound memory; the sum is the same (static). With
        several, the scores before the update are computed in slices of that size, too.
      group_size: responses sampled for each prompt (static).
      whole_groups: shuffle whole groups into minibatches, and not their responses (static): an actor that
        can then scores the prompt once for its answers. A single minibatch holds them whole anyway.
      bootstrap: go on from a response that was cut by the critic's discounted value of its last state,
        as the time limit of an episode asks for (static).
      max_draws: how often a batch is drawn, at most, until the rewards of each group vary; groups of
        later draws, of other prompts, take the place of those that do not (static).
      greedy_baseline: take off every score that of the likeliest answer to its prompt (static);
        these answers, one a prompt, are the last rows of the samples that the reward sees.

    >>> config = PPOConfig(loss=partial(losses.clipped, clip_high=0.28), kl=KL(coef=0.01))
    >>> config.replace(clip_low=0.1, num_epochs=1).loss.settings["clip_low"]
    0.1
    """

    advantage: protocols.Advantage = _GAE
    loss: protocols.Loss = _CLIP
    kl: KL | None = _KL
    value: Value | None = _VALUE
    whitening: Whitening | None = _WHITENING
    entropy_coef: float | jax.Array = 0.0
    max_kl: float | jax.Array | None = None
    missing_eos_penalty: float | jax.Array | None = None
    length_penalty: Callable[..., jax.Array] | None = None
    group_filter: Callable[..., jax.Array] | None = None
    correction: Callable[..., jax.Array] | None = None
    reward_weights: Mapping[str, float | jax.Array] | None = None
    reward_normalisation: Callable[..., jax.Array] | None = None
    aggregation: str | Callable[[jax.Array], jax.Array] = _TOKEN_MEAN
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    num_microbatches: int = static(1)
    group_size: int = static(1)
    whole_groups: bool = static(False)
    greedy_baseline: bool = static(False)
    bootstrap: bool = static(False)
    max_draws: int = static(1)

    def __post_init__(self):
        """Makes partials of functions, and checks what is known; traced values cannot be checked."""
        for name in tracing.PARTS:
            part = getattr(self, name)
            if part is not None and not isinstance(part, Partial) and callable(part):
                part = partial(part)
            if isinstance(part, Partial):
                object.__setattr__(self, name, overrides_lib.complete(part, name))
            elif isinstance(part, _PLAIN):
                raise _validation.invalid(name, part, "a function or None", "", "PPOConfig")
            if part is None and name in ("advantage", "loss"):
                raise _validation.invalid(
                    name, part, "a function", "None switches other parts off.", "PPOConfig"
                )
        for name, kind in {"kl": KL, "value": Value, "whitening": Whitening}.items():
            if isinstance(part := getattr(self, name), _PLAIN):
                remedy = f"Import {kind.__name__} from proxlm.policy."
                raise _validation.invalid(name, part, f"a {kind.__name__} or None", remedy, "PPOConfig")
        if not callable(self.aggregation):
            _validation.one_of(tuple(WEIGHTS), "PPOConfig", aggregation=self.aggregation)
        counts = ("num_epochs", "num_minibatches", "num_microbatches", "group_size", "max_draws")
        for name in counts:
            _validation.to_int(1, "PPOConfig", **{name: getattr(self, name)})
        _validation.at_least(-math.inf, "PPOConfig", **plain(self, "entropy_coef"))
        flags = {name: getattr(self, name) for name in ("greedy_baseline", "whole_groups", "bootstrap")}
        _validation.one_of((True, False), "PPOConfig", **flags)
        _validation.at_least(0, "PPOConfig", **plain(self, "max_kl", "missing_eos_penalty"))
        _validation.finite("PPOConfig", **plain(self, "entropy_coef", "missing_eos_penalty"))
        if isinstance(self.reward_weights, _PLAIN):
            if not isinstance(self.reward_weights, dict) or not self.reward_weights:
                raise _validation.invalid(
                    "reward_weights", self.reward_weights, "a dict of names and weights", "", "PPOConfig"
                )
            numbers = {f"reward_weights[{name!r}]": x for name, x in self.reward_weights.items()}
            known = {name: x for name, x in numbers.items() if isinstance(x, int | float | str)}
            _validation.at_least(-math.inf, "PPOConfig", "", **known)
        combinations.check(self)
        tracing.trace_parts(self)

    def estimate(
        self,
        token_rewards: jax.Array,
        values: jax.Array | None,
        mask: jax.Array,
        discounts: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Advantages [B, R], whitened if configured, and returns, or None without a critic.

        The discounts [B, R], if there are any, are factors of γ from each step to the next, as in `gae`.

        >>> rewards, mask = jnp.array([[1.0]]), jnp.array([[True]])
        >>> PPOConfig(whitening=None).estimate(rewards, rewards - 0.5, mask)
        (Array([[0.5]], dtype=float32), Array([[1.]], dtype=float32))
        """
        advantage: Any = self.advantage
        if discounts is not None:
            if "discounts" not in parameters_of(advantage.fn):
                remedy = "Take advantages.gae_advantages or reward_to_go_advantages."
                expected = "a function with an argument discounts, which the samples have"
                raise _validation.invalid("advantage", advantage, expected, remedy, "PPOConfig")
            settings = advantage.settings | {"discounts": jnp.asarray(discounts, jnp.float32)}
            advantage = functools.partial(advantage.fn, **settings)
        result = advantage(token_rewards, values, mask, self.group_size)
        advantages, returns = result if isinstance(result, tuple) else (result, None)
        if self.whitening is not None and self.whitening.advantages:
            advantages = self.whitening(advantages, mask)
        return advantages, returns

    @property
    def settings(self) -> dict[str, Any]:
        """The value of every setting by its flat name, as `recipes.make` takes it.

        >>> PPOConfig().settings["clip_low"], PPOConfig().settings["kl_coef"]
        (0.2, 0.05)
        """
        return overrides_lib.settings(self)

    def replace(self, **overrides: Any) -> "PPOConfig":
        """The same configuration with some settings changed, by flat names too; see `recipes.make`.

        >>> PPOConfig().replace(discount=0.9, kl_coef=0.2).kl.coef
        0.2
        """
        return override(self, overrides, "this configuration")


def override(config: PPOConfig, overrides: dict[str, Any], whose: str) -> PPOConfig:
    """A configuration with settings changed by flat name, checked before any compute.

    >>> override(PPOConfig(), {"clip_low": 1.5}, "ppo")
    Traceback (most recent call last):
        ...
    ValueError: clipped: clip_low must be a number in [0, 1], got 1.5.
    """
    changed = overrides_lib.override(config, overrides, whose)
    check_parts(changed)
    return changed


def check_parts(config: PPOConfig) -> None:
    """Raises the ValueErrors of parts that are the library's own, by tracing them on shapes alone.

    Parts of one's own may expect what only a real batch has, and stacked numbers await a vmap:
    neither is traced here.

    >>> check_parts(PPOConfig())
    """
    for name in ("kl", "value"):
        # not where a config is made: one of None may be the in_axes of a vmap
        if getattr(getattr(config, name), "coef", 0.0) is None:
            raise _validation.invalid(
                f"{name}_coef", None, "a number", f"Give {name}=None for none.", "PPOConfig"
            )
    tracing.trace_parts(config)
