"""Links of an `optax.chain` that know the penalties."""

from proxlm.transforms import reports
from proxlm.transforms.healing import HealState, freeze_zeros, heal
from proxlm.transforms.prox import ApplyProxState, apply_prox
from proxlm.transforms.pruning import PruneState, prune, prune_to
from proxlm.transforms.scheduling import ScheduledState, cubic_sparsity, scheduled
from proxlm.transforms.snapping import apply_prox_updates, project, snap

__all__ = [
    "ApplyProxState",
    "HealState",
    "PruneState",
    "ScheduledState",
    "apply_prox",
    "apply_prox_updates",
    "cubic_sparsity",
    "freeze_zeros",
    "heal",
    "project",
    "prune",
    "prune_to",
    "reports",
    "scheduled",
    "snap",
]
