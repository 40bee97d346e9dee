"""Supervised training: a step as a scan body, and a fit that repeats it until it has converged.

The loss and the Optax transformation are arguments, so this room knows neither the model nor the
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
