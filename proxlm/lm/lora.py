"""Low-rank adapters: LoRA and DoRA as factors beside the kernels, in the parameters.

    params = lora.init(key, params, rank=8)
    trained, frozen = lora.split(params)          # factors, and all the rest
    loss = lambda trained, batch: loss_fn(trainable.join(trained, frozen), batch)
    params = lora.merge(trainable.merge(trained, frozen))

A map y = x·W becomes y = x·W + s·(x·A)·B with A `[in, r]`, B `[r, out]` and s = α/r; every function of `lm`
that runs a model takes such parameters. The factors of a map of the layers lie beside its kernel,
`blocks/mlp/down/lora/down/a`, stacked over the layers; maps that share a kernel have their own, as
`blocks/attention/qkv/lora/query/a`.

- `init`, `split`, `merge`: factors in the parameters, apart from them, and added to the kernels
- `save`, `load`: adapters as PEFT writes and reads them

Source: Hu et al. 2022; DoRA: Liu et al. 2024.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from proxlm import _validation
from proxlm.lm import _adapters, _arguments, trainable
from proxlm.lm._config import Params
from proxlm.lm._peft import load, save

__all__ = ["init", "load", "merge", "save", "split"]


@_validation.typed
def init(
    key: jax.Array,
    params: Params,
    rank: int | Mapping[str, int] = 8,
    *,
    pattern: str = "attention/",
    alpha: float | None = None,
    dora: bool = False,
) -> dict[str, Any]:
    """Adds factors to parameters; the model stays the same function, as B is zero.

    The entries of A are uniform in ±1/√in. Of nothing else a copy is made.

    Args:
      key: a typed key; consumed.
      params: of a model without factors, with stacked layers.
      rank: r of each map that is adapted; or regular expression ↦ r, of which the first that is
        found in the name of a map counts. The names are attention/query, key, value and out, and
        mlp/gate, up and down.
      pattern: the maps that a single rank is for, a regular expression.
      alpha: α; None: 2·r, so that s = 2.
      dora: also learn the magnitude of each output, m ⊙ (W + s·A·B)/‖W + s·A·B‖.

    Raises:
      ValueError: if no map has such a name, a rank is not an integer ≥ 1, there are factors
        already, or an argument is of another kind.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = init(jax.random.key(0), lm.init(jax.random.key(1), config), {"query|value": 2, "mlp": 4})
    >>> jax.tree.map(jnp.shape, params["blocks"]["attention"]["qkv"]["lora"]["value"])
    {'a': (3, 8, 2), 'b': (3, 2, 8), 'scale': (3,)}
    """
    _arguments.typed_key(key, 1)
    ranks = dict(rank) if isinstance(rank, Mapping) else {pattern: rank}
    for name, number in ranks.items():
        _validation.to_int(1, "lora.init", f"It is the rank of {name!r}.", rank=number)
    _validation.positive("lora.init", alpha=alpha)
    leaves = _adapters.flat(params)
    if any(f"/{_adapters.LORA}/" in path for path in leaves):
        given = _validation.Verbatim("factors in params")
        raise _validation.invalid("params", given, "without factors", "Merge them first.", "lora.init")
    maps = _adapters.maps_of(leaves)
    added: dict[str, Any] = {}
    for (name, place), key_map in zip(maps.items(), jax.random.split(key, len(maps)), strict=True):
        found = [number for regex, number in ranks.items() if re.search(regex, name)]
        if found:
            scale = 2.0 if alpha is None else alpha / found[0]
            factors = _factors(key_map, place.flat(leaves), found[0], scale, dora)
            added |= {f"{place.prefix}/{leaf}": x for leaf, x in factors.items()}
    if not added:
        raise _validation.invalid(
            "pattern", list(ranks), f"found in one of {', '.join(maps)}", "", "lora.init"
        )
    return traverse_util.unflatten_dict(leaves | added, sep="/")


@_validation.typed
def split(params: Params) -> tuple[dict[str, Any], trainable.Frozen]:
    """The factors, to be trained, and the rest: `trainable.split` by their paths.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = init(jax.random.key(0), lm.init(jax.random.key(1), config), 2, pattern="mlp/down")
    >>> jax.tree.map(jnp.shape, split(params)[0])
    {'blocks': {'mlp': {'down': {'lora': {'down': {'a': (3, 24, 2), 'b': (3, 2, 8)}}}}}}
    """
    return trainable.split(params, trainable.PATTERNS["factors"])


@_validation.typed
def merge(params: Params) -> dict[str, Any]:
    """Adds the factors to their kernels, W + s·A·B: parameters without factors, of the same function.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(1), config)
    >>> merged = merge(init(jax.random.key(0), params, 2))
    >>> jax.tree.all(jax.tree.map(lambda one, other: jnp.all(one == other), merged, params))
    True
    """
    leaves = _adapters.flat(params)
    plain = {path: x for path, x in leaves.items() if f"/{_adapters.LORA}/" not in path}
    flats: dict[str, list[tuple[jax.Array, Params]]] = {}
    for place in _adapters.maps_of(leaves).values():
        flats.setdefault(place.kernel, []).append((place.flat(leaves), place.factors(leaves)))
    for path, maps in flats.items():
        if any(factors for _, factors in maps):
            new = [jax.vmap(_adapters.merged)(w, factors) if factors else w for w, factors in maps]
            plain[path] = jnp.concatenate(new, axis=2).reshape(plain[path].shape)
    return traverse_util.unflatten_dict(plain, sep="/")


def _factors(key, kernel, rank, scale, dora):
    """Factors of a kernel `[L, in, out]`; B is 0."""
    depth, inputs, outputs = kernel.shape
    bound = inputs**-0.5
    factors = {
        "a": jax.random.uniform(key, (depth, inputs, rank), minval=-bound, maxval=bound),
        "b": jnp.zeros((depth, rank, outputs)),
        "scale": jnp.full(depth, scale),
    }
    if dora:
        factors["magnitude"] = jax.vmap(_adapters.column_norms)(kernel.astype(jnp.float32))
    return factors
