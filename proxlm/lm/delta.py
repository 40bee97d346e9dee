"""Sparse deltas: fine-tuned weights as a small file of what differs from those they were trained from.

A proximal chain with an ℓ1 penalty on the distance to the pretrained weights leaves most of them as they
were, bit for bit. A delta holds the others, and gives the same bits back:

    chain = transforms.proximal_adam(1e-5, penalties.l1(strength), anchored=True)
    ...
    delta.save("delta.safetensors", base, params)
    params = delta.apply(base, "delta.safetensors")

The file is one of safetensors. Of each leaf that changed it holds `PATH|gaps`, how many weights are skipped
before each changed one, and `PATH|bits`, by how much its bits change as an integer, both with as many bytes
as they need. The SHA-256 of the base and of the result are in its metadata and compared.

- `save`, `apply`: to a file and back
- `save_patch`: to a file of checkpoint names, as vLLM and TRL update samplers in place
- `count`: how many weights differ, also inside `jit`, as a metric
- `strength`: the ℓ1 strength at which no more than a share of the weights moves
"""

import hashlib
import math
import os
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _tree_paths, _validation
from proxlm.lm import _varints, _weight_files
from proxlm.lm._patches import save_patch

__all__ = ["apply", "count", "save", "save_patch", "strength"]

FORMAT, VERSION = "proxlm.delta", "1"


@_validation.typed
def save(path: str | os.PathLike[str], base: chex.ArrayTree, params: chex.ArrayTree) -> None:
    """Writes the weights of `params` that differ from those of `base`, in any bit.

    The file appears whole or not at all. Needs safetensors: `pip install proxlm[models]`.

    Raises:
      ValueError: if the two trees differ in paths, shapes or dtypes.

    >>> import tempfile
    >>> base = {"w": jnp.array([1.0, -0.0, 3.0, jnp.nan]), "b": jnp.zeros(2, jnp.bfloat16)}
    >>> params = base | {"w": jnp.array([1.0, 0.0, 3.5, jnp.nan])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/delta.safetensors", base, params)
    ...     apply(base, f"{folder}/delta.safetensors")["w"].tolist()
    [1.0, 0.0, 3.5, nan]
    """
    _weight_files.library("delta.save")
    before, after = _leaves(base), _leaves(params)
    _check_alike("delta.save", before, after)
    tensors = {}
    for name, old in before.items():
        old_bits, bits = _weight_files.bits(old), _weight_files.bits(after[name])
        places = np.flatnonzero(old_bits != bits)
        if len(places):
            change = (bits[places] - old_bits[places]).view(f"i{bits.itemsize}").astype(np.int64)
            zigzag = (change << 1) ^ (change >> 63)  # 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
            tensors[f"{name}|gaps"] = _varints.encode(np.diff(places, prepend=-1) - 1)
            tensors[f"{name}|bits"] = _varints.encode(zigzag.view(np.uint64))
    about = {"format": FORMAT, "version": VERSION, "base": _hash(before), "result": _hash(after)}
    _weight_files.write_one(path, tensors, about)


@_validation.typed
def apply(base: chex.ArrayTree, path: str | os.PathLike[str]) -> chex.ArrayTree:
    """The fine-tuned weights, with the bits that `save` was given. A leaf that did not change is base's own.

    Raises:
      ValueError: if the file is no delta or damaged, or one of another base.

    >>> apply({"w": jnp.ones(2)}, "delta.safetensors")  # doctest: +SKIP
    """
    _weight_files.library("delta.apply")
    import safetensors

    leaves = _leaves(base)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            _check_about(about, leaves)
            changed = {name: _changed(leaves, name, file) for name in _names(file, leaves)}
        if _hash(leaves | changed) != about.get("result"):
            raise ValueError("its result is not the one that was saved")
    except (ValueError, safetensors.SafetensorError) as error:
        remedy = "Take the delta anew, or the base that it was made for."
        raise ValueError(f"delta.apply: {path} is not a delta of this base: {error}. {remedy}") from error
    paths, structure = _tree_paths.flatten(base)
    named = ((_tree_paths.place(path), leaf) for path, leaf in paths)
    return jax.tree.unflatten(
        structure, [_as(changed[name], x) if name in changed else x for name, x in named]
    )


def count(base: chex.ArrayTree, params: chex.ArrayTree) -> jax.Array:
    """The number of weights that differ in any bit: an integer, or float32 from 2³¹ weights on.

    Raises:
      ValueError: if the two trees differ in paths, shapes or dtypes.

    >>> jax.jit(count)({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, -0.0])}).item()
    1
    """
    before, after = _leaves(base, known=False), _leaves(params, known=False)
    _check_alike("delta.count", before, after)
    kind = int if sum(math.prod(jnp.shape(x)) for x in before.values()) < 2**31 else jnp.float32
    differ = (_as_integers(x) != _as_integers(after[name]) for name, x in before.items())
    return sum((jnp.sum(flags, dtype=kind) for flags in differ), jnp.zeros((), kind))


def strength(tree: chex.ArrayTree, share: chex.Numeric, step_sum: chex.Numeric = 1.0) -> jax.Array:
    """The least λ such that at most a share of the entries exceeds λ·η in size.

    With `tree` the gradient g of the loss at the pretrained weights and η = 1: a proximal step from
    the anchor moves the weights with |gᵢ| > λ and no others, also in Adam's metric, so that a
    share of them moves at first. With `tree` the change Δ of a run without penalty and η the sum of
    its learning rates: soft-thresholded by λ·η, Δ has that share of nonzeros. λ is a quantile,
    found by bisection in 31 passes over the memory and without a sort; it may be jitted.

    Args:
      share: in [0, 1].
      step_sum: η > 0.

    Raises:
      ValueError: if an argument is invalid.

    >>> strength({"w": jnp.array([0.1, -0.4]), "b": jnp.array([0.2, 0.3])}, 0.5).item()
    0.20000000298023224
    >>> import optax
    >>> from proxlm import penalties, proximal_step
    >>> base, gradient = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([0.1, -0.5, 0.25])}
    >>> chain = proximal_step(penalties.l1(strength(gradient, 1 / 3)), 1.0, anchored=True)
    >>> updates, _ = chain.update(gradient, chain.init(base), base)
    >>> optax.apply_updates(base, updates)["w"].tolist()
    [1.0, 2.25, 3.0]
    """
    _validation.arrays("delta.strength", tree=tree)
    _validation.within(0, 1, "delta.strength", share=share)
    _validation.positive("delta.strength", step_sum=step_sum)
    sizes = [jnp.abs(jnp.asarray(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    allowed = share * jnp.float32(sum(size.size for size in sizes))
    value = lambda bits: jax.lax.bitcast_convert_type(bits, jnp.float32)
    exceeding = lambda bound: sum(jnp.sum(size > bound, dtype=jnp.float32) for size in sizes)

    def halve(_, ends):
        low, high = ends  # as bits, in whose order positive floats are
        middle = low + (high - low) // 2
        enough = exceeding(value(middle)) <= allowed
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    infinity = jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32)
    _, found = jax.lax.fori_loop(0, 32, halve, (jnp.int32(0), infinity))
    return value(found) / step_sum


def _leaves(tree, known=True) -> dict[str, Any]:
    """Path ↦ leaf, as NumPy arrays where their bits are to be read."""
    read = np.asarray if known else (lambda leaf: leaf)
    return {_tree_paths.place(path): read(leaf) for path, leaf in _tree_paths.flatten(tree)[0]}


def _check_alike(function, base, params):
    form = lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)) if leaf is not None else "not there"
    for name in [*base, *params]:
        if (given := form(params.get(name))) != (expected := form(base.get(name))):
            given = _validation.Verbatim(given)
            raise _validation.invalid(f"params at {name}", given, f"{expected}, as in base", "", function)


def _as_integers(leaf):
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")


def _hash(leaves):
    digest = hashlib.sha256()
    for name in sorted(leaves):
        leaf = leaves[name]
        digest.update(f"{name}:{leaf.dtype.name}:{leaf.shape};".encode())
        digest.update(_weight_files.bits(leaf).data)
    return digest.hexdigest()


def _check_about(about, leaves):
    if (given := about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"its format is {given!r} {about.get('version')!r}, expected {FORMAT!r} {VERSION!r}")
    if (base := _hash(leaves)) != about.get("base"):
        raise ValueError(
            f"it was made for {str(about.get('base'))[:12]}, and the base is {base[:12]} (SHA-256)"
        )


def _names(file, leaves):
    """Paths of the leaves that the file changes."""
    keys = set(file.keys())
    names = {key.rpartition("|")[0] for key in keys}
    expected = {f"{name}|{part}" for name in names for part in ("gaps", "bits")}
    if wrong := sorted((keys ^ expected) | (names - set(leaves))):
        raise ValueError(f"{wrong[0]!r} is missing or not known")
    return sorted(names)


def _changed(leaves, name, file):
    """A leaf with its changes; every number of the file is checked before it is used."""
    old, streams = leaves[name], [file.get_tensor(f"{name}|{part}") for part in ("gaps", "bits")]
    if any(stream.dtype != np.uint8 or stream.ndim != 1 for stream in streams):
        raise ValueError(f"{name} is not stored as bytes")
    gaps, zigzag = map(_varints.decode, streams)
    bits = _weight_files.bits(old)
    if len(gaps) != len(zigzag) or len(gaps) > bits.size or gaps.max(initial=0) >= max(bits.size, 1):
        raise ValueError(f"the places in {name} do not fit its {bits.size} weights")
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(places) and (places[-1] >= bits.size or zigzag.max() >> np.uint64(8 * bits.itemsize - 1) > 1):
        raise ValueError(f"the places or changes in {name} do not fit its {bits.size} weights")
    change = (zigzag >> np.uint64(1)) ^ (np.uint64(0) - (zigzag & np.uint64(1)))
    bits = bits.copy()
    bits[places] += change.astype(bits.dtype)
    return bits.view(old.dtype).reshape(old.shape)


def _as(new, like):
    """A changed leaf where the base's leaf is: on its devices, or as NumPy's."""
    return jax.device_put(new, like.sharding) if isinstance(like, jax.Array) else new
