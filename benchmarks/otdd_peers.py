# SPDX-License-Identifier: Apache-2.0
"""OTDD as the published algorithm does it, in NumPy (float64) and POT.

Dense D x D covariances, one matrix square root for each class and one eigendecomposition for each pair of classes,
loops over pairs of classes and of data sets, Sinkhorn by POT. Written for speed as far as that algorithm goes: roots
are kept, of the inner root only the eigenvalues are computed, pairs of classes may be done in several threads,
transport of a set to itself is solved once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import ot
from threadpoolctl import threadpool_limits


class Moments(NamedTuple):
    """Mean `[D]`, covariance `[D, D]` and its square root of one class."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray


def moments(x: np.ndarray) -> Moments:
    """Of the items `[n, D]` of one class."""
    x = x.astype(np.float64)
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    values, vectors = np.linalg.eigh(covariance)
    return Moments(x.mean(axis=0), covariance, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def label_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of two Gaussians."""
    values = np.linalg.eigvalsh(a.root @ b.covariance @ a.root)
    cross = np.sum(np.sqrt(np.maximum(values, 0)))
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def label_distances(moments: Mapping[int, Moments], pairs: np.ndarray, workers: int) -> np.ndarray:
    """Of pairs `[N, 2]` of classes: one after another with all threads of BLAS, or with one in each of the workers."""
    one = lambda pair: label_distance(moments[pair[0]], moments[pair[1]])
    if workers == 1:
        return np.array([one(pair) for pair in pairs])
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        return np.array(list(pool.map(one, pairs)))


def transport_cost(cost: np.ndarray, epsilon: float, tolerance: float) -> float:
    """`<P, C> + epsilon KL(P | ab)` between uniform weights; `tolerance` is POT's, of the 2-norm of the marginal."""
    a, b = (np.full(n, 1 / n) for n in cost.shape)
    plan = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn", stopThr=tolerance, numItermax=5000)
    ratio = np.maximum(plan, 1e-300) / (a[0] * b[0])
    return float(np.sum(plan * (cost + epsilon * np.log(ratio))))


def matrix(
    sets: Sequence[tuple[np.ndarray, np.ndarray]], label_cost: np.ndarray, epsilon: float, tolerance: float
) -> np.ndarray:
    """Debiased distances `[P, P]` of sets of items `[n, D]` with class numbers `[n]`, given those between classes."""
    count = len(sets)
    cost = np.zeros((count, count))
    for i, (x, a) in enumerate(sets):
        for j, (y, b) in enumerate(sets[: i + 1]):
            ground = ot.dist(x, y) + label_cost[np.ix_(a, b)]
            cost[i, j] = cost[j, i] = transport_cost(ground, epsilon, tolerance)
    own = np.diag(cost)
    return cost - (own[:, None] + own[None, :]) / 2
