"""The methods that `identification` compares, each with the rates to try."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from proxlm import _validation, penalties, transforms

OURS = "dual averaging Adam (ours)"


class Method(NamedTuple):
    """A link from a rate and a strength, the rates to try, and the weights that count."""

    make: Callable[[Any, Any], optax.GradientTransformation]
    rates: tuple[float, ...]
    evaluate: Callable = lambda state, weights, penalty: weights


def methods(steps: int, only: tuple[str, ...] = ()) -> dict[str, Method]:
    """By name, all or some; rates decay over so many steps.

    Raises:
      ValueError: if a name is not among them.
    """
    l1, adam = penalties.l1, transforms.dual_averaging_adam
    averaged = transforms.proximal_schedule_free_params
    cosine = optax.cosine_decay_schedule(1.0, steps, 1e-4)
    decayed = lambda rate: lambda count: rate * cosine(count)
    warm = lambda rate: lambda count: rate * jnp.minimum(1.0, (count + 1) / 500)

    def prox_sgd(rate, strength):
        return optax.chain(optax.sgd(rate), transforms.apply_prox(l1(strength), rate))

    def subgradient_sgd(rate, strength):
        signs = lambda g, weights: g + strength * jnp.sign(weights)
        return optax.chain(optax.stateless_with_tree_map(signs), optax.sgd(rate))

    def optax_average(base):
        wrap = optax.contrib.schedule_free
        evaluate = lambda state, weights, _: optax.contrib.schedule_free_eval_params(state, weights)
        return Method(lambda r, s: wrap(base(warm(r), s), warm(r)), (3e-4, 1e-3, 3e-3), evaluate)

    table = {
        "prox-SGD": Method(lambda r, s: prox_sgd(decayed(r), s), (1e-3, 3e-3, 1e-2)),
        "metric prox-Adam": Method(
            lambda r, s: transforms.proximal_adam(decayed(r), l1(s)), (1e-3, 3e-3, 1e-2, 3e-2)
        ),
        "RDA": Method(lambda r, s: transforms.rda(r, l1(s)), (3e-3, 1e-2, 3e-2)),
        "AdaGrad-RDA": Method(lambda r, s: transforms.adagrad_rda(r, l1(s)), (0.1, 0.3, 1.0)),
        "FTRL-proximal": Method(lambda r, s: transforms.ftrl_proximal(r, l1(s)), (0.03, 0.1, 0.3)),
        "RMDA": Method(lambda r, s: transforms.rmda(r, l1(s)), (1e-4, 3e-4, 1e-3)),
        "RAMDA": Method(lambda r, s: transforms.ramda(r, l1(s)), (1e-4, 1e-3, 1e-2)),
        "AProx-SGD": Method(lambda r, s: transforms.aprox(optax.sgd(r), l1(s), r), (1e-4, 3e-4, 1e-3)),
        OURS: Method(lambda r, s: adam(decayed(r), l1(s)), (1e-3, 3e-3, 1e-2, 3e-2)),
        "schedule-free SGD, subgradients": optax_average(subgradient_sgd),
        "schedule-free SGD, prox on z": optax_average(prox_sgd),
        "schedule-free SGD (ours)": Method(
            lambda r, s: transforms.proximal_schedule_free(optax.sgd(warm(r)), l1(s), warm(r)),
            (3e-4, 1e-3, 3e-3),
            averaged,
        ),
        "schedule-free Adam (ours)": Method(
            lambda r, s: transforms.proximal_schedule_free_adam(warm(r), l1(s)), (3e-3, 1e-2, 3e-2), averaged
        ),
    }
    for name in only:
        _validation.one_of(table, only=name)
    return {name: method for name, method in table.items() if name in (only or table)}
