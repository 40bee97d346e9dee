"""Training of a part of a model: the rest costs no gradient and has no moments.

    trained, frozen = trainable.split(params, trainable.last_layers(6))
    loss = lambda trained, batch: loss_fn(trainable.join(trained, frozen), batch)

`trained` is a nested dict with the paths of `params`, so that any Optax chain, penalty, mask by path or
checkpoint takes it as it takes the whole; a leaf of the layers holds those that are trained, `[k, ...]`.
`join` gives parameters that the functions of `lm` take, without a copy of what is frozen: gradients flow
from the head down to the first trained layer, and into the trained leaves alone. Hand `frozen` to a jitted
function as an argument; what it closes over becomes a constant of the program.

A selection says what is trained. It is one of

- a regular expression, searched for in the path of each leaf, such as those in `PATTERNS`
- a function of path and leaf to a bool, or for a leaf of the layers to L of them: `last_layers`
- a list or tuple of selections: what any of them selects

- `split`, `join`, `merge`, `Frozen`
- `last_layers`, `PATTERNS`
- `make_actor`: an actor whose policy's parameters are the trained part
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from proxlm import _validation
from proxlm.lm import _actor, _adapters, _segments, _selection
from proxlm.lm._actor import Actor
from proxlm.lm._config import Params
from proxlm.lm._segments import Segments
from proxlm.lm._selection import PATTERNS, Select, last_layers

__all__ = ["PATTERNS", "Frozen", "Select", "join", "last_layers", "make_actor", "merge", "split"]


class _Joined(NamedTuple):
    """Parameters of the whole model where the trained ones stand."""

    params: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The part that `split` leaves untrained.

    Attributes:
      outer: path ↦ array, of what is outside of the layers.
      segments: path ↦ stacked layers, for each run of layers that are alike in what they train.
      layers: path of a leaf of the layers that is trained in part ↦ L flags, as sorted pairs; static.
    """

    outer: dict[str, Any]
    segments: tuple[dict[str, Any], ...]
    layers: tuple[tuple[str, tuple[bool, ...]], ...] = dataclasses.field(metadata={"static": True})


@_validation.typed
def split(params: Params, select: Select) -> tuple[dict[str, Any], Frozen]:
    """Parts parameters in those that are trained and those that are not.

    Args:
      params: of `lm.init`, `lm.load` or `lm.lora.init`, with stacked layers.
      select: a selection, as described above.

    Returns:
      trained: a nested dict, a leaf of the layers `[k, ...]`; and `Frozen`, for `join`. Of leaves
      that are trained in whole or not at all no copy is made.

    Raises:
      ValueError: if a selection matches nothing, or is of another kind.

    >>> from proxlm import lm
    >>> params = lm.init(jax.random.key(0), lm.ModelConfig(vocab_size=16, num_layers=3, width=8))
    >>> trained, frozen = split(params, last_layers(1, "mlp/down"))
    >>> jax.tree.map(jnp.shape, trained)
    {'blocks': {'mlp': {'down': {'kernel': (1, 24, 8)}}}}
    >>> split(params, [PATTERNS["norms"]])[0]["norm"]["scale"].shape
    (8,)
    """
    leaves = _adapters.flat(params)
    depth = next((np.shape(x)[0] for path, x in leaves.items() if path.startswith("blocks/")), 0)
    flags = {path: _selection.flags(select, path, leaf, depth) for path, leaf in leaves.items()}
    if not any(map(any, flags.values())):
        known = ", ".join(list(leaves)[:3])
        raise _validation.invalid("select", select, f"a match for some path, such as {known}", "", "split")
    layers = {path: flag for path, flag in flags.items() if path.startswith("blocks/") and any(flag)}
    take = lambda x, flag: x if all(flag) else x[np.flatnonzero(flag)]
    trained = {path: take(leaves[path], flag) for path, flag in layers.items()}
    trained |= {path: x for path, x in leaves.items() if path not in layers and all(flags[path])}
    outer = {p: x for p, x in leaves.items() if not p.startswith("blocks/") and p not in trained}
    runs = _runs(layers, depth)
    cut = lambda x, first, last: x if last - first == depth else x[first:last]
    of_layers = {path: x for path, x in leaves.items() if path.startswith("blocks/")}
    segments = tuple(
        {p: cut(x, *run) for p, x in of_layers.items() if not (p in layers and layers[p][run[0]])}
        for run in runs
    )
    return _nested(trained), Frozen(outer, segments, tuple(sorted(layers.items())))


@_validation.typed
def join(trained: Params, frozen: Frozen) -> dict[str, Any]:
    """The parameters of the whole model, for the functions of `lm` that run it.

    Where some layers are trained and others not, they stay apart: see `merge` for one array a leaf.

    Raises:
      ValueError: if the two are not of one `split`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8)
    >>> params = lm.init(jax.random.key(0), config)
    >>> trained, frozen = split(params, last_layers(1))
    >>> logits = jax.jit(lambda t, f: lm.apply(join(t, f), jnp.zeros((1, 4), int), config))(trained, frozen)
    """
    leaves, layers = _adapters.flat(trained), dict(frozen.layers)
    found = {path for path in leaves if path.startswith("blocks/")}
    if found != set(layers):
        wrong = sorted(found ^ set(layers))[0]
        raise _validation.invalid("trained", wrong, "the trained part of this frozen one", "", "join")
    outer = frozen.outer | {path: x for path, x in leaves.items() if path not in layers}
    runs = _runs(layers, len(frozen.layers[0][1])) if layers else [(0, 0)]
    parts = []
    for (first, last), segment in zip(runs, frozen.segments, strict=True):
        own = {path: _rows(leaves[path], layers[path], first, last) for path in layers if layers[path][first]}
        parts.append(_nested(segment | own)["blocks"])
    return {**_nested(outer), "blocks": parts[0] if len(parts) == 1 else Segments(tuple(parts))}


@_validation.typed
def merge(trained: Params, frozen: Frozen) -> dict[str, Any]:
    """The parameters as `split` was given them, each leaf of the layers one array, to be saved.

    >>> from proxlm import lm
    >>> params = lm.init(jax.random.key(0), lm.ModelConfig(vocab_size=16, num_layers=3, width=8))
    >>> again = merge(*split(params, last_layers(1)))
    >>> bool(jnp.all(again["blocks"]["mlp"]["down"]["kernel"] == params["blocks"]["mlp"]["down"]["kernel"]))
    True
    """
    params = join(trained, frozen)
    parts = _segments.parts_of(params["blocks"])
    blocks = parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    return params | {"blocks": blocks}


@_validation.typed
def make_actor(actor: Actor, frozen: Frozen) -> Actor:
    """An actor whose parameters are `{"policy": trained}`, with the critic if there is one.

    The reference is a `trained` of its own, by default what training starts from, beside the one
    frozen part; with `lm.lora.init` it is the model without factors. Build the step in the jitted
    function that is given `frozen`:

        step = jax.jit(lambda state, frozen, key: ppo.make_step(
            trainable.make_actor(actor, frozen), reward, prompts, optimizer, config)(state, key))

    Args:
      actor: of `lm.make_actor`. Its `init` is refused here: take the `trained` of `split`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, value_head=True)
    >>> params = lm.init(jax.random.key(0), config)
    >>> trained, frozen = split(params, [last_layers(1), "^value/"])
    >>> actor = make_actor(lm.make_actor(config, num_tokens=3), frozen)
    >>> samples = actor.sample(jax.random.key(1), {"policy": trained}, prompts)  # doctest: +SKIP
    """

    def whole(params):
        policy = params["policy"]
        return {**params, "policy": policy.params if isinstance(policy, _Joined) else join(policy, frozen)}

    def cast(params):
        params = (actor.cast or (lambda params: params))(whole(params))
        return {**params, "policy": _Joined(params["policy"])}

    def refuse(key: jax.Array) -> _actor.ActorParams:
        raise ValueError("actor.init: the policy is pretrained; take {'policy': trained} of trainable.split")

    def on_whole(function, at):
        """The function, the argument of this number joined, under the same signature, which callers read."""

        @functools.wraps(function)
        def joined(*args, **named):
            if "against" in named:
                named["against"] = named["against"]._replace(params=whole(named["against"].params))
            return function(*args[:at], whole(args[at]), *args[at + 1 :], **named)

        return joined

    return actor._replace(
        init=refuse,
        sample=on_whole(actor.sample, 1),
        score=on_whole(actor.score, 0),
        reference=on_whole(actor.reference, 0),
        greedy=None if actor.greedy is None else on_whole(actor.greedy, 0),
        final_values=None if actor.final_values is None else on_whole(actor.final_values, 0),
        cast=cast,
    )


def _runs(layers, depth):
    """The runs of layers in which no leaf changes between trained and frozen: pairs of first and last."""
    rows = list(zip(*layers.values(), strict=True)) if layers else [()] * depth
    begins = [i for i in range(depth) if i == 0 or rows[i] != rows[i - 1]]
    return list(zip(begins, [*begins[1:], depth], strict=True))


def _rows(leaf, flags, first, last):
    """The layers first to last of a trained leaf, which holds those with a flag."""
    start = sum(flags[:first])
    return leaf if sum(flags) == last - first else leaf[start : start + last - first]


def _nested(leaves):
    return traverse_util.unflatten_dict(leaves, sep="/")
