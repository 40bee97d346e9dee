"""Makes and takes apart arrays in NumPy, where JAX compiles a program for each shape."""

import jax
import numpy as np
from jax._src import array, core
from jax._src.lax import lax


def install():
    """Replaces what moves numbers outside of compiled functions, for arrays that lie on any one device."""
    for primitive, make in (
        (lax.stage_p, lambda x: x),
        (lax.convert_element_type_p, _converted),
        (lax.broadcast_in_dim_p, lambda x, *, shape, **_: None if x.shape else np.full(shape, x)),
        (
            lax.iota_p,
            lambda *, dtype, shape, **_: np.arange(*shape, dtype=dtype) if len(shape) == 1 else None,
        ),
        (lax.squeeze_p, lambda x, *, dimensions: np.squeeze(x, dimensions)),
        (lax.reshape_p, lambda x, *, new_sizes, **_: np.reshape(x, new_sizes)),
        (lax.concatenate_p, lambda *parts, dimension: np.concatenate(parts, dimension)),
    ):
        primitive.def_impl(_host_first(make, primitive.impl))
    taken = array.ArrayImpl.__getitem__
    array.ArrayImpl.__getitem__ = lambda x, index: _host_first(_taken(index), lambda x: taken(x, index))(x)


def _host_first(make, compiled):
    def run(*operands, **params):
        on_mesh = params.get("sharding") or not jax.sharding.get_abstract_mesh().empty
        on_host = not on_mesh and all(map(_is_plain, operands))
        made = make(*map(np.asarray, operands), **params) if on_host else None
        # a copy, which JAX may keep as the array's memory
        return compiled(*operands, **params) if made is None else jax.device_put(np.array(made))

    return run


def _is_plain(x):
    on_device = isinstance(x, jax.Array) and isinstance(x.dtype, np.dtype)
    return isinstance(x, np.ndarray) or (on_device and not (x.weak_type or x.committed))


def _converted(x, *, new_dtype, weak_type, **_):
    return x if x.dtype == new_dtype and not weak_type else None


def _taken(index):
    """Takes by whole numbers and slices; past the end NumPy and JAX differ."""
    parts = index if isinstance(index, tuple) else (index,)
    basic = all(isinstance(part, int | slice) or part is ... for part in parts)
    if not basic or any(isinstance(part, bool) for part in parts) or not core.trace_state_clean():
        return lambda x: None

    def make(x):
        try:
            return x[index]
        except IndexError:
            return None

    return make
