# SPDX-License-Identifier: Apache-2.0
"""Episodes from Pools: which items an episode holds is decided on the host, the items stay on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from metaicl.data.pool import Pool
from metaicl.episode import Episode, Examples, Source

Weighting = Literal["uniform", "images", "classes"]
Span = int | tuple[int, int]
_EPISODES_KEPT = 1024  # the width of a batch is asked for before its episodes are: none is drawn twice


class Buckets(NamedTuple):
    """Widths to which batches of sentences are padded: the smallest that holds the longest one of the batch.

    Attributes:
      lengths: `int [n]` tokens of every item of a store.
      widths: ascending; the last is that of the store's rows.
    """

    lengths: np.ndarray
    widths: tuple[int, ...]

    @classmethod
    def of(cls, x: np.ndarray, padding: int, widths: Sequence[int]) -> Buckets:
        """Of rows of ids `[n, T]` that end in padding; widths beyond T are left out."""
        last = x.shape[1] - np.argmax(x[:, ::-1] != padding, axis=1)
        lengths = np.where(np.any(x != padding, axis=1), last, 0)
        return cls(lengths, (*sorted(w for w in widths if w < x.shape[1]), x.shape[1]))

    def holding(self, rows: np.ndarray) -> int:
        """The width of a batch of these rows."""
        longest = self.lengths[rows].max(initial=0)
        return next(width for width in self.widths if width >= longest)

    def needed(self) -> np.ndarray:
        """The width that each row needs on its own, `int [n]`."""
        return np.asarray(self.widths)[np.searchsorted(self.widths, self.lengths)]


class Store(NamedTuple):
    """The items of several pools in one array, so that every split and fold shares one copy on the device.

    Attributes:
      consts: `{"x": [n, *x_shape]}`; of sentences as states of a frozen encoder `{"x": int32 [n, T], "table": [m, D]}`,
        where the former says which rows of the latter make an item `[T, D]`.
      offsets: row of the first item of each data set.
      buckets: of sentences; None for items of one width.
      lengths: `int [n]` tokens of each sentence; None for other items.
    """

    consts: dict
    offsets: dict[str, int]
    buckets: Buckets | None = None
    lengths: np.ndarray | None = None

    @property
    def item(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of an item."""
        x, table = self.consts["x"], self.consts.get("table")
        if table is None:
            return tuple(map(int, x.shape[1:])), str(x.dtype)
        return (int(x.shape[1]), int(table.shape[1])), str(table.dtype)


def make_store(
    pools: Sequence[Pool],
    place: Callable = lambda tree: tree,
    *,
    padding: int = 0,
    widths: Sequence[int] | None = None,
    table: np.ndarray | None = None,
) -> Store:
    """Joins whole pools (as read, before any split); `place` puts the array where the step wants it.

    `widths` makes batches of token ids `[n, T]` as wide as their longest sentence needs, see `Buckets`. With a `table`
    the ids are its rows, see `Store`.
    """
    starts = np.cumsum([0, *(len(p) for p in pools)])
    x = np.concatenate([np.asarray(p.x) for p in pools])
    buckets = None if widths is None else Buckets.of(x, padding, widths)
    offsets = {p.name: int(start) for p, start in zip(pools, starts, strict=False)}
    consts = {"x": x} if table is None else {"x": x, "table": table}
    return Store(place(consts), offsets, buckets, buckets and buckets.lengths)


def gather(consts, batch, key):
    """The `build` of every source over a store: rows become items, inside the jitted step.

    The items of a batch with `columns [B, T]` are cut to their first T entries.
    """
    del key

    def examples(part):
        x = consts["x"][batch[f"{part}_rows"]]
        if "columns" in batch:
            x = x[..., : batch["columns"].shape[-1]]
        if "table" in consts:
            x = consts["table"][x]
        return Examples(x, batch[f"{part}_y"], batch[f"{part}_mask"])

    info = {"dataset": batch["dataset"], "classes": batch["classes"]}
    return Episode(examples("support"), examples("query")), info


def episodes(
    store: Store,
    pools: Sequence[Pool],
    *,
    seed: int,
    ways: Span,
    shots: Span,
    queries: int,
    weighting: Weighting = "uniform",
    label_noise: float = 0.0,
    random_slots: bool = True,
) -> Source:
    """N-way K-shot episodes, each from the classes of one data set.

    Args:
      store: where the items are.
      pools: the data sets, or the parts of them, to draw from.
      seed: episode i depends on (seed, i) alone.
      ways, shots: a number, or an inclusive range to draw from per episode; episodes are padded to the largest.
      queries: queries per class.
      weighting: data sets are drawn uniformly, or in proportion to their images or classes.
      label_noise: share of support labels replaced by another label of the episode.
      random_slots: give classes random slots; False keeps their order (as GEOM's predecessor does).

    Raises:
      ValueError: if a data set has fewer classes than ways, or a class fewer items than shots + queries.
    """
    way_span, shot_span = _span("ways", ways), _span("shots", shots, least=0)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is {label_noise}; it is a share between 0 and 1.")
    tables = [_Table.of(store, pool, number) for number, pool in enumerate(pools)]
    for pool in pools:
        _check_size(pool, way_span[1], shot_span[1] + queries)
    chances = np.cumsum(_weights(pools, weighting))
    draw = _Draw(way_span, shot_span, queries, label_noise, random_slots)

    def indices(i: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
        number = min(int(np.searchsorted(chances, rng.random(), side="right")), len(tables) - 1)
        return draw.episode(rng, tables[number])

    return _source(store, indices)


def labelled_items(
    store: Store, pools: Sequence[Pool], firsts: Mapping[str, int], *, seed: int, items: int
) -> Source:
    """Plain supervised batches: an empty support, and `items` queries drawn uniformly from all images.

    Args:
      store, pools: as in `episodes`; the pools' classes must be numbered as those of the whole data sets.
      firsts: label of the first class of each data set.
      seed: episode i depends on (seed, i) alone.
      items: queries of an episode.
    """
    rows = np.concatenate([store.offsets[p.name] + p.rows for p in pools]).astype(np.int32)
    labels = np.concatenate([firsts[p.name] + p.labels for p in pools]).astype(np.int32)
    nothing = np.zeros(0, np.int32)

    def indices(i: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
        chosen = rng.integers(0, len(rows), items)
        support = {"support_rows": nothing, "support_y": nothing, "support_mask": np.zeros(0, np.float32)}
        query = {
            "query_rows": rows[chosen],
            "query_y": labels[chosen],
            "query_mask": np.ones(items, np.float32),
        }
        return support | query | {"dataset": np.asarray(-1, np.int32), "classes": nothing}

    return _source(store, indices)


def with_outsiders(source: Source, store: Store, pool: Pool, *, seed: int, items: int) -> Source:
    """The episodes of a source over `store`, each with queries more that are of no class: their label is -1.

    Args:
      source: of the episodes.
      store: where the items of both are.
      pool: what the queries are drawn from.
      seed: what episode i gets depends on (seed, i) alone.
      items: queries more, of each episode.

    Raises:
      ValueError: if the pool has fewer.
    """
    if not 0 < items <= len(pool):
        raise ValueError(f"{items} queries of {pool.name}, which has {len(pool)}: ask for 1 to {len(pool)}.")
    rows = (store.offsets[pool.name] + pool.rows).astype(np.int32)
    added = {"y": np.full(items, -1, np.int32), "mask": np.ones(items, np.float32)}

    def indices(i: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, i]))
        more = added | {"rows": rng.choice(rows, items, replace=False)}
        episode = source.indices(i)
        both = {f"query_{k}": np.concatenate([episode[f"query_{k}"], part]) for k, part in more.items()}
        return episode | both

    return _source(store, indices)


def _source(store: Store, draw: Callable[[int], dict[str, np.ndarray]]) -> Source:
    """A source over a store; the items of a batch are as wide as its longest needs, where they are sentences."""
    if store.buckets is None:
        return Source(draw, store.consts, gather)
    buckets = store.buckets
    drawn = functools.lru_cache(maxsize=_EPISODES_KEPT)(draw)

    def indices(i: int, width: int = buckets.widths[-1]) -> dict[str, np.ndarray]:
        return drawn(i) | {"columns": np.zeros(width, bool)}

    def width(numbers: Sequence[int]) -> int:
        parts = [(drawn(i), part) for i in numbers for part in ("support", "query")]
        rows = [one[f"{part}_rows"][one[f"{part}_mask"] > 0] for one, part in parts]
        return buckets.holding(np.concatenate(rows))

    return Source(indices, store.consts, gather, width=width)


class _Table(NamedTuple):
    """One data set as the sampler needs it: item rows, and where each class starts."""

    number: int
    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, store: Store, pool: Pool, number: int) -> _Table:
        counts = pool.counts
        starts = np.cumsum(counts) - counts
        return cls(number, (store.offsets[pool.name] + pool.rows).astype(np.int32), starts, counts)


class _Draw(NamedTuple):
    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int
    label_noise: float
    random_slots: bool

    def episode(self, rng: np.random.Generator, table: _Table) -> dict[str, np.ndarray]:
        """One episode: rows, labels and masks of support `[N K]` and query `[N Q/N]`, padded."""
        n, k = _pick(rng, self.ways), _pick(rng, self.shots)
        chosen = rng.choice(len(table.counts), n, replace=False)
        if not self.random_slots:
            chosen.sort()
        each = k + self.queries
        rows = np.stack([table.starts[c] + rng.choice(table.counts[c], each, replace=False) for c in chosen])
        rows = table.rows[rows]  # [n, k + queries]
        slots = np.broadcast_to(np.arange(n, dtype=np.int32)[:, None], rows.shape)
        support_y = slots[:, :k].reshape(-1)
        if self.label_noise:
            wrong = rng.random(len(support_y)) < self.label_noise
            support_y = np.where(
                wrong, (support_y + rng.integers(1, max(n, 2), len(support_y))) % n, support_y
            )
        order = rng.permutation(n * k)
        support = _padded(
            "support", rows[:, :k].reshape(-1)[order], support_y[order], self.ways[1] * self.shots[1]
        )
        query_y = slots[:, k:].reshape(-1)
        query = _padded("query", rows[:, k:].reshape(-1), query_y, self.ways[1] * self.queries)
        classes = np.full(self.ways[1], -1, np.int32)
        classes[:n] = chosen
        return support | query | {"dataset": np.asarray(table.number, np.int32), "classes": classes}


def _padded(part: str, rows: np.ndarray, y: np.ndarray, length: int) -> dict[str, np.ndarray]:
    result = {f"{part}_rows": np.zeros(length, np.int32), f"{part}_y": np.zeros(length, np.int32)}
    result[f"{part}_rows"][: len(rows)] = rows
    result[f"{part}_y"][: len(rows)] = y
    return result | {f"{part}_mask": (np.arange(length) < len(rows)).astype(np.float32)}


def _pick(rng, span: tuple[int, int]) -> int:
    return span[0] if span[0] == span[1] else int(rng.integers(span[0], span[1] + 1))


def _span(name: str, value: Span, least: int = 1) -> tuple[int, int]:
    low, high = (value, value) if isinstance(value, int) else tuple(value)
    if not least <= low <= high:
        raise ValueError(f"{name} is {value}; give a number of at least {least}, or a rising pair.")
    return low, high


def _weights(pools: Sequence[Pool], weighting: Weighting) -> np.ndarray:
    if weighting not in ("uniform", "images", "classes"):
        raise ValueError(f"weighting is {weighting!r}; use 'uniform', 'images' or 'classes'.")
    sizes = {
        "uniform": [1 for _ in pools],
        "images": [len(p) for p in pools],
        "classes": [len(p.classes) for p in pools],
    }[weighting]
    return np.asarray(sizes, np.float64) / np.sum(sizes)


def _check_size(pool: Pool, ways: int, items: int) -> None:
    if len(pool.classes) < ways:
        raise ValueError(
            f"Data set {pool.name!r} has {len(pool.classes)} classes, fewer than {ways} ways: "
            "ask for fewer ways, or leave the data set out."
        )
    small = np.flatnonzero(pool.counts < items)
    if len(small):
        raise ValueError(
            f"Class {pool.classes[small[0]]!r} of data set {pool.name!r} has {pool.counts[small[0]]} items, "
            f"fewer than {items} (shots + queries): drop small classes first, or ask for fewer."
        )
