"""Losses of linear models, whose structure a rule may use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "rows", "columns", "starts"],
    meta_fields=["shape", "longest"],
)
@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """A matrix X [n, p] of few nonzeros for `LinearLoss`, sorted by columns.

    Attributes:
      values: of the nonzeros, [N].
      rows: theirs, [N].
      columns: theirs, [N].
      starts: where each column begins, [p + 1].
      shape: (n, p).
      longest: the largest number of nonzeros in a column.

    >>> from scipy import sparse
    >>> features = SparseFeatures.of(sparse.csc_array(np.array([[0.0, 2.0], [1.0, 0.0]], np.float32)))
    >>> (features @ jnp.array([1.0, 3.0])).tolist(), (features.take(jnp.array([1])) @ jnp.ones(1)).tolist()
    ([6.0, 1.0], [2.0, 0.0])
    """

    values: jax.Array
    rows: jax.Array
    columns: jax.Array
    starts: jax.Array
    shape: tuple[int, int]
    longest: int

    @classmethod
    def of(cls, matrix: Any) -> Self:
        """From a sparse matrix of SciPy.

        Raises:
          ValueError: if the matrix is not one.
        """
        if not hasattr(matrix, "tocsc"):
            raise _validation.invalid("matrix", matrix, "a sparse matrix of SciPy", "", "SparseFeatures")
        matrix = matrix.tocsc()
        sizes = np.diff(matrix.indptr)
        columns = np.repeat(np.arange(matrix.shape[1], dtype=np.int32), sizes)
        values = jnp.asarray(matrix.data), jnp.asarray(matrix.indices), jnp.asarray(columns)
        return cls(*values, jnp.asarray(matrix.indptr), matrix.shape, int(sizes.max(initial=0)))

    def __matmul__(self, weights: jax.Array) -> jax.Array:
        """X w, [n]."""
        zeros = jnp.zeros(self.shape[0], jnp.result_type(self.values, weights))
        return zeros.at[self.rows].add(self.values * weights[self.columns])

    def take(self, chosen: jax.Array) -> Self:
        """The columns of these numbers, [n, k]; its nonzeros are [k, longest], filled with zeros."""
        places = self.starts[chosen][:, None] + jnp.arange(self.longest)[None]
        inside = places < self.starts[chosen + 1][:, None]
        places = jnp.where(inside, places, 0)
        # A row for each column of X, so that the transpose sums rows, which is faster than a scatter.
        return dataclasses.replace(
            self,
            values=jnp.where(inside, self.values.ravel()[places], 0.0),
            rows=self.rows.ravel()[places],
            columns=jnp.arange(chosen.size)[:, None],
            starts=self.longest * jnp.arange(chosen.size + 1),
            shape=(self.shape[0], chosen.size),
        )


@dataclasses.dataclass(frozen=True)
class LinearLoss:
    """(params, X, y, weights) ↦ the mean of ℓ(X w + b, y), as a `fun` that says what it is made of.

    With it, `working_sets` computes with few columns of X; to the other rules it is a function like
    any other.

    Attributes:
      loss: (η [n], y) ↦ [n], smooth in η.

    The params are w [p] or {"coef": w, "intercept": b}; X is [n, p], an array or `SparseFeatures`; weights
    are [n] or left out.

    >>> fun = LinearLoss(lambda eta, y: 0.5 * jnp.square(eta - y))
    >>> fun(jnp.ones(2), jnp.eye(2), jnp.array([1.0, 3.0])).item()
    1.0
    """

    loss: Callable[[jax.Array, Any], jax.Array]

    def __call__(self, params: Any, features: Any, targets: Any, weights: Any = None) -> jax.Array:
        """The mean loss."""
        return self.mean(self.predict(params, features), targets, weights)

    def predict(self, params: Any, features: Any) -> jax.Array:
        """η = X w + b, [n]."""
        if isinstance(params, dict):
            return features @ params["coef"] + params["intercept"]
        return features @ params

    def mean(self, eta: jax.Array, targets: Any, weights: Any = None) -> jax.Array:
        """The mean loss of predictions."""
        each = self.loss(eta, targets)
        return jnp.mean(each) if weights is None else jnp.sum(weights * each) / jnp.sum(weights)

    def columns(self, features: Any, chosen: jax.Array) -> tuple:
        """The map from these entries of the params, a vector, to what they add to η; its matrix or None."""
        last = features.shape[1] - 1
        inside, is_intercept = jnp.minimum(chosen, last), chosen > last
        if isinstance(features, SparseFeatures):
            part = features.take(inside)
            pick = lambda where, z: jnp.where(where, z, 0.0)
            return lambda z: part @ pick(~is_intercept, z) + jnp.sum(pick(is_intercept, z)), None
        matrix = jnp.where(is_intercept, 1.0, features[:, inside])
        return lambda z: matrix @ z, matrix

    def hessian(self, matrix: Any, eta: jax.Array, targets: Any, weights: Any = None) -> jax.Array | None:
        """The Hessian in the entries to which the columns of the matrix belong, in float32."""
        if matrix is None:
            return None
        slopes = jax.grad(lambda eta: self.mean(eta, targets, weights))
        bends = jax.jvp(slopes, (eta,), (jnp.ones_like(eta),))[1]
        left, right = matrix.astype(jnp.float32), (bends[:, None] * matrix).astype(jnp.float32)
        return jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)
