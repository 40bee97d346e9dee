"""verl's and TRL's losses as compositions of our pieces: (log_probs, given) -> the loss of a batch.

`given` holds what tests/vectors/policy_peer_losses.json does: old, ref and sampler log-probs,
advantages of tokens, scores of sequences, entropies, a mask with a hole and an empty row.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm.policy import aggregation, filters, importance_weights, kl
from proxlm.policy import losses as loss_lib

FREE = 88.0  # no bound on log-ratios
part = functools.partial
by_token, by_sequence = aggregation.token_weights, aggregation.sequence_weights
by_sum, by_constant = aggregation.sequence_sum_weights, aggregation.constant_weights
every_row = part(by_sequence, rows="all")


class batch(NamedTuple):
    """A loss per token, perhaps times a factor, weighed and summed."""

    loss: Callable
    weights: Callable = by_token
    factor: Callable | None = None
    advantages: str = "advantages"
    old: str = "old"

    def __call__(self, x, g):
        tokens = self.loss(x, getattr(g, self.old), getattr(g, self.advantages), g.mask)
        tokens = tokens if self.factor is None else tokens * self.factor(x, g)
        return aggregation.weighted_sum(tokens, self.weights(g.mask))


class of_sampler(NamedTuple):
    """The weights of a correction as a factor: of the old policy, or at once of the one that learns."""

    correction: Callable
    learner: bool = False

    def __call__(self, x, g):
        return self.correction(x if self.learner else g.old, g.sampler, g.mask)


# ---- verl


def geometric_weights(x, g):
    """The geometric mean over a sequence of weights that were truncated token by token."""
    w = importance_weights.truncated(g.old, g.sampler, g.mask, high=1.5)
    return jnp.exp(loss_lib.log_ratio(jnp.log(w + 1e-10), jnp.zeros_like(w), g.mask, "sequence"))


def bypass(correct, **settings):
    """No policy stands between the one that samples and the one that learns."""
    return batch(loss_lib.policy_gradient, by_sum, of_sampler(part(correct, **settings), learner=True))


def bypass_of_what_is_near(x, g):
    near = importance_weights.kl_rejection_mask(x, g.sampler, g.mask, np.log(2.0), np.log(0.5), kind="k1")
    near &= importance_weights.kl_rejection_mask(x, g.sampler, g.mask, 0.2, over="mean")
    return aggregation.weighted_sum(CLIP(x, g.sampler, g.advantages, near), by_token(near))


def critic(weights):
    def total(values, g):
        losses = loss_lib.clipped_value_loss(values, g.old_values, g.returns, 0.5)
        return aggregation.weighted_sum(losses, weights(g.mask))

    return total


def of_estimate(x, old, advantages, mask, estimate):
    return estimate(x, old)


def divergence(estimate):
    return batch(part(of_estimate, estimate=estimate))


CLIP = part(loss_lib.clipped, clip_high=0.28, dual_clip=3.0)
GEOMETRIC = part(loss_lib.geometric_mean, clip_low=0.2, clip_high=0.3, max_log_ratio=FREE)
DPPO = {"tv": {"clip_low": 0.06, "clip_high": 0.09}, "kl": {"clip_low": 0.01, "clip_high": 0.015}}
K3 = part(kl.k3, max_value=10.0)
VERL = {
    "vanilla token-mean": batch(CLIP),
    "vanilla token-sum": batch(CLIP, part(by_token, total=1.0)),
    "vanilla seq-mean-token-sum": batch(CLIP, by_sum),
    "vanilla seq-mean-token-mean": batch(CLIP, by_sequence),
    "vanilla seq-mean-token-sum-norm": batch(CLIP, by_constant),
    # 50 tokens, or 16 rows, on two machines whose gradients verl averages
    "vanilla global tokens": batch(CLIP, part(by_token, total=50.0 / 2)),
    "vanilla global rows": batch(CLIP, part(by_sequence, rows=16.0 / 2)),
    "vanilla norm": batch(CLIP, part(by_constant, length=20.0, rows=16.0)),
    "vanilla dual": batch(part(CLIP, dual_clip=1.3)),
    "vanilla weights": batch(CLIP, factor=of_sampler(part(importance_weights.truncated, high=1.5))),
    "gspo": batch(
        part(
            loss_lib.clipped, clip_low=0.1, clip_high=0.15, level="sequence_token", max_log_ratio=(FREE, 10.0)
        ),
        by_sequence,
    ),
    "sapo": batch(part(loss_lib.sapo, tau_positive=1.2, tau_negative=1.5), by_sequence),
    "geo_mean": batch(GEOMETRIC, every_row),
    "geo_mean weights": batch(GEOMETRIC, every_row, geometric_weights),
    "gpg": batch(loss_lib.policy_gradient),
    "dro": batch(part(loss_lib.dro, beta=0.3)),
    "cispo": batch(part(loss_lib.cispo, clip_low=0.2, clip_high=0.28)),
    "kl_cov": batch(part(loss_lib.kl_cov, share=0.25, coef=0.7, max_log_ratio=FREE)),
    # a share that takes every candidate leaves nothing to chance
    "clip_cov": batch(part(loss_lib.clip_cov, share=0.5, low=0.15, high=2.0, max_log_ratio=FREE)),
    "bypass reinforce tis": bypass(importance_weights.truncated, high=1.2),
    "bypass reinforce sequence": bypass(
        importance_weights.normalised,
        over="sequence",
        correction=part(importance_weights.truncated, high=1.5, level="product"),
    ),
    "bypass reinforce icepop": bypass(
        importance_weights.normalised, correction=part(importance_weights.icepop, low=0.5, high=1.4)
    ),
    "bypass clip rejected": bypass_of_what_is_near,
    "value token-mean": critic(by_token),
    "value seq-mean-token-mean": critic(by_sequence),
}
VERL |= {
    f"dppo_{name}": batch(part(loss_lib.dppo, divergence=name, **bounds)) for name, bounds in DPPO.items()
}
VERL |= {
    f"kl {kind}": divergence(fn)
    for kind, fn in (kl.ESTIMATORS | {"k3": K3, "k3+": kl.straight_through(K3)}).items()
}

# ---- TRL


def trl_loss(kind, level="token", delta=None):
    options = {"level": level, "max_log_ratio": FREE}
    if kind == "cispo":
        return part(loss_lib.cispo, clip_high=0.4, **options)
    if kind == "sapo":
        return part(loss_lib.sapo, tau_positive=1.2, tau_negative=1.5, **options)
    if kind == "vespo":
        return loss_lib.vespo
    return part(loss_lib.clipped, clip_high=0.28, dual_clip=delta, **options)


def grpo(kind="grpo", level="token", delta=None, coef=0.0, corrected=False, **options):
    """The policy's loss plus k3 to the reference, which no factor touches."""
    policy = batch(trl_loss(kind, level, delta), BY[kind], **{"advantages": "scores"} | options)
    ratio = lambda x, g: jnp.exp(loss_lib.log_ratio(x, g.old, g.mask, level, FREE))
    k3 = batch(
        lambda x, ref, advantages, mask: kl.k3(x, ref, max_log_ratio=FREE),
        BY[kind],
        ratio if corrected else None,
        old="ref",
    )
    return policy if coef == 0 else lambda x, g: policy(x, g) + coef * k3(x, g)


def vespo_of_the_sampler(correction):
    """The logarithm of a weight is one more step, from the old policy to the sampler."""

    def total(x, g):
        w = correction(g.old, g.sampler, g.mask, low=0.6, high=1.5)
        sampler = g.old - jnp.maximum(jnp.log(w), jnp.log(1e-8))
        tokens = loss_lib.vespo(x, sampler, g.scores, g.mask)
        return aggregation.weighted_sum(tokens, by_token(g.mask))

    return total


def bonus(log_probs, entropies, g):
    of_policy = grpo()(log_probs, g)
    return of_policy - 0.03 * aggregation.weighted_sum(entropies, by_token(g.mask))


def gmpo_of_the_uncertain(x, g):
    keep = filters.high_entropy_mask(g.entropies, g.mask, 0.6)
    return aggregation.weighted_sum(GEOMETRIC(x, g.old, g.scores, keep), every_row(keep))


def uncertain(x, g):
    return filters.high_entropy_mask(g.entropies, g.mask, 0.35)


def not_stale(x, g):
    return importance_weights.off_policy_sequence_mask(x, g.sampler, g.scores, g.mask, 0.05)


BY = {
    "grpo": every_row,
    "sapo": every_row,
    "luspo": part(by_sum, rows="all"),
    "dr_grpo": part(by_constant, length=10.0, rows="all"),
    "bnpo": by_token,
    "dapo": by_token,
    "cispo": by_token,
    "vespo": by_token,
}
BOUNDS = {"low": 0.6, "high": 1.5}
TRL = {f"{kind} token": grpo(kind) for kind in BY}
TRL |= {f"{kind} sequence": grpo(kind, "sequence") for kind in BY if kind != "vespo"}
TRL |= {
    f"{kind} {level} kl": grpo(kind, level, coef=0.05)
    for kind, level in (
        ("grpo", "token"),
        ("dapo", "sequence"),
        ("cispo", "token"),
        ("luspo", "sequence"),
        ("vespo", "token"),
    )
}
for name, weigh in (("truncate", importance_weights.truncated), ("mask", importance_weights.icepop)):
    TRL[f"is token_{name}"] = grpo(factor=of_sampler(part(weigh, **BOUNDS)))
    TRL[f"is sequence_{name}"] = grpo(factor=of_sampler(part(weigh, level="product", **BOUNDS)))
    TRL[f"vespo is token_{name}"] = vespo_of_the_sampler(weigh)
TRL |= {
    "delta": grpo(delta=1.35),
    "bias corrected kl token": grpo(coef=0.05, corrected=True),
    "bias corrected kl sequence": grpo(level="sequence", coef=0.05, corrected=True),
    "off policy mask": grpo(coef=0.05, factor=not_stale),
    "top entropy": grpo("dapo", coef=0.05, factor=uncertain),
    "entropy bonus": lambda x, g: bonus(x, g.entropies, g),
    "entropy bonus, of entropies": lambda x, g: bonus(g.log_probs, x, g),
    "token advantages": grpo("dapo", advantages="advantages"),
    "gmpo": batch(GEOMETRIC, every_row, advantages="scores"),
    "gmpo top entropy": gmpo_of_the_uncertain,
    "rloo": batch(
        part(loss_lib.clipped, clip_high=0.28, level="product", max_log_ratio=FREE),
        every_row,
        advantages="scores",
    ),
}


def variable(name, g):
    """The function whose gradient is that of the loss of this name."""
    if name.startswith("value"):
        return g.values
    return g.entropies if name.endswith("of entropies") else g.log_probs


def value_and_gradient(name, composition, g):
    return jax.value_and_grad(composition)(variable(name, g), g)
