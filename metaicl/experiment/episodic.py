# SPDX-License-Identifier: Apache-2.0
"""From the parts of a split to sources of N-way K-shot episodes, and to the test sets that are points of curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.configuration import ConfigError
from metaicl.data import sampler, splits
from metaicl.data.pool import Pool
from metaicl.episode import TaskSpec
from metaicl.experiment.parts import Problem, TestSet


def episodic(store, parts, split_by, task, evaluation, suffix: str = "") -> Problem:
    """N-way K-shot episodes of the pools of each part; `suffix` is added to the names that are reported.

    Raises:
      ConfigError, ValueError: for pools that are too small for the task.
    """
    shape, dtype = store.item
    spec = TaskSpec(
        "classify", shape, dtype, max(largest(task.ways), test_ways(task), *evaluation.get("ways", ()))
    )

    def train(seed, datasets=()):
        return sampler.episodes(
            store,
            [pool for pool in parts.train if not datasets or pool.name in datasets],
            seed=seed,
            ways=_span(task.ways),
            shots=_span(task.shots),
            queries=task.queries,
            weighting=task.weighting,
            label_noise=task.label_noise,
            random_slots=task.random_slots,
        )

    if parts.train:  # else what is trained on is made elsewhere
        train(0)  # refuses what does not fit now, not after the first evaluation
    made = _Sets(store, split_by, test_ways(task), suffix)
    validation = [made.held(p, evaluation.seed + 1, *validation_size(task)) for p in parts.validation]
    size = (evaluation.seed, test_shots(task), task.test_queries)
    test = [made.held(pool, *size) for pool in parts.test]
    points = [
        *_of_lengths(made, parts.test, size, evaluation.get("lengths", ())),
        *_of_noise(made, parts.test, size, evaluation.get("label_noise", ())),
        *_of_ways(made, parts.test, size, evaluation.get("ways", ())),
    ]
    return Problem(spec, train, validation, [*test, *points], parts.train)


def check_points(data, evaluation) -> None:
    """Refuses points of curves where there are no N-way K-shot episodes for them, before anything is read.

    Raises:
      ConfigError: for such data, and for shares of labels or numbers of ways that are none.
    """
    asked = [key for key in ("lengths", "label_noise", "ways") if evaluation.get(key, ())]
    few_shot = data.kind in ("album", "published", "text") and data.get("split", "") != "supervised"
    if asked and not few_shot:
        raise ConfigError(
            f"evaluate.{asked[0]} is of N-way K-shot episodes, which this data (data.kind={data.kind!r}) has not. "
            "Leave it empty."
        )
    if any(not 0 <= share <= 1 for share in evaluation.get("label_noise", ())):
        raise ConfigError(
            f"evaluate.label_noise is {tuple(evaluation.label_noise)}: give shares between 0 and 1."
        )
    if any(n < 2 for n in evaluation.get("ways", ())):
        raise ConfigError(f"evaluate.ways is {tuple(evaluation.ways)}: give 2 or more.")


class _Sets(NamedTuple):
    """What makes test sets, of `ways` unless others are asked for; `suffix` is added to their names."""

    store: sampler.Store
    split_by: dict[str, str]
    ways: int
    suffix: str

    def held(self, pool: Pool, seed: int, shots: int, queries: int, *, ways: int = 0, **more: Any) -> TestSet:
        """Fixed episodes of a pool."""
        n = ways or self.ways
        sizes: dict[str, Any] = dict(seed=seed, ways=n, shots=shots, queries=queries)
        source = sampler.episodes(self.store, [pool], **sizes, **more)
        names = (pool.name + self.suffix, pool.domain, len(pool.classes), self.split_by[pool.name])
        return TestSet(*names, n, shots, n * queries, source)


def _of_lengths(made: _Sets, pools: Sequence[Pool], size, ends: Sequence[int]) -> list[TestSet]:
    """Test sets of sentences of the bands of lengths that `ends` end, as points of a curve."""
    found: list[TestSet] = []
    lengths, low = made.store.lengths, 0
    if ends and lengths is None:
        raise ConfigError(
            "evaluate.lengths is of sentences, and these items have no lengths: leave it empty."
        )
    for high in ends:
        for pool in pools:
            tokens = lengths[made.store.offsets[pool.name] + pool.rows]  # type: ignore[index]
            within = pool.select(np.flatnonzero((low < tokens) & (tokens <= high)))
            try:
                within = splits.drop_small_classes(within, size[1] + size[2], made.ways)
            except ValueError as error:
                raise ConfigError(
                    f"evaluate.lengths: too few sentences of {pool.name} have {low + 1} to {high} tokens. Give wider "
                    f"bands, or none. ({error})"
                ) from error
            found.append(made.held(within, *size)._replace(setting="tokens", value=float(high)))
        low = high
    return found


def _of_noise(made: _Sets, pools: Sequence[Pool], size, shares: Sequence[float]) -> list[TestSet]:
    """The test episodes with a share of their support labels wrong, as points of a curve."""
    return [
        made.held(pool, *size, label_noise=share)._replace(
            setting="wrong support labels (%)", value=100 * share
        )
        for share in shares
        for pool in pools
    ]


def _of_ways(made: _Sets, pools: Sequence[Pool], size, ways: Sequence[int]) -> list[TestSet]:
    """Test episodes of so many ways, as points of a curve, of the data sets that have classes enough for all."""
    large = [pool for pool in pools if len(pool.classes) >= max(ways, default=0)]
    if ways and not large:
        raise ConfigError(
            f"evaluate.ways asks for {max(ways)} ways; the largest data set of the test has "
            f"{max(len(pool.classes) for pool in pools)} classes. Ask for fewer."
        )
    return [
        made.held(pool, *size, ways=n)._replace(setting="ways", value=float(n))
        for n in ways
        for pool in large
    ]


# `get`: configs of committed results that are older than these keys are built again.
def test_shots(task) -> int:
    """Shots of the test: those of training, unless the task has its own."""
    return task.get("test_shots", 0) or largest(task.shots)


def test_ways(task) -> int:
    """Ways of the test and validation: the most of training, unless the task has its own number."""
    return task.get("test_ways", 0) or largest(task.ways)


def validation_size(task) -> tuple[int, int]:
    """Shots and queries of a class in validation: those of the test, unless the task has its own."""
    shots, queries = task.get("validation_shots", 0), task.get("validation_queries", 0)
    return shots or test_shots(task), queries or task.test_queries


def largest(span: Any) -> int:
    """The larger end of a span of numbers, or the number."""
    return int(span if isinstance(span, int) else span[1])


def _span(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)
