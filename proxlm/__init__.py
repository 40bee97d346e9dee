"""Proximal training for language models, in parameter space and in policy space.

- `penalties`: functions g on the weights, next to their proximal operators
- `transforms`: links of an Optax chain that use them, and optimizers made of these
- `solvers`: proximal gradient methods to a tolerance
- `lm`: a decoder-only transformer: model, cache, sampling, scoring, pretrained weights
- `policy`: advantages, losses, recipes and the PPO iteration
- `training`: supervised steps as scan bodies, and a fit to convergence
- `losses`: smooth losses that Optax lacks
- `sharding`: meshes of several devices, and which array lies where
- `checkpoint`, `settings`: saving and resuming, bit for bit; configurations as plain data

From them: `Penalty`, `apply_prox`, `proximal`, `proximal_adam`, `proximal_step`.

Each is imported on first use, so that Flax is imported only when `lm` is.

>>> import jax.numpy as jnp
>>> import proxlm
>>> proxlm.penalties.l1(0.5).prox(jnp.array([2.0, -0.1]), 1.0).tolist()
[1.5, 0.0]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxlm import (
        checkpoint,
        lm,
        losses,
        penalties,
        policy,
        settings,
        sharding,
        solvers,
        training,
        transforms,
    )
    from proxlm.penalties import Penalty
    from proxlm.transforms import apply_prox, proximal, proximal_adam, proximal_step

__version__ = "0.1.0"

__all__ = [
    "Penalty",
    "apply_prox",
    "checkpoint",
    "lm",
    "losses",
    "penalties",
    "policy",
    "proximal",
    "proximal_adam",
    "proximal_step",
    "settings",
    "sharding",
    "solvers",
    "training",
    "transforms",
]

# Every other name of __all__ is a module.
_ORIGINS = {
    "Penalty": "proxlm.penalties",
    "apply_prox": "proxlm.transforms",
    "proximal": "proxlm.transforms",
    "proximal_adam": "proxlm.transforms",
    "proximal_step": "proxlm.transforms",
}


if not TYPE_CHECKING:  # which would take any name for one of these

    def __getattr__(name: str) -> Any:
        """Imports a module or a name of `__all__` when it is first asked for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'proxlm' has no attribute {name!r}")
        if name not in _ORIGINS:
            return importlib.import_module(f"proxlm.{name}")
        value = getattr(importlib.import_module(_ORIGINS[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return [*__all__, "__version__"]
