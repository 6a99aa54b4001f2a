# SPDX-License-Identifier: Apache-2.0
"""Pools made of others: several data sets as one, or a part of the classes and items of one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from metaicl.data.images import DataWarning
from metaicl.data.pool import Pool

MERGED = "merged"
_SHOWN = 3


def unite(pools: Sequence[Pool], offsets: Mapping[str, int], *, held: Sequence[Pool] = ()) -> Pool:
    """One pool of the classes of several data sets, as GEOM-M trains on (arXiv 2507.05019).

    Classes of one name are one class. Classes whose name a pool of `held` has too are left out: what is tested must
    not be trained on under another data set's name. A `DataWarning` counts and names both. Capitals, `_` and `-` do
    not matter to names.

    Args:
      pools: of items of one shape, in memory.
      offsets: row of the first item of each data set in the array that holds them all: the result's `rows` count in
        that array, so that its own offset is 0.
      held: pools of validation and test.

    Raises:
      ValueError: if no class is left.
    """
    forbidden = {plain(c) for pool in held for c in pool.classes}
    first: dict[str, str] = {}
    sources: dict[str, set[str]] = {}
    for pool in pools:
        for c in pool.classes:
            first.setdefault(plain(c), c)
            sources.setdefault(plain(c), set()).add(pool.name)
    lost = sorted(first[name] for name in first.keys() & forbidden)
    shared = sorted(first[name] for name, of in sources.items() if len(of) > 1 and name not in forbidden)
    names = sorted(first.keys() - forbidden)
    if not names:
        raise ValueError(
            f"All {len(first)} classes of {', '.join(p.name for p in pools)} are in the test too: train on others."
        )
    for what, found in (
        ("classes that several data sets have were united", shared),
        ("classes that validation or test have too were left out", lost),
    ):
        if found:
            shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            warnings.warn(f"{MERGED}: {len(found)} {what}: {shown}.", DataWarning, stacklevel=2)
    number = {name: i for i, name in enumerate(names)}
    each = [
        np.array([number.get(plain(c), -1) for c in pool.classes], np.int32)[pool.labels] for pool in pools
    ]
    labels = np.concatenate(each)
    order = np.argsort(labels, kind="stable")[np.sum(labels < 0) :]
    column = lambda name: np.concatenate([getattr(pool, name) for pool in pools])[order]
    return Pool(
        name=MERGED,
        domain=MERGED,
        classes=tuple(first[name] for name in names),
        labels=labels[order],
        x=np.concatenate([np.asarray(pool.x) for pool in pools])[order],
        digests=column("digests"),
        phashes=None if any(pool.phashes is None for pool in pools) else column("phashes"),
        rows=np.concatenate([offsets[pool.name] + pool.rows for pool in pools])[order],
    )


def subsample(pool: Pool, *, classes: float = 1.0, items: int = 0, least: int = 1, seed: int = 0) -> Pool:
    """A part of a data set: a share of its classes (at `least` so many), and at most so many items of each (0: all).

    What is kept is drawn by the seed alone, and less is a part of more: the classes of a quarter are among those of a
    half, and the same for items.

    Raises:
      ValueError: for a share that is none, or a negative number of items.
    """
    if not 0 < classes <= 1 or items < 0:
        raise ValueError(
            f"classes={classes}, items={items}: give a share above 0, up to 1, and 0 items or more."
        )
    count = len(pool.classes)
    order = np.random.default_rng([seed, count]).permutation(count)
    kept = set(order[: max(least, round(classes * count))].tolist())
    rows = []
    for c in sorted(kept):
        own = np.flatnonzero(pool.labels == c)
        chosen = np.random.default_rng([seed, c, 1]).permutation(own)
        rows.append(np.sort(chosen[: items or None]))
    return pool.select(np.concatenate(rows))


def plain(name: str) -> str:
    """A class's name without what is only its spelling."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
