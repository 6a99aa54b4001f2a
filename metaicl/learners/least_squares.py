# SPDX-License-Identifier: Apache-2.0
"""Least squares and averaging, the plainest rules for linear functions (Garg et al. 2022, section 3.1)."""

from __future__ import annotations

import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner
from metaicl.learners.regression import linear_regressor


def least_squares(spec: TaskSpec, *, intercept: bool = False, cutoff: float | None = None) -> Learner:
    """Builds minimum-norm least squares: of all w with the smallest |Xw - y| the one with the smallest |w|.

    On noiseless y = w.x with w, x ~ N(0, I_d), its squared error over d is 1 - k/d in expectation at k < d
    examples, and 0 from d on.

    Args:
      spec: regress.
      intercept: centre x and y first.
      cutoff: singular values of X up to this share of the largest count as 0; None takes the rounding unit times
        the larger side of X, as NumPy's `lstsq` does.

    Raises:
      ValueError: for classification or a negative cutoff.
    """
    if cutoff is not None and cutoff < 0:
        raise ValueError(f"least_squares: cutoff is {cutoff:g}; it must be 0 or more.")

    def fit(x, y, mask):
        del mask
        return minimum_norm(x, y, cutoff)

    return linear_regressor(spec, "least_squares", fit, intercept)


def minimum_norm(x, y, cutoff: float | None = None):
    """`x [S, D]`, `y [S, N]` -> the minimum-norm least-squares solution `[D, N]`, by the pseudo-inverse of x.

    The singular values of x itself are taken, not those of its Gram matrix: near S = D, where x is close to
    singular, the Gram matrix would have lost half the digits. Rows of zeros change nothing.
    """
    if len(x) == 0:
        return jnp.zeros((x.shape[1], y.shape[1]), y.dtype)
    u, values, vt = jnp.linalg.svd(x, full_matrices=False)
    cutoff = float(jnp.finfo(x.dtype).eps) * max(x.shape) if cutoff is None else cutoff
    kept = values > cutoff * values[0]
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)
    return vt.T @ (inverse[:, None] * (u.T @ y))


def averaging(spec: TaskSpec) -> Learner:
    """Builds the average w = (1/k) sum_i y_i x_i, least squares for x whose covariance is taken to be I.

    On noiseless y = w.x with w, x ~ N(0, I_d), its squared error over d is (d + 1)/k in expectation.

    Raises:
      ValueError: for classification.
    """

    def fit(x, y, mask):
        return x.T @ y / jnp.maximum(jnp.sum(mask), 1.0)

    return linear_regressor(spec, "averaging", fit, intercept=False)
