"""The `Penalty`, and how a penalty on one array is carried over a tree of arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, cast

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation, sharding
from proxlm.penalties import _description, _slots, _trees

__all__ = ["Penalty", "Prox", "Residual", "Strength", "Value"]

Strength: TypeAlias = _trees.Numbers


class Value(Protocol):
    """The type of x ↦ g(x)."""

    def __call__(self, x: Any, /) -> jax.Array:
        """Returns g(x)."""
        ...


class Prox(Protocol):
    """The type of (x, step_size) ↦ a tree like x."""

    def __call__(self, x: Any, step_size: Any, /) -> Any:
        """Returns the minimiser of g(z) + |z - x|²/2t."""


class Residual(Protocol):
    """The type of (x, v) ↦ a tree like x."""

    def __call__(self, x: Any, v: Any, /) -> Any:
        """Returns v less its projection on the subdifferential at x."""


class _Functions(NamedTuple):
    value: Value
    prox: Prox
    residual: Residual | None = None


class Penalty(_Functions):
    """A function g on weights, next to its proximal operator.

    The members are pure and take one array or a tree of arrays. The record itself cannot be
    called, so that `optax.inject_hyperparams` does not mistake it for a schedule. A penalty made
    by a function of `proxlm.penalties` prints as the call that made it.

    Attributes:
      value: x ↦ g(x), a scalar in at least float32; +inf outside a set.
      prox: (x, t) ↦ argmin_z g(z) + |z - x|²/2t, with the structure, shapes and dtypes of x. The
        step size t ≥ 0 is a number or, where the penalty allows it, an array shaped like x or a
        tree of such (a diagonal metric: argmin_z g(z) + Σ_i (z_i - x_i)²/2t_i).
      residual: (x, v) ↦ v - P(v), shaped like x, P the projection on the subdifferential ∂g(x): its
        norm is the distance of v to ∂g(x), which at a solution of min f + g is 0 for v = -∇f(x).
        None where no closed form is known.

    Source: Moreau 1965; Parikh & Boyd, Proximal Algorithms, 2014.

    >>> zero = Penalty(value=lambda x: jnp.zeros(()), prox=lambda x, step_size: x)
    >>> zero.prox(3.0, 0.1)
    3.0
    """

    _call: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None

    def __new__(cls, value: Value | None, prox: Prox, residual: Residual | None = None) -> Self:
        """Pairs the functions; without a value the penalty serves the solvers and links that ask for none."""
        return super().__new__(cls, cast(Value, value), prox, residual)

    def described(self, name: str, *positional: Any, **arguments: Any) -> Self:
        """Returns the functions, for any mesh, as a penalty that prints as the call of `name`.

        >>> Penalty(jnp.sum, lambda x, t: x - t).described("total", axis=None, strength=1.0)
        total(strength=1.0)
        """
        described = self._replace(
            value=sharding.automatic(self.value),
            prox=sharding.automatic(self.prox),
            residual=self.residual and sharding.automatic(self.residual),
        )
        described._call = name, positional, arguments
        return described

    def __eq__(self, other: object) -> bool:
        """Whether it was made by the same call with equal numbers, or of the same functions."""
        return isinstance(other, Penalty) and self._key() == other._key()

    def __hash__(self) -> int:
        """Agrees with ==."""
        return hash(self._key())

    def _key(self):
        name, positional, arguments = self._call or ("", (), {})
        call = name, positional, tuple(sorted(arguments.items()))
        try:
            hash(call)
        except TypeError:  # arrays cannot be compared at a glance
            return tuple(self)
        return call if name else tuple(self)

    def __repr__(self) -> str:
        """Returns the call that made the penalty, or the functions of one made by hand."""
        return _description.call(*self._call) if self._call else super().__repr__()


def leafwise(
    name: str,
    value: Callable[..., jax.Array],
    prox: Callable[..., jax.Array],
    parameters: Mapping[str, tuple[Strength, _slots.Slot]],
    step_slot: _slots.Slot = _slots.one_number,
    residual: Callable[..., jax.Array] | None = None,
) -> Penalty:
    """Carries a penalty on one array over a tree: g(x) = Σ over leaves of value(leaf).

    Holes (`None`, `optax.MaskedNode`) are passed over. Leaves below 32 bits are computed in float32
    and returned in their own dtype.

    Args:
      name: the penalty's name, for messages.
      value: (leaf, **parameters) ↦ scalar.
      prox: (leaf, step_size, **parameters) ↦ array like leaf.
      parameters: name ↦ (numbers, slot). The numbers are one number, an array for an x of one
        array, or a tree of these matching x; slot (path, leaf) ↦ the shape that those of this leaf
        must broadcast to. The functions get them in the dtype of the leaf.
      step_slot: the same for a step size; `_slots.one_number` allows no diagonal metric.
      residual: (leaf, v, **parameters) ↦ array like leaf; see `Penalty`.

    Returns:
      The penalty on trees.

    >>> cost = lambda x, slope: jnp.sum(slope * x)
    >>> move = lambda x, t, slope: x - t * slope
    >>> linear = leafwise("linear", cost, move, {"slope": (2.0, _slots.coordinates)})
    >>> linear.prox({"w": jnp.ones(2)}, 0.25)["w"].tolist()
    [0.5, 0.5]
    """

    def spread(x):
        columns = [_trees.spread(name, key, *given, x) for key, given in parameters.items()]
        rows = zip(*columns, strict=True) if columns else [()] * len(jax.tree.leaves(x))
        return [dict(zip(parameters, row, strict=True)) for row in rows]

    def tree_value(x):
        x = _trees.widen(name, x)
        leaves = zip(jax.tree.leaves(x), spread(x), strict=True)
        return sum((value(leaf, **given) for leaf, given in leaves), start=jnp.zeros(()))

    def tree_prox(x, step_size):
        _trees.require_beside(x, name, step_size=step_size)
        wide = _trees.widen(name, x)
        steps = _trees.spread(name, "step_size", step_size, step_slot, wide)
        leaves = zip(jax.tree.leaves(wide), steps, spread(wide), strict=True)
        moved = [prox(leaf, t, **given) for leaf, t, given in leaves]
        return _trees.narrow(jax.tree.unflatten(jax.tree.structure(x), moved), x)

    def tree_residual(x, v):
        assert residual is not None
        wide, v = _trees.widen(name, x), _trees.widen(name, v)
        leaves = zip(jax.tree.leaves(wide), jax.tree.leaves(v), spread(wide), strict=True)
        left = [residual(leaf, other, **given) for leaf, other, given in leaves]
        return _trees.narrow(jax.tree.unflatten(jax.tree.structure(x), left), x)

    made = Penalty(tree_value, tree_prox, residual and tree_residual)
    return made.described(name, **{key: numbers for key, (numbers, _) in parameters.items()})


def is_literal(penalty: Penalty) -> bool:
    """Whether the call that made a penalty says all about it, so that it holds neither arrays nor tracers.

    >>> from proxlm.penalties import l1
    >>> is_literal(l1(0.5)), is_literal(l1(jnp.ones(2))), is_literal(Penalty(None, lambda x, t: x))
    (True, False, False)
    """
    return penalty._key() != tuple(penalty)


def residual_of(penalty: Penalty) -> Residual:
    """Returns the residual of a penalty; ValueError if it has none.

    >>> residual_of(Penalty(jnp.sum, lambda x, t: x - t))
    Traceback (most recent call last):
        ...
    ValueError: penalty must be a Penalty with a residual, got ...
    """
    if penalty.residual is None:
        raise _validation.invalid("penalty", penalty, "a Penalty with a residual")
    return penalty.residual


def require_penalty(function: str, **penalties: Any) -> None:
    """Raises ValueError unless each argument is a `Penalty`.

    >>> require_penalty("translate", penalty=3.0)
    Traceback (most recent call last):
        ...
    ValueError: translate: penalty must be a Penalty, got 3.0. Build one, as in penalties.l1(0.1), ...
    """
    remedy = "Build one, as in penalties.l1(0.1), or pair your own functions: Penalty(value, prox)."
    for argument, penalty in penalties.items():
        if not isinstance(penalty, Penalty):
            raise _validation.invalid(argument, penalty, "a Penalty", remedy, function)


@jax.custom_jvp
def keep_bits(unmoved: jax.Array, exact: jax.Array, computed: jax.Array) -> jax.Array:
    """Gives `computed`, or the bits of `exact` where unmoved; derivatives are those of `computed`.

    x + (y - x) is y only up to rounding. Where a prox moved nothing this returns what was there
    before, and a penalty of strength 0 changes no bit.

    >>> keep_bits(jnp.array([True, False]), jnp.ones(2), jnp.zeros(2)).tolist()
    [1.0, 0.0]
    """
    return jnp.where(unmoved, exact, computed)


@keep_bits.defjvp
def _keep_bits_jvp(primals, tangents):
    return keep_bits(*primals), tangents[2]


def times(strength: chex.Numeric, size: jax.Array) -> jax.Array:
    """The product λ·y of extended numbers, in which 0·∞ is 0: the convention of a penalty's value.

    >>> times(jnp.inf, jnp.array([0.0, 2.0])).tolist(), times(0.0, jnp.array([jnp.inf])).tolist()
    ([0.0, inf], [0.0])
    """
    strength = jnp.asarray(strength)
    nothing = ((size == 0) & jnp.isinf(strength)) | ((strength == 0) & jnp.isinf(size))
    return jnp.where(nothing, 0.0, strength) * jnp.where(nothing, 0.0, size)  # so has the derivative no 0·∞


def pull(step_size: chex.Numeric, strength: chex.Numeric) -> jax.Array:
    """The product t·λ as it stands in a prox: 0·∞ is 0, and what overflows is the largest number.

    >>> pull(0.0, jnp.inf).item(), pull(2.0, jnp.float32(1.5)).item(), bool(jnp.isfinite(pull(1e30, 1e30)))
    (0.0, 3.0, True)
    """
    strength = 1.0 * jnp.asarray(strength)
    largest = jnp.finfo(strength.dtype).max
    # With finite factors no derivative multiplies 0 by infinity.
    return jnp.minimum(jnp.minimum(step_size, largest) * jnp.minimum(strength, largest), largest)
