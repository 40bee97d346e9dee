"""Checks of the arguments that several links share."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm import _validation
from proxlm.penalties import base
from proxlm.penalties.groups import _partition

# Counts are int32.
_LARGEST = 2**31 - 1


def require_share(name: str, argument: str, share: chex.Numeric) -> None:
    """Raises ValueError unless `share` is one number, and in [0, 1] if its value is known.

    >>> require_share("prune", "sparsity", 80)
    Traceback (most recent call last):
        ...
    ValueError: prune: sparsity must be one number in [0, 1], got 80. For 80 % write 0.8.
    """
    values = _validation.known(name, argument, share)
    if jnp.ndim(share) != 0 or not all(0 <= value <= 1 for value in values):
        remedy = "For 80 % write 0.8."
        raise _validation.invalid(argument, share, "one number in [0, 1]", remedy, name)


def require_count(name: str, argument: str, count: chex.Numeric, least: int, remedy: str = "") -> None:
    """Raises ValueError unless `count` is an integer, and at least `least` if it is known.

    Under `optax.inject_hyperparams` it arrives as an array, which may be traced.

    >>> require_count("debias", "start", 0.5, least=0)
    Traceback (most recent call last):
        ...
    ValueError: debias: start must be an integer ≥ 0, got 0.5.
    """
    if _validation.is_integer(count) and count > _LARGEST:
        raise _validation.invalid(argument, count, f"an integer ≤ {_LARGEST}, as int32 counts", remedy, name)
    if not _validation.is_known(count) and count is not None:
        if jnp.issubdtype(jnp.result_type(count), jnp.integer):
            return
        raise _validation.invalid(argument, count, f"an integer ≥ {least}", remedy, name)
    _validation.to_int(least, name, remedy, **{argument: count})


def require_grouping(name: str, over: _partition.Grouping | None) -> None:
    """Raises ValueError unless `over` is a grouping or None.

    >>> require_grouping("prune", 0)
    Traceback (most recent call last):
        ...
    ValueError: prune: over must be a grouping or None, got 0. Groups along an axis are ...
    """
    if over is not None and not isinstance(over, _partition.Grouping):
        remedy = "Groups along an axis are penalties.grouping.axes(0)."
        raise _validation.invalid("over", over, "a grouping or None", remedy, name)


def require_link(name: str, argument: str, link: Any) -> None:
    """Raises ValueError unless `link` is an Optax transformation.

    >>> require_link("debias", "link", 0.1)
    Traceback (most recent call last):
        ...
    ValueError: debias: link must be an optax.GradientTransformation, got 0.1. Build one, as ...
    """
    if not isinstance(link, optax.GradientTransformation):
        remedy = "Build one, as in optax.adam(1e-3) or apply_prox(penalties.l1(1e-2), 1e-3)."
        raise _validation.invalid(argument, link, "an optax.GradientTransformation", remedy, name)


def require_params(name: str, params: chex.ArrayTree | None) -> chex.ArrayTree:
    """Gives the params; ValueError, with Optax's own message for it, if `update` was not given them.

    >>> require_params("rda", {"w": 2.0})
    {'w': 2.0}
    """
    if params is not None:
        return params
    raise ValueError(
        f"{name}: You are using a transformation that requires the current value of parameters, but you "
        "are not passing `params` when calling `update`. Call tx.update(updates, state, params)."
    )


def require_rate(name: str, argument: str, learning_rate: optax.ScalarOrSchedule) -> None:
    """Raises ValueError for what is neither a schedule nor one number ≥ 0.

    >>> require_rate("rda", "learning_rate", -0.1)
    Traceback (most recent call last):
        ...
    ValueError: rda: learning_rate must be a number ≥ 0, got -0.1.
    """
    if callable(learning_rate):
        return
    _validation.tree_at_least(0, name, "", **{argument: learning_rate})
    if jnp.ndim(learning_rate) != 0:
        given = _validation.Verbatim(f"shape {jnp.shape(learning_rate)}")
        remedy = "Let strengths differ instead, as in penalties.l1(array)."
        raise _validation.invalid(argument, given, "one number", remedy, name)


def require_step(
    name: str, penalty: base.Penalty, learning_rate: optax.ScalarOrSchedule, every: chex.Numeric = 1
) -> None:
    """Raises ValueError, in the name of a link, for what a proximal step cannot be made of.

    >>> require_step("rda", None, 0.1)
    Traceback (most recent call last):
        ...
    ValueError: rda: penalty must be a Penalty, got None. Build one, as in ...
    """
    base.require_penalty(name, penalty=penalty)
    require_rate(name, "learning_rate", learning_rate)
    require_count(name, "every", every, least=1, remedy="Use 1 for always.")


def require_decays(name: str, **decays: chex.Numeric) -> None:
    """Raises ValueError for a known decay outside [0, 1).

    >>> require_decays("proximal_adam", b2=1.0)
    Traceback (most recent call last):
        ...
    ValueError: proximal_adam: b2 must be in [0, 1), got 1.0. In half precision 0.999 is 1, to ...
    """
    for argument, decay in decays.items():
        if any(not ((0 <= known) & (known < 1)).all() for known in _validation.known(name, argument, decay)):
            remedy = (
                "In half precision 0.999 is 1, to which optax.inject_hyperparams rounds for such params "
                "unless it is given hyperparam_dtype=jnp.float32."
            )
            raise _validation.invalid(argument, decay, "in [0, 1)", remedy, name)


def require_eps(name: str, params: chex.ArrayTree, eps: chex.Numeric, eps_root: chex.Numeric) -> None:
    """Raises ValueError if Adam would divide 0 by 0 in these params, because their dtype has no such small ε.

    >>> require_eps("proximal_adam", jnp.ones(1, jnp.float16), 1e-8, 0.0)
    Traceback (most recent call last):
        ...
    ValueError: proximal_adam: eps must be a number that float16 can hold, as the params are, got 1e-08. ...
    """
    if not (_validation.is_known(eps) and _validation.is_known(eps_root)):
        return
    for dtype in {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}:
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32:
            continue
        if not any(np.asarray(number).astype(dtype) for number in (eps, eps_root)):
            expected = f"a number that {dtype} can hold, as the params are"
            remedy = "There 0/0 is NaN where a gradient is 0: give eps=1e-4, or keep the params in float32."
            raise _validation.invalid("eps", eps, expected, remedy, name)
