# SPDX-License-Identifier: Apache-2.0
"""The order of data sets: what is measured for it, kept, and made of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tiny import ROOT, load_config

from metaicl.configuration import overridden
from metaicl.data.pool import Pool
from metaicl.experiment import ordering


def blobs(name: str, spread: float, seed: int = 0) -> Pool:
    """Three classes of 20 points around centres at distance 1."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    x = (np.eye(3)[labels] + spread * rng.normal(size=(60, 3))).astype(np.float32)
    digests = np.array([f"{name}{k}" for k in range(60)], "S64")
    return Pool(name, "x" if name < "c" else "y", ("p", "q", "r"), labels, x, digests)


def sequence_config(**given):
    config = load_config(ROOT / "configs" / "sequential.py").sequence
    return overridden(config, {"probe.learner.penalty": 1.0, **given})


def test_easy_data_sets_come_before_hard_ones(tmp_path, monkeypatch):
    pools = [blobs("a", 0.6), blobs("b", 0.05), blobs("c", 5.0)]
    accuracies = ordering.probe_accuracies(pools, sequence_config().probe.to_dict())
    assert accuracies[1] == 1.0 and 0.5 < accuracies[0] < 1 and accuracies[2] < 0.6
    orders = {
        kind: ordering.order_of(sequence_config(order=kind), pools, 0, tmp_path, tmp_path)
        for kind in ("E2H", "H2E")
    }
    assert orders == {"E2H": ["b", "a", "c"], "H2E": ["c", "a", "b"]}


def test_what_was_measured_is_kept_until_the_content_changes(tmp_path, monkeypatch):
    asked = []

    def measured(pools, probe):
        asked.append([p.name for p in pools])
        return np.arange(len(pools)) / 3

    monkeypatch.setattr(ordering, "probe_accuracies", measured)
    pools, config = [blobs("a", 0.1), blobs("b", 0.1)], sequence_config(order="E2H")
    for _ in range(2):
        assert ordering.order_of(config, pools, 0, tmp_path, tmp_path) == ["b", "a"]
    assert len(asked) == 1
    ordering.order_of(sequence_config(order="E2H", **{"probe.images": 10}), pools, 0, tmp_path, tmp_path)
    assert len(asked) == 2
    other = [pools[0], blobs("b", 0.1, seed=1)]
    ordering.order_of(config, other, 0, tmp_path, tmp_path)
    assert len(asked) == 3
    (tmp_path / "ease.json").write_text('{"key": ')
    ordering.order_of(config, other, 0, tmp_path, tmp_path)
    assert len(asked) == 4


def test_orders_by_distance(tmp_path, monkeypatch):
    pools = [blobs(name, 0.1) for name in "dabc"]
    places = {"d": 0.0, "a": 1.0, "b": 4.0, "c": 9.0}
    at = np.array([places[p.name] for p in pools])
    matrix = np.abs(at[:, None] - at[None, :])
    monkeypatch.setattr(ordering, "_distance_matrix", lambda given, settings, **folders: matrix)
    order = lambda kind, **given: "".join(
        ordering.order_of(sequence_config(order=kind, **given), pools, 0, tmp_path, tmp_path)
    )
    assert order("E2E") == "adbc"  # a is the first of the first domain
    assert order("H2H") == "acdb"
    assert order("Switch") == "adcb"
    assert order("E2E", start="c") == "cbad"
    assert order("path") == "cbad" and order("path", start="a") == "adbc"
    assert json.loads((tmp_path / "distances.json").read_text())["names"] == list("dabc")


@pytest.mark.slow
def test_distances_are_those_of_optimal_transport(tmp_path):
    """Two sets of one kind are nearer to each other than to one that lies elsewhere."""
    pools = [blobs("a", 0.1), blobs("b", 0.1, seed=1), blobs("c", 0.1)]
    pools[2] = dataclasses.replace(pools[2], x=pools[2].x + 2)
    config = sequence_config(order="E2E")
    assert ordering.order_of(config, pools, 0, tmp_path / "run", tmp_path / "cache") == ["a", "b", "c"]
    matrix = np.array(json.loads((tmp_path / "run" / "distances.json").read_text())["values"])
    assert matrix[0, 1] < 0.1 * matrix[0, 2] and list((tmp_path / "cache").glob("otdd-*.npz"))


def test_random_and_domain_orders_measure_nothing(tmp_path):
    pools = [blobs(name, 0.1) for name in "dabc"]
    assert ordering.order_of(sequence_config(order="domain"), pools, 0, tmp_path, tmp_path) == list("abcd")
    drawn = {
        tuple(ordering.order_of(sequence_config(order="random"), pools, s, tmp_path, tmp_path))
        for s in range(9)
    }
    assert len(drawn) > 4 and not list(tmp_path.iterdir())
