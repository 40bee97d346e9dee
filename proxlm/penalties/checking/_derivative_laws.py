"""The laws of the derivatives of a prox and of its envelope, each as the worst violation that was found.

Source: Bauschke & Combettes, Convex Analysis and Monotone Operator Theory, 2nd edition, 2017.
"""

import numpy as np

from proxlm.penalties.checking._penalty_under_test import PenaltyUnderTest, count, example, worst

__all__ = ["envelope_gradient", "finite_derivatives", "monotone", "spectrum", "symmetric_jacobian"]

_example = example  # of the docstrings

NEAR_ZERO = (0.0, 1e-25, 1e-21, 1e-19)  # squares of the last three underflow or lose bits in float32


def symmetric_jacobian(tried: PenaltyUnderTest) -> float:
    """The Jacobian of a prox is symmetric: it is the Hessian of a function.

    >>> symmetric_jacobian(_example())
    0.0
    """
    jacobians = tried.differentiate(tried.x, tried.step_size).forwards
    return worst(np.abs(jacobians - jacobians.swapaxes(1, 2)))


def spectrum(tried: PenaltyUnderTest) -> float:
    """The eigenvalues of the Jacobian lie in [0, 1] for a convex g.

    >>> spectrum(_example()) < 1e-6
    True
    """
    eigenvalues = _eigenvalues(tried)
    return worst(np.maximum(-eigenvalues, eigenvalues - 1.0))


def monotone(tried: PenaltyUnderTest) -> float:
    """The eigenvalues of the Jacobian are ≥ 0 for every g.

    >>> monotone(_example()) < 1e-6
    True
    """
    return worst(-_eigenvalues(tried))


def _eigenvalues(tried):
    jacobians = tried.differentiate(tried.x, tried.step_size).forwards.astype(np.float64)
    finite = np.all(np.isfinite(jacobians))
    return np.linalg.eigvalsh(jacobians) if finite else np.full(1, np.nan)


def envelope_gradient(tried: PenaltyUnderTest) -> float:
    """The derivative of min_z g(z) + |z - x|²/2t is (x - prox(x))/t, relative to 1 + |x|/t.

    By the chain rule it is Jᵀ(∇g(z) + (z - x)/t) + (x - z)/t at z = prox(x), so the first term is 0.

    >>> envelope_gradient(_example()) < 1e-6
    True
    """
    x, t = tried.x, tried.step_size
    moved = tried.prox(x, t)
    pull = tried.differentiate(moved, t).slope + (moved - x) / t
    gap = np.abs(np.einsum("bij,bi->bj", tried.differentiate(x, t).backwards, pull))
    return worst(gap / (1.0 + np.abs(x).max() / t))


def finite_derivatives(tried: PenaltyUnderTest) -> float:
    """Derivatives at and near 0, at results of the prox and at t = 0 hold no NaN or infinity: how many do.

    >>> finite_derivatives(_example())
    0.0
    """
    small = np.array(NEAR_ZERO, tried.x.dtype)[:, None] * tried.noise[0]
    points = np.concatenate([small, tried.prox(tried.x, tried.step_size)])
    found = [tried.differentiate(points, tried.step_size), tried.differentiate(small, 0.0)]
    return sum(count(~np.isfinite(derivative)) for at in found for derivative in at)
