"""The proximal step as the last link of an Optax chain: with the learning rate in it, or after it."""

import optax

from proxlm.penalties import base
from proxlm.transforms import _arguments, _proximal

__all__ = ["apply_prox", "proximal_step"]


def proximal_step(
    penalty: base.Penalty, learning_rate: optax.ScalarOrSchedule, *, every: int = 1, anchored: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Ends a chain in the place of `optax.scale_by_learning_rate`: u ↦ prox_tg(params - t u) - params.

    It multiplies by the learning rate t and takes the proximal step of the same t, so that the two cannot
    differ:

        optax.chain(optax.scale_by_adam(), proximal_step(penalties.l1(1e-4), 1e-3))

    At strength 0 it is `optax.scale_by_learning_rate`. With nothing before it, it is the proximal gradient
    method for loss + g. After a preconditioner such as Adam it is decoupled, as the decay of AdamW is: the
    threshold knows nothing of the preconditioner (`proximal_adam` does).

    It must be the last link, since whatever is added to its update moves weights off their exact zeros. A
    schedule is read at the number of earlier updates, as Optax reads it. The step is computed in float32 (in
    float64 for float64 params), and its result rounded to the dtype of the params, in which the update is
    emitted. `optax.apply_updates` keeps exact zeros exact.

    `optax.contrib.schedule_free`, `optax.lookahead` and averages of params mix the result with other points,
    which loses the zeros. `optax.inject_hyperparams` rounds a learning rate to the dtype of the params unless
    it is given hyperparam_dtype=jnp.float32.

    Args:
      every: apply the prox at each `every`-th update only, with the sum of the learning rates since the last
        time as t. Other updates are only scaled.
      anchored: measure g from the params seen by `init`, kept in the state: the update becomes a +
        prox_tg(params - t u - a) - params. With `squared_l2` this is a trust region around the pretrained
        weights (L2-SP, FedProx).

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Duchi & Singer 2009 (forward-backward splitting) and, for `every`, lazy updates as in Langford,
    Li & Zhang 2009.

    >>> import jax.numpy as jnp
    >>> from proxlm import penalties
    >>> tx = proximal_step(penalties.l1(1.0), 0.5)
    >>> params = jnp.array([2.0, 0.3])
    >>> updates, state = tx.update(jnp.array([1.0, 0.1]), tx.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [1.0, 0.0]
    """
    _arguments.require_step("proximal_step", penalty, learning_rate, every)
    rule = _proximal.Rule("proximal_step", penalty, learning_rate, True, every=every, anchored=anchored)
    keep = lambda updates, state, params=None: (updates, state)
    return _proximal.follow(optax.GradientTransformation(lambda params: _proximal.Scaled(), keep), rule)


def apply_prox(
    penalty: base.Penalty, learning_rate: optax.ScalarOrSchedule, *, every: int = 1, anchored: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Ends a chain that has its learning rate already: u ↦ prox_tg(params + u) - params, t that rate.

    It must be the last link, and it must be given the learning rate that scaled u, which nothing can check:
    `proximal_step`, which scales u itself, is the safer form and behaves alike in all else. Use this one
    where a learning rate is applied elsewhere, as in `optax.adam(schedule)`. Where the prox moves nothing
    the params arrive within one rounding of where the update alone takes them.

    Args:
      every: as in `proximal_step`; other updates pass as they are.
      anchored: as in `proximal_step`: a + prox_tg(params + u - a) - params.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: as `proximal_step`.

    >>> import jax.numpy as jnp
    >>> from proxlm import penalties
    >>> tx = optax.chain(optax.sgd(0.5), apply_prox(penalties.l1(1.0), 0.5))
    >>> params = jnp.array([2.0, 0.3])
    >>> updates, state = tx.update(jnp.array([1.0, 0.1]), tx.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [1.0, 0.0]
    """
    _arguments.require_step("apply_prox", penalty, learning_rate, every)
    rule = _proximal.Rule("apply_prox", penalty, learning_rate, every=every, anchored=anchored)
    return _proximal.follow(optax.identity(), rule)
