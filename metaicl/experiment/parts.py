# SPDX-License-Identifier: Apache-2.0
"""What a problem consists of: sources to train on, and sets of fixed episodes to test on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metaicl.data.pool import Pool
from metaicl.episode import Source, TaskSpec


class TestSet(NamedTuple):
    """Fixed episodes of one data set.

    Attributes:
      dataset, domain: names.
      classes: number of classes that the episodes draw from; 0 where there are none.
      split_by: what training and test do not share: `domains`, `classes`, `images` or `functions`.
      ways, shots, queries: of an episode; queries in all.
      source: where the episodes come from.
      scale: what the squared error is divided by for the `error` of the records; 0 where that means nothing.
      setting, value: of a set that is one point of a curve over a setting of the data.
      with_outsiders: the same episodes with queries more that are of no class, or None.
    """

    dataset: str
    domain: str
    classes: int
    split_by: str
    ways: int
    shots: int
    queries: int
    source: Source
    scale: float = 0.0
    setting: str = ""
    value: float = 0.0
    with_outsiders: Source | None = None


class Problem(NamedTuple):
    """What a learner is trained, selected and tested on.

    Attributes:
      spec: of the learner.
      train: `(seed) -> Source`; where there are pools also `(seed, names of data sets) -> Source`, of these alone.
      validation, test: the sets to choose by, and to report on; problems with one list of them share the object.
      pools: the parts of the data sets that are trained on in episodes.
    """

    spec: TaskSpec
    train: Callable[..., Source]
    validation: list[TestSet]
    test: list[TestSet]
    pools: Sequence[Pool] = ()
