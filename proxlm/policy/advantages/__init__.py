"""Advantages: of one sequence, of the answers to one prompt, and of a whole batch.

- `temporal`: of one sequence [T]: `gae`; `whiten`; `place_score`, `shape_rewards`, `missing_eos`
- `returns`: of one sequence [T], without or beside a critic: `reward_to_go`, `remax`, `decoupled_gae`,
  `adaptive_lambda`; `over_tokens` spreads one number a sequence over its tokens
- `group`: of the G answers to one prompt [G]: `centred`, `group_relative` (GRPO), `leave_one_out` (RLOO),
  `length_weighted` (OPO), `batch_scaled`; `by_group` runs one over a batch
- `pass_k`: of one group [G], judged by its best: `pass_at_k`, `best_minus_second`
- `token`: of one group [G, T]: `optimal_token`, `score_energy`
- `batch`: of a whole batch [B, T], in the form that a recipe takes: `gae_advantages` `group_advantages`
  `batch_scaled_advantages` `length_weighted_advantages` `reward_to_go_advantages`
  `length_adaptive_advantages`
"""

from proxlm.policy.advantages.batch import (
    batch_scaled_advantages,
    gae_advantages,
    group_advantages,
    length_adaptive_advantages,
    length_weighted_advantages,
    reward_to_go_advantages,
)
from proxlm.policy.advantages.group import (
    batch_scaled,
    by_group,
    centred,
    group_relative,
    leave_one_out,
    length_weighted,
)
from proxlm.policy.advantages.pass_k import best_minus_second, pass_at_k
from proxlm.policy.advantages.returns import adaptive_lambda, decoupled_gae, over_tokens, remax, reward_to_go
from proxlm.policy.advantages.temporal import gae, missing_eos, place_score, shape_rewards, whiten
from proxlm.policy.advantages.token import optimal_token, score_energy

__all__ = [
    "adaptive_lambda",
    "batch_scaled",
    "batch_scaled_advantages",
    "best_minus_second",
    "by_group",
    "centred",
    "decoupled_gae",
    "gae",
    "gae_advantages",
    "group_advantages",
    "group_relative",
    "leave_one_out",
    "length_adaptive_advantages",
    "length_weighted",
    "length_weighted_advantages",
    "missing_eos",
    "optimal_token",
    "over_tokens",
    "pass_at_k",
    "place_score",
    "remax",
    "reward_to_go",
    "reward_to_go_advantages",
    "score_energy",
    "shape_rewards",
    "whiten",
]
