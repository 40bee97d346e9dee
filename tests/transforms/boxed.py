"""The same small network's weights, held in every way that people hold them, and read back by path."""

import collections

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core, nnx

from tests.arrays import numpy_normal as normal

SHAPES = {"up": {"kernel": (4, 6), "bias": (6,)}, "down": {"kernel": (6, 4), "bias": (4,)}}


def weights(seed=0):
    """Plain nested dicts."""
    count = iter(range(seed, seed + 4))
    return jax.tree.map(lambda shape: normal(next(count), shape), SHAPES, is_leaf=lambda s: type(s) is tuple)


def frozen_dict(tree):
    return core.freeze(tree)


def linen_boxed(tree):
    return jax.tree.map(lambda leaf: nn.Partitioned(leaf, names=("embed",) * leaf.ndim), tree)


def nnx_module(tree):
    layer = lambda part: nnx.Linear(*part["kernel"].shape, rngs=nnx.Rngs(0))
    net = _Net(*(layer(tree[name]) for name in ("up", "down")))
    nnx.update(net, nnx.State(tree))
    return net


def nnx_state(tree):
    return nnx.state(nnx_module(tree), nnx.Param)


def nnx_split(tree):
    return nnx.split(nnx_module(tree))[1]


def equinox_module(tree):
    return _Both(*(_Layer(**tree[name]) for name in ("up", "down")))


def haiku_dict(tree):
    """As Haiku names parameters: the whole path of a module is one key."""
    return {f"net/~/{name}": part for name, part in tree.items()}


def named_tuple(tree):
    return _Pair(*(_Part(**tree[name]) for name in ("up", "down")))


BOXINGS = {
    make.__name__: make
    for make in (frozen_dict, linen_boxed, nnx_state, nnx_split, equinox_module, haiku_dict, named_tuple)
}


def plain(boxed):
    """The weights as plain nested dicts, by the names in their paths; written without the library."""
    found = {"up": {}, "down": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("net/~/").split("/")
        layer, name = parts[:2]
        found[layer][name] = leaf
    return found


class _Net(nnx.Module):
    def __init__(self, up, down):
        self.up, self.down = up, down


class _Layer(eqx.Module):
    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.kernel + self.bias


class _Both(eqx.Module):
    up: _Layer
    down: _Layer

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


_Part = collections.namedtuple("_Part", ["kernel", "bias"])
_Pair = collections.namedtuple("_Pair", ["up", "down"])
