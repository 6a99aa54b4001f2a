# SPDX-License-Identifier: Apache-2.0
"""Rank correlations of distances with what was measured of pairs of data sets, or of data sets.

Pairs share data sets and are not independent, so neither are their ranks. Intervals therefore resample whole data
sets, sources and targets at once (the vertex bootstrap of Snijders & Borgatti 1999, without the pairs of a data set
and itself), and p-values permute whole data sets (Mantel 1967). Both ask how far the finding holds for other data
sets of this kind; errors of the single measurements are in it as scatter, no more.

Legend: P data sets, R resamples. Matrices are `[source, target]`; their diagonals are never looked at.
"""

import numpy as np
from scipy.stats import rankdata

from metaicl.report.statistics import RESAMPLES, Interval

PERMUTATIONS = 9999
LEAST = 4  # data sets, below which ranks say nothing


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of pairs that are counted `weights` times each, ties at their middle rank.

    Args:
      x, y: `[n]`, finite.
      weights: `[..., n]`, not negative.

    Returns:
      `[...]`; NaN where all that is counted has one x or one y.
    """
    a, b = (weights @ _before(v) for v in (x, y))  # ranks, up to a constant
    total = np.maximum(weights.sum(-1, keepdims=True), np.finfo(float).tiny)
    a, b = (ranks - (weights * ranks).sum(-1, keepdims=True) / total for ranks in (a, b))
    both, own = (weights * a * b).sum(-1), (weights * a * a).sum(-1) * (weights * b * b).sum(-1)
    known = own > 1e-9
    return np.where(known, both / np.sqrt(np.where(known, own, 1.0)), np.nan)


def _before(v: np.ndarray) -> np.ndarray:
    """`[n, n]`: how much of item i stands before item j: all, half where they tie, or nothing."""
    return (v[:, None] < v[None, :]) + 0.5 * (v[:, None] == v[None, :])


def by_target(
    distance: np.ndarray, measured: np.ndarray, counts: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """Correlation over the sources of each target: `[P, R]`.

    Args:
      distance, measured: `[P, P]`.
      counts: `[R, P]`, how often each data set counts as a source.
      pairs: `bool [P, P]`, which pairs count.
    """
    found = np.full((len(distance), len(counts)), np.nan)
    for t in range(len(distance)):
        kept = pairs[:, t]
        if kept.sum() > 1:
            found[t] = weighted_spearman(distance[kept, t], measured[kept, t], counts[:, kept])
    return found


def target_intervals(distance: np.ndarray, measured: np.ndarray) -> list[Interval]:
    """For each target, the correlation over its sources, which are resampled for its interval."""
    pairs = ~np.eye(len(distance), dtype=bool)
    whole = by_target(distance, measured, np.ones((1, len(distance))), pairs)[:, 0]
    each = by_target(distance, measured, resampled(len(distance)), pairs)
    return [_interval(rho, samples) for rho, samples in zip(whole, each, strict=True)]


def within_targets(distance: np.ndarray, measured: np.ndarray, pairs: np.ndarray) -> Interval:
    """Mean over targets of the correlation over their sources; data sets are resampled as both at once.

    Targets differ in difficulty, which this leaves out: only sources of one target are compared. What is added to a
    whole column, as the accuracy of the untrained learner, changes nothing.
    """
    count = len(distance)
    whole = np.nanmean(by_target(distance, measured, np.ones((1, count)), pairs))
    counts = resampled(count)
    each, weights = by_target(distance, measured, counts, pairs), counts.T  # [P, R]
    known = np.isfinite(each)
    total = (weights * known).sum(axis=0)
    samples = np.where(known, weights * each, 0.0).sum(axis=0) / np.where(total > 0, total, np.nan)
    return _interval(float(whole), samples)


def over_pairs(distance: np.ndarray, measured: np.ndarray) -> Interval:
    """Correlation over all pairs of a source and a target; data sets are resampled as both at once."""
    source, target = np.nonzero(~np.eye(len(distance), dtype=bool))
    x, y, counts = distance[source, target], measured[source, target], resampled(len(distance))
    whole = weighted_spearman(x, y, np.ones(len(x)))
    return _interval(float(whole), weighted_spearman(x, y, counts[:, source] * counts[:, target]))


def over_sets(x: np.ndarray, y: np.ndarray) -> Interval:
    """Correlation of two quantities `[P]` of data sets, which are resampled."""
    return _interval(
        float(weighted_spearman(x, y, np.ones(len(x)))), weighted_spearman(x, y, resampled(len(x)))
    )


def resampled(count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """`float [R, P]`: how often each of P data sets is drawn in P draws with replacement."""
    rng = np.random.default_rng([seed, count])
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(mean: float, samples: np.ndarray) -> Interval:
    """The percentile interval; resamples of which nothing can be said (one data set, again and again) are left out."""
    samples = samples[np.isfinite(samples)]
    low, high = np.percentile(samples, [2.5, 97.5]) if len(samples) else (np.nan, np.nan)
    return Interval(float(mean), float(low), float(high))


# Permutation tests. Permuting data sets permutes ranks, so they are taken once.


def mantel_within_targets(distance: np.ndarray, measured: np.ndarray) -> float:
    """p of `within_targets` over all pairs: the data sets of the distances permuted, two-sided."""
    a, b = (_standard_columns(m) for m in (distance, measured))
    return _p_value(a, b)


def mantel_over_pairs(distance: np.ndarray, measured: np.ndarray) -> float:
    """p of `over_pairs`: the data sets of the distances permuted, two-sided."""
    off = ~np.eye(len(distance), dtype=bool)
    a, b = np.zeros(distance.shape), np.zeros(distance.shape)
    a[off], b[off] = _standard(distance[off]), _standard(measured[off])
    return _p_value(a, b)


def permutation_over_sets(x: np.ndarray, y: np.ndarray) -> float:
    """p of `over_sets`: one of both permuted, two-sided."""
    return _p_value(np.diag(_standard(x)), np.diag(_standard(y)))


def _p_value(a: np.ndarray, b: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Share of permutations of the rows and columns of `a` whose product with `b` is as far from 0 as it is."""
    rng = np.random.default_rng([seed, len(a)])
    orders = rng.permuted(np.tile(np.arange(len(a)), (permutations, 1)), axis=1)
    found = np.tensordot(a[orders[:, :, None], orders[:, None, :]], b, 2)
    reached = np.sum(np.abs(found) >= abs(np.sum(a * b)) * (1 - 1e-9))
    return float((1 + reached) / (1 + permutations))


def _standard_columns(matrix: np.ndarray) -> np.ndarray:
    """Standardised ranks within each column, 0 on the diagonal."""
    found = np.zeros(matrix.shape)
    for t in range(len(matrix)):
        others = np.arange(len(matrix)) != t
        found[others, t] = _standard(matrix[others, t])
    return found


def _standard(values: np.ndarray) -> np.ndarray:
    """Ranks with mean 0 and norm 1; zeros where all are alike."""
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    norm = np.sqrt(np.sum(ranks**2))
    return np.asarray(ranks / norm if norm > 0 else ranks)
