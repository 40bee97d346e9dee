"""Atomic checkpoints that come back bit for bit, over Orbax.

Orbax writes a step aside and commits it by a rename, so a kill at any moment leaves the previous
step whole. By itself it casts to another dtype without a word, drops weak types, commits every
array to a device, and refuses empty arrays and NumPy scalars; a resume must do none of that. So it
is handed a flat dict of plain arrays, and a description of the state and of the settings travels
with each step and is compared before anything is read. Orbax takes seconds to import, so it is
imported on first use.
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import settings

_KEEP = 2
_PYTHON_SCALARS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}


def save(folder: str | os.PathLike, step: int, state: Any, config: Any) -> None:
    """Writes the state at a step; returns when it is on disk, and keeps the newest two steps.

    Args:
      folder: where the steps of one run live; made when missing.
      step: a number that grows from save to save.
      state: a pytree of JAX or NumPy arrays, typed keys, and Python or NumPy numbers.
      config: the settings of the run, a dataclass or a dict; `restore` asks for them again.

    Raises:
      ValueError: the folder cannot be written, or holds another config or a step as new; a leaf
        of the state cannot be stored.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, 3, {"w": jnp.arange(2)}, {"seed": 0})
    ...     latest(folder)
    3
    """
    about = {"config": settings.plain(config), "form": _form(state)}
    arrays = {_slot(i): _as_array(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    stored = {slot: array for slot, array in arrays.items() if array.size}
    folder = _writable(folder)
    with _manager(folder, cleanup=True) as (ocp, manager):
        newest = manager.latest_step()
        if newest is not None:
            _check_config(folder, _read_about(ocp, manager, newest), about["config"])
        if newest is not None and step <= newest:
            raise ValueError(
                f"step={step} must exceed {newest}, the newest checkpoint in {folder}; restore that"
                " one and go on from there, or use another folder."
            )
        items = {"about": ocp.args.JsonSave(about)}
        if stored:
            items["state"] = ocp.args.StandardSave(stored)
        manager.save(step, args=ocp.args.Composite(**items))


def latest(folder: str | os.PathLike) -> int | None:
    """Returns the newest complete step in a folder, None when there is none.

    Args:
      folder: where `save` writes; need not exist yet.

    >>> latest("no/such/folder") is None
    True
    """
    if not pathlib.Path(folder).is_dir():
        return None
    with _manager(folder) as (_, manager):
        return manager.latest_step()


def restore(folder: str | os.PathLike, like: Any, config: Any, step: int | None = None) -> Any:
    """Reads a state back, every leaf with the bits, the dtype and the kind it was saved with.

    Args:
      folder: where `save` wrote.
      like: a pytree as the saved one: a fresh state, or `jax.eval_shape` of what makes one. Its
        values are not read; a leaf committed to devices says where the restored one goes.
      config: the settings, which must equal those of the checkpoint.
      step: which step; the newest by default.

    Returns:
      The state, in the structure of `like`.

    Raises:
      ValueError: no such checkpoint; other settings, each differing field named with both values;
        another shape, dtype or path, each named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, 1, {"w": jnp.arange(2), "lr": 0.1}, {"seed": 0})
    ...     restore(folder, {"w": jnp.zeros(2, jnp.int32), "lr": 0.0}, {"seed": 0})
    {'lr': 0.1, 'w': Array([0, 1], dtype=int32)}
    """
    given, form, leaves = settings.plain(config), _form(like), jax.tree.leaves(like)
    arrays = {_slot(i): _target(leaf) for i, leaf in enumerate(leaves)}
    stored = {slot: array for slot, array in arrays.items() if array.size}
    step = _existing_step(folder, step)
    with _manager(folder) as (ocp, manager):
        about = _read_about(ocp, manager, step)
        _check_config(folder, about, given)
        if found := settings.differences(about["form"], form):
            raise ValueError(
                f"like does not have the form of step {step} in {folder}: {'; '.join(found)}. Build"
                " the model and optimizer of the saved run, or use another folder."
            )
        if stored:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
            arrays |= manager.restore(step, args=args)["state"]
    values = [_as_leaf(arrays[_slot(i)], leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _slot(index):
    return f"{index:06d}"


def _check_config(folder, about, given):
    if found := settings.differences(about["config"], given):
        raise ValueError(
            f"the checkpoints in {folder} were written under another config: {'; '.join(found)}."
            " Use another folder, or the old settings."
        )


def _form(state):
    """Maps each leaf's path to its kind, such as `float32[2,3]`, `key<fry>[]` or `int`."""
    pairs = jax.tree_util.tree_leaves_with_path(state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in pairs]
    return {name or "the state": _kind(name, leaf) for name, leaf in named}


def _kind(name, leaf):
    if type(leaf) in _PYTHON_SCALARS:
        return type(leaf).__name__
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)
    if not is_array or getattr(leaf.dtype, "kind", "V") in "OSUMm":
        raise ValueError(
            f"leaf {name!r} is a {type(leaf).__name__}, which a checkpoint cannot hold; keep"
            " numeric arrays, typed keys and numbers in the state."
        )
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf):
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _as_array(leaf):
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, _PYTHON_SCALARS.get(type(leaf)))


def _target(leaf):
    """What a leaf is read as: an array on the devices `like` was committed to, else NumPy's."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif _has_place(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.empty(np.shape(leaf), _PYTHON_SCALARS.get(type(leaf)) or leaf.dtype)


def _has_place(leaf):
    """Whether a leaf sits on devices somebody chose; other arrays are left to go where needed."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    return isinstance(leaf, jax.Array) and leaf.committed


def _as_leaf(value, like):
    """Gives a restored array the kind of its leaf in `like`."""
    if type(like) in _PYTHON_SCALARS:
        return type(like)(value)
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    if isinstance(like, np.ndarray):
        return value
    if _is_key(like):
        value = jax.random.wrap_key_data(
            jnp.array(value), impl=jax.random.key_impl(jnp.zeros((), like.dtype))
        )
    elif like.weak_type:
        # Assigning keeps the weak type, without which later arithmetic would promote otherwise.
        zero = jnp.asarray(np.zeros((), like.dtype).item())
        value = jnp.broadcast_to(zero, like.shape).at[...].set(value)
    return jax.device_put(value, like.sharding) if _has_place(like) else jnp.asarray(value)


def _existing_step(folder, step):
    newest = latest(folder)
    if newest is None:
        raise ValueError(
            f"folder={str(folder)!r} holds no checkpoint; start anew, or name the folder of one."
        )
    if step is not None and not (pathlib.Path(folder) / str(step)).is_dir():
        raise ValueError(f"step={step} is not in {folder}, whose newest is {newest}; restore that.")
    return newest if step is None else step


def _writable(folder):
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"folder={str(folder)!r} cannot be made ({error.strerror}); choose another."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"folder={str(folder)!r} cannot be written to; choose another.")
    return folder


def _read_about(ocp, manager, step):
    return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]


@contextlib.contextmanager
def _manager(folder, cleanup=False) -> Iterator[tuple[Any, Any]]:
    """Opens Orbax on a folder, quietly; `cleanup` removes what killed saves left behind.

    Only the writer cleans: a reader that did would remove the step being written beside it.
    """
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=cleanup
    )
    logger.setLevel(max(level, logging.WARNING))
    try:
        with ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options) as manager:
            yield ocp, manager
    finally:
        logger.setLevel(level)
