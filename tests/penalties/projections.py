"""Projections in NumPy and float64, by other algorithms than the library's."""

import numpy as np


def on_simplex(x, total=1.0):
    """By sorting (Held, Wolfe & Crowder): the whole of x is one group."""
    x = np.asarray(x, np.float64)
    x = x - x.max()
    ordered = np.sort(x.ravel())[::-1]
    taus = (np.cumsum(ordered) - total) / np.arange(1, x.size + 1)
    return np.maximum(x - taus[ordered > taus][-1], 0.0)


def on_l1_ball(x, radius=1.0):
    """By sorting; what is inside stays."""
    x = np.asarray(x, np.float64)
    if np.abs(x).sum() <= radius:
        return x
    return np.sign(x) * on_simplex(np.abs(x), radius)


def by_groups(project, x, axis, *args):
    """Applies a projection of one vector along one axis."""
    return np.apply_along_axis(project, axis, np.asarray(x, np.float64), *args)


def bisect(shrunk, lower, upper):
    """The τ at which a decreasing function crosses 0."""
    for _ in range(200):
        middle = 0.5 * (lower + upper)
        lower, upper = (middle, upper) if shrunk(middle) > 0 else (lower, middle)
    return middle


def nonincreasing(x):
    """By pooling adjacent violators, one after the other."""
    blocks = []
    for value in np.asarray(x, np.float64):
        total, count = value, 1
        while blocks and blocks[-1][0] * count <= total * blocks[-1][1]:
            more, size = blocks.pop()
            total, count = total + more, count + size
        blocks.append((total, count))
    return np.concatenate([np.full(count, total / count) for total, count in blocks])


def slope(x, thresholds):
    """Prox of the sorted l1 norm of one vector."""
    x = np.asarray(x, np.float64)
    order = np.argsort(-np.abs(x), kind="stable")
    moved = np.empty_like(x)
    moved[order] = np.maximum(nonincreasing(np.abs(x)[order] - thresholds), 0.0)
    return np.sign(x) * moved


def in_metric(x, step_sizes, total):
    """The simplex, where coordinate i costs (z_i - x_i)²/2t_i."""
    x, t = np.asarray(x, np.float64), np.asarray(step_sizes, np.float64)
    ratio = x[t > 0] / t[t > 0]
    sum_at = lambda tau: np.maximum(x - t * tau, 0.0).sum() - total
    return np.maximum(x - t * bisect(sum_at, ratio.min() - total / t.max(), ratio.max()), 0.0)


def on_capped_simplex(x, total, cap):
    x = np.asarray(x, np.float64)
    sum_at = lambda tau: np.clip(x - tau, 0.0, cap).sum() - total
    return np.clip(x - bisect(sum_at, np.min(x - cap), np.max(x)), 0.0, cap)
