"""Checks on arguments, made before any computation, with one form of message.

    function: argument must be <what was expected>, got <what was given>. <remedy>

Shapes and dtypes are static and always checked. The value of a number is checked only when it is known,
so that hyper-parameters may be traced by `jit`, `vmap` and `grad`. `at_least`, `positive` and `within` take
one number or array, and let None pass; `tree_at_least` and `tree_positive` take a tree of these, as strengths
and step sizes may be, and refuse None. This module imports nothing of proxlm.
"""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

NUMBERS = (int, float, np.number, np.ndarray, jax.Array)
SCHEDULES = "A schedule goes through optax.inject_hyperparams around the function that builds this."


class Verbatim(str):
    """A description of what was given, which `invalid` writes without quotation marks.

    >>> Verbatim("shape (2,)")
    shape (2,)
    """

    __slots__ = ()
    __repr__ = str.__str__


def is_known(number: Any) -> bool:
    """Whether the value of a number can be checked now: it is neither None nor traced.

    >>> is_known(0.5), is_known(None)
    (True, False)
    """
    return number is not None and not isinstance(number, jax.core.Tracer)


def invalid(argument: str, given: Any, expected: str, remedy: str = "", function: str = "") -> ValueError:
    """The error for an invalid argument, in the one form of message that proxlm has.

    >>> invalid("k", 2.5, "an integer ≥ 0", "Round it.", "top_k")
    ValueError('top_k: k must be an integer ≥ 0, got 2.5. Round it.')
    """
    prefix = f"{function}: " if function else ""
    suffix = f" {remedy}" if remedy else ""
    return ValueError(f"{prefix}{argument} must be {expected}, got {given!r}.{suffix}")


def at_least(bound: float, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number below `bound`, or NaN; None and traced values pass.

    >>> at_least(0, "make_step", kl_coef=-0.1)
    Traceback (most recent call last):
        ...
    ValueError: make_step: kl_coef must be a number ≥ 0, got -0.1.
    """
    for argument, number in numbers.items():
        _require(argument, number, lambda x: x >= bound, f"a number ≥ {bound}", remedy, function)


def positive(function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number ≤ 0, or NaN; None and traced values pass.

    >>> positive(epsilon=0)
    Traceback (most recent call last):
        ...
    ValueError: epsilon must be a number > 0, got 0.
    """
    for argument, number in numbers.items():
        _require(argument, number, lambda x: x > 0, "a number > 0", remedy, function)


def within(low: float, high: float, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number outside [low, high], or NaN; None and traced values pass.

    >>> within(0, 1, discount=1.5)
    Traceback (most recent call last):
        ...
    ValueError: discount must be a number in [0, 1], got 1.5.
    """
    expected = f"a number in [{low}, {high}]"
    for argument, number in numbers.items():
        _require(argument, number, lambda x: (x >= low) & (x <= high), expected, remedy, function)


def integer(least: int, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a number that is not a Python or NumPy integer ≥ `least`; None passes.

    For numbers that decide a shape or a count, which cannot be traced.

    >>> integer(1, group_size=2.0)
    Traceback (most recent call last):
        ...
    ValueError: group_size must be an integer ≥ 1, got 2.0.
    """
    for argument, number in numbers.items():
        if number is not None and not (is_integer(number) and operator.index(number) >= least):
            raise invalid(argument, number, f"an integer ≥ {least}", remedy, function)


def tree_finite(function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are finite.

    >>> tree_finite("simplex", radius=np.inf)
    Traceback (most recent call last):
        ...
    ValueError: simplex: radius must be a finite number, got inf.
    """
    _require_trees(trees, np.isfinite, "a finite number", remedy, function)


def is_integer(number: Any) -> bool:
    """Whether something is an integer whose value is known: Python's, NumPy's or JAX's; no bool.

    >>> is_integer(np.int64(3)), is_integer(3.0), is_integer(True)
    (True, False, False)
    """
    if isinstance(number, bool | np.bool_) or getattr(number, "dtype", None) == np.bool_:
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def to_int(least: int, function: str = "", remedy: str = "", **number: Any) -> int:
    """Returns one number as a Python integer; ValueError unless it is an integer ≥ `least`, also for None.

    >>> to_int(1, k=np.int64(2))
    2
    """
    ((argument, given),) = number.items()
    if given is None:
        raise invalid(argument, given, f"an integer ≥ {least}", remedy, function)
    integer(least, function, remedy, **number)
    return int(given)


def same_shape(function: str = "", **arrays: Any) -> None:
    """Raises ValueError for an array that has neither the shape of the first one nor is a scalar.

    >>> same_shape("dpo", chosen=np.zeros(3), rejected=np.zeros(2))
    Traceback (most recent call last):
        ...
    ValueError: dpo: rejected.shape must be (3,), the shape of chosen, or (), got (2,). Only scalars are ...
    """
    (first, *others) = arrays.items()
    shape = np.shape(first[1])
    for argument, array in others:
        if np.shape(array) not in ((), shape):
            remedy = "Only scalars are broadcast: use jnp.broadcast_to."
            expected = f"{shape}, the shape of {first[0]}, or ()"
            raise invalid(f"{argument}.shape", np.shape(array), expected, remedy, function)


def one_sequence(function: str = "", **arrays: Any) -> None:
    """Raises ValueError for an array that is not a vector [T].

    A formula along time would otherwise run along a batch without an error.

    >>> one_sequence("gae", mask=np.ones((2, 3), bool))
    Traceback (most recent call last):
        ...
    ValueError: gae: mask.shape must be [T], one sequence, got (2, 3). Use jax.vmap for a batch.
    """
    for argument, array in arrays.items():
        if np.ndim(array) != 1:
            remedy = "Use jax.vmap for a batch."
            raise invalid(f"{argument}.shape", np.shape(array), "[T], one sequence", remedy, function)


def scalar(function: str = "", remedy: str = "Use jax.vmap for several.", **numbers: Any) -> None:
    """Raises ValueError for a number that is an array with axes.

    >>> scalar("gae", discount=np.ones(3))
    Traceback (most recent call last):
        ...
    ValueError: gae: discount.shape must be (), one number, got (3,). Use jax.vmap for several.
    """
    for argument, number in numbers.items():
        if np.shape(number) != ():
            raise invalid(f"{argument}.shape", np.shape(number), "(), one number", remedy, function)


def boolean(function: str = "", **masks: Any) -> None:
    """Raises ValueError for a mask that is not boolean: of numbers, it would be unclear what a 2 means.

    >>> boolean(mask=np.ones(3))
    Traceback (most recent call last):
        ...
    ValueError: mask.dtype must be bool, got dtype('float64'). Write `mask != 0` if zeros mark what ...
    """
    for argument, mask in masks.items():
        dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
        if dtype != np.bool_:
            remedy = f"Write `{argument} != 0` if zeros mark what does not count."
            raise invalid(f"{argument}.dtype", dtype, "bool", remedy, function)


def a_function(function: str = "", remedy: str = "", **functions: Any) -> None:
    """Raises ValueError for what cannot be called.

    >>> a_function("make_step", loss_fn=3.0)
    Traceback (most recent call last):
        ...
    ValueError: make_step: loss_fn must be a function, got 3.0.
    """
    for argument, given in functions.items():
        if not callable(given):
            raise invalid(argument, given, "a function", remedy, function)


def an_optimizer(function: str = "", **optimizers: Any) -> None:
    """Raises ValueError for what has not the two functions of an Optax transformation.

    >>> an_optimizer("make_step", optimizer=0.1)
    Traceback (most recent call last):
        ...
    ValueError: make_step: optimizer must be an Optax transformation, got 0.1. Build one: optax.adam(1e-3).
    """
    for argument, given in optimizers.items():
        if not (callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))):
            remedy = "Build one: optax.adam(1e-3)."
            raise invalid(argument, given, "an Optax transformation", remedy, function)


def arrays(function: str = "", **trees: Any) -> None:
    """Raises ValueError for a tree without leaves, or with one that is not a numeric array.

    >>> arrays("fit", params={"w": np.ones(2), "activation": "relu"})
    Traceback (most recent call last):
        ...
    ValueError: fit: params at activation must be a numeric array, got 'relu'. Keep the params apart from ...
    """
    remedy = "Keep the params apart from what is not learnt, as with eqx.partition or nnx.split."
    for argument, tree in trees.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            raise invalid(argument, tree, "a tree of arrays", "", function)
        for path, leaf in leaves:
            if not isinstance(leaf, NUMBERS) or np.dtype(getattr(leaf, "dtype", float)) == object:
                raise invalid(_label(argument, path), leaf, "a numeric array", remedy, function)


def floats(*arrays: Any) -> tuple[jax.Array, ...]:
    """The arrays as JAX arrays of at least float32.

    >>> [x.dtype.name for x in floats(1, np.ones(2, np.float16))]
    ['float32', 'float32']
    """
    return tuple(jnp.asarray(x, jnp.result_type(x, jnp.float32)) for x in arrays)


def one_of(names: Any, function: str = "", remedy: str = "", **choices: Any) -> None:
    """Raises ValueError, with the known names, for a choice that is not among them.

    >>> one_of(("skip", "zero"), holes="cut")
    Traceback (most recent call last):
        ...
    ValueError: holes must be one of 'skip', 'zero', got 'cut'.
    """
    for argument, choice in choices.items():
        if not any(choice is name or (type(choice) is type(name) and choice == name) for name in names):
            raise invalid(argument, choice, f"one of {', '.join(map(repr, names))}", remedy, function)


def known(function: str, argument: str, tree: Any) -> list[np.ndarray]:
    """Lists the numbers of a tree whose value is known now; ValueError for a leaf that is not numeric.

    >>> known("l1", "strength", {"w": 2.0, "b": 0.5})
    [array(0.5), array(2.)]
    """
    return [number for _, number in _labelled(argument, tree, function)]


def tree_at_least(bound: float, function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are ≥ `bound`.

    >>> tree_at_least(0, "l1", strength={"w": 1.0, "b": np.array([0.5, -1.0])})
    Traceback (most recent call last):
        ...
    ValueError: l1: strength at b must be a number ≥ 0, got -1.0 at index (1,).
    """
    _require_trees(trees, lambda x: x >= bound, f"a number ≥ {bound}", remedy, function)


def tree_positive(function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are > 0.

    >>> tree_positive("l2_ball", radius=0.0)
    Traceback (most recent call last):
        ...
    ValueError: l2_ball: radius must be a number > 0, got 0.0.
    """
    _require_trees(trees, lambda x: x > 0, "a number > 0", remedy, function)


def _require(argument, number, holds, expected, remedy, function):
    if not is_known(number):
        return
    # Written so that NaN, which compares as False, is refused too.
    if not isinstance(number, NUMBERS) or not np.all(holds(np.asarray(number))):
        raise invalid(argument, number, expected, remedy, function)


def _require_trees(trees, holds, expected, remedy, function):
    for argument, tree in trees.items():
        for label, number in _labelled(argument, tree, function):
            refused = np.argwhere(~holds(number))
            if len(refused):
                index = tuple(map(int, refused[0]))
                place = f" at index {index}" if index else ""
                raise invalid(label, Verbatim(f"{number[index]}{place}"), expected, remedy, function)


def _labelled(argument, tree, function):
    """Lists (argument and path, number) for the leaves whose value is known."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is None)
    if not leaves:
        raise invalid(argument, tree, "a number, an array or a tree of these", "", function)
    found = []
    for path, leaf in leaves:
        label = _label(argument, path)
        if isinstance(leaf, jax.core.Tracer) or (leaf is None and path):
            continue
        if not isinstance(leaf, NUMBERS) or np.iscomplexobj(leaf) or np.asarray(leaf).dtype == object:
            raise invalid(label, leaf, "a number, an array or a tree of these", SCHEDULES, function)
        found.append((label, np.asarray(leaf)))
    return found


def _label(argument, path):
    place = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{argument} at {place}" if place else argument
