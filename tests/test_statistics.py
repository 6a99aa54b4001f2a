# SPDX-License-Identifier: Apache-2.0
"""Means, intervals, paired differences and calibration: by hand, or known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from metaicl.report import statistics


def cell(values, domain="x", dataset="d", unit="seed=0", run="r", episodes=(0, 0)):
    return statistics.Cell(domain, dataset, unit, run, episodes, np.asarray(values, float))


def test_interval_over_episodes_by_hand():
    interval = statistics.mean_interval(np.array([0.0, 1.0, 1.0, 0.0]))
    half = 1.96 * np.sqrt(1 / 3) / 2  # variance with ddof=1 is 4 * 0.25 / 3
    assert interval.mean == 0.5
    assert interval.half == pytest.approx(half)
    assert np.isnan(statistics.mean_interval(np.array([0.3])).half)
    assert statistics.mean_interval(np.array([0.3, np.inf])).mean == np.inf


def test_grand_mean_weighs_domains_then_data_sets_then_seeds():
    cells = [
        cell([0, 1], "x", "a", "seed=0"),
        cell([1, 1, 1, 1], "x", "a", "seed=1"),
        cell([0, 0], "x", "b"),
        cell([1, 1, 1], "y", "c"),
    ]
    expected = (((0.5 + 1) / 2 + 0) / 2 + 1) / 2
    assert statistics.grand_mean(cells) == pytest.approx(expected)
    assert statistics.hierarchical_bootstrap(cells).mean == pytest.approx(expected)


def test_bootstrap_of_one_cell_is_the_normal_interval():
    values = np.random.default_rng(1).normal(size=600)
    normal, bootstrap = statistics.mean_interval(values), statistics.hierarchical_bootstrap([cell(values)])
    assert bootstrap.half == pytest.approx(normal.half, rel=0.1)
    assert bootstrap == statistics.hierarchical_bootstrap([cell(values)])


def test_bootstrap_of_constants_has_no_width_and_order_does_not_matter():
    cells = [cell([0.5] * 4, d, f"{d}{k}", f"seed={s}") for d in "xy" for k in range(2) for s in range(3)]
    assert statistics.hierarchical_bootstrap(cells) == (0.5, 0.5, 0.5)
    rng = np.random.default_rng(0)
    cells = [cell(rng.normal(size=5), d, f"{d}{k}") for d in "xyz" for k in range(ord(d) - ord("w"))]
    assert statistics.hierarchical_bootstrap(cells) == statistics.hierarchical_bootstrap(cells[::-1])


@pytest.mark.parametrize("crossed", [False, True], ids=["a run per domain", "one run for all domains"])
def test_bootstrap_covers_the_mean_of_a_normal_hierarchy(crossed):
    rng = np.random.default_rng(5)
    hits, trials = 0, 150
    for _ in range(trials):
        common = rng.normal(0, 0.5, 4) if crossed else None
        cells = []
        for d in range(10):
            seeds = common if crossed else rng.normal(0, 0.5, 4)
            level = rng.normal()
            for t in range(3):
                episodes = level + rng.normal(0, 0.7) + rng.normal(0, 1, 30)  # met by all seeds alike
                for u, effect in enumerate(seeds):
                    values = episodes + effect + rng.normal(0, 0.5, 30)
                    cells.append(cell(values, f"{d}", f"{d}-{t}", f"seed={u}", "r" if crossed else f"{d}"))
        interval = statistics.hierarchical_bootstrap(cells, resamples=200)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / trials <= 0.99


def test_width_of_the_bootstrap_is_the_known_variance_of_the_top_level():
    rng = np.random.default_rng(2)
    levels = rng.normal(size=40)
    cells = [cell([level, level], f"{d}", f"{d}", run=f"{d}") for d, level in enumerate(levels)]
    expected = 1.96 * levels.std() / np.sqrt(40)  # a bootstrap sees the spread of its sample: ddof=0
    assert statistics.hierarchical_bootstrap(cells).half == pytest.approx(expected, rel=0.1)


def test_paired_interval_is_narrower_and_right():
    rng = np.random.default_rng(3)
    ours, theirs = [], []
    for d in range(6):
        shared = rng.normal(rng.normal(), 1, 200)
        ours += [cell(shared + 0.1 + rng.normal(0, 0.1, 200), f"{d}", f"{d}", f"seed={u}") for u in range(2)]
        theirs.append(cell(shared, f"{d}", f"{d}", "seed=0"))
    paired = statistics.hierarchical_bootstrap(statistics.paired_cells(ours, theirs))
    separate = [statistics.hierarchical_bootstrap(c).half for c in (ours, theirs)]
    assert paired.low < 0.1 < paired.high
    assert paired.mean == pytest.approx(statistics.grand_mean(ours) - statistics.grand_mean(theirs))
    assert paired.half < 0.1 * np.hypot(*separate)


def test_pairs_are_the_episodes_and_seeds_both_have_seen():
    a = cell([1, 2, 3], episodes=(7, 0))
    pairs = statistics.paired_cells([a], [cell([1, 1, 1], episodes=(7, 1))])
    assert pairs[0].values.tolist() == [1, 2]
    assert statistics.paired_cells([a], [cell([1, 1, 1], episodes=(8, 0))]) == []
    assert statistics.paired_cells([a], [cell([1], dataset="other", episodes=(7, 0))]) == []
    two = [a, a._replace(unit="seed=1")]
    assert [c.unit for c in statistics.paired_cells(two, [a])] == ["seed=0", "seed=1"]
    assert [c.unit for c in statistics.paired_cells([a], two)] == ["seed=0", "seed=1"]
    shifted = [a._replace(unit="seed=1"), a._replace(unit="seed=2")]
    assert [c.unit for c in statistics.paired_cells(two, shifted)] == ["seed=1"]


def test_calibration_error_by_hand():
    one = {"count": [0, 2, 0, 2], "confidence": [0, 0.8, 0, 1.8], "correct": [0, 1, 0, 1]}
    two = {"count": [0, 0, 0, 4], "confidence": [0, 0, 0, 3.2], "correct": [0, 0, 0, 4]}
    bins = statistics.pooled_bins([{"calibration": one}, {"calibration": two}, {}])
    # Bin 1: |0.8 - 1| = 0.2; bin 3: |5.0 - 5| = 0 after pooling, though both parts alone are off.
    assert statistics.calibration_error(bins) == pytest.approx(0.2 / 8)
    assert statistics.calibration_error(statistics.pooled_bins([{"calibration": two}])) == pytest.approx(0.2)
    assert statistics.pooled_bins([{}]) is None
