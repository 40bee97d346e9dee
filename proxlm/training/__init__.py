"""Supervised training: a step as a scan body, and a fit that repeats it until it has converged.

- `init`, `make_step`: a `TrainState`, and the step that takes it to the next with `StepMetrics`
- `fit`: steps until the params stand still, the held-out loss stalls or the steps are used up; a
  `FitResult` with its `FitHistory`
- `init_best_params`, `update_best_params`: early stopping by hand, on `BestParams`

The loss and the Optax transformation are arguments, so nothing here knows the model or the
penalties. All of it runs inside jit and under vmap.
"""

from proxlm.training._early_stopping import BestParams, init_best_params, update_best_params
from proxlm.training._fitting import FitHistory, FitResult, fit
from proxlm.training._steps import StepMetrics, TrainState, init, make_step

__all__ = [
    "BestParams",
    "FitHistory",
    "FitResult",
    "StepMetrics",
    "TrainState",
    "fit",
    "init",
    "init_best_params",
    "make_step",
    "update_best_params",
]
