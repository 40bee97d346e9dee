"""Algorithms with a name, each a short value: a `PPOConfig` and where its conventions come from.

    config = recipes.make("grpo", group_size=16, kl_coef=0.01)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)

A new one is a `PPOConfig` in your own script; a part that is missing is a function in it. What
is not a convention of the loss (epochs, minibatches, group sizes) is left at one common default,
except that plain policy gradients take one step per batch. How every loss of verl and TRL is made
of such parts is written in tests/policy/peer_losses.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from proxlm import _validation
from proxlm.policy import filters, importance_weights, losses
from proxlm.policy._configuration.config import KL, PPOConfig, Whitening, override
from proxlm.policy._configuration.partials import Partial, partial
from proxlm.policy.advantages import batch, group, pass_k

__all__ = ["RECIPES", "Recipe", "make"]


class Recipe(NamedTuple):
    """A configuration, made and checked where it is asked for, and its source, conventions included."""

    build: Callable[[], PPOConfig]
    source: str

    @property
    def config(self) -> PPOConfig:
        """The configuration with the settings of the source."""
        return self.build()


def _criticless(advantage: Partial, **settings: Any) -> PPOConfig:
    """Settings of methods without a critic; no whitening unless given."""
    return PPOConfig(**{"advantage": advantage, "value": None, "whitening": None} | settings)


def _groups(baseline: Partial, **settings: Any) -> PPOConfig:
    """Settings of methods that compare the answers to one prompt; β = 0 unless given."""
    base = {
        "advantage": partial(batch.group_advantages, baseline=baseline),
        "group_size": 8,
        "kl": KL(coef=0.0),
    }
    return _criticless(**base | settings)


def _clipped(clip_low: float = 0.2, clip_high: float = 0.2, level: str = "token") -> Partial:
    """PPO's loss with other bounds, or with the ratio of whole sequences."""
    return partial(losses.clipped, clip_low=clip_low, clip_high=clip_high, dual_clip=None, level=level)


_NORMALISED = partial(group.group_relative, epsilon=1e-4)
_CENTRED = partial(group.centred)
_ON_POLICY = {"num_epochs": 1, "num_minibatches": 1, "loss": partial(losses.policy_gradient)}

RECIPES = {
    "ppo": Recipe(
        PPOConfig, "Schulman et al. 2017; k1 in the reward, GAE with a critic, whitened advantages"
    ),
    "ppo_kl": Recipe(
        lambda: PPOConfig(loss=partial(losses.kl_penalty, coef=1.0, direction="forward")),
        "Schulman et al. 2017, section 4: KL(π_old‖π) in place of the clip",
    ),
    "mdpo": Recipe(
        lambda: PPOConfig(loss=partial(losses.kl_penalty, coef=1.0, direction="reverse")),
        "Tomar et al. 2020: KL(π‖π_old), the proximal step by sampled gradients",
    ),
    "vapo": Recipe(
        lambda: PPOConfig(
            advantage=partial(batch.length_adaptive_advantages, alpha=0.05),
            loss=_clipped(clip_high=0.28),
            kl=KL(coef=0.0),
            whitening=None,
        ),
        "Yue et al. 2025: length-adaptive λ, critic λ = 1, clip higher; without its imitation loss",
    ),
    "reinforce": Recipe(
        lambda: _criticless(partial(batch.reward_to_go_advantages), aggregation="sequence_sum", **_ON_POLICY),
        "Williams 1992: no baseline, k1 in the reward, sum over tokens",
    ),
    "remax": Recipe(
        lambda: _criticless(
            partial(batch.reward_to_go_advantages),
            greedy_baseline=True,
            aggregation="sequence_sum",
            **_ON_POLICY,
        ),
        "Li et al. 2023: against the greedy answer, k1 in the reward, sum over tokens",
    ),
    "reinforce++": Recipe(
        lambda: _criticless(
            partial(batch.reward_to_go_advantages), whitening=Whitening(ddof=1), kl=KL(coef=0.01)
        ),
        "Hu 2025: reward to go, k1 in the reward, whitened over the batch (ddof 1), clip",
    ),
    "reinforce++_baseline": Recipe(
        lambda: _groups(
            _CENTRED, whitening=Whitening(ddof=1), kl=KL(coef=0.01, placement="loss", estimator="k2")
        ),
        "Hu 2025: group mean, then whitened over the batch (ddof 1); k2 in the loss",
    ),
    "rloo": Recipe(
        lambda: _groups(
            partial(group.leave_one_out), kl=KL(coef=0.05), aggregation="sequence_sum", **_ON_POLICY
        ),
        "Ahmadian et al. 2024: leave one out, k1 in the reward, sum over tokens",
    ),
    "opo": Recipe(
        lambda: _criticless(
            partial(batch.length_weighted_advantages),
            group_size=8,
            kl=KL(coef=0.0),
            aggregation="sequence_sum",
            **_ON_POLICY,
        ),
        "Hao et al. 2025: length-weighted baseline, exactly on policy, no KL",
    ),
    "grpo": Recipe(
        lambda: _groups(
            _NORMALISED, aggregation="sequence", kl=KL(coef=0.04, placement="loss", estimator="k3")
        ),
        "Shao et al. 2024: std with ddof 1 + 1e-4 (TRL), mean over sequences, k3 in the loss",
    ),
    "gdpo": Recipe(
        lambda: _groups(
            _CENTRED,
            reward_normalisation=_NORMALISED,
            whitening=Whitening(ddof=1),
            kl=KL(coef=0.04, placement="loss", estimator="k3"),
        ),
        "Liu et al. 2026: each reward normalised in its group, their sum over the batch (ddof 1)",
    ),
    "dr_grpo": Recipe(
        lambda: _groups(_CENTRED, aggregation="constant"),
        "Liu et al. 2025: no std, sums divided by the longest length, no KL",
    ),
    "dapo": Recipe(
        lambda: _groups(
            _NORMALISED,
            loss=_clipped(clip_high=0.28),
            group_filter=partial(filters.reward_varies),
            length_penalty=partial(filters.overlong_share, share=0.2),
        ),
        "Yu et al. 2025: clip higher, token mean, length penalty, no KL; groups of "
        "equal rewards are left out, not drawn again",
    ),
    "gspo": Recipe(
        lambda: _groups(_NORMALISED, loss=_clipped(3e-4, 4e-4, "sequence"), aggregation="sequence"),
        "Zheng et al. 2025: ratio of the sequence, per token; mean over sequences",
    ),
    "luspo": Recipe(
        lambda: _groups(_NORMALISED, loss=_clipped(2e-3, 2.5e-3, "sequence"), aggregation="sequence_sum"),
        "LUSPO 2026, as in TRL 1.16: GSPO with sums over tokens, free of length bias",
    ),
    "gmpo": Recipe(
        lambda: _groups(
            _NORMALISED,
            loss=partial(losses.geometric_mean, clip_low=0.4, clip_high=0.4),
            aggregation="sequence",
        ),
        "Zhao et al. 2025: geometric mean of ratios, clipped at e^-0.4 and e^0.4 one by one",
    ),
    "cispo": Recipe(
        lambda: _groups(_NORMALISED, loss=partial(losses.cispo, clip_low=1.0, clip_high=4.0)),
        "MiniMax-M1 2025: weight clipped at 5 (TRL), none lost; token mean, no KL",
    ),
    "sapo": Recipe(
        lambda: _groups(
            _NORMALISED,
            loss=partial(losses.sapo, tau_positive=1.0, tau_negative=1.05),
            aggregation="sequence",
        ),
        "Gao et al. 2025: soft gate, τ of 1 and 1.05; mean over sequences",
    ),
    "vespo": Recipe(
        lambda: _groups(_NORMALISED, loss=partial(losses.vespo, k_positive=2.0)),
        "VESPO 2026, as in TRL 1.16: gamma weight of the sequence's ratio; token mean",
    ),
    "topr": Recipe(
        lambda: _groups(_CENTRED, loss=partial(losses.topr, high_negative=1.0), aggregation="sequence_sum"),
        "Le Roux et al. 2025: bad sequences weighed by their ratio, at most 1",
    ),
    "clip_cov": Recipe(
        lambda: _groups(_NORMALISED, loss=partial(losses.clip_cov, share=2e-4)),
        "Cui et al. 2025: 2 of 10,000 tokens of high covariance get no gradient",
    ),
    "kl_cov": Recipe(
        lambda: _groups(_NORMALISED, loss=partial(losses.kl_cov, share=2e-4, coef=1.0)),
        "Cui et al. 2025: 2 of 10,000 tokens of high covariance pay for moving",
    ),
    "dppo": Recipe(
        lambda: _groups(_NORMALISED, loss=partial(losses.dppo, divergence="tv")),
        "DPPO 2026: tokens whose probability moved more than 0.2 get no gradient",
    ),
    "pass_at_k": Recipe(
        lambda: _groups(partial(pass_k.pass_at_k, k=4)),
        "Chen et al. 2025: rewards above 0 are right; advantages of the best of 4",
    ),
    "tis": Recipe(
        lambda: _groups(_NORMALISED, correction=partial(importance_weights.truncated, high=2.0)),
        "Yao et al. 2025: weights of the sampler truncated at 2, old log-probs scored anew",
    ),
}


def make(name: str, **overrides: Any) -> PPOConfig:
    """The configuration of that name, with settings changed.

    A setting is named as in the part that owns it: `clip_low` is the loss's, `discount` the
    advantage's, `kl_coef`, `value_clip` and `whitening_ddof` those of `KL`, `Value` and
    `Whitening`. Where two parts have a setting of one name, put the part's in front: `loss_level`.

    Args:
      name: one of `RECIPES`.
      **overrides: settings by flat name, or whole fields of `PPOConfig`.

    Raises:
      ValueError: if the name is unknown, if the recipe has no such setting, or as `PPOConfig`.

    >>> make("cispo", clip_high=1.0, group_size=16).loss.settings["clip_high"]
    1.0
    >>> make("reinforce", clip_high=1.0)
    Traceback (most recent call last):
        ...
    ValueError: recipes.make: clip_high must be a setting of 'reinforce', got 1.0. Its settings are ...
    """
    _validation.one_of(tuple(RECIPES), "recipes.make", name=name)
    return override(RECIPES[name].config, overrides, repr(name))
