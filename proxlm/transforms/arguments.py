"""What the arguments of a link must be."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import cuts, numbers


def require_share(name: str, argument: str, share: chex.Numeric) -> None:
    """Raises ValueError unless `share` is one number, and in [0, 1] if its value is known.

    >>> require_share("prune", "sparsity", 80)
    Traceback (most recent call last):
        ...
    ValueError: prune: sparsity must be one number in [0, 1], got 80. For 80 % write 0.8.
    """
    values = numbers.known(name, argument, share)
    if jnp.ndim(share) != 0 or not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"{name}: {argument} must be one number in [0, 1], got {share}. For 80 % write 0.8."
        )


def require_count(name: str, argument: str, count: chex.Numeric, least: int) -> None:
    """Raises ValueError unless `count` is an integer, and at least `least` if it is known.

    Under `optax.inject_hyperparams` it arrives as an array, which may be traced.

    >>> require_count("heal", "start", 0.5, least=0)
    Traceback (most recent call last):
        ...
    ValueError: heal: start must be an integer ≥ 0, got 0.5.
    """
    if isinstance(count, jax.core.Tracer) and jnp.issubdtype(count.dtype, jnp.integer):
        return
    if isinstance(count, jax.core.Tracer):
        raise ValueError(f"{name}: {argument} must be an integer ≥ {least}, got {count!r}.")
    numbers.require_integer(name, argument, count, least)


def require_grouping(name: str, over: cuts.Grouping | None) -> None:
    """Raises ValueError unless `over` is a grouping or None.

    >>> require_grouping("prune", 0)
    Traceback (most recent call last):
        ...
    ValueError: prune: over must be a grouping or None, got 0. Groups along an axis are ...
    """
    if over is not None and not isinstance(over, cuts.Grouping):
        raise ValueError(
            f"{name}: over must be a grouping or None, got {over!r}. Groups along an axis are "
            "penalties.grouping.axes(0)."
        )


def require_link(name: str, argument: str, link: Any) -> None:
    """Raises ValueError unless `link` is an Optax transformation.

    >>> require_link("heal", "link", 0.1)
    Traceback (most recent call last):
        ...
    ValueError: heal: link must be an optax.GradientTransformation, got 0.1. Build one, as ...
    """
    if not isinstance(link, optax.GradientTransformation):
        raise ValueError(
            f"{name}: {argument} must be an optax.GradientTransformation, got {link!r}. Build one, "
            "as in apply_prox(penalties.l1(1e-2), learning_rate)."
        )
