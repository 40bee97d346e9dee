"""Links of an `optax.chain` that know the penalties, and optimizers made of them.

- proximal steps: `proximal_step` (last in a chain, in the place of `optax.scale_by_learning_rate`),
  `apply_prox` (last in a chain that has its learning rate), `proximal` (around a whole chain, decoupled
  or in its metric), `project`; outside of a chain `project_exactly` `apply_prox_updates`
- optimizers: `proximal_sgd` `proximal_adam` `decoupled_proximal_adamw` `accelerated_proximal_gradient`
  (its result: `accelerated_params`) `proximal_schedule_free` `proximal_schedule_free_adam` (its result:
  `proximal_schedule_free_params`)
- the metrics of `proximal`, each a `Preconditioner`: `adam_preconditioner` `amsgrad_preconditioner`
  `adamax_preconditioner` `belief_preconditioner` `rms_preconditioner` `adagrad_preconditioner`
  `adafactor_preconditioner` `sophia_preconditioner`
- dual averaging, whose zeros stay once they are found: `rda` `adagrad_rda` `ftrl_proximal` `rmda` `ramda`
  `aprox` `dual_averaging_adam`
- over time: `scheduled` `cubic_sparsity` `prune` `prune_to` `freeze_zeros` `debias`
- trust regions by the policy's KL: `scale_by_kl` `skip_on_kl`
- reports: `reports` of sparsity, live groups and rank; `check` returns a `Verdict` on whether exact zeros
  survive a chain
- states: `ProximalState` `AcceleratedState` `ProximalScheduleFreeState` `RDAState` `AdagradRDAState`
  `FTRLProximalState` `RMDAState` `AProxState` `DualAveragingAdamState` `ScheduledState` `PruneState`
  `DebiasState` `SkipState`

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
from proxlm.transforms.accelerated import (
    AcceleratedState,
    accelerated_params,
    accelerated_proximal_gradient,
)
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
