"""Losses per token of policy optimisation, and losses of preferences and of supervised fine-tuning.

Every policy loss is a function

    loss(log_probs, old_log_probs, advantages, mask, **settings) -> a loss per token, to be minimised

of the same four arrays, which are described here once:

    log_probs      nats [..., T], log π(aₜ) of the policy that learns: gradient flows into these alone
    old_log_probs  nats [..., T], log π_old(aₜ) of the policy that sampled
    advantages     [..., T], or a scalar
    mask           bool [..., T], True at the tokens that count; masked slots may hold NaN

The result is [..., T], 0 where masked, to be weighed and summed by `aggregation`. `level` is one of those of
`log_ratio`, `max_log_ratio` a bound as of `clip_log_ratio`; ρ is the ratio π/π_old, sg the stopped gradient.
A loss of your own is a function of the same four arrays. All losses and masks here raise ValueError if shapes
differ, a mask is not boolean or a setting is out of range.

  clipping        `clipped` (PPO, and at other levels GSPO and RLOO), `cispo`, `sapo`, `clipped_value_loss`
  unclipped       `policy_gradient`, `kl_penalty`, `dro`
  token_level     `clip_cov`, `kl_cov`, `dppo`: losses that single out tokens
  sequence_level  `geometric_mean`, `vespo`, `topr`: losses that weigh whole sequences
  preference      `bradley_terry`, `dpo`, `ipo`, `kto`, `orpo`, `simpo`; `sequence_log_probs`
  preference_variants  `pair_loss`: nine relatives of DPO; `f_score`
  supervised      `sft`, `completion_mask`, `response_mask`

`log_ratio` and `clip_log_ratio` are what the policy losses are built on. A loss of your own that clips the
ratio says by the decorator `clips_ratio` at which `ClipBounds`, so that the metrics report how often it does.
"""

from proxlm.policy._finite import clip_log_ratio
from proxlm.policy.losses._ratio import ClipBounds, clips_ratio, log_ratio
from proxlm.policy.losses.clipping import cispo, clipped, clipped_value_loss, sapo
from proxlm.policy.losses.preference import bradley_terry, dpo, ipo, kto, orpo, sequence_log_probs, simpo
from proxlm.policy.losses.preference_variants import f_score, pair_loss
from proxlm.policy.losses.sequence_level import geometric_mean, topr, vespo
from proxlm.policy.losses.supervised import completion_mask, response_mask, sft
from proxlm.policy.losses.token_level import clip_cov, dppo, kl_cov
from proxlm.policy.losses.unclipped import dro, kl_penalty, policy_gradient

__all__ = [
    "ClipBounds",
    "bradley_terry",
    "cispo",
    "clip_cov",
    "clip_log_ratio",
    "clipped",
    "clipped_value_loss",
    "clips_ratio",
    "completion_mask",
    "dpo",
    "dppo",
    "dro",
    "f_score",
    "geometric_mean",
    "ipo",
    "kl_cov",
    "kl_penalty",
    "kto",
    "log_ratio",
    "orpo",
    "pair_loss",
    "policy_gradient",
    "response_mask",
    "sapo",
    "sequence_log_probs",
    "sft",
    "simpo",
    "topr",
    "vespo",
]
