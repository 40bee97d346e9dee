"""Every link of the library, for the tests of what any Optax transformation must do.

A line a link: the function takes the learning rate, which may be traced or a schedule.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from proxlm import penalties, transforms

_l1 = penalties.l1(0.3)
_rows = penalties.group_lasso(0.2, axis=-1)


class Link(NamedTuple):
    """How to build a link, and what is special about it."""

    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformationExtraArgs]
    extra_args: Mapping[str, Any] = {}
    needs_params: bool = True
    moves_at_zero: bool = False  # not only the learning rate moves it


def _after_sgd(link):
    return lambda learning_rate: optax.chain(optax.sgd(learning_rate), link(learning_rate))


LINKS = {
    "apply_prox": Link(_after_sgd(lambda rate: transforms.apply_prox(_l1, rate))),
    "apply_prox anchored": Link(
        _after_sgd(lambda rate: transforms.apply_prox(_rows, rate, anchored=True))
    ),
    "apply_prox every": Link(_after_sgd(lambda rate: transforms.apply_prox(_l1, rate, every=2))),
    "proximal": Link(
        lambda rate: transforms.proximal(optax.sgd(rate), _rows, rate, anchored=True, every=2)
    ),
    "proximal metric": Link(
        lambda rate: transforms.proximal(
            optax.rmsprop(rate), _l1, rate, metric="rmsprop", floor=0.1, cap=5.0
        )
    ),
    "proximal_sgd": Link(lambda rate: transforms.proximal_sgd(rate, _l1, 0.9, nesterov=True)),
    "proximal_adam": Link(lambda rate: transforms.proximal_adam(rate, _l1)),
    "proximal_adam every": Link(
        lambda rate: transforms.proximal_adam(rate, _l1, every=2, anchored=True, floor=0.1)
    ),
    "decoupled_proximal_adamw": Link(lambda rate: transforms.decoupled_proximal_adamw(rate, _l1)),
    "accelerated_proximal_gradient": Link(
        lambda rate: transforms.accelerated_proximal_gradient(rate, _l1)
    ),
}
