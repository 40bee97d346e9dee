"""Magnitude pruning: a share of the weights or groups, the smallest, is zero."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm.penalties import _trees
from proxlm.penalties.groups import _partition
from proxlm.penalties.sets import _ranking
from proxlm.transforms import _arguments, _leaves, _updates

__all__ = ["PruneState", "prune", "prune_to"]

BUDGETS = ("leaf", "tree")


class PruneState(NamedTuple):
    """State of `prune_to`.

    Attributes:
      count: the updates seen, int32.
      kept: a tree of booleans like params, False where the last choice set a weight to zero; None if every
        update chooses.
    """

    count: jax.Array
    kept: Any


def prune(
    params: chex.ArrayTree,
    sparsity: chex.Numeric,
    over: _partition.Grouping | None = None,
    budget: str = "leaf",
) -> chex.ArrayTree:
    """Sets the smallest round(s n) of n weights, or groups, to zero; the others keep their bits.

    A weight is as large as |x_i|. A group is as large as the root mean square of its weights, so
    that groups of any size are compared fairly. Of equals the later ones go first. NaN stays, and
    so do leaves that are in no group.

    Args:
      params: a tree of arrays. Holes (`None`, `optax.MaskedNode`) are passed over.
      sparsity: s in [0, 1]. May be traced; in float32, s n is exact up to some 10⁷ weights.
      over: how weights make groups, such as grouping.axes(0), grouping.heads(8) or a grouping.linked of
        neurons; None prunes single weights. Then n counts groups.
      budget: "leaf" takes the share of each leaf, or of each array of groups; "tree" of all of them together,
        so that leaves of small weights lose more.

    Raises:
      ValueError: if an argument is invalid, or a leaf not made of real floating-point numbers.

    Source: Han, Pool, Tran & Dally 2015; for groups Li et al. 2017.

    >>> jax.jit(prune)(jnp.array([3.0, -1.0, 2.0, 0.5]), 0.5).tolist()
    [3.0, 0.0, 2.0, 0.0]
    >>> from proxlm.penalties import grouping
    >>> prune(jnp.array([[3.0, 1.0], [0.0, 2.0]]), 0.5, grouping.axes(0)).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    _require("prune", sparsity, over, budget)
    kept = _survivors("prune", params, sparsity, over, budget)
    return jax.tree.map(lambda keep, x: jnp.where(keep, x, jnp.zeros_like(x)), kept, params)


def prune_to(
    sparsity: optax.ScalarOrSchedule,
    over: _partition.Grouping | None = None,
    *,
    budget: str = "leaf",
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Ends a chain with magnitude pruning to a share that may grow: u ↦ prune(params + u) - params.

    With every=1 each update chooses anew, from params + u: what was pruned may return if its step
    is larger than what is kept (iterative hard thresholding). With every=k the first update
    chooses, and each k-th after it; in between, pruned weights stay zero (Zhu & Gupta), and the search for
    the threshold, some thirty passes, is done once in k updates.

    It must be the last link. Kept weights take their update bit for bit. To keep the zeros for good after the
    ramp, wrap this link in `debias`.

    Args:
      sparsity: s in [0, 1], a number, or a schedule such as `cubic_sparsity`, read at the number of earlier
        updates. May be traced.
      every: choose at each `every`-th update only, k ≥ 1. Above 1 the state holds a boolean tree like the
        params.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Zhu & Gupta 2017; every=1 is Blumensath & Davies 2009.

    >>> from proxlm.transforms import cubic_sparsity
    >>> tx = optax.chain(optax.sgd(0.1), prune_to(cubic_sparsity(0.5, begin=0, end=2)))
    >>> params = jnp.array([3.0, -1.0, 2.0, 0.5])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = jax.jit(tx.update)(jnp.zeros(4), state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params.tolist())
    [3.0, -1.0, 2.0, 0.5]
    [3.0, 0.0, 2.0, 0.0]
    [3.0, 0.0, 2.0, 0.0]
    """
    _require("prune_to", None if callable(sparsity) else sparsity, over, budget)
    _arguments.require_count("prune_to", "every", every, least=1)
    always = isinstance(every, int) and every == 1

    def init(params):
        kept = None if always else jax.tree.map(lambda x: jnp.ones_like(x, bool), params)
        return PruneState(jnp.zeros([], jnp.int32), kept)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params("prune_to", params)
        share = sparsity(state.count) if callable(sparsity) else sparsity

        def step(updates, kept, params):
            def choose():
                wide = _trees.promote(params), _trees.promote(updates)
                return _survivors("prune_to", jax.tree.map(jnp.add, *wide), share, over, budget)

            due = state.count % every == 0
            chosen = choose() if always else jax.lax.cond(due, choose, lambda: kept)
            emit = lambda keep, u, p: jnp.where(keep, u.astype(p.dtype), -p)
            return jax.tree.map(emit, chosen, updates, params), kept if always else chosen

        updates, kept = _leaves.over_trainable("prune_to", step, updates, state.kept, params)
        return updates, PruneState(_updates.increment(state.count), kept)

    unpenalised = lambda updates, state, params=None, **extra_args: (updates, state)
    return _leaves.penalised(init, update, unpenalised)


def _survivors(name, x, sparsity, over, budget):
    """A tree of booleans like x: whether each weight is kept."""
    x = jax.lax.stop_gradient(_trees.widen(name, x))
    if over is None:
        return _larger(x, sparsity, budget)
    groups = over.split(name, x)
    sums = groups.reduce(_partition.SUM, jax.tree.map(jnp.square, x))
    means = jax.tree.map(lambda total, size: total / np.maximum(size, 1), sums, groups.sizes)
    everywhere = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), x)
    return groups.apply(jnp.logical_and, (everywhere,), (_larger(means, sparsity, budget),))


def _larger(scores, sparsity, budget):
    """Booleans like the scores: whether each is among those to keep."""
    if budget == "leaf":
        return jax.tree.map(lambda leaf: _largest(leaf, sparsity), scores)
    leaves, structure = jax.tree.flatten(scores)
    if not leaves:
        return scores
    flat = _largest(jnp.concatenate([leaf.ravel() for leaf in leaves]), sparsity)
    ends = [sum(leaf.size for leaf in leaves[: i + 1]) for i in range(len(leaves) - 1)]
    parts = zip(jnp.split(flat, ends), leaves, strict=True)
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in parts])


def _largest(scores, sparsity):
    if not scores.size:
        return jnp.ones(scores.shape, bool)
    zeros = jnp.round(jnp.asarray(sparsity, scores.dtype) * scores.size).astype(jnp.int32)
    keep = scores.size - jnp.clip(zeros, 0, scores.size)
    bits = _ranking.bits_of_size(scores, jnp.ones([], scores.dtype))
    chosen = _ranking.largest(bits, jnp.maximum(keep, 1), tuple(range(scores.ndim)))
    return (chosen & (keep > 0)) | jnp.isnan(scores)


def _require(name, sparsity, over, budget):
    if sparsity is not None:
        _arguments.require_share(name, "sparsity", sparsity)
    _arguments.require_grouping(name, over)
    if budget not in BUDGETS:
        raise ValueError(f"{name}: budget must be one of {list(BUDGETS)}, got {budget!r}.")
