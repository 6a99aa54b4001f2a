# SPDX-License-Identifier: Apache-2.0
"""Pool: the labelled items of one data set, grouped by class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pool:
    """Labelled items of one data set. Every reader returns Pools; splits take Pools and return Pools.

    Attributes:
      name: name of the data set, unique among the pools of an experiment.
      domain: name of its domain.
      classes: C class names; `labels` index into it.
      labels: `int32 [n]`, ascending, so that a class is one contiguous block.
      x: `[n, ...]` array of items (uint8 images `[n, h, w, 3]`, float32 features `[n, D]`), or an object with
        `__len__` and `__getitem__(int array) -> np.ndarray` that decodes on demand.
      digests: `S64 [n]`, the SHA-256 (hex) of each item's stored bytes.
      phashes: `uint64 [n]` perceptual hashes, or None where the items are not images.
      rows: `int64 [n]`, the number of each item in the data set as it was first read, which `select` keeps, so
        that parts of a data set can share one copy of its items. Given by default.
    """

    name: str
    domain: str
    classes: tuple[str, ...]
    labels: np.ndarray
    x: Any
    digests: np.ndarray
    phashes: np.ndarray | None = None
    rows: np.ndarray = dataclasses.field(default=None)  # type: ignore[assignment, arg-type]

    def __post_init__(self):
        """Checks that every attribute speaks of the same n items."""
        n = len(self.labels)
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(n))
        columns = {"x": self.x, "digests": self.digests, "phashes": self.phashes, "rows": self.rows}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise ValueError(f"Pool {self.name!r}: {n} labels but {len(column)} {name}.")
        if n and (np.any(np.diff(self.labels) < 0) or self.labels[0] < 0):
            raise ValueError(f"Pool {self.name!r}: labels must be ascending and not negative.")
        if n and self.labels[-1] >= len(self.classes):
            raise ValueError(f"Pool {self.name!r}: label {self.labels[-1]} has no class name.")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.labels)

    @property
    def counts(self) -> np.ndarray:
        """`int64 [C]` items of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def select(self, rows: np.ndarray) -> Pool:
        """The pool of the given rows (ascending); classes left without an item are dropped and renumbered."""
        rows = np.asarray(rows)
        kept, labels = np.unique(self.labels[rows], return_inverse=True)
        return dataclasses.replace(
            self,
            classes=tuple(self.classes[c] for c in kept),
            labels=labels.astype(np.int32),
            x=self.x[rows],
            digests=self.digests[rows],
            phashes=None if self.phashes is None else self.phashes[rows],
            rows=self.rows[rows],
        )
