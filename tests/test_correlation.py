# SPDX-License-Identifier: Apache-2.0
"""Rank correlations over data sets and over their pairs, against SciPy and what is counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from metaicl.report import correlation


@pytest.fixture
def matrices(rng):
    """Distances of seven points, and accuracies that fall with them, each target at a level of its own."""
    points = rng.normal(size=(7, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return distance, -distance + 0.5 * rng.normal(size=(7, 7)) + 5 * rng.normal(size=7)


def spearman(x, y) -> float:
    return float(spearmanr(x, y).statistic)


def test_weights_count_pairs_as_often(rng):
    x, y = rng.integers(0, 6, (2, 20)).astype(float)  # with ties
    weights = rng.integers(0, 4, (5, 20)).astype(float)
    found = correlation.weighted_spearman(x, y, weights)
    for rho, w in zip(found, weights.astype(int), strict=True):
        assert rho == pytest.approx(spearman(np.repeat(x, w), np.repeat(y, w)), abs=1e-12)
    assert correlation.weighted_spearman(x, y, np.ones(20)) == pytest.approx(spearman(x, y), abs=1e-12)


def test_what_does_not_vary_has_no_correlation():
    x, y = np.array([1.0, 1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    found = correlation.weighted_spearman(x, y, np.array([[1, 1, 0], [0, 0, 3], [0, 1, 2], [0, 0, 0]]))
    assert np.isnan(found).tolist() == [True, True, False, True] and found[2] == pytest.approx(1)


def test_within_targets_is_the_mean_over_targets(matrices):
    distance, measured = matrices
    others = ~np.eye(7, dtype=bool)
    each = [spearman(distance[others[:, t], t], measured[others[:, t], t]) for t in range(7)]
    rho = correlation.within_targets(distance, measured, others)
    assert rho.mean == pytest.approx(np.mean(each)) and rho.low < rho.mean < rho.high
    shifted = correlation.within_targets(distance, measured - 3 * np.arange(7), others)
    assert shifted == rho
    targets = correlation.target_intervals(distance, measured)
    assert [t.mean for t in targets] == pytest.approx(each)
    assert all(-1 <= t.low <= t.high <= 1 for t in targets)
    diagonal = correlation.within_targets(distance + 9 * np.eye(7), measured - 9 * np.eye(7), others)
    assert diagonal == rho


def test_a_resample_is_a_study_of_the_drawn_data_sets(matrices, monkeypatch):
    """Drawn twice, a data set is two sources of every other target, and no pair with itself."""
    distance, measured = matrices
    drawn = np.array([0, 0, 2, 3, 3, 3, 6])
    counts = np.bincount(drawn, minlength=7)[None].astype(float)
    monkeypatch.setattr(correlation, "resampled", lambda count: counts)
    pairs = [(s, t) for s, t in itertools.product(drawn, drawn) if s != t]
    x, y = (np.array([m[pair] for pair in pairs]) for m in (distance, measured))
    assert correlation.over_pairs(distance, measured).low == pytest.approx(spearman(x, y))
    each = []
    for t in drawn:
        sources = [s for s in drawn if s != t]
        each.append(spearman(distance[sources, t], measured[sources, t]))
    within = correlation.within_targets(distance, measured, ~np.eye(7, dtype=bool))
    assert within.low == within.high == pytest.approx(np.mean(each))
    x, y = distance.mean(axis=0), measured.mean(axis=0)
    assert correlation.over_sets(x, y).low == pytest.approx(spearman(x[drawn], y[drawn]))


def test_resamples_draw_every_data_set_equally_often():
    counts = correlation.resampled(9, 4000)
    assert (counts.sum(axis=1) == 9).all() and counts.mean(axis=0) == pytest.approx(np.ones(9), abs=0.06)
    assert np.array_equal(counts, correlation.resampled(9, 4000))


@pytest.mark.parametrize("kind", ["within", "pairs", "sets"])
def test_p_values_are_shares_of_all_permutations(kind, rng):
    """Of five data sets all 120 permutations can be counted."""
    d = rng.normal(size=(5, 5))
    distance, measured = d + d.T, rng.normal(size=(5, 5)) - 0.5 * (d + d.T)
    others = ~np.eye(5, dtype=bool)
    x, y = distance.mean(axis=0), measured.mean(axis=0)

    def statistic(order) -> float:
        permuted = distance[np.ix_(order, order)]
        if kind == "sets":
            return abs(spearman(x[list(order)], y))
        if kind == "pairs":
            return abs(spearman(permuted[others], measured[others]))
        return abs(
            np.mean([spearman(permuted[others[:, t], t], measured[others[:, t], t]) for t in range(5)])
        )

    all_of_them = np.array([statistic(order) for order in itertools.permutations(range(5))])
    expected = np.mean(all_of_them >= all_of_them[0] - 1e-9)
    p = {
        "within": lambda: correlation.mantel_within_targets(distance, measured),
        "pairs": lambda: correlation.mantel_over_pairs(distance, measured),
        "sets": lambda: correlation.permutation_over_sets(x, y),
    }[kind]()
    assert p == pytest.approx(expected, abs=0.02)


def test_a_true_relation_is_found_and_none_is_not(rng):
    points = rng.normal(size=(12, 2))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    others = ~np.eye(12, dtype=bool)
    assert correlation.within_targets(distance, -distance, others).high == pytest.approx(-1)
    assert correlation.mantel_within_targets(distance, -distance) == pytest.approx(1e-4, abs=2e-4)
    p = [correlation.mantel_within_targets(distance, rng.normal(size=(12, 12))) for _ in range(9)]
    assert np.median(p) > 0.2
