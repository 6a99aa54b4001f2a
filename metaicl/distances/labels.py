# SPDX-License-Identifier: Apache-2.0
"""Wasserstein distances between classes: of their Gaussians in closed form, or of their items.

The Gaussian term needs no square root of a D x D matrix. With the centred items of two classes as rows of A [n, D]
and B [m, D], the covariances are A'A/n and B'B/m, and

    tr((S_a^1/2 S_b S_a^1/2)^1/2) = sum of the singular values of A B' / sqrt(n m),

an n x m matrix. Where n > D, a QR decomposition first replaces A by its D x D triangle, which has the same A'A.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.distances.settings import Settings
from metaicl.distances.transport import mean_cost, side_by_side, solve

Tick = Callable[[int, int], None]
"""Called as `tick(done, total)`."""

_TILE, _TILE_ROWS = 32, 2048  # classes and rows of one side of a tile: its Gram matrix stays within 16 MB


class LabelDistances(NamedTuple):
    """Between all C classes of all sets.

    Attributes:
      cost: `float64 [C, C]`, W^p.
      epsilon: the entropic regularisation of the exact way, in units of the cost; 0 where there is none.
      failed: number of class pairs whose solver did not converge.
      error: the largest error among all.
    """

    cost: np.ndarray
    epsilon: float = 0.0
    failed: int = 0
    error: float = 0.0


def label_distances(classes: Sequence[np.ndarray], settings: Settings, tick: Tick) -> LabelDistances:
    """W^p between the classes, each given as its items `[n, D]` with n at least 2."""
    if settings.inner == "exact":
        return _exact(classes, settings, tick)
    means = np.stack([np.mean(x, axis=0, dtype=np.float64) for x in classes])
    squared = _squared_distances(means)
    if settings.inner == "diagonal":
        squared += _squared_distances(np.stack([_deviations(x, settings) for x in classes]))
    elif settings.inner == "gaussian":
        squared += squared_bures([_root(x, settings) for x in classes], tick)
    np.fill_diagonal(squared, 0.0)
    return LabelDistances(np.maximum(squared, 0.0) ** (settings.p / 2))


def _divisor(x: np.ndarray, settings: Settings) -> int:
    return len(x) - settings.unbiased_covariance


def _deviations(x: np.ndarray, settings: Settings) -> np.ndarray:
    """Standard deviation of every feature, `float64 [D]`."""
    return np.std(x, axis=0, dtype=np.float64, ddof=int(settings.unbiased_covariance))


def _root(x: np.ndarray, settings: Settings) -> np.ndarray:
    """A matrix `float64 [r, D]`, r at most D, whose product with its transpose is the covariance of the items."""
    centred = (x - np.mean(x, axis=0, dtype=np.float64)) / np.sqrt(_divisor(x, settings))
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between rows, `[C, C]`, from centred rows so that little cancels."""
    rows = rows - rows.mean(axis=0)
    norms = np.sum(rows**2, axis=1)
    return norms[:, None] + norms[None, :] - 2 * rows @ rows.T


def squared_bures(roots: Sequence[np.ndarray], tick: Tick) -> np.ndarray:
    """Squared Bures distances between covariances given by their roots `[r, D]`: `float64 [C, C]`."""
    count, rows = len(roots), max(len(root) for root in roots)
    size = min(_TILE, max(1, _TILE_ROWS // rows), count)
    padded = np.zeros((-count % size + count, rows, roots[0].shape[1]), jnp.result_type(float))
    for k, root in enumerate(roots):
        padded[k, : len(root)] = root
    tiles = jnp.asarray(padded.reshape(-1, size, *padded.shape[1:]))
    cross = np.zeros((len(padded), len(padded)))
    places = [(i, j) for i in range(len(tiles)) for j in range(i, len(tiles))]
    for done, (i, j) in enumerate(places, 1):
        here, there = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
        cross[here, there] = _nuclear_norms(tiles[i], tiles[j])
        cross[there, here] = cross[here, there].T
        tick(done, len(places))
    traces = np.array([np.sum(root**2) for root in roots])
    return traces[:, None] + traces[None, :] - 2 * cross[:count, :count]


@jax.jit
def _nuclear_norms(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums of singular values of `a[i] b[j]'` for `[s, r, D]` stacks: `[s, s]`."""
    gram = jnp.einsum("ird,jqd->ijrq", a, b, precision="highest")
    return jnp.sum(jnp.linalg.svd(gram, compute_uv=False), axis=-1)


def _exact(classes: Sequence[np.ndarray], settings: Settings, tick: Tick) -> LabelDistances:
    """Entropic transport between the items of every two classes, less that within each if debiased."""
    count, p = len(classes), settings.p
    consts = _padded(classes)
    pairs = np.stack(np.triu_indices(count), axis=1)
    between = pairs[:, 0] != pairs[:, 1]
    mean = np.mean(mean_cost(_class_problem, consts, pairs[between], p)) if count > 1 else 1.0
    epsilon = settings.inner_regularisation * (mean if settings.relative else 1.0)
    done = 0

    def advance(number):
        nonlocal done
        done += number
        tick(done, len(pairs))

    solution = solve(
        _class_problem,
        consts,
        pairs,
        p=p,
        same=True,
        epsilon=epsilon,
        threshold=settings.threshold,
        max_iterations=settings.max_iterations,
        at_once=side_by_side(consts[0].shape[1] ** 2),
        tick=advance,
    )
    cost = np.zeros((count, count))
    cost[pairs[:, 0], pairs[:, 1]] = cost[pairs[:, 1], pairs[:, 0]] = solution.value
    if settings.inner_debiased:
        own = np.diag(cost)
        cost = cost - (own[:, None] + own[None, :]) / 2
    failed = int(np.sum(~solution.converged))
    return LabelDistances(np.maximum(cost, 0.0), float(epsilon), failed, float(np.max(solution.error)))


def _padded(classes: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """Items `[C, n, D]`, moved so that their mean is 0, and their weights `[C, n]`, 0 for padding."""
    rows = max(len(x) for x in classes)
    items = np.zeros((len(classes), rows, classes[0].shape[1]), jnp.result_type(float))
    weights = np.zeros(items.shape[:2], items.dtype)
    centre = np.mean([np.mean(x, axis=0, dtype=np.float64) for x in classes], axis=0)
    for k, x in enumerate(classes):
        items[k, : len(x)] = x - centre
        weights[k, : len(x)] = 1 / len(x)
    return jnp.asarray(items), jnp.asarray(weights)


def _class_problem(consts: tuple[jax.Array, jax.Array], pair: jax.Array, p: int):
    items, weights = consts
    return powered_distances(items[pair[0]], items[pair[1]], p), weights[pair[0]], weights[pair[1]]


@functools.partial(jax.jit, static_argnames="p")
def powered_distances(x: jax.Array, y: jax.Array, p: int) -> jax.Array:
    """`|x_i - y_j|^p` for `[n, D]` and `[m, D]`: `[n, m]`."""
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    squared = jnp.maximum(norms - 2 * jnp.matmul(x, y.T, precision="highest"), 0.0)
    return squared if p == 2 else jnp.sqrt(squared)
