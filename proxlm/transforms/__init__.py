"""Links of an `optax.chain` that know the penalties."""

from proxlm.transforms.adaptive_averaging import DualAveragingAdamState, dual_averaging_adam
from proxlm.transforms.averaging import (
    AdagradRDAState,
    FTRLProximalState,
    RDAState,
    adagrad_rda,
    ftrl_proximal,
    rda,
)
from proxlm.transforms.latent import AProxState, aprox
from proxlm.transforms.manifold import RMDAState, ramda, rmda
from proxlm.transforms.prox import ApplyProxState, apply_prox
from proxlm.transforms.schedule_free import (
    ProximalScheduleFreeState,
    proximal_schedule_free,
    proximal_schedule_free_adam,
    proximal_schedule_free_params,
)

__all__ = [
    "AProxState",
    "AdagradRDAState",
    "ApplyProxState",
    "DualAveragingAdamState",
    "FTRLProximalState",
    "ProximalScheduleFreeState",
    "RDAState",
    "RMDAState",
    "adagrad_rda",
    "apply_prox",
    "aprox",
    "dual_averaging_adam",
    "ftrl_proximal",
    "proximal_schedule_free",
    "proximal_schedule_free_adam",
    "proximal_schedule_free_params",
    "ramda",
    "rda",
    "rmda",
]
