# SPDX-License-Identifier: Apache-2.0
"""From the `data` part of a config to pools that train, validate and test, without leaks and large enough."""

from __future__ import annotations

import sys

import numpy as np

from metaicl.configuration import ConfigError
from metaicl.data import splits
from metaicl.data.pool import Pool
from metaicl.data.pooling import MERGED, subsample, unite
from metaicl.experiment import unlabelled
from metaicl.experiment.episodic import largest, test_shots, test_ways, validation_size


def split_pools(pools: list[Pool], data, task) -> tuple[splits.Split, dict[str, str]]:
    """The parts of the data sets, small classes and leaks dropped, and what each data set is split by.

    Raises:
      ConfigError, ValueError: for a split that is none, or parts that are too small for the task.
    """
    if data.split == "none":  # nothing is trained: all is tested
        items = test_shots(task) + task.test_queries
        tested = [splits.drop_small_classes(pool, items, test_ways(task)) for pool in pools]
        return splits.Split([], [], tested), {pool.name: "data sets" for pool in pools}
    whole, split_by = _parts(pools, data, largest(task.get("ways", 1)))
    uses_labels = data.split != "supervised" and not unlabelled.wanted(task)
    if data.split != "supervised":
        whole = _large_enough(whole, task, uses_labels)
    held = [*whole.validation, *whole.test]
    train, report = splits.drop_leaks(whole.train, held)
    lost = {name: counts for name, counts in report.items() if counts["same_bytes"] + counts["near_copies"]}
    if lost:
        counted = sum(c["same_bytes"] + c["near_copies"] for c in lost.values())
        print(f"Left {counted} training images out that validation or test hold too: {lost}", file=sys.stderr)
    if not uses_labels:
        return splits.Split(train, whole.validation, whole.test), split_by
    ways = largest(task.ways)
    train = [
        splits.drop_small_classes(p, _items(task), ways) for p in train
    ]  # leaks may have made them small
    train = _chosen(train, data, ways)
    if data.get("merge", False):
        train = [unite(train, offsets_of(pools), held=held)]
    return splits.Split(train, whole.validation, whole.test), split_by


def offsets_of(pools: list[Pool]) -> dict[str, int]:
    """Where each data set begins in the array of all, and where the rows of what is merged of them count from."""
    starts = np.cumsum([0, *(len(pool) for pool in pools)])
    return {pool.name: int(start) for pool, start in zip(pools, starts, strict=False)} | {MERGED: 0}


def _parts(pools: list[Pool], data, ways: int) -> tuple[splits.Split, dict[str, str]]:
    if data.split == "domain":
        whole = splits.leave_domain_out(pools, data.held_out, data.validation or None)
        return whole, {pool.name: "domains" for pool in pools}
    if data.split == "one_set":
        return _one_set(pools, data, ways)
    if data.split not in ("within", "images", "supervised"):
        raise ConfigError(
            f"data.split is {data.split!r}; use 'domain', 'within', 'images', 'one_set', 'none' or 'supervised'."
        )
    least = data.min_classes if data.split == "within" else sys.maxsize
    each = [splits.split_within(p, data.fractions, data.split_seed, least) for p in pools]
    whole = splits.Split(*([pool for part, _ in each for pool in part[i]] for i in range(3)))
    return whole, {pool.name: by for pool, (_, by) in zip(pools, each, strict=True)}


def _one_set(pools: list[Pool], data, ways: int) -> tuple[splits.Split, dict[str, str]]:
    """Trains on the data sets of `data.train_on` as one, chooses by a tenth of its classes, tests on all others.

    With fewer classes than two tasks take, half of the images of each choose.
    """
    mine = [pool for pool in pools if pool.name in data.train_on]
    others = [pool for pool in pools if pool.name not in data.train_on]
    if not mine or not others:
        raise ConfigError(
            f"data.split='one_set' trains on the data sets of data.train_on ({', '.join(data.train_on) or 'none'}) "
            f"and tests on all others of {', '.join(pool.name for pool in pools)}: there have to be some of both."
        )
    merged = unite(mine, offsets_of(pools), held=others)
    fractions = (0.9, 0.1, 0.0) if len(merged.classes) >= 2 * ways else (0.5, 0.5, 0.0)
    whole, by = splits.split_within(merged, fractions, data.split_seed, 2 * ways)
    return splits.Split(whole.train, whole.validation, others), {
        MERGED: by,
        **{pool.name: "data sets" for pool in others},
    }


def _chosen(train: list[Pool], data, ways: int) -> list[Pool]:
    """What of the training pools `data.keep` keeps: not fewer classes than a task takes."""
    keep = data.get("keep", None)
    if keep is None or (keep.classes == 1 and not keep.items_of_class):
        return train
    part = dict(classes=keep.classes, items=keep.items_of_class, least=ways, seed=data.split_seed)
    return [subsample(pool, **part) for pool in train]


def _large_enough(split: splits.Split, task, uses_labels: bool) -> splits.Split:
    """Without classes that are too small; the labels of training are not looked at unless they are used."""
    ways = largest(task.ways), test_ways(task), test_ways(task)
    # Each part as many as its own episodes take: learners that train with other shots are tested on the same classes.
    needed = (_items(task), sum(validation_size(task)), test_shots(task) + task.test_queries)
    return splits.Split(
        *(
            [splits.drop_small_classes(pool, items, n) if used else pool for pool in part]
            for part, items, n, used in zip(split, needed, ways, (uses_labels, True, True), strict=True)
        )
    )


def _items(task) -> int:
    """Items of a class that an episode of training takes."""
    return largest(task.shots) + task.queries
