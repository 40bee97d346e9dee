"""Facts about an Optax optimizer, read from the types in its nested state."""

from typing import Any

import chex
import jax
import jax.extend.core
import numpy as np
import optax

from proxlm import _tree_paths, _validation
from proxlm.transforms import contrib_preconditioners, preconditioners
from proxlm.transforms.preconditioners import Preconditioner

PRECONDITIONERS = {
    "adam": preconditioners.adam_preconditioner,
    "adamax": contrib_preconditioners.adamax_preconditioner,
    "amsgrad": contrib_preconditioners.amsgrad_preconditioner,
    "adabelief": contrib_preconditioners.belief_preconditioner,
    "rmsprop": contrib_preconditioners.rms_preconditioner,
    "adagrad": contrib_preconditioners.adagrad_preconditioner,
    "adafactor": contrib_preconditioners.adafactor_preconditioner,
    "sophia": contrib_preconditioners.sophia_preconditioner,
}

# Optax's own optimizers after which no threshold is right, with the reason.
AVERAGES = {
    optax.contrib.ScheduleFreeState: "schedule_free makes the prox at y, but adds its update to z",
    optax.contrib.MechanicState: "mechanize scales the update of the prox by a factor it learns",
    optax.LookaheadState: "lookahead mixes fast and slow params",
}
OWN_STEPS = (
    optax.contrib.ReduceLROnPlateauState,
    optax.contrib.ProdigyState,
    optax.contrib.DAdaptAdamWState,
    optax.contrib.DoGState,
    optax.contrib.DoWGState,
    optax.contrib.MomoState,
    optax.contrib.MomoAdamState,
    optax.contrib.COCOBState,
    optax.ScaleByRpropState,
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)
# Records of this package's transformations that move no weight themselves; what they wrap may.
_WRAPPERS = ("SkipState", "DebiasState", "ScheduledState")
_INJECTED = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)


def find(state: Any, types: type | tuple[type, ...]) -> list[Any]:
    """Lists the records of these types anywhere in a state: chains, masks, partitions, wrappers.

    >>> state = optax.masked(optax.adam(0.1), {"w": True}).init({"w": np.ones(2)})
    >>> [type(found).__name__ for found in find(state, optax.ScaleByAdamState)]
    ['ScaleByAdamState']
    """
    wanted = lambda node: isinstance(node, types)
    return [node for node in jax.tree.leaves(state, is_leaf=wanted) if wanted(node)]


def names(state: Any) -> list[str]:
    """Names the types of the records in a state, each once, in order.

    >>> names(optax.adam(0.1).init(np.ones(2)))
    ['ScaleByAdamState', 'EmptyState']
    """
    return list(dict.fromkeys(kind.__name__ for kind in _kinds(state)))


def makers(state: Any) -> list[str]:
    """Names the types of the records of links that make zeros, as `names` does."""
    ours = [kind for kind in _kinds(state) if kind.__module__.startswith("proxlm.transforms.")]
    return list(dict.fromkeys(k.__name__ for k in ours if k.__name__ not in _WRAPPERS))


def diagonal(
    preconditioner: Preconditioner, before: Any, after: Any, params: chex.ArrayTree, gradients: chex.ArrayTree
) -> chex.ArrayTree:
    """Gives a preconditioner's D for every leaf of the params, from the records that hold a part of it.

    Raises:
      ValueError: where no record, or more than one, has a leaf of the params.

    >>> tx, x = optax.adam(0.1), np.ones(2, np.float32)
    >>> state = tx.update(2 * x, tx.init(x))[1]
    >>> diagonal(PRECONDITIONERS["adam"](), tx.init(x), state, x, 2 * x).round(3).tolist()
    [2.0, 2.0]
    """
    pairs = zip(find(before, preconditioner.types), find(after, preconditioner.types), strict=True)
    parts = [preconditioner.diagonal(old, new, params, gradients) for old, new in pairs]
    flat = [(_tree_paths.names(path), leaf) for part in parts for path, leaf in _tree_paths.flatten(part)[0]]
    leaves = dict(flat)
    given, structure = _tree_paths.flatten(params)
    wanted = [_tree_paths.names(path) for path, _ in given]
    missing = [path for path in wanted if path not in leaves]
    if missing or len(flat) > len(leaves):
        found = "no state has" if missing else "several states have"
        place = f" at {'/'.join(missing[0]) or 'the root'}" if missing else ""
        raise ValueError(
            f"proximal: {found} the diagonal of {preconditioner.name}{place}. Give each part of the params "
            "its own proximal, as in optax.partition({'a': proximal(...), 'b': ...}, labels); what is "
            "preconditioned by matrices, as by Muon, has preconditioner=None only."
        )
    return jax.tree.unflatten(structure, [leaves[path] for path in wanted])


def require_sound(state: Any) -> None:
    """Raises ValueError where a prox after the optimizer with this state cannot be right."""
    if made := makers(state):
        given = f"one that holds {made[0]}, which nothing may follow"
        raise _refusal("an optimizer without a prox", given, "Join the two by penalties.separable_sum.")
    for kind, words in AVERAGES.items():
        if find(state, kind):
            expected = "an optimizer whose update arrives as it is"
            raise _refusal(expected, f"one that loses exact zeros: {words}", "Leave that out.")
    if own := find(state, OWN_STEPS):
        raise refuse_own_step(f"one with {type(own[0]).__name__}")
    for last in _last(state):
        kind = type(last).__name__
        preconditions = kind.startswith("ScaleBy") and kind != "ScaleByScheduleState"
        if preconditions or isinstance(last, optax.contrib.SophiaState | optax.contrib.MuonState):
            remedy = "Put proximal_step last instead, or optax.scale_by_learning_rate."
            raise _refusal(
                "an optimizer that ends with its learning rate", f"one that ends with {kind}", remedy
            )


def refuse_own_step(words: str) -> ValueError:
    """The error for an optimizer that chooses its own step."""
    remedy = "Use one with a learning rate, which the prox must know."
    return _refusal("an optimizer with a learning rate", f"{words}, which chooses its own step", remedy)


def _refusal(expected, given, remedy):
    return _validation.invalid("inner", _validation.Verbatim(given), expected, remedy, "proximal")


def require_rate(
    name: str,
    inner: optax.GradientTransformation | optax.MultiSteps,
    state: Any,
    params: chex.ArrayTree,
    learning_rate: optax.ScalarOrSchedule,
) -> None:
    """Raises ValueError where the learning rate shows not to be the one of the optimizer with this state."""
    scheduled, injected = find(state, optax.ScaleByScheduleState), find(state, _INJECTED)
    if scheduled and not callable(learning_rate):
        raise ValueError(
            f"{name}: inner follows a schedule, and learning_rate is the number {learning_rate}. "
            "Give the same schedule to both."
        )
    if callable(learning_rate) and not (scheduled or injected) and _is_of_optax(state):
        raise ValueError(
            f"{name}: learning_rate is a schedule, and nothing in inner follows one. Give the same to both."
        )
    given = learning_rate(0) if callable(learning_rate) else learning_rate
    rates = [record.hyperparams.get("learning_rate") for record in injected]
    # the steps of a momentum are longer than the rate by which it ends
    if not (scheduled or injected or find(state, optax.TraceState)) and _validation.is_known(given):
        rates = _last_factors(inner, state, params)
    for rate in rates:
        if _validation.is_known(rate) and _validation.is_known(given):
            inside, outside = (float(np.asarray(number)) for number in (rate, given))
            # bfloat16 rounds it
            if not np.isclose(inside, outside, rtol=1e-2):
                raise ValueError(
                    f"{name}: inner has learning_rate={inside:.6g}, and this one is {outside:.6g}. "
                    "Give the same to both, or write it once: optax.chain(optax.scale_by_adam(), "
                    "proximal_step(penalty, learning_rate))."
                )


def _last_factors(inner, state, params):
    """The known numbers ≠ ±1 by which updates are multiplied last, one a leaf that has some."""
    try:
        traced = jax.make_jaxpr(lambda updates: inner.update(updates, state, params)[0])(params).jaxpr
    except (TypeError, ValueError):
        return []  # it asks for extra arguments, or not all of the params are trained
    made = {variable: equation for equation in traced.eqns for variable in equation.outvars}
    known = lambda x: isinstance(x, jax.extend.core.Literal) and np.ndim(x.val) == 0
    factors = []
    for variable in traced.outvars:
        factor = 1.0
        while (
            not known(variable)
            and (equation := made.get(variable)) is not None
            and equation.primitive.name == "mul"
            and sum(map(known, equation.invars)) == 1
        ):
            number, variable = sorted(equation.invars, key=known, reverse=True)
            factor *= float(abs(number.val))
        factors.append(factor)
    return [factor for factor in factors if factor != 1.0]


def require_readable(preconditioner: Preconditioner, state: Any) -> None:
    """Raises ValueError unless a preconditioner finds what it can read in a state."""
    if not find(state, preconditioner.types):
        wanted = " or ".join(kind.__name__ for kind in preconditioner.types)
        raise _refusal(
            f"an optimizer whose state {preconditioner.name} can read, {wanted}",
            f"one with {', '.join(names(state))}",
            f"Known are those of {', '.join(PRECONDITIONERS)}; others have preconditioner=None only.",
        )


def _kinds(state):
    seen = []
    jax.tree.leaves(state, is_leaf=lambda node: bool(seen.append(type(node))))
    return [kind for kind in seen if hasattr(kind, "_fields") and kind is not optax.MaskedNode]


def _is_of_optax(state):
    """Whether every link of a chain keeps its state in a record of Optax's."""
    if type(state) in (tuple, list, dict):
        return all(map(_is_of_optax, state.values() if type(state) is dict else state))
    return hasattr(state, "_fields") and type(state).__module__.split(".")[0] == "optax"


def _last(state):
    """The state of the last link of each chain."""
    for wrapper in ("inner_state", "inner_opt_state"):
        if hasattr(state, wrapper):
            return _last(getattr(state, wrapper))
    if isinstance(state, optax.transforms.PartitionState):
        return [last for part in state.inner_states.values() for last in _last(part)]
    if type(state) is dict:
        state = list(state.values())
    return _last(state[-1]) if type(state) in (tuple, list) and state else [state]
