"""The one number τ on which projections on simplices and l1 balls rest, found without a sort."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties.sets import _multi_reduce

# Each step at least quarters the product of residual and slope, so that no float32 needs more;
# ten is usual.
MOST_STEPS = 100
LARGE = 1 << 16


class Threshold(NamedTuple):
    """τ = centre + offset, in two numbers of which the second is small.

    An entry near the centre differs from it by an exact floating-point number, so that u - τ is as
    accurate where entries of 1e6 share a sum of 1 as elsewhere.
    """

    centre: jax.Array
    offset: jax.Array


@dataclasses.dataclass(frozen=True)
class Kind:
    """The equation to solve; static.

    Attributes:
      axes: the axes inside a group, counted from the front.
      absolute: whether u = |x|, else u = x. Magnitudes are never stored.
      floored: whether τ is to be 0 where the solution is negative, as for a ball.
    """

    axes: tuple[int, ...]
    absolute: bool = False
    floored: bool = False


def project(x: jax.Array, total: jax.Array, step_size: jax.Array | float, kind: Kind) -> jax.Array:
    """max(u - t τ, 0) in every group, with the τ at which it sums to s.

    A group that sums to s as it is keeps its bits.

    Args:
      total: s > 0, a number or one for each group (the shape of x with 1 for the axes).
      step_size: t; a number stands for 1. Coordinates of t = 0 stay, and use up their part of s.

    >>> project(jnp.array([0.5, 1.0, -3.0]), 1.0, 0.1, Kind(axes=(0,))).tolist()
    [0.25, 0.75, 0.0]
    >>> project(jnp.array([0.5, 1.0, 0.25]), 1.0, jnp.array([1.0, 2.0, 0.0]), Kind((0,))).tolist()
    [0.25, 0.5, 0.25]
    """
    total = jnp.asarray(total, x.dtype)
    if jnp.ndim(step_size) == 0:
        metric = jnp.ones((), x.dtype)
        return excess(x, threshold(x, total, metric, kind), metric, kind)
    over_group = {"axis": kind.axes, "keepdims": True}
    step_size = jnp.broadcast_to(step_size, x.shape)
    largest = jnp.max(step_size, initial=0.0, **over_group)
    metric = step_size / jnp.where(largest > 0, largest, 1.0)
    used_up = jnp.where(metric > 0, 0.0, jnp.maximum(_u(x, kind), 0.0))
    left = jnp.maximum(total - jnp.sum(used_up, **over_group), 0.0)
    moved = excess(x, threshold(x, left, metric, kind), metric, kind)
    return jnp.where(metric > 0, moved, _u(x, kind))


@functools.partial(jax.jit, static_argnames="kind")
def threshold(x: jax.Array, total: jax.Array, metric: jax.Array, kind: Kind) -> Threshold:
    """Solves Σ_i max(u_i - t_i τ, 0) = s for τ in every group.

    By Newton's method, which on this convex, piecewise linear equation is Michelot's: with the
    support S of the last τ, the next is (Σ_S u - s) / Σ_S t, until S stays. All groups step
    together. The derivative is that of the last step and costs nothing unless asked for.

    Args:
      metric: t ≥ 0, a number or an array shaped like x. Coordinates of t = 0 are left out.

    Source: Michelot 1986; Condat, Fast projection onto the simplex and the l1 ball, 2016.

    >>> x = jnp.array([0.5, 1.0, -3.0])
    >>> tau = threshold(x, 1.0, 1.0, Kind(axes=(0,)))
    >>> (tau.centre + tau.offset).tolist()
    [0.25]
    """
    return _threshold(kind, x, jnp.asarray(total, x.dtype), jnp.asarray(metric, x.dtype))


def excess(x: jax.Array, tau: Threshold, metric: chex.Numeric, kind: Kind) -> jax.Array:
    """max(u - t τ, 0): what is above the threshold.

    >>> excess(jnp.array([0.5, 1.0, -3.0]), Threshold(0.5, -0.25), 1.0, Kind((0,))).tolist()
    [0.25, 0.75, 0.0]
    """
    above = margin(x, tau, metric, kind)
    return jnp.where(above < 0, 0.0, above)


def margin(x: jax.Array, tau: Threshold, metric: chex.Numeric, kind: Kind) -> jax.Array:
    """The distance u - t τ to the threshold. Infinite u count as equal to one another.

    >>> tau = Threshold(jnp.inf, -2.0)
    >>> margin(jnp.array([jnp.inf, 1.0, jnp.inf]), tau, 1.0, Kind((0,))).tolist()
    [2.0, -inf, 2.0]
    """
    u = _u(x, kind)
    among_infinite = jnp.where(u == tau.centre, 0.0, -jnp.inf)
    to_centre = jnp.where(jnp.isinf(tau.centre), among_infinite, u - metric * tau.centre)
    return to_centre - metric * tau.offset


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _threshold(kind, x, total, metric):
    parts = lambda tau, x, metric: _summary(x, metric, kind)
    largest, mass = _multi_reduce.fold(kind.axes, (jnp.maximum, jnp.add), parts, (), (x, metric))
    size = jnp.sum(jnp.broadcast_to(metric, x.shape), axis=kind.axes, keepdims=True)
    settled = jnp.abs(mass - total) <= 8 * jnp.finfo(x.dtype).eps * total
    settled |= (kind.floored & (mass <= total)) | jnp.isnan(mass) | (size == 0)
    # No τ is below that of a support: here that of one coordinate (of t = 1), and that of all.
    of_all = jnp.where(jnp.isinf(mass), -jnp.inf, (mass - total) / size - largest)
    start = Threshold(largest, jnp.minimum(jnp.maximum(-total, of_all), 0.0))
    at_once = jnp.where(jnp.isnan(mass), mass, 0.0)
    start = jax.tree.map(lambda number: jnp.where(settled, at_once, number), start)
    return _search(kind)(x, total, metric, start, settled)


@_threshold.defjvp
def _threshold_jvp(kind, primals, tangents):
    """Σ_S (du - τ dt - t dτ) = ds over the support S; a floored τ stays."""
    (x, _, metric), (dx, dtotal, dmetric) = primals, tangents
    tau = _threshold(kind, *primals)
    du = jnp.where(x < 0, -dx, dx) if kind.absolute else dx
    live = (margin(x, tau, metric, kind) >= 0) & (metric > 0)
    over_live = lambda v: jnp.sum(jnp.where(live, v, 0.0), axis=kind.axes, keepdims=True)
    size = over_live(metric)
    moved = over_live(du - (tau.centre + tau.offset) * dmetric) - dtotal
    floored = kind.floored & (tau.centre == 0) & (tau.offset == 0)
    dtau = jnp.where(floored, 0.0, moved / jnp.where(size > 0, size, 1.0))
    return tau, Threshold(jnp.zeros_like(dtau), dtau)


def _search(kind):
    """Newton, which in a sweep over totals of one large array is done for one after another.

    Side by side all of them would take as many steps as the slowest.
    """
    newton = functools.partial(_newton, kind)
    search = jax.custom_batching.custom_vmap(newton)

    @search.def_vmap
    def sweep(axis_size, batched, x, *rest):
        total, metric, start, settled = rest
        arguments, all_batched = (x, *rest), jax.tree.map(lambda _: True, start)
        if any(jax.tree.leaves((batched[0], batched[2]))) or x.size < LARGE:
            in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
            return jax.vmap(newton, in_axes)(*arguments), all_batched
        rows = lambda v, is_batched: v if is_batched else jnp.broadcast_to(v, (axis_size, *v.shape))
        swept = jax.tree.map(rows, (total, start, settled), (batched[1], *batched[3:]))
        return jax.lax.map(lambda row: search(x, row[0], metric, *row[1:]), swept), all_batched

    return search


def _newton(kind, x, total, metric, start, settled):
    """Steps until the support of every group stays."""
    parts = lambda tau, x, metric: _above(x, tau, metric, kind)

    def step(state):
        count, tau, size, done = state
        # Else the compiler takes |x| out of the loop and stores it.
        here, tau = jax.lax.optimization_barrier((x, _centred(tau)))
        above, new_size = _multi_reduce.fold(kind.axes, (jnp.add, jnp.add), parts, tau, (here, metric))
        # Rounding may put all of a group below its own largest entry: then further down.
        empty = new_size == 0
        down = -total - 8 * jnp.finfo(x.dtype).eps * jnp.abs(tau.centre)
        move = jnp.where(empty, down, (above - total) / jnp.where(empty, 1.0, new_size))
        # The same support twice is the last one, unless rounding made the step before a wrong one.
        small = jnp.abs(above - total) <= 1e-5 * total
        small |= jnp.abs(move) <= 8 * jnp.finfo(x.dtype).eps * jnp.abs(tau.centre)
        tau = Threshold(tau.centre, tau.offset + jnp.where(done, 0.0, move))
        return count + 1, tau, new_size, done | ((size == new_size) & small & ~empty)

    going = lambda state: (state[0] < MOST_STEPS) & ~jnp.all(state[3])
    state = 0, start, jnp.full_like(start.offset, -1.0), settled
    return jax.lax.while_loop(going, step, state)[1]


def _centred(tau):
    """The same τ, with a centre as near to it as can be."""
    nearer = tau.centre + tau.offset
    shift = jnp.where(jnp.isinf(nearer), 0.0, nearer - tau.centre)
    return Threshold(jnp.where(jnp.isinf(nearer), tau.centre, nearer), tau.offset - shift)


def _summary(x, metric, kind):
    u, live = _u(x, kind), metric > 0
    ratio = jnp.where(live, u / jnp.where(live, metric, 1.0), -jnp.inf)
    return ratio, jnp.where(live, jnp.maximum(u, 0.0), 0.0)


def _above(x, tau, metric, kind):
    above = margin(x, tau, metric, kind)
    live = (above >= 0) & (metric > 0)
    return jnp.where(live, above, 0.0), jnp.where(live, metric, 0.0)


def _u(x, kind):
    return jnp.abs(x) if kind.absolute else x
