"""A proximal step around a whole optimizer, in Euclidean geometry or in the optimizer's own."""

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import base
from proxlm.transforms import _arguments, _proximal, _states, preconditioners

__all__ = ["proximal"]


def proximal(
    inner: optax.GradientTransformation | optax.MultiSteps,
    penalty: base.Penalty,
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: preconditioners.Preconditioner | str | None = None,
    floor: chex.Numeric = 0.0,
    cap: chex.Numeric = jnp.inf,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Follows an optimizer with a prox: x ↦ prox_tg(x + u), u the inner update.

    Without a preconditioner t is the learning rate η, and this is `optax.chain(inner, apply_prox(...))`.
    After plain SGD it solves min f + g; after Adam and its like it is decoupled, as AdamW's decay is, and
    solves another problem. With a preconditioner that divides by D, u = -η m/D, t is η/D, weight by weight,
    and it solves min f + g.

    Where the floor or the cap makes t smaller than η/D, the gradient's step is shortened to the
    same -t m, so that fixed points stay right; there it is no longer the inner optimizer's step.
    By default neither binds, and strength 0 is the inner optimizer. A weight that has never had a gradient
    (the row of an unseen token, a dead expert) has no D yet: it takes t = η, the decoupled step size, and
    not η/ε, which would set it to zero at once. In the first steps D is known from few gradients, which may
    be near 0 by chance: begin with a warm-up.

    A `floor` costs another pass over each leaf, for its rms. Muon, Shampoo and their like
    precondition by matrices: they have the decoupled form only.

    Around `optax.MultiSteps` the prox runs when an update is emitted and at no other time:
    `proximal(optax.MultiSteps(inner, k), ...)`. `optax.MultiSteps(proximal(inner, ...), k)` gives
    the same at the price of a prox at every mini-step. Put `optax.apply_if_finite` and
    `optax.inject_hyperparams` around the whole, not inside.

    Args:
      inner: the optimizer, its learning rate included.
      learning_rate: η, that of inner. A momentum μ, as of `optax.trace`, makes steps 1/(1 - μ) times as long:
        give η/(1 - μ); `proximal_sgd` does it for you.
      preconditioner: how D is read from the state of inner, as in `adam_preconditioner(b2=0.95)`; by name,
        such as "adam", with Optax's own defaults; None for the decoupled form. The state is found by its type
        under chains, masks, partitions and wrappers.
      floor: least D in units of the rms of D over the leaf; see `penalties.step_sizes`.
      cap: largest t.
      every: apply the prox at each `every`-th update only, with t from the sum of the learning rates since
        the last time and D as it then is, which costs no tree in the state.

    Raises:
      ValueError: if an argument is invalid; on init, if the state of the preconditioner is not found or the
        penalty has no prox in a diagonal metric, if inner has a prox already, chooses its own step, does not
        end with its learning rate or has another one than `learning_rate`; on update, without params.

    Source: Yun, Lozano & Yang 2021 (ProxGen); Loshchilov & Hutter 2019 (decoupling).

    >>> from proxlm import penalties
    >>> tx = proximal(optax.adam(0.5), penalties.l1(1.0), 0.5, preconditioner="adam")
    >>> x = jnp.array([3.0, 0.5])
    >>> updates, state = tx.update(jnp.array([2.0, 4.0]), tx.init(x), x)
    >>> optax.apply_updates(x, updates).round(4).tolist()
    [2.25, 0.0]
    """
    _arguments.require_step("proximal", penalty, learning_rate, every)
    _validation.tree_at_least(0, "proximal", floor=floor)
    _validation.tree_positive("proximal", cap=cap)
    read = _preconditioner_of(preconditioner)
    if read is None and not preconditioners.unbounded(floor, cap):
        remedy = 'They bound steps of a preconditioner, such as "adam"; without one every step is η.'
        raise _validation.invalid("floor, cap", (floor, cap), "(0, inf) without one", remedy, "proximal")
    rule = _proximal.Rule(
        "proximal", penalty, learning_rate, False, read, floor, cap, every=every, anchored=anchored
    )

    def require(inner_state, params):
        _states.require_sound(inner_state)
        if not _states.names(inner_state)[1:] and _needs_value(inner, inner_state, params):
            raise _states.refuse_own_step("one that asks for the value of the loss")
        if _is_nan_at_zero(inner, params):
            given = _validation.Verbatim("one that makes NaN where a gradient is 0")
            remedy = "It divides 0 by 0: give it eps=1e-4, or keep the params in float32."
            expected = "an optimizer whose ε float16 can hold, as the params are"
            raise _validation.invalid("inner", given, expected, remedy, "proximal")
        _states.require_rate("proximal", inner, inner_state, params, learning_rate)

    return _proximal.follow(inner, rule, require)


def _preconditioner_of(given):
    if isinstance(given, str) and given in _states.PRECONDITIONERS:
        return _states.PRECONDITIONERS[given]()
    if given is None or isinstance(given, preconditioners.Preconditioner):
        return given
    raise ValueError(
        "proximal: preconditioner must be a Preconditioner, as adam_preconditioner() makes one, None, or one "
        f"of {', '.join(_states.PRECONDITIONERS)}; got {given!r}."
    )


def _is_nan_at_zero(inner, params):
    """Whether params of float16 become NaN where a gradient is 0, tried on leaves of one number."""
    if not any(jnp.result_type(leaf) == jnp.float16 for leaf in jax.tree.leaves(params)):
        return False
    with jax.ensure_compile_time_eval():
        try:
            zeros = jax.tree.map(lambda leaf: jnp.zeros((1,) * jnp.ndim(leaf), jnp.result_type(leaf)), params)
            updates = inner.update(zeros, inner.init(zeros), zeros)[0]
            return any(bool(jnp.any(jnp.isnan(leaf))) for leaf in jax.tree.leaves(updates))
        except (TypeError, ValueError):
            return False  # it needs more than gradients


def _needs_value(inner, state, params):
    """Whether an update fails without the extra argument `value`, as that of Polyak's step does."""
    try:
        jax.eval_shape(lambda params: inner.update(params, state, params), params)
    except TypeError as error:
        return "'value'" in str(error)
    return False
