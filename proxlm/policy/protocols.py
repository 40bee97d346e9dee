"""The types of what policy optimisation is given: an actor, prompts, a reward, an advantage and a loss.

All are structural: any object with these attributes or arguments will do, such as those of `proxlm.lm`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import chex
import jax

__all__ = ["Actor", "Advantage", "Loss", "PromptSource", "Prompts", "Reward", "Samples", "Scores"]


class Prompts(Protocol):
    """A pytree of what to continue, with a row per prompt; further fields are for the reward.

    Attributes:
      tokens: integers [B, P].
      mask: bool [B, P], or None where all are real.
    """

    @property
    def tokens(self) -> Any: ...  # noqa: D102
    @property
    def mask(self) -> Any: ...  # noqa: D102


class Samples(Protocol):
    """A NamedTuple of prompts and of what was sampled after them; P + R = T columns.

    Attributes:
      tokens: int32 [B, T].
      log_probs: nats [B, R], of the response's tokens under the distribution they were drawn from.
      response_mask: bool [B, R].
      ended: bool [B], whether a response has a stop token.

    Rows of classic control may have a field `discounts` [B, R], factors of γ from each step to the next: 0
    where an episode is done, so that a row holds several. `advantages.gae_advantages` heeds it, as does
    `reward_to_go_advantages`.
    """

    @property
    def tokens(self) -> Any: ...  # noqa: D102
    @property
    def log_probs(self) -> Any: ...  # noqa: D102
    @property
    def response_mask(self) -> Any: ...  # noqa: D102
    @property
    def ended(self) -> Any: ...  # noqa: D102


class Scores(Protocol):
    """Numbers of given responses under a policy, before each token.

    Attributes:
      log_probs: nats [B, R].
      entropy: nats [B, R].
      values: [B, R], or None without a critic.
      distribution: nats [B, R, V] if it was asked for, else None.
    """

    @property
    def log_probs(self) -> Any: ...  # noqa: D102
    @property
    def entropy(self) -> Any: ...  # noqa: D102
    @property
    def values(self) -> Any: ...  # noqa: D102
    @property
    def distribution(self) -> Any: ...  # noqa: D102


class Actor(Protocol):
    """Pure functions of the parameters of a policy and of its critic.

    `sampling`, where an actor has it, holds the settings it samples with: `greedy`, `stop_token`,
    `top_k`, `top_p` and `min_p`. Without it nothing is assumed to be truncated.

    Attributes:
      sample: (key, params, prompts) -> `Samples`.
      score: (params, samples, full=False) -> `Scores` under the distribution that `sample` draws from.
      reference: (params, samples, full=False) -> `Scores` under the untruncated distribution; values
        are not asked for.
      greedy: (params, prompts) -> `Samples` of the likeliest tokens, or None.

    One with `final_values`, (params, samples) -> values [B] of the states after the last column, can be
    bootstrapped where responses are cut. One with `cast`, (params) -> params of the same scores, is scored
    under those where it is scored in slices. Where `reference` has an argument `states` and `score` one
    `against`, as those of `lm.make_actor`, no `[B, R, V]` is asked for.
    """

    @property
    def sample(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def score(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def reference(self) -> Callable[..., Any]: ...  # noqa: D102
    @property
    def greedy(self) -> Callable[..., Any] | None: ...  # noqa: D102


class Advantage(Protocol):
    """(rewards, values or None, mask, [B, T] each, group_size) -> advantages, or these and returns."""

    def __call__(  # noqa: D102
        self, rewards: jax.Array, values: Any, mask: jax.Array, group_size: int, /
    ) -> Any: ...


class Loss(Protocol):
    """(log_probs, old_log_probs, advantages, mask), [B, T] each -> a loss per token [B, T]."""

    def __call__(  # noqa: D102
        self, log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array, /
    ) -> Any: ...


# (samples) -> one number per response, or per token, or a dict of these by name; or a dict of such
# functions. Where the prompts have fields beside tokens and mask, (samples, prompts), with a row of the
# prompts for each row of the samples.
Reward = Callable[..., Any] | Mapping[str, Callable[..., Any]]
# A function of a key, or for loops in Python an iterator or a loader.
PromptSource = Callable[[jax.Array], Any] | Iterable[Any]
# A loss added to that of every minibatch: (params, key) -> scalar.
Auxiliary = Callable[[chex.ArrayTree, jax.Array], jax.Array]
