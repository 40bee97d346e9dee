"""The settings of an iteration: PPO's, and the parts that make its relatives."""

import dataclasses
from collections.abc import Callable

import jax

from proxlm.policy import _validation
from proxlm.policy._partial import Piece, piece
from proxlm.policy.aggregation import WEIGHTS
from proxlm.policy.kl import ESTIMATORS
from proxlm.policy.losses._ratio import LEVELS


def _static(default):
    """A field that decides the structure of the program and cannot be traced."""
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The settings of PPO.  None switches a part off; static fields are marked.

    The last eight make other algorithms of it; `recipes` holds those that have a name.  A function
    given for one becomes a `Piece`, whose numbers are traced like the others.

    Attributes:
      discount: γ per token.
      gae_lambda: λ of generalised advantage estimation.
      clip_low: the ratio's bound below, 1 − clip_low.
      clip_high: the ratio's bound above, 1 + clip_high.
      dual_clip: the bound c > 1 of the loss where the advantage is negative, or None.
      value_clip: how far a value may move from the old one before its loss stops helping, or None.
      value_coef: weight of the value loss.
      entropy_coef: weight of the entropy bonus; a plain 0 costs nothing.
      kl_coef: β, weight of the KL to the reference; the initial one if it adapts.
      kl_target: nats per response that β adapts to, or None for a constant β.
      kl_horizon: sequences over which β adapts.
      max_kl: nats per token from the sampling policy beyond which the iteration's remaining
        updates are dropped, or None.
      missing_eos_penalty: taken off the score of a response without a stop token, or None.
      whiten_epsilon: added to the variance inside the root.
      kl_placement: "reward" or "loss" (static).
      kl_estimator: "k1", "k2", "k3", "exact" over the whole vocabulary, or another of `kl`
        (static).  In the loss, k1 has an expected gradient of 0.  In the reward, "exact" teaches
        what a token does to the KL after it, but nothing of the KL at its own place, which does
        not depend on the token drawn: that part of the gradient is missing, and k1 has both.
      whiten_advantages: to mean 0 and variance 1 over the whole batch (static).
      whiten_rewards: to variance 1 over the batch, the mean kept (static).
      whiten_ddof: 0 divides by n, 1 by n − 1 (static).
      aggregation: "token", "sequence", "sequence_sum", "constant", or a function of the mask to
        weights (static).
      num_epochs: passes over the batch (static).
      num_minibatches: optimizer steps per pass (static).
      num_microbatches: pieces of a minibatch, to bound memory; the sum is the same (static).
      group_size: responses sampled for each prompt (static).
      ratio_level: of the clipped surrogate, as in `losses.log_ratio` (static).
      greedy_baseline: take off every score that of the likeliest answer to its prompt (static);
        these answers, one a prompt, are the last rows of the samples that the reward sees.
      advantage: as those of `advantages.batch`; None is GAE.
      surrogate: as those of `losses`; None is the clipped one.
      keep: (rewards [G], valid [G]) -> bool [G], the responses of a group that teach, as
        `filters.varied`; None keeps all.
      length_price: (lengths [B], longest) -> [B], added to the scores, as
        `filters.overlong_share`.
      correction: (old, sampler log-probs, mask) -> weights, as those of `importance_weights`; with it the
        old log-probs are scored anew, those of the sampler its own.

    >>> PPOConfig(kl_placement="prior")
    Traceback (most recent call last):
        ...
    ValueError: kl_placement is 'prior'; expected one of 'reward', 'loss'.
    """

    discount: float = 1.0
    gae_lambda: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    max_kl: float | None = None
    missing_eos_penalty: float | None = None
    whiten_epsilon: float = 1e-8
    kl_placement: str = _static("reward")
    kl_estimator: str = _static("k1")
    whiten_advantages: bool = _static(True)
    whiten_rewards: bool = _static(False)
    whiten_ddof: int = _static(0)
    aggregation: str = _static("token")
    num_epochs: int = _static(4)
    num_minibatches: int = _static(4)
    num_microbatches: int = _static(1)
    group_size: int = _static(1)
    ratio_level: str = _static("token")
    greedy_baseline: bool = _static(False)
    advantage: Callable | None = None
    surrogate: Callable | None = None
    keep: Callable | None = None
    length_price: Callable | None = None
    correction: Callable | None = None

    def __post_init__(self):
        """Checks what is a plain number; traced values are the caller's word."""
        _validation.one_of(("reward", "loss"), kl_placement=self.kl_placement)
        names = dict.fromkeys(("k1", "k2", "k3", "exact", *ESTIMATORS))
        _validation.one_of(tuple(names), kl_estimator=self.kl_estimator)
        _validation.one_of(LEVELS, ratio_level=self.ratio_level)
        if not callable(self.aggregation):
            _validation.one_of(tuple(WEIGHTS), aggregation=self.aggregation)
        for name in ("advantage", "surrogate", "keep", "length_price", "correction"):
            part = getattr(self, name)
            if callable(part) and not isinstance(part, Piece):
                object.__setattr__(self, name, piece(part))
        # only plain numbers: JAX also makes configs of gradients and of placeholders
        known = lambda *names: {
            name: x for name in names if isinstance(x := getattr(self, name), (int, float))
        }
        _validation.at_least(1, **known("num_epochs", "num_minibatches", "num_microbatches"))
        _validation.at_least(1, **known("group_size"))
        _validation.at_least(0, **known("kl_coef", "clip_high", "value_coef", "value_clip", "max_kl"))
        _validation.at_least(0, **known("missing_eos_penalty", "whiten_ddof"))
        _validation.at_least(1, **known("dual_clip"))
        _validation.within(0, 1, **known("discount", "gae_lambda", "clip_low"))
        _validation.positive(**known("kl_target", "kl_horizon", "whiten_epsilon"))
