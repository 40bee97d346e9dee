"""Links of an `optax.chain` that know the penalties."""

from proxlm.transforms import reports
from proxlm.transforms.checking import Verdict, check
from proxlm.transforms.healing import HealState, freeze_zeros, heal
from proxlm.transforms.prox import ApplyProxState, apply_prox
from proxlm.transforms.pruning import PruneState, prune, prune_to
from proxlm.transforms.scheduling import ScheduledState, cubic_sparsity, scheduled
from proxlm.transforms.snapping import apply_prox_updates, project, snap
from proxlm.transforms.trust import SkipState, StopState, scale_by_kl, skip_on_kl, stop_on_kl

__all__ = [
    "ApplyProxState",
    "HealState",
    "PruneState",
    "ScheduledState",
    "SkipState",
    "StopState",
    "Verdict",
    "apply_prox",
    "apply_prox_updates",
    "check",
    "cubic_sparsity",
    "freeze_zeros",
    "heal",
    "project",
    "prune",
    "prune_to",
    "reports",
    "scale_by_kl",
    "scheduled",
    "skip_on_kl",
    "snap",
    "stop_on_kl",
]
