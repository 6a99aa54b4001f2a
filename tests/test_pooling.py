# SPDX-License-Identifier: Apache-2.0
"""Pools of several data sets, and parts of one."""

from __future__ import annotations

import numpy as np
import pytest

from metaicl.data.images import DataWarning
from metaicl.data.pool import Pool
from metaicl.data.pooling import MERGED, subsample, unite
from metaicl.data.sampler import episodes, gather, make_store


def pool_of(name, classes, each, start=0.0, domain="d"):
    n = len(classes) * each
    x = start + np.arange(n, dtype=np.float32)[:, None]
    labels = np.repeat(np.arange(len(classes)), each).astype(np.int32)
    digests = np.array([f"{name}{i}" for i in range(n)], "S64")
    return Pool(name, domain, tuple(classes), labels, x, digests)


def offsets_of(pools):
    return {**make_store(pools).offsets, MERGED: 0}


def test_classes_of_one_name_are_one_class():
    a, b = pool_of("a", ["oak tree", "ash", "fig"], 4), pool_of("b", ["Oak_Tree", "elm"], 3, start=100.0)
    with pytest.warns(DataWarning, match=r"1 classes that several data sets have were united: oak tree"):
        merged = unite([a, b], offsets_of([a, b]))
    assert merged.classes == ("ash", "elm", "fig", "oak tree") and list(merged.counts) == [4, 3, 4, 7]
    of = {c: set(merged.x[merged.labels == i, 0]) for i, c in enumerate(merged.classes)}
    assert of["oak tree"] == {0, 1, 2, 3, 100, 101, 102} and of["elm"] == {103, 104, 105}
    store = np.concatenate([a.x, b.x])
    np.testing.assert_array_equal(store[merged.rows], merged.x)
    assert [d.decode() for d in merged.digests[merged.labels == 1]] == ["b3", "b4", "b5"]


def test_classes_of_the_test_are_left_out():
    a, held = pool_of("a", ["cat", "dog", "eel"], 3), pool_of("t", ["DOG"], 2)
    with pytest.warns(DataWarning, match=r"1 classes that validation or test have too were left out: dog"):
        assert unite([a], offsets_of([a]), held=[held]).classes == ("cat", "eel")
    with pytest.raises(ValueError, match="All 1 classes of t are in the test too"):
        unite([pool_of("t", ["dog"], 2)], {"t": 0}, held=[held])


def test_tasks_of_merged_pools_mix_data_sets():
    pools = [pool_of(name, [f"{name}{c}" for c in "xyz"], 6, start=100.0 * i) for i, name in enumerate("ab")]
    store = make_store(pools)._replace(offsets=offsets_of(pools))
    merged = unite(pools, store.offsets)
    source = episodes(store, [merged], seed=0, ways=3, shots=2, queries=2)
    mixed = 0
    for i in range(20):
        one = source.indices(i)
        episode, _ = gather(store.consts, {k: np.asarray(v)[None] for k, v in one.items()}, None)
        # The label of every item is right: items of one slot are of one class, six rows each.
        values, y = np.asarray(episode.support.x)[0, :, 0], np.asarray(episode.support.y)[0]
        classes = (values % 100) // 6 + 10 * (values // 100)
        assert all(len(set(classes[y == slot])) == 1 for slot in range(3)) and len(set(classes)) == 3
        mixed += len(set(values // 100)) == 2
    assert 5 < mixed < 20  # of six classes, three of each: 18 of 20 draws mix


def test_less_is_a_part_of_more():
    pool = pool_of("a", [f"c{i}" for i in range(12)], 8)
    quarter, half = (subsample(pool, classes=share, items=3) for share in (0.25, 0.5))
    assert len(quarter.classes) == 3 and set(quarter.classes) < set(half.classes) and set(half.counts) == {3}
    assert set(quarter.digests) < set(half.digests) < set(subsample(pool, classes=0.5, items=5).digests)
    assert len(subsample(pool, classes=0.01, least=5).classes) == 5
    whole = subsample(pool)
    np.testing.assert_array_equal(whole.rows, pool.rows)
    assert set(subsample(pool, classes=0.5, seed=1).classes) != set(half.classes)
    for wrong in (dict(classes=0), dict(classes=1.1), dict(items=-1)):
        with pytest.raises(ValueError, match="give a share above 0"):
            subsample(pool, **wrong)
