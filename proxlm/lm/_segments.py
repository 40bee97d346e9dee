"""Stacked layers in several consecutive parts, so that one part may be trained and another not."""

import dataclasses

import jax

from proxlm.lm._config import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """The layers of a model in consecutive parts, each stacked, `[n, ...]`, and scanned by itself.

    Gradients of a leaf `[L, ...]` are computed for all of its L layers or for none, and a slice of
    it is a copy; parts are neither.
    """

    parts: tuple[Params, ...]


def parts_of(blocks: Params | Segments) -> tuple[Params, ...]:
    """The parts of stacked layers: one where they are not cut.

    >>> len(parts_of({"w": jax.numpy.ones((3, 2))}))
    1
    """
    return blocks.parts if isinstance(blocks, Segments) else (blocks,)


def depth(part: Params) -> int:
    """The number of layers in a part.

    >>> depth({"w": jax.numpy.ones((3, 2))})
    3
    """
    return jax.tree.leaves(part)[0].shape[0]
