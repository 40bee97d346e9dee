"""Exact policy optimisation on a language so small that every expectation is a finite sum.

    language = tabular.Language(vocab_size=3, length=3)
    goal = lambda logits: tabular.objective(jax.nn.log_softmax(logits), rewards, language)
    gradient = jax.grad(goal)(logits)

A policy is a table of log-probabilities, a row for every prefix, `[S, V]`; a transformer becomes one by
`table`. The old policy and the reference are such tables too, and no reference means no KL. Rewards are one
number for every outcome, `[N]`; `kl_coef` is β ≥ 0. Everything raises ValueError for another shape or a
coefficient out of range. Everything is a pure function that can be jitted and differentiated, in float64
where that is enabled.

- `language`: `Language`, its `outcomes` (`Outcomes`) and `contexts`; `table`
- `exact`: `objective`, `expected_reward`, `divergence`, `outcome_log_probs`, `occupancy`
- `dynamic`: `values` (`Values`), `optimum`, `proximal_point`, by dynamic programming
- `estimators`: `expected_value_and_grad` and `moments` (`Moments`) of a loss of a `Group` of sequences
- `losses`: `minibatch_loss`: the loss that a `PPOConfig` minimises, as such an estimator
"""

from proxlm.policy.tabular.dynamic import Values, optimum, proximal_point, values
from proxlm.policy.tabular.estimators import Group, Moments, expected_value_and_grad, moments
from proxlm.policy.tabular.exact import divergence, expected_reward, objective, occupancy, outcome_log_probs
from proxlm.policy.tabular.language import Language, Outcomes, contexts, outcomes, table
from proxlm.policy.tabular.losses import minibatch_loss

__all__ = [
    "Group",
    "Language",
    "Moments",
    "Outcomes",
    "Values",
    "contexts",
    "divergence",
    "expected_reward",
    "expected_value_and_grad",
    "minibatch_loss",
    "moments",
    "objective",
    "occupancy",
    "optimum",
    "outcome_log_probs",
    "outcomes",
    "proximal_point",
    "table",
    "values",
]
