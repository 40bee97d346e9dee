"""The diagonal D by which an Optax optimizer divides, read from its state.

A step x - η m/D of such an optimizer minimises the loss plus a penalty g only with a prox in the
metric D, whose step sizes are η/D. Optax keeps in the state what D is made of, but not b2, ε and
their like: give them the values that the optimizer has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.transforms import _arguments

__all__ = ["Preconditioner", "adam_preconditioner"]


class Preconditioner(NamedTuple):
    """A reader of the diagonal D by which an optimizer divides.

    Attributes:
      name: the name in messages.
      types: the types of state that it can read.
      diagonal: (before, after, params, gradients) ↦ D > 0, the divisor of the step that led from
        the state `before` to the state `after`; -1 marks weights that have never had a gradient.
    """

    name: str
    types: tuple[type, ...]
    diagonal: Callable[[Any, Any, chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


@_validation.typed
def adam_preconditioner(
    b2: chex.Numeric = 0.999, eps: chex.Numeric = 1e-8, eps_root: chex.Numeric = 0.0
) -> Preconditioner:
    """D = √(v̂ + ε_root) + ε, of `optax.adam`, `adamw`, `nadam` and `nadamw`, and of `yogi`.

    `optax.yogi` has eps=1e-3. The state of `optax.radam` looks the same, but its steps are other
    ones; so are those of `lamb`, which rescales every leaf.

    Source: Kingma & Ba 2015; Yun, Lozano & Yang 2021 (ProxGen).

    >>> tx, x = optax.adam(0.1), jnp.array([1.0, 1.0])
    >>> before = tx.init(x)
    >>> after = tx.update(jnp.array([4.0, 0.0]), before)[1]
    >>> adam_preconditioner().diagonal(before[0], after[0], x, None).round(3).tolist()
    [4.0, -1.0]
    """
    _arguments.require_decays("adam_preconditioner", b2=b2)
    _validation.at_least(0, "adam_preconditioner", eps=eps, eps_root=eps_root)

    read = lambda before, after, params, gradients: adam_divisor(after.nu, after.count, b2, eps, eps_root)
    return Preconditioner("adam_preconditioner", (optax.ScaleByAdamState,), read)


def adam_divisor(
    nu: chex.ArrayTree, count: jax.Array, b2: chex.Numeric, eps: chex.Numeric, eps_root: chex.Numeric = 0.0
) -> chex.ArrayTree:
    """D of the second moment after `count` updates; -1 marks weights that never had a gradient.

    The size |D| of that mark makes the learning rate their step.

    >>> adam_divisor(jnp.array([4.0, 0.0]), jnp.array(1), 0.75, 1.0).tolist()
    [5.0, -1.0]
    """
    return roots(nu, optax.tree.bias_correction(nu, b2, count), eps, eps_root)


def unbounded(floor: chex.Numeric, cap: chex.Numeric) -> bool:
    """Returns True if floor and cap are known not to bind, which spares passes over each leaf.

    >>> unbounded(0.0, jnp.inf), unbounded(0.1, jnp.inf)
    (True, False)
    """
    known = all(isinstance(number, int | float) for number in (floor, cap))
    return known and (floor, cap) == (0.0, jnp.inf)


def roots(
    moment: chex.ArrayTree, hat: chex.ArrayTree, outside: chex.Numeric, inside: chex.Numeric
) -> chex.ArrayTree:
    """√(hat + inside) + outside in Optax's own dtype, which is what the step was divided by."""
    root = lambda v, h: jnp.where(v > 0, jnp.sqrt(h + inside) + outside, -1.0)
    return jax.tree.map(root, moment, hat)
