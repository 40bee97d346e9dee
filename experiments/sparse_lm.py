"""Structured pruning of a language model's MLP neurons: by penalties, or by magnitude.

    python -m experiments.sparse_lm             # writes pareto.png and report.txt

2 CPU cores (AMD EPYC, 2.6 GHz) that did a little other work, 6½ minutes (10 of CPU). All
methods have 300 steps from the same dense model; the penalised ones choose in the first 90 and
are debiased in the others. Held-out loss at 50 % and 80 % of the MLP neurons removed, and how much worse
than dual averaging, seed by seed (n=3):

    dual averaging             1.815 ± 0.008   1.873 ± 0.007
    subgradient, pruned last   1.818 ± 0.007   1.909 ± 0.007    +0.003 ± 0.001   +0.036 ± 0.007
    pruned at once, debiased   1.817 ± 0.006   1.894 ± 0.004    +0.002 ± 0.003   +0.021 ± 0.003
    pruned in steps, debiased  1.817 ± 0.007   1.874 ± 0.004    +0.002 ± 0.003   +0.001 ± 0.004

At 80 % the penalty clearly beats pruning by magnitude at once or at the end; at 50 % it beats the
latter, and the former is within the spread. A cubic ramp of pruning with debiasing ties with it, and
so does metric prox-Adam. No heads were removed; their penalty is half as strong. The
strengths were tried out on one seed, with the same held-out text. Of the model nearest to 80 %,
cut to 60 of 256 units a layer, scoring is 1.4 to 1.5 and sampling 1.4 times as fast, with equal
logits.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.support.models import language_model, small_lm
from experiments.support.models.small_lm import NEURONS
from experiments.support.run import cli, configs, model_store, runs, supervised
from experiments.support.sparse_lm import report
from proxlm import _validation, penalties, transforms
from proxlm.penalties.groups import grouping


@dataclasses.dataclass(frozen=True)
class Config(small_lm.Config):
    batch: int = configs.field(16, smoke=4)  # windows of a step
    start_steps: int = configs.field(1000, smoke=20)  # of Adam on the dense model that all methods start from
    steps: int = configs.field(300, smoke=10)  # of every method, debiasing included
    choosing: float = 0.3  # the share of them in which neurons are chosen; then what is left is debiased
    # λ, in Adam's metric
    strengths: tuple[float, ...] = configs.field((3e-3, 4e-3, 5e-3, 6e-3), smoke=(1e-3, 0.1))
    # neurons of so many median sizes and more are let alone
    reaches: tuple[float, ...] = configs.field((0.98, 1.04, 1.1, 1.18), smoke=(1.0, 1.5))
    decoupled: float = 750.0  # λ is that much larger where no metric divides by gradients
    # of neurons, to prune by magnitude
    shares: tuple[float, ...] = configs.field((0.0, 0.5, 0.65, 0.8), smoke=(0.0, 0.5))

    def validate(self) -> None:
        super().validate()
        _validation.at_least(10, steps=self.steps)
        _validation.at_least(2, context=self.context)
        configs.check_shares(self, "choosing")
        _validation.within(0, 1, shares=max(self.shares))
        counts = {len(self.strengths), len(self.reaches), len(self.shares)}
        if len(counts) > 1:
            raise _validation.invalid(
                "strengths, reaches and shares",
                tuple(map(len, (self.strengths, self.reaches, self.shares))),
                "of one length",
                "Give one of each for every model that a method trains side by side.",
            )


class Lane(NamedTuple):
    """The settings in which the models of one vmap differ."""

    strength: jax.Array  # λ
    reach: jax.Array  # γ λ, the root mean square from which a group is let alone
    share: jax.Array  # to prune


def group_penalty(strength, reach, config: Config) -> penalties.Penalty:
    """The minimax concave penalty of whole neurons, and at half the strength of whole heads.

    It shrinks what is small and lets what is large alone, so it leaves no bias behind.
    """
    strength = jnp.maximum(strength, 1e-12)
    split = grouping.heads(config.num_heads, axis=2, packed=3, apart=0)
    heads = grouping.linked({"qkv/kernel": split, "out/kernel": (0, 1)})
    parts = {
        "mlp": penalties.group_mcp(strength, reach / strength, NEURONS),
        "attention": penalties.group_mcp(0.5 * strength, 0.5 * reach / strength, heads),
        "other": penalties.zero(),
    }
    part = lambda path, leaf: next((name for name in parts if f"/{name}/" in path), "other")
    return penalties.separable_sum(parts, part)


def subgradient(penalty):
    """Adds a subgradient of the penalty to the gradient, instead of a prox; 0 where a group is zero."""

    def update(updates, state, params=None):
        slope = jax.grad(penalty.value)(params)
        return jax.tree.map(lambda u, g: u + jnp.nan_to_num(g), updates, slope), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def chains(config: Config):
    """Method ↦ (lane ↦ its chain); all see the same batches for the same number of steps."""
    rate = language_model.ramp(config.learning_rate, config.steps, last=small_lm.LAST)
    end = max(1, int(config.choosing * config.steps))
    clip, adam = optax.clip_by_global_norm(1.0), optax.adam(rate, b2=small_lm.B2)
    rise = lambda count: jnp.minimum((count + 1) / end, 1.0)
    then_none = lambda count: jnp.where(count < end, rise(count), 0.0)
    penalty = lambda strength, lane: group_penalty(strength, lane.reach, config)

    def penalised(optimizer, unit=1.0, **options):
        def chain(lane):
            make = lambda strength: optimizer(rate, penalty(strength, lane), b2=small_lm.B2, **options)
            penalise = transforms.scheduled(make, lambda n: unit * lane.strength * then_none(n))
            return optax.chain(clip, penalise, transforms.freeze_zeros(end, NEURONS))

        return chain

    def pruned(ramp, until, every=1):
        def chain(lane):
            link = transforms.prune_to(ramp(lane.share), NEURONS, every=every)
            return optax.chain(clip, adam, transforms.debias(link, until, NEURONS))

        return chain

    def pruned_last(lane):
        slope = lambda strength: subgradient(penalty(strength, lane))
        penalise = transforms.scheduled(slope, lambda n: lane.strength * rise(n))
        at_last = lambda count: jnp.where(count == config.steps - 1, lane.share, 0.0)
        return optax.chain(penalise, clip, adam, transforms.prune_to(at_last, NEURONS))

    every = max(1, end // 8)
    return {
        "dual averaging": penalised(transforms.dual_averaging_adam, memory=8),
        "metric prox": penalised(transforms.proximal_adam),
        "decoupled prox": penalised(transforms.decoupled_proximal_adamw, config.decoupled, weight_decay=0.0),
        "subgradient, pruned last": pruned_last,
        "pruned at once, debiased": pruned(lambda share: share, 1),
        "pruned in steps, debiased": pruned(
            lambda share: transforms.cubic_sparsity(share, 0, end), end + every + 1, every
        ),
    }


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains every method from the same start; returns the numbers of the report."""
    plays = small_lm.shakespeare(run, config, judged=512)
    starts = small_lm.learn_each_seed(run, plays, config.start_steps, config.batch)
    model_store.save(run.path / "dense", starts[0], plays.model, plays.alphabet)
    loss = functools.partial(language_model.loss, config=plays.model)
    results = {}
    for method, chain in chains(config).items():
        fit = supervised.make_fit_lanes(loss, chain, small_lm.chunk_of(config.steps, 5))
        for seed, start in enumerate(starts, start=config.seed):
            windows = plays.cut(2 * seed + 3, (config.steps, config.batch))
            results[method, seed] = fit(run, f"{method} {seed}", lanes_of(start, config), start, windows)
    return report.write(run, results, plays)


def lanes_of(start, config: Config) -> Lane:
    """The lanes of a seed, their reach in units of the median size of its neurons."""
    strengths, reaches, shares = map(jnp.asarray, (config.strengths, config.reaches, config.shares))
    return Lane(strengths, reaches * small_lm.median_size(start), shares)


if __name__ == "__main__":
    cli.run(main)
