"""The one rule that keeps losses and their gradients finite: a bound before the exponential.

1. A log-prob, log-ratio or score beyond ±1e20, such as the log-prob -inf of a token of probability 0 or a
   logit masked by the lowest float32, counts as ±1e9. There its gradient is 0.
2. A log-ratio is clipped to ±`max_log_ratio` (20 nats by default) before it is exponentiated. Beyond the
   bound its gradient is 0.
3. A coefficient of 0 gives 0, whatever it multiplies.

NaN passes through all three, so that an error shows.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation

Number = float | jax.Array
# A bound of log-ratios on both sides, or one below and one above.
Bound = Number | tuple[Number, Number]

# A ratio beyond e^20 is as good as infinite, and its square still fits float32.
MAX_LOG_RATIO = 20.0
# Sums of a million of these, and their squares, fit float32.
MAX_NATS = 1e9
# Up to here numbers stay what they are: the scores of f-divergences that `dpo` takes are large.
LARGEST = 1e20
# A ratio of e^80 fits float32 after it is multiplied by its own logarithm.
LARGEST_EXPONENT = 80.0


def finite(*numbers: ArrayLike) -> tuple[jax.Array, ...]:
    """The numbers in at least float32, ±1e9 where they are beyond ±1e20.

    >>> finite(-jnp.inf, 2)
    (Array(-1.e+09, dtype=float32), Array(2., dtype=float32))
    """
    bounded = lambda x: jnp.where(jnp.abs(x) > LARGEST, jnp.copysign(MAX_NATS, x), x)
    return tuple(bounded(x) for x in _validation.floats(*numbers))


@_validation.typed
def clip_log_ratio(log_ratio: ArrayLike, max_log_ratio: Bound = MAX_LOG_RATIO) -> jax.Array:
    """Clips log-ratios to ±max_log_ratio, so that no exponential of them overflows.

    Args:
      log_ratio: nats, any shape.
      max_log_ratio: nats, from 0 to 88; or a pair: how far below 0, and how far above. 20 in verl and
        OpenRLHF, (88, 10) in verl's GSPO; 88 is TRL's "no bound", which here ends at 80 above 0.

    Returns:
      Nats of that shape.

    Raises:
      ValueError: if a bound is out of range.

    >>> clip_log_ratio(jnp.array([-30.0, 30.0])).tolist(), clip_log_ratio(-30.0, (88.0, 10.0)).item()
    ([-20.0, 20.0], -30.0)
    """
    bounds = max_log_ratio if isinstance(max_log_ratio, tuple) else (max_log_ratio, max_log_ratio)
    if len(bounds) != 2 or any(bound is None for bound in bounds):
        raise _validation.invalid("max_log_ratio", max_log_ratio, "one number, or two", "88 is no bound.")
    below, above = bounds
    for bound in bounds:
        _validation.scalar("clip_log_ratio", "Two are a pair: (below, above).", max_log_ratio=bound)
        _validation.within(0, 88, "clip_log_ratio", max_log_ratio=bound)
    return jnp.clip(log_ratio, -below, jnp.minimum(above, LARGEST_EXPONENT))


def scaled(coef: Number, x: jax.Array) -> jax.Array:
    """The product coef · x, which is 0 where coef is 0 even if x is infinite.

    >>> scaled(0.0, jnp.array([1.0, jnp.inf])).tolist()
    [0.0, 0.0]
    """
    return coef * jnp.where(jnp.asarray(coef) == 0, 0.0, x)
