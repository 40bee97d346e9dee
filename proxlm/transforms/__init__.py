"""Links of an `optax.chain` that know the penalties, and optimizers made of them."""

from proxlm.transforms.accelerated import (
    AcceleratedState,
    accelerated_params,
    accelerated_proximal_gradient,
)
from proxlm.transforms.factored import adafactor_metric
from proxlm.transforms.metrics import (
    Metric,
    adagrad_metric,
    adam_metric,
    adamax_metric,
    amsgrad_metric,
    belief_metric,
    rms_metric,
    sophia_metric,
)
from proxlm.transforms.optimizers import (
    decoupled_proximal_adamw,
    proximal_adam,
    proximal_sgd,
)
from proxlm.transforms.prox import ApplyProxState, apply_prox
from proxlm.transforms.proximal import ProximalState, proximal

__all__ = [
    "AcceleratedState",
    "ApplyProxState",
    "Metric",
    "ProximalState",
    "accelerated_params",
    "accelerated_proximal_gradient",
    "adafactor_metric",
    "adagrad_metric",
    "adam_metric",
    "adamax_metric",
    "amsgrad_metric",
    "apply_prox",
    "belief_metric",
    "decoupled_proximal_adamw",
    "proximal",
    "proximal_adam",
    "proximal_sgd",
    "rms_metric",
    "sophia_metric",
]
