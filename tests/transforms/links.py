"""Every link of the library, for the tests of what any Optax transformation must do.

A line a link: the function takes the learning rate, which may be traced or a schedule.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from proxlm import penalties, transforms

_l1 = penalties.l1(0.3)
_rows = penalties.group_lasso(0.2, axis=-1)
_KL = {"approx_kl": 0.05}


class Link(NamedTuple):
    """A link under test: how to build it, and its particularities."""

    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformationExtraArgs]
    extra_args: Mapping[str, Any] = {}
    needs_params: bool = True
    moves_at_zero: bool = False  # not only the learning rate moves it
    begins_with_adam: bool = False
    variant: bool = False  # kin of another link: tested with the slow proofs


def _after_sgd(link):
    return lambda learning_rate: optax.chain(optax.sgd(learning_rate), link(learning_rate))


LINKS = {
    "proximal_step": Link(
        lambda rate: optax.chain(optax.scale_by_adam(), transforms.proximal_step(_l1, rate, every=2)),
        begins_with_adam=True,
    ),
    "proximal_step anchored": Link(
        lambda rate: transforms.proximal_step(_rows, rate, anchored=True), variant=True
    ),
    "apply_prox": Link(_after_sgd(lambda rate: transforms.apply_prox(_l1, rate))),
    "apply_prox anchored": Link(
        _after_sgd(lambda rate: transforms.apply_prox(_rows, rate, anchored=True)), variant=True
    ),
    "apply_prox every": Link(
        _after_sgd(lambda rate: transforms.apply_prox(_l1, rate, every=2)), variant=True
    ),
    "proximal": Link(lambda rate: transforms.proximal(optax.sgd(rate), _rows, rate, anchored=True, every=2)),
    "proximal metric": Link(
        lambda rate: transforms.proximal(
            optax.rmsprop(rate), _l1, rate, preconditioner="rmsprop", floor=0.1, cap=5.0
        )
    ),
    "proximal_sgd": Link(lambda rate: transforms.proximal_sgd(rate, _l1, 0.9, nesterov=True), variant=True),
    "proximal_adam": Link(lambda rate: transforms.proximal_adam(rate, _l1)),
    "proximal_adam every": Link(
        lambda rate: transforms.proximal_adam(rate, _l1, every=2, anchored=True, floor=0.1), variant=True
    ),
    "decoupled_proximal_adamw": Link(
        lambda rate: transforms.decoupled_proximal_adamw(rate, _l1), variant=True
    ),
    "accelerated_proximal_gradient": Link(
        lambda rate: transforms.accelerated_proximal_gradient(rate, _l1), variant=True
    ),
    "rda": Link(lambda rate: transforms.rda(rate, _l1), variant=True),
    "adagrad_rda": Link(lambda rate: transforms.adagrad_rda(rate, _rows), variant=True),
    "ftrl_proximal": Link(lambda rate: transforms.ftrl_proximal(rate, _l1)),
    "rmda": Link(lambda rate: transforms.rmda(rate, _rows, 0.5, restart_every=2), variant=True),
    "ramda": Link(lambda rate: transforms.ramda(rate, _l1), variant=True),
    "aprox": Link(lambda rate: transforms.aprox(optax.sgd(rate), _l1, rate)),
    "dual_averaging_adam": Link(lambda rate: transforms.dual_averaging_adam(rate, _l1)),
    "dual_averaging_adam floor": Link(
        lambda rate: transforms.dual_averaging_adam(rate, _rows, memory=4, floor=0.1, cap=5.0), variant=True
    ),
    "proximal_schedule_free": Link(
        lambda rate: transforms.proximal_schedule_free(optax.sgd(rate), _rows, rate), variant=True
    ),
    "proximal_schedule_free_adam": Link(lambda rate: transforms.proximal_schedule_free_adam(rate, _l1)),
    "scheduled": Link(
        _after_sgd(
            lambda rate: transforms.scheduled(
                lambda strength: transforms.apply_prox(penalties.l1(strength), rate),
                lambda count: 0.1 * (count + 1.0),
            )
        )
    ),
    "prune_to": Link(
        _after_sgd(lambda rate: transforms.prune_to(transforms.cubic_sparsity(0.5, 0, 3))), moves_at_zero=True
    ),
    "prune_to groups": Link(
        _after_sgd(lambda rate: transforms.prune_to(0.5, penalties.grouping.axes(-1), every=2)),
        moves_at_zero=True,
        variant=True,
    ),
    "freeze_zeros": Link(_after_sgd(lambda rate: transforms.freeze_zeros(1))),
    "debias": Link(
        _after_sgd(lambda rate: transforms.debias(transforms.apply_prox(_l1, rate), 2)), variant=True
    ),
    "project": Link(
        _after_sgd(lambda rate: transforms.project(penalties.box(-0.5, 0.5))),
        moves_at_zero=True,
        variant=True,
    ),
    "skip_on_kl": Link(
        lambda rate: transforms.skip_on_kl(transforms.proximal_sgd(rate, _l1), 0.1), _KL, variant=True
    ),
    "scale_by_kl": Link(_after_sgd(lambda rate: transforms.scale_by_kl(0.1)), _KL, needs_params=False),
}
