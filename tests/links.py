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
}
