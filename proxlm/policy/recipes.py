"""Algorithms with a name, each a short value: a `PPOConfig` and where its conventions come from.

    config = recipes.make("grpo", group_size=16, kl_coef=0.01)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)

A new one is a `PPOConfig` in your own script; a part that is missing is a function in it.  What
is not a convention of the loss (epochs, minibatches, group sizes) is left at one common default,
except that plain policy gradients take one step per batch.  How every loss of verl and TRL is made
of such parts is written in tests/policy/peer_losses.py.
"""

import dataclasses
from typing import NamedTuple

from proxlm.policy import _validation, filters, importance_weights, losses
from proxlm.policy._partial import piece
from proxlm.policy.advantages import batch, group, pass_k
from proxlm.policy.config import PPOConfig


class Recipe(NamedTuple):
    """A configuration and its source, conventions included."""

    config: PPOConfig
    source: str


def _groups(baseline, **settings):
    """Settings of methods that compare the answers to one prompt; no critic, no KL unless given."""
    base = {
        "advantage": piece(batch.group_advantages, baseline=baseline),
        "group_size": 8,
        "kl_coef": 0.0,
        "whiten_advantages": False,
    }
    return PPOConfig(**base | settings)


_NORMALISED = piece(group.group_relative, epsilon=1e-4)
_CENTRED = piece(group.centred)
_ONE_STEP = {"num_epochs": 1, "num_minibatches": 1}
_ON_POLICY = _ONE_STEP | {"surrogate": piece(losses.policy_gradient)}

RECIPES = {
    "ppo": Recipe(
        PPOConfig(),
        "Schulman et al. 2017; k1 in the reward, GAE with a critic, whitened advantages",
    ),
    "ppo_kl": Recipe(
        PPOConfig(surrogate=piece(losses.kl_penalty, coef=1.0)),
        "Schulman et al. 2017, section 4: KL(π_old‖π) in place of the clip",
    ),
    "mdpo": Recipe(
        PPOConfig(surrogate=piece(losses.kl_penalty, coef=1.0, direction="reverse")),
        "Tomar et al. 2020: KL(π‖π_old), the proximal step by sampled gradients",
    ),
    "vapo": Recipe(
        PPOConfig(
            advantage=piece(batch.length_adaptive_advantages, alpha=0.05),
            clip_high=0.28,
            kl_coef=0.0,
            whiten_advantages=False,
        ),
        "Yue et al. 2025: length-adaptive λ, critic λ = 1, clip higher; without its imitation loss",
    ),
    "reinforce": Recipe(
        PPOConfig(
            advantage=piece(batch.reward_to_go_advantages),
            whiten_advantages=False,
            aggregation="sequence_sum",
            **_ON_POLICY,
        ),
        "Williams 1992: no baseline, k1 in the reward, sum over tokens",
    ),
    "remax": Recipe(
        PPOConfig(
            advantage=piece(batch.reward_to_go_advantages),
            greedy_baseline=True,
            whiten_advantages=False,
            aggregation="sequence_sum",
            **_ON_POLICY,
        ),
        "Li et al. 2023: against the greedy answer, k1 in the reward, sum over tokens",
    ),
    "reinforce++": Recipe(
        PPOConfig(advantage=piece(batch.reward_to_go_advantages), whiten_ddof=1, kl_coef=0.01),
        "Hu 2025: reward to go, k1 in the reward, whitened over the batch (ddof 1), clip",
    ),
    "reinforce++_baseline": Recipe(
        _groups(
            _CENTRED,
            whiten_advantages=True,
            whiten_ddof=1,
            kl_placement="loss",
            kl_estimator="k2",
            kl_coef=0.01,
        ),
        "Hu 2025: group mean, then whitened over the batch (ddof 1); k2 in the loss",
    ),
    "rloo": Recipe(
        _groups(piece(group.leave_one_out), kl_coef=0.05, aggregation="sequence_sum", **_ON_POLICY),
        "Ahmadian et al. 2024: leave one out, k1 in the reward, sum over tokens",
    ),
    "opo": Recipe(
        _groups(
            _CENTRED,
            aggregation="sequence_sum",
            **_ON_POLICY | {"advantage": piece(batch.length_weighted_advantages)},
        ),
        "Hao et al. 2025: length-weighted baseline, exactly on policy, no KL",
    ),
    "grpo": Recipe(
        _groups(_NORMALISED, aggregation="sequence", kl_placement="loss", kl_estimator="k3", kl_coef=0.04),
        "Shao et al. 2024: std with ddof 1 + 1e-4 (TRL), mean over sequences, k3 in the loss",
    ),
    "dr_grpo": Recipe(
        _groups(_CENTRED, aggregation="constant"),
        "Liu et al. 2025: no std, sums divided by the longest length, no KL",
    ),
    "dapo": Recipe(
        _groups(
            _NORMALISED,
            clip_high=0.28,
            keep=piece(filters.varied),
            length_price=piece(filters.overlong_share, share=0.2),
        ),
        "Yu et al. 2025: clip higher, token mean, price of length, no KL; groups of "
        "equal rewards are left out, not drawn again",
    ),
    "gspo": Recipe(
        _groups(_NORMALISED, ratio_level="sequence", clip_low=3e-4, clip_high=4e-4, aggregation="sequence"),
        "Zheng et al. 2025: ratio of the sequence, per token; mean over sequences",
    ),
    "luspo": Recipe(
        _groups(
            _NORMALISED, ratio_level="sequence", clip_low=2e-3, clip_high=2.5e-3, aggregation="sequence_sum"
        ),
        "LUSPO 2026, as in TRL 1.16: GSPO with sums over tokens, free of length bias",
    ),
    "gmpo": Recipe(
        _groups(
            _NORMALISED,
            surrogate=piece(losses.geometric_mean, clip_low=0.4, clip_high=0.4),
            aggregation="sequence",
        ),
        "Zhao et al. 2025: geometric mean of ratios, clipped at e^-0.4 and e^0.4 one by one",
    ),
    "cispo": Recipe(
        _groups(_NORMALISED, surrogate=piece(losses.cispo, clip_low=1.0, clip_high=4.0)),
        "MiniMax-M1 2025: weight clipped at 5 (TRL), none lost; token mean, no KL",
    ),
    "sapo": Recipe(
        _groups(
            _NORMALISED,
            surrogate=piece(losses.sapo, tau_positive=1.0, tau_negative=1.05),
            aggregation="sequence",
        ),
        "Gao et al. 2025: soft gate, τ of 1 and 1.05; mean over sequences",
    ),
    "vespo": Recipe(
        _groups(_NORMALISED, surrogate=piece(losses.vespo, k_positive=2.0)),
        "VESPO 2026, as in TRL 1.16: gamma weight of the sequence's ratio; token mean",
    ),
    "topr": Recipe(
        _groups(_CENTRED, surrogate=piece(losses.topr, high_negative=1.0), aggregation="sequence_sum"),
        "Le Roux et al. 2025: bad sequences weighed by their ratio, at most 1",
    ),
    "clip_cov": Recipe(
        _groups(_NORMALISED, surrogate=piece(losses.clip_cov, share=2e-4)),
        "Cui et al. 2025: 2 of 10,000 tokens of high covariance get no gradient",
    ),
    "kl_cov": Recipe(
        _groups(_NORMALISED, surrogate=piece(losses.kl_cov, share=2e-4, coef=1.0)),
        "Cui et al. 2025: 2 of 10,000 tokens of high covariance pay for moving",
    ),
    "dppo": Recipe(
        _groups(_NORMALISED, surrogate=piece(losses.dppo, divergence="tv")),
        "DPPO 2026: tokens whose probability moved more than 0.2 get no gradient",
    ),
    "pass_at_k": Recipe(
        _groups(piece(pass_k.pass_at_k, k=4)),
        "Chen et al. 2025: rewards above 0 are right; advantages of the best of 4",
    ),
    "tis": Recipe(
        _groups(_NORMALISED, correction=piece(importance_weights.truncated, high=2.0)),
        "Yao et al. 2025: weights of the sampler truncated at 2, old log-probs scored anew",
    ),
}


def make(name: str, **overrides) -> PPOConfig:
    """The configuration of that name, with fields of `PPOConfig` replaced.

    Args:
      name: one of `RECIPES`.
      **overrides: fields of `PPOConfig`; settings inside a part go by `Piece.replace`.

    Returns:
      A `PPOConfig`.

    Raises:
      ValueError: listing the known names, or as `PPOConfig`.

    >>> make("dapo", group_size=16).clip_high
    0.28
    >>> make("gppo")
    Traceback (most recent call last):
        ...
    ValueError: name is 'gppo'; expected one of 'ppo', 'ppo_kl', 'mdpo', 'vapo', 'reinforce', ...
    """
    _validation.one_of(tuple(RECIPES), name=name)
    return dataclasses.replace(RECIPES[name].config, **overrides)
