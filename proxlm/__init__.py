"""Proximal training for language models, in parameter space and in policy space.

Rooms, each a namespace of its own:
  penalties: functions g on the weights, next to their proximal operators.
  transforms: links of an Optax chain that use them, and optimizers made of these.
  solvers: proximal gradient methods to a tolerance.
  lm: a decoder-only transformer: model, cache, sampling, scoring.
  policy: advantages, objectives and the PPO iteration.
  training, checkpoint: supervised steps as scan bodies, a fit to convergence; saving, going on.
"""

from proxlm.penalties import Penalty
from proxlm.transforms import apply_prox, proximal, proximal_adam

__all__ = ["Penalty", "apply_prox", "proximal", "proximal_adam"]

__version__ = "0.1.0"
