"""Supervised training: a step as a scan body, and a fit that repeats it until it has converged.

The loss and the Optax transformation are arguments, so this room knows neither the model nor the
penalties. All of it runs inside jit and under vmap.
"""

from proxlm.training.fitting import Fit, History, fit
from proxlm.training.steps import Metrics, TrainState, init, make_step
from proxlm.training.stopping import Best, none_yet, observe

__all__ = [
    "Best",
    "Fit",
    "History",
    "Metrics",
    "TrainState",
    "fit",
    "init",
    "make_step",
    "none_yet",
    "observe",
]
