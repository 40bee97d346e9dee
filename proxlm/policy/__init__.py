"""Policy optimisation of language models: PPO and its relatives as pure functions.

- `ppo`: one iteration, `make_step` for a traced reward and `make_host_step` for one in Python; a loop
- `recipes`: two dozen algorithms by name, `recipes.make("grpo", group_size=16, kl_coef=0.01)`
- `actor_from_logits`, `check_actor`: the actor of any model, and whether an actor keeps its laws; `actors`
- `PPOConfig` with `KL`, `Value` and `Whitening`; `partial` binds the settings of a function: a `Partial`
- `losses`: policy losses per token, preference losses, supervised fine-tuning
- `advantages`: of one sequence, of the answers to one prompt, of a whole batch
- `kl`, `aggregation`: estimators of the KL from a reference; from a loss per token to one number
- `filters`, `importance_weights`: masks over responses and tokens; corrections for another sampler
- `rewards`: concurrent rewards on the host, functions of texts, rewards of steps and turns
- `diagnostics`, `best_of_n`: how far a policy has moved; the best of n answers
- `mirror_descent`: the exact proximal step of a policy
- `tabular`: a language small enough to enumerate, where every expectation is exact
- `protocols`: the types `Actor` `Prompts` `Samples` `Scores` `Reward` `Advantage` `Loss`

Everything is a function of arrays and traces, vmaps and differentiates. The model is met through an
actor, such as `lm.make_actor` gives.
"""

from proxlm.policy import (
    actors,
    advantages,
    aggregation,
    best_of_n,
    diagnostics,
    filters,
    importance_weights,
    kl,
    losses,
    mirror_descent,
    ppo,
    protocols,
    recipes,
    rewards,
    tabular,
)
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._configuration.partials import Partial, partial
from proxlm.policy._configuration.settings import KL, Value, Whitening
from proxlm.policy.actors import actor_from_logits, check_actor
from proxlm.policy.protocols import Actor, Advantage, Loss, Prompts, Reward, Samples, Scores

__all__ = [
    "KL",
    "Actor",
    "Advantage",
    "Loss",
    "PPOConfig",
    "Partial",
    "Prompts",
    "Reward",
    "Samples",
    "Scores",
    "Value",
    "Whitening",
    "actor_from_logits",
    "actors",
    "advantages",
    "aggregation",
    "best_of_n",
    "check_actor",
    "diagnostics",
    "filters",
    "importance_weights",
    "kl",
    "losses",
    "mirror_descent",
    "partial",
    "ppo",
    "protocols",
    "recipes",
    "rewards",
    "tabular",
]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
