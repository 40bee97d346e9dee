"""Strengths, radii, step sizes: what a number given to a penalty must be."""

import chex
import jax
import numpy as np

NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


def require_nonnegative(name: str, argument: str, numbers: chex.ArrayTree) -> None:
    """Raises ValueError unless a tree holds numbers, and those whose value is known are ≥ 0.

    >>> require_nonnegative("l1", "strength", -1.0)
    Traceback (most recent call last):
        ...
    ValueError: l1: strength must be ≥ 0 everywhere, got -1.0. Use 0 to switch it off.
    """
    # Written so that NaN, which compares as False, is refused too.
    refused = [leaf for leaf in known(name, argument, numbers) if not np.all(leaf >= 0)]
    if refused:
        raise ValueError(
            f"{name}: {argument} must be ≥ 0 everywhere, got {refused[0]}. Use 0 to switch it off."
        )


def require_positive(name: str, argument: str, numbers: chex.ArrayTree) -> None:
    """Raises ValueError unless a tree holds numbers, and those whose value is known are > 0.

    >>> require_positive("l2_ball", "radius", 0.0)
    Traceback (most recent call last):
        ...
    ValueError: l2_ball: radius must be > 0 everywhere, got 0.0.
    """
    refused = [leaf for leaf in known(name, argument, numbers) if not np.all(leaf > 0)]
    if refused:
        raise ValueError(f"{name}: {argument} must be > 0 everywhere, got {refused[0]}.")


def require_integer(name: str, argument: str, number: int, least: int, remedy: str = "") -> int:
    """Gives a Python int; ValueError unless it is one of at least `least`.

    >>> require_integer("top_k", "k", 2.5, least=0)
    Traceback (most recent call last):
        ...
    ValueError: top_k: k must be an integer ≥ 0, got 2.5.
    """
    if hasattr(number, "__index__") and not isinstance(number, bool) and int(number) >= least:
        return int(number)
    raise ValueError(f"{name}: {argument} must be an integer ≥ {least}, got {number!r}.{remedy}")


def known(name: str, argument: str, numbers: chex.ArrayTree) -> list[np.ndarray]:
    """Lists the numbers of a tree whose value is known now; ValueError for what is none.

    >>> known("l1", "strength", {"w": 2.0, "b": 0.5})
    [array(0.5), array(2.)]
    """
    leaves = jax.tree.leaves(numbers)
    strangers = [leaf for leaf in leaves if not isinstance(leaf, NUMBERS)]
    if strangers or not leaves:
        given = strangers[0] if strangers else numbers
        raise ValueError(
            f"{name}: {argument} must be a number, an array or a tree of these, got {given!r}. "
            "A schedule goes through optax.inject_hyperparams around the function that builds this."
        )
    return [np.asarray(leaf) for leaf in leaves if not isinstance(leaf, jax.core.Tracer)]
