"""An actor whose answers to a prompt share it, whose scores are computed in slices, and compared."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm import sharding
from proxlm._decoding.records import Against
from proxlm.policy import aggregation, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import prompts as prompts_lib

__all__ = ["GroupedActor", "grouped", "in_update", "takes"]


class GroupedActor(NamedTuple):
    """An actor that is given each prompt once, and rows of which `group_size` on end have one prompt.

    `known` gives the scores of a reference and what `compare` is to know of it, `[B, R, ...]`; `compare` the
    scores of a policy and what a function, that of `Against`, says of its distributions and the reference's.
    """

    sample: Callable[..., Any]
    score: Callable[..., Any]
    reference: Callable[..., Any]
    greedy: Callable[..., Any] | None
    sampling: Any
    final_values: Callable[..., Any] | None
    known: Callable[..., Any]
    compare: Callable[..., Any]


def grouped(actor: protocols.Actor, group_size: int, slices: int = 1) -> GroupedActor:
    """The actor for groups, its scores in this many slices one after another.

    Its functions share a prompt where they have an argument `group_size`.

    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4)
    >>> params = jax.eval_shape(actor.init, jax.random.key(0))
    >>> prompts = lm.Prompts(jax.numpy.zeros((2, 3), int))
    >>> jax.eval_shape(grouped(actor, 3).sample, jax.random.key(1), params, prompts).tokens.shape
    (6, 7)
    """
    cast = getattr(actor, "cast", None)
    score, reference = (_score(fn, group_size, slices, cast) for fn in (actor.score, actor.reference))
    by_chunks = takes(actor.score, "against") and takes(actor.reference, "states")
    return GroupedActor(
        functools.partial(_sample, actor.sample, group_size),
        score,
        reference,
        getattr(actor, "greedy", None),
        getattr(actor, "sampling", None),
        getattr(actor, "final_values", None),
        functools.partial(_known, reference, by_chunks),
        functools.partial(_compare_by_chunks if by_chunks else _compare, score),
    )


def takes(function: Callable[..., Any], name: str = "group_size") -> bool:
    """Whether a sample or score has an argument of this name; a jitted one would trace it.

    >>> takes(lambda params, samples, full=False, group_size=1: None)
    True
    """
    return not hasattr(function, "lower") and name in inspect.signature(function).parameters


def in_update(actor: protocols.Actor, batch: int, config: PPOConfig) -> int:
    """The number of rows on end that minibatches keep together: those of a group, or 1.

    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4)
    >>> [in_update(actor, 12, PPOConfig(group_size=3, num_minibatches=n)) for n in (1, 4)]
    [3, 1]
    """
    # with one minibatch the groups stay together anyway
    natural = config.num_minibatches == 1 and takes(actor.score)
    slices = config.num_minibatches * config.num_microbatches * config.group_size
    return config.group_size if config.whole_groups or (natural and batch % slices == 0) else 1


def together(group_size: int, rows: int) -> int:
    """The number of answers to a prompt that share it, so that as many rows fall to each device.

    It is the largest divisor of the group's size that lets the devices divide them, or all of the
    group where nothing does.

    >>> together(8, 64)
    8
    """
    parts = sharding.num_parts()
    sizes = [size for size in range(1, group_size + 1) if group_size % size == 0]
    return max((size for size in sizes if rows // size % parts == 0), default=group_size)


def _sample(sample, group_size, key, params, prompts):
    rows = jax.tree.leaves(prompts)[0].shape[0] * group_size
    if takes(sample) and (size := together(group_size, rows)) > 1:
        return sample(key, params, prompts_lib.repeat(prompts, group_size // size), group_size=size)
    return sample(key, params, prompts_lib.repeat(prompts, group_size))


def _score(score, group_size, slices, cast):
    def one_slice(params, samples, against, how):
        how = how if against is None else how | {"against": against}
        batch = samples.tokens.shape[0]
        size = together(group_size, batch) if takes(score) and batch % group_size == 0 else 1
        return score(params, samples, **how, **({"group_size": size} if size > 1 else {}))

    def whole(params, samples, against=None, **how):
        if slices == 1:
            return one_slice(params, samples, against, how)
        if cast is not None:  # here and not in each slice
            params, against = cast(params), against and against._replace(params=cast(against.params))
        cut = lambda x: x.reshape(slices, -1, *x.shape[1:])
        parts = sharding.pieces(jax.tree.map(cut, (samples, against and against.states)))
        beside = lambda states: against and against._replace(states=states)
        scores = jax.lax.map(lambda part: one_slice(params, part[0], beside(part[1]), how), parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), scores)

    return whole


def _known(reference, by_chunks, ref_params, samples):
    scores = reference(ref_params, samples, **{"states" if by_chunks else "full": True})
    return scores, scores.states if by_chunks else scores.distribution


def _compare_by_chunks(score, fn, params, samples, ref_params, known):
    scores = score(params, samples, against=Against(fn, ref_params, known))
    return scores, scores.compared


def _compare(score, fn, params, samples, ref_params, known):
    """The whole distributions at once, those of masked tokens replaced, whatever they hold."""
    scores = score(params, samples, full=True)
    shape = known.shape
    mask = jnp.broadcast_to(samples.response_mask[:, :, None], shape)
    flat = [aggregation.select(x, mask).reshape(-1, shape[2]) for x in (scores.distribution, known)]
    found = fn(*flat, samples.tokens[:, -shape[1] :].reshape(-1))
    return scores, jax.tree.map(lambda x: x.reshape(*shape[:2], *x.shape[1:]), found)
