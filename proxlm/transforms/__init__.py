"""Links of an `optax.chain` that know the penalties."""

from proxlm.transforms.prox import ApplyProxState, apply_prox

__all__ = ["ApplyProxState", "apply_prox"]
