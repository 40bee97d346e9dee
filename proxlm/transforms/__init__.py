"""Optimizers and parts of optimizers that use the penalties.

A *link* is an Optax transformation, one part of an `optax.chain`.

Proximal steps:

- `proximal_step`: the last link of a chain, in the place of `optax.scale_by_learning_rate`
- `apply_prox`: the last link of a chain that has its learning rate already
- `proximal`: a prox around a whole optimizer, decoupled or in the metric of its preconditioner
- `project`: the last link of a chain, a projection on a set
- `project_exactly` `apply_prox_updates`: a projection or a prox outside of the chain, exact to the last bit

Optimizers:

- `proximal_sgd` `proximal_adam` `decoupled_proximal_adamw`
- `accelerated_proximal_gradient` (FISTA), with `accelerated_params`
- `proximal_schedule_free` `proximal_schedule_free_adam`, with `proximal_schedule_free_params`

Dual averaging, whose zeros do not flicker under minibatches:

- `rda` `adagrad_rda` `ftrl_proximal` `rmda` `ramda` `dual_averaging_adam`
- `aprox`: dual averaging around any optimizer, as in PARQ

Structure over time:

- `scheduled`: a link whose penalty follows a schedule
- `prune` `prune_to` `cubic_sparsity`: magnitude pruning, once or by a schedule
- `freeze_zeros` `debias`: keep the zeros; end the penalty too
- `reports`: sparsity, live groups and rank, by path
- `check` `Verdict`: whether exact zeros survive in an optimizer

Updates limited by the KL of a policy: `scale_by_kl` `skip_on_kl`.

Preconditioners, for `proximal`:

- `Preconditioner` `adam_preconditioner`
- contributed, used by nothing here: `adafactor_preconditioner` `adagrad_preconditioner`
  `adamax_preconditioner` `amsgrad_preconditioner` `belief_preconditioner` `rms_preconditioner`
  `sophia_preconditioner`

States: `ProximalState` `AcceleratedState` `ProximalScheduleFreeState` `RDAState` `AdagradRDAState`
`FTRLProximalState` `RMDAState` `DualAveragingAdamState` `AProxState` `ScheduledState` `PruneState`
`DebiasState` `SkipState`.

Arguments that many of them share:

    learning_rate  η ≥ 0: a number, a traced scalar or a schedule, read at the number of earlier updates
    penalty        g; its strengths may be traced. What acts in a metric takes those with `Metric: yes`
    every          apply the prox at each `every`-th update only, with the sum of the learning rates since
    anchored       measure g from the params seen by `init`, which the state then keeps
    floor cap      least D in units of the rms of D over a leaf, and largest step size η/D
    over           a grouping of `penalties.grouping`
    momentum nesterov accumulator_dtype b1 b2 eps eps_root mu_dtype weight_decay    as in Optax

A link hands extra arguments on to what it wraps, and ignores them where it wraps nothing. What
moves params to a point or freezes them emits updates in the dtype of the params.

>>> import jax.numpy as jnp
>>> import optax
>>> from proxlm import penalties
>>> optimizer = optax.chain(optax.scale_by_adam(), proximal_step(penalties.l1(1.0), 0.1))
>>> params = jnp.array([2.0, 0.05])
>>> updates, _ = optimizer.update(jnp.array([1.0, 0.0]), optimizer.init(params), params)
>>> [round(x, 4) for x in optax.apply_updates(params, updates).tolist()]
[1.8, 0.0]
"""

from proxlm.transforms import reports
from proxlm.transforms._proximal import ProximalState
from proxlm.transforms.accelerated import AcceleratedState, accelerated_params, accelerated_proximal_gradient
from proxlm.transforms.adam_dual_averaging import DualAveragingAdamState, dual_averaging_adam
from proxlm.transforms.aggregate_prox import AProxState, aprox
from proxlm.transforms.checking import Verdict, check
from proxlm.transforms.contrib_preconditioners import (
    adafactor_preconditioner,
    adagrad_preconditioner,
    adamax_preconditioner,
    amsgrad_preconditioner,
    belief_preconditioner,
    rms_preconditioner,
    sophia_preconditioner,
)
from proxlm.transforms.debiasing import DebiasState, debias, freeze_zeros
from proxlm.transforms.dual_averaging import (
    AdagradRDAState,
    FTRLProximalState,
    RDAState,
    adagrad_rda,
    ftrl_proximal,
    rda,
)
from proxlm.transforms.momentum_dual_averaging import RMDAState, ramda, rmda
from proxlm.transforms.optimizers import decoupled_proximal_adamw, proximal_adam, proximal_sgd
from proxlm.transforms.preconditioners import Preconditioner, adam_preconditioner
from proxlm.transforms.projections import apply_prox_updates, project, project_exactly
from proxlm.transforms.pruning import PruneState, prune, prune_to
from proxlm.transforms.schedule_free import (
    ProximalScheduleFreeState,
    proximal_schedule_free,
    proximal_schedule_free_adam,
    proximal_schedule_free_params,
)
from proxlm.transforms.scheduling import ScheduledState, cubic_sparsity, scheduled
from proxlm.transforms.steps import apply_prox, proximal_step
from proxlm.transforms.trust_region import SkipState, scale_by_kl, skip_on_kl
from proxlm.transforms.wrapper import proximal

__all__ = [
    "AProxState",
    "AcceleratedState",
    "AdagradRDAState",
    "DebiasState",
    "DualAveragingAdamState",
    "FTRLProximalState",
    "Preconditioner",
    "ProximalScheduleFreeState",
    "ProximalState",
    "PruneState",
    "RDAState",
    "RMDAState",
    "ScheduledState",
    "SkipState",
    "Verdict",
    "accelerated_params",
    "accelerated_proximal_gradient",
    "adafactor_preconditioner",
    "adagrad_preconditioner",
    "adagrad_rda",
    "adam_preconditioner",
    "adamax_preconditioner",
    "amsgrad_preconditioner",
    "apply_prox",
    "apply_prox_updates",
    "aprox",
    "belief_preconditioner",
    "check",
    "cubic_sparsity",
    "debias",
    "decoupled_proximal_adamw",
    "dual_averaging_adam",
    "freeze_zeros",
    "ftrl_proximal",
    "project",
    "project_exactly",
    "proximal",
    "proximal_adam",
    "proximal_schedule_free",
    "proximal_schedule_free_adam",
    "proximal_schedule_free_params",
    "proximal_sgd",
    "proximal_step",
    "prune",
    "prune_to",
    "ramda",
    "rda",
    "reports",
    "rmda",
    "rms_preconditioner",
    "scale_by_kl",
    "scheduled",
    "skip_on_kl",
    "sophia_preconditioner",
]
