# SPDX-License-Identifier: Apache-2.0
"""Function classes that the Bayes mixture knows: their evidence and their posterior mean.

Every class is a set of members that are linear and Gaussian given which one it is: y = Phi_g(x) . w + noise with
w ~ N(mean, diag(scale^2)) (Bishop 2006, sections 3.3 and 3.5). A member is a set of coordinates (sparse linear
functions), a cell of frequency and phase (sinusoids), one known function (a finite prior), or there is only one
(dense linear functions, lines).

Without noise the evidence is degenerate, and close to it the usual formulas lose all digits of float32. Here
nothing is formed from a Gram matrix or a difference of squares: the triangular factor of [Phi scale / noise; I]
beside the target (the square-root form of recursive least squares) gives the determinant, the residual and the
mean, each to the precision of the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_MEMBERS = 20_000
CHUNK = 1024  # members of a finite prior that are weighed at once


class Component(NamedTuple):
    """One class of functions from `x [n, D]` to `y [n]`.

    Attributes:
      arrays: what is too large for the program, handed back to `posterior`.
      posterior: `(arrays, x, y, mask, noise) -> (log evidence, state)`.
      predict: `(state, x [Q, D]) -> [Q]`, the posterior mean given that the function is of this class.
    """

    arrays: Any
    posterior: Callable[..., tuple[jax.Array, Any]]
    predict: Callable[[Any, jax.Array], jax.Array]


def dense_linear(width: int, *, scale: float = 1.0) -> Component:
    """Linear functions of all coordinates: w ~ N(0, scale^2 I_D)."""

    def posterior(arrays, x, y, mask, noise):
        del arrays
        log_evidence, mean = linear_gaussian(x, y, mask, jnp.full(width, scale, x.dtype), noise)
        return log_evidence, mean

    return Component((), posterior, lambda mean, x: x @ mean)


def sparse_linear(width: int, *, nonzeros: int, scale: float = 1.0) -> Component:
    """Linear functions of `nonzeros` coordinates, all sets of them alike: w ~ N(0, scale^2 I) on the set.

    Raises:
      ValueError: for more non-zeros than dimensions, or too many sets to sum over.
    """
    if not 1 <= nonzeros <= width:
        raise ValueError(
            f"sparse_linear: {nonzeros} non-zeros of {width} dimensions; take from 1 to {width}."
        )
    if math.comb(width, nonzeros) > MAX_MEMBERS:
        raise ValueError(
            f"sparse_linear: {nonzeros} of {width} coordinates are {math.comb(width, nonzeros):,} sets, too "
            f"many to sum over (at most {MAX_MEMBERS:,}): take fewer non-zeros or dimensions."
        )
    sets = np.array(list(itertools.combinations(range(width), nonzeros)), np.int32)  # [G, s]

    def posterior(arrays, x, y, mask, noise):
        del arrays
        scales = jnp.full(nonzeros, scale, x.dtype)
        member = lambda chosen: linear_gaussian(x[:, chosen], y, mask, scales, noise)
        log_evidences, means = jax.vmap(member)(sets)  # [G], [G, s]
        share = jax.nn.softmax(log_evidences)
        mean = jnp.zeros(width, x.dtype).at[sets].add(share[:, None] * means)
        return jax.nn.logsumexp(log_evidences) - math.log(len(sets)), mean

    return Component((), posterior, lambda mean, x: x @ mean)


def finite_linear(width: int, *, vectors, scale: float = 1.0) -> Component:
    """Linear functions with one of the weights `scale vectors [M, D]`, all alike: the estimator of a finite prior.

    Without examples it answers with their mean. Raises ValueError for vectors of another width.
    """
    vectors = scale * np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise ValueError(
            f"finite_linear: vectors have shape {vectors.shape}; they must be [M, {width}] with M > 0."
        )
    padding = -len(vectors) % min(CHUNK, len(vectors))
    size = min(CHUNK, len(vectors))
    chunks = np.concatenate([vectors, np.zeros((padding, width), np.float32)]).reshape(-1, size, width)
    exists = (np.arange(len(vectors) + padding) < len(vectors)).reshape(-1, size)

    def posterior(arrays, x, y, mask, noise):
        scaled, target = x * (mask / noise)[:, None], y * mask / noise

        def add(total, chunk):
            """Extends a running log-sum-exp, and the mean under it, by a chunk of members."""
            candidates, exists = chunk
            misfit = 0.5 * jnp.sum((target[None, :] - candidates @ scaled.T) ** 2, axis=1)
            log_evidences = jnp.where(exists, -misfit, -jnp.inf)
            top = jnp.maximum(total[0], jnp.max(log_evidences))
            share, kept = jnp.exp(log_evidences - top), jnp.exp(total[0] - top)
            return (top, kept * total[1] + jnp.sum(share), kept * total[2] + share @ candidates), None

        start = (jnp.asarray(-jnp.inf, x.dtype), jnp.zeros((), x.dtype), jnp.zeros(width, x.dtype))
        (top, share, mean), _ = jax.lax.scan(add, start, arrays)
        log_evidence = top + jnp.log(share) - math.log(len(vectors)) - jnp.sum(mask) * jnp.log(noise)
        return log_evidence, mean / share

    return Component((chunks, exists), posterior, lambda mean, x: x @ mean)


def curve(
    width: int,
    *,
    share: Sequence[float] = (1.0, 1.0),
    amplitude: Sequence[float] = (1.0, 1.0),
    frequency: Sequence[float] = (1.0, 1.0),
    phase: Sequence[float] = (0.0, 2 * math.pi),
    slope: float = 0.0,
    intercept: float = 0.0,
    cells: Sequence[int] = (1, 1, 32, 32),
) -> Component:
    """r a sin(omega x + phi) + (1 - r) (b x + c): sinusoids, lines and their convex combinations.

    r, a, omega and phi are uniform in their ranges, b and c normal. Each cell of the grid of the first four is one
    member, within which the curve is taken to be linear in a, omega and phi, as it is in b and c: the ranges are
    covered, not only the grid. What is left has to be small against the noise: about
    `a / 8 x (|x| x width of a cell of omega + width of a cell of phi)^2`.

    Args:
      width: D, which is 1.
      share, amplitude, frequency, phase: ranges of r, a, omega and phi; equal ends make one value of it.
      slope, intercept: standard deviations of b and c around 0.
      cells: how many of r, a, omega and phi; the one of r are points.

    Raises:
      ValueError: for items of more than one number, a range that falls, too many cells, or a curve that is 0.
    """
    if width != 1:
        raise ValueError(f"A curve is a function of one number; items have {width}.")
    if not 0 <= share[0] <= share[1] <= 1:
        raise ValueError(
            f"The share of the sinusoid is {tuple(share)}; give two rising numbers within [0, 1]."
        )
    names, ranges = ("share", "amplitude", "frequency", "phase"), (share, amplitude, frequency, phase)
    if share[1] == 0:
        ranges = ((0, 0),) * 4  # a line has one member
    if len(cells) != 4 or min(cells) < 1 or math.prod(cells) > MAX_MEMBERS:
        raise ValueError(
            f"cells are {tuple(cells)}; give four numbers whose product is from 1 to {MAX_MEMBERS:,}."
        )
    axes, deviations = zip(*map(_cells, names, ranges, cells), strict=True)
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], 1).astype(np.float32)  # [G, 4]
    scale = np.array([*deviations[1:], slope, intercept], np.float32)
    if share[1] == 0 and not scale.any():
        raise ValueError("A curve without a sinusoid needs a slope or an intercept above 0.")
    used = np.flatnonzero(scale)

    def member(cell, x):
        """The curve at the middle of a cell `[n]`, and its derivatives `[n, F]` by what may vary."""
        r, a, omega, phi = cell
        angle = omega * x[:, 0] + phi
        sine, cosine, one = jnp.sin(angle), a * jnp.cos(angle), jnp.ones_like(angle)
        columns = (r * sine, r * x[:, 0] * cosine, r * cosine, (1 - r) * x[:, 0], (1 - r) * one)
        return r * a * sine, jnp.stack([columns[i] for i in used] or [0 * one], axis=1)

    scales = scale[used] if len(used) else np.zeros(1, np.float32)

    def posterior(arrays, x, y, mask, noise):
        del arrays

        def weigh(cell):
            middle, design = member(cell, x)
            return linear_gaussian(design, y - middle, mask, jnp.asarray(scales, x.dtype), noise)

        log_evidences, weights = jax.vmap(weigh)(grid)
        log_evidence = jax.nn.logsumexp(log_evidences) - math.log(len(grid))
        return log_evidence, (jax.nn.softmax(log_evidences), weights)

    def predict(state, x):
        shares, weights = state

        def one(cell, w):
            middle, design = member(cell, x)
            return middle + design @ w

        return shares @ jax.vmap(one)(grid, weights)

    return Component((), posterior, predict)


def _cells(name, bounds, count):
    """Middles of equal cells of a range, and the standard deviation within one; equal ends have one cell."""
    low, high = bounds
    if high < low:
        raise ValueError(f"{name} is ({low:g}, {high:g}); the first must not be above the second.")
    if low == high:
        return np.array([low]), 0.0
    size = (high - low) / count
    return low + size * (np.arange(count) + 0.5), size / math.sqrt(12)


KINDS: dict[str, Callable[..., Component]] = {
    "dense_linear": dense_linear,
    "sparse_linear": sparse_linear,
    "finite_linear": finite_linear,
    "curve": curve,
}


def linear_gaussian(design, target, mask, scale, noise):
    """Log evidence and posterior mean of y = Phi w + noise e, with w ~ N(0, diag(scale^2)) and e ~ N(0, I).

    Args:
      design: Phi `[n, F]`. target: y `[n]`. mask: `[n]`. scale: `[F]`, 0 for a weight known to be 0.
      noise: standard deviation, above 0.

    Returns:
      log evidence up to the constant `-n/2 log(2 pi)` that all models share, and the mean `[F]`.
    """
    weight = mask / noise
    matrix = jnp.concatenate([design * scale[None, :], target[:, None]], axis=1) * weight[:, None]
    prior = jnp.eye(design.shape[1], design.shape[1] + 1, dtype=matrix.dtype)
    factor = triangular_factor(jnp.concatenate([matrix, prior]))  # [F + 1, F + 1]
    diagonal = jnp.diag(factor)
    log_evidence = -0.5 * diagonal[-1] ** 2 - jnp.sum(jnp.log(diagonal[:-1])) - jnp.sum(mask) * jnp.log(noise)
    return log_evidence, scale * back_substituted(factor[:-1, :-1], factor[:-1, -1])


def triangular_factor(matrix):
    """R of the QR decomposition of `[n, m]`, by modified Gram-Schmidt: `[m, m]`, with a diagonal of at least 0.

    As stable as Householder's for R (Björck 1967); and made of products that a batch of thousands of matrices
    with three columns shares, where LAPACK would be called for each.
    """
    numbers = jnp.arange(matrix.shape[1])

    def column(rest, j):
        picked = (numbers == j).astype(rest.dtype)
        q = rest @ picked
        length = jnp.sqrt(jnp.sum(q * q))
        q = q / jnp.where(length > 0, length, 1.0)
        row = jnp.where(numbers > j, q @ rest, 0.0)
        return rest - q[:, None] * row[None, :], row + length * picked

    return jax.lax.scan(column, matrix, numbers, unroll=min(len(numbers), 6))[1]


def back_substituted(factor, right):
    """Solves `R w = right` for an upper triangular `R [F, F]` without zeros on its diagonal: `[F]`."""

    def row(w, j):
        value = (right[j] - factor[j] @ w) / factor[j, j]
        return w + jnp.where(jnp.arange(len(w)) == j, value, 0.0), None

    order = jnp.arange(len(right) - 1, -1, -1)
    return jax.lax.scan(row, jnp.zeros_like(right), order, unroll=min(len(right), 6))[0]
