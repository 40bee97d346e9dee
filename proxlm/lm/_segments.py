"""Stacked layers in several consecutive parts, so that one part may be trained and another not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def scan(
    body: Callable[..., Any], x: jax.Array, part: Params, first: int, unroll: int
) -> tuple[jax.Array, Any]:
    """`lax.scan` over a part's layers of `body(part, x, layer)`, `layer` a block, its place and its number.

    Places count from 0 on, numbers from `first`; `body` takes no gradient with respect to the part.

    >>> body = lambda part, x, layer: (x + layer[0]["w"], layer[2])
    >>> scan(body, jnp.float32(0), {"w": jnp.arange(3.0)}, 5, unroll=8)[1].tolist()
    [5, 6, 7]
    """
    if unroll < depth(part):
        places = jnp.arange(depth(part))
        return jax.lax.scan(functools.partial(body, part), x, (part, places, first + places), unroll=unroll)
    body, seen = jax.jit(body), []  # traced once
    for place, block in enumerate(layers_of(part)):
        x, of_layer = body(jax.lax.stop_gradient(part), x, (block, place, first + place))
        seen.append(of_layer)
    return x, jax.tree.map(lambda *xs: jnp.stack(xs), *seen)


@jax.jit
def layers_of(part: Params) -> list[Params]:
    """The layers of a part, one after another.

    On a CPU XLA does not know the number of a layer, so that one kernel serves all layers where each would
    have its own, of 25 to 40 ms to compile. The gradient is one concatenation, as that of a split.

    >>> layers_of({"w": jnp.arange(3.0)})[2]["w"].item()
    2.0
    """
    numbers = [np.uint32(i) for i in range(depth(part))]
    # a branch gives its constants in arrays; XLA fuses those behind a barrier alone into what reads them
    unknown = lambda yes: jax.lax.cond(
        jax.lax.optimization_barrier(yes), lambda: numbers, lambda: numbers[::-1]
    )
    numbers = jax.lax.platform_dependent(np.True_, cpu=unknown, default=lambda _: numbers)
    leaves, tree = jax.tree.flatten(part)
    return [tree.unflatten(layer) for layer in zip(*(_rows(leaf, *numbers) for leaf in leaves), strict=True)]


@jax.custom_jvp
def _rows(leaf, *numbers):
    return [jax.lax.dynamic_index_in_dim(leaf, number, 0, False) for number in numbers]


@_rows.defjvp
def _rows_jvp(primals, tangents):
    rows = jnp.split(tangents[0], len(primals) - 1)
    return _rows(*primals), [row[0] for row in rows]
