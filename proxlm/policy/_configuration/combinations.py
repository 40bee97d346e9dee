"""Settings of a `PPOConfig` that exclude each other."""

from typing import Any

from proxlm import _validation
from proxlm.policy.advantages import batch

__all__ = ["COMPARISONS", "CRITICLESS", "check"]

# By these the answers to one prompt are compared, so that a group has at least two.
COMPARISONS = (batch.group_advantages, batch.batch_scaled_advantages, batch.length_weighted_advantages)
CRITICLESS = (*COMPARISONS, batch.reward_to_go_advantages)


def check(config: Any) -> None:
    """Raises ValueError where one setting makes another one do nothing."""
    advantage = getattr(config.advantage, "fn", None)
    compares = advantage in COMPARISONS
    if config.group_size < 2 and compares:
        reason = "The answers of a group are each other's baseline: sample more per prompt, or use a critic."
        raise _validation.invalid("group_size", config.group_size, "an integer ≥ 2", reason, "PPOConfig")
    if compares and config.greedy_baseline:
        remedy = "A baseline that a whole group shares cancels in the comparison of its answers."
        raise _validation.invalid("greedy_baseline", True, "False with group advantages", remedy, "PPOConfig")
    if config.reward_normalisation is not None and (config.group_size < 2 or config.greedy_baseline):
        remedy = "It compares the answers to one prompt: give a group_size of 2 or more, no greedy_baseline."
        raise _validation.invalid(
            "reward_normalisation", config.reward_normalisation, "None without groups", remedy, "PPOConfig"
        )
    if config.whole_groups and min(config.group_size, config.num_minibatches) < 2:
        remedy = "There are no groups, or one minibatch holds them all."
        expected = "False with group_size=1 or num_minibatches=1"
        raise _validation.invalid("whole_groups", True, expected, remedy, "PPOConfig")
    if config.max_draws > 1 and (config.group_size < 2 or config.greedy_baseline):
        remedy = "It asks whether the rewards of a group vary: give a group_size of 2 or more."
        raise _validation.invalid("max_draws", config.max_draws, "1 without groups", remedy, "PPOConfig")
    if config.bootstrap and config.value is None:
        remedy = "There is no critic to go on by: leave it out, or take a recipe with one."
        raise _validation.invalid("bootstrap", True, "False with value=None", remedy, "PPOConfig")
    if config.value is not None and advantage in CRITICLESS:
        remedy = "These advantages have no critic: give value=None, or take advantages.gae_advantages."
        raise _validation.invalid("value", config.value, "None", remedy, "PPOConfig")
