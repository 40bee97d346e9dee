"""The best point so far, and whether the dtype allows a better one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm.solvers._problem import Point

# Iterations without a change that the dtype can tell, after which no more are made.
PATIENCE = 50


class Progress(NamedTuple):
    """Memory of a solver for the points that it met.

    Attributes:
      best: the point of the least objective; of those that are equal up to rounding, that of the least error.
      total: the objective there.
      error: there.
      level: the objective that has to be undercut by more than rounding.
      stalled: iterations since the objective fell by more than rounding or the error by a tenth.
    """

    best: jax.Array
    total: jax.Array
    error: jax.Array
    level: jax.Array
    stalled: jax.Array


def init(point: Point, error: jax.Array) -> Progress:
    """The first point is the best so far.

    >>> point = Point(jnp.ones(1), *4 * (jnp.float32(2.0),))
    >>> init(point, jnp.float32(0.5)).level.item()
    2.0
    """
    return Progress(point.x, point.total, error, point.total, jnp.int32(0))


def observe(progress: Progress, point: Point, error: jax.Array, has_value: bool) -> Progress:
    """Takes note of a point; without a value of g the error alone tells which is best.

    >>> first = init(Point(jnp.ones(1), *4 * (jnp.float32(2.0),)), jnp.float32(0.5))
    >>> observe(first, Point(jnp.zeros(1), *4 * (jnp.float32(3.0),)), jnp.float32(0.1), True).best.item()
    1.0
    """
    level = progress.level
    rounding = jnp.where(jnp.isfinite(level), 4.0 * jnp.finfo(level.dtype).eps * jnp.abs(level), 0.0)
    lower = has_value & (point.total < level - rounding)
    alike = (point.total <= level + rounding) | (not has_value)
    better = lower | (alike & (error < progress.error))
    fell = lower | (alike & (error < 0.9 * progress.error))
    choose = lambda new, old: jnp.where(better, new, old)
    return Progress(
        choose(point.x, progress.best),
        choose(point.total, progress.total),
        choose(error, progress.error),
        jnp.where(lower, point.total, level),
        jnp.where(fell, 0, progress.stalled + alike.astype(jnp.int32)),
    )


def exhausted(progress: Progress, step_size: jax.Array) -> jax.Array:
    """Whether the dtype stops the descent.

    The last bit of x changes the gradient by about ε|x|/t, since 1/t is about the curvature of f.

    >>> still = Progress(jnp.ones(1), jnp.float32(1), jnp.float32(1e-7), jnp.float32(1), jnp.int32(3))
    >>> exhausted(still, jnp.float32(1.0)).item(), exhausted(still, jnp.float32(100.0)).item()
    (True, False)
    """
    rounding = 4.0 * jnp.finfo(progress.best.dtype).eps * jnp.max(jnp.abs(progress.best), initial=0.0)
    still = (progress.stalled >= 3) & (progress.error * step_size <= rounding)
    return still | (progress.stalled >= PATIENCE)
