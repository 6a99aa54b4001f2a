# SPDX-License-Identifier: Apache-2.0
"""Means, intervals, paired differences and calibration: the only arithmetic of the report.

Legend: R resamples, D domains, T data sets of a domain, U seeds, E episodes, M prepared resamples of E.
"""

import functools
import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.report.reading import Record, higher_is_better, unit

RESAMPLES = 1000


class Interval(NamedTuple):
    """A mean and its 95 % interval; the ends are NaN where nothing can be said about them."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width, what follows the plus-minus sign."""
        return (self.high - self.low) / 2


class Cell(NamedTuple):
    """The episodes of one learner on one data set with one seed."""

    domain: str
    dataset: str
    unit: str
    run: str
    episodes: tuple[int, int]  # (seed, first index): equal pairs are the same episodes
    values: np.ndarray  # [E]


def mean_interval(values: np.ndarray) -> Interval:
    """Mean over episodes and its normal 95 % interval, 1.96 standard errors."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        mean = float(values.mean()) if values.size else float("nan")
        if values.size < 2 or not np.isfinite(values).all():
            return Interval(mean, float("nan"), float("nan"))
    half = float(1.96 * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def cells_of(records: Sequence[Record], metric: str) -> list[Cell]:
    """The cells of one learner's records; those that lack the metric are left out."""
    cells = []
    for r in records:
        if metric in r["values"]:
            episodes = r.get("episodes", {})
            start = (episodes.get("seed", 0), episodes.get("start", 0))
            cells.append(Cell(r["domain"], r["dataset"], unit(r), r["run"], start, r["values"][metric]))
    return cells


def _tree(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Domain -> data set -> cells by seed, in an order that does not depend on the files'."""
    tree: dict = defaultdict(lambda: defaultdict(list))
    for cell in sorted(cells, key=lambda c: (c.domain, c.dataset, c.unit, c.run)):
        tree[cell.domain][cell.dataset].append(cell)
    return tree


def grand_mean(cells: Sequence[Cell]) -> float:
    """Mean over domains of the mean over data sets of the mean over seeds of the mean over episodes."""
    if not cells:
        return float("nan")
    domains = _tree(cells).values()
    with np.errstate(invalid="ignore"):
        means = [np.mean([np.mean([c.values.mean() for c in d]) for d in sets.values()]) for sets in domains]
        return float(np.mean(means))


@functools.lru_cache(maxsize=16)
def _episode_weights(episodes: int, resamples: int, seed: int) -> np.ndarray:
    """[M, E] row m is one resample of the episodes, as weights that sum to one."""
    rng = np.random.default_rng([seed, episodes])
    picks = rng.integers(episodes, size=(resamples, episodes)) + episodes * np.arange(resamples)[:, None]
    counts = np.bincount(picks.ravel(), minlength=resamples * episodes).reshape(resamples, episodes)
    return counts / episodes


def _resampled_means(per_dataset: list[list[Cell]], resamples: int, seed: int) -> np.ndarray:
    """[data sets, U, M] each cell's mean over M resamples of its episodes, one product per episode count."""
    pool = np.zeros((len(per_dataset), max(len(cells) for cells in per_dataset), resamples))
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for d, cells in enumerate(per_dataset):
        for u, cell in enumerate(cells):
            places[cell.values.size].append((d, u))
    for size, found in places.items():
        values = np.stack([per_dataset[d][u].values for d, u in found])
        pool[tuple(np.transpose(found))] = values @ _episode_weights(size, resamples, seed).T
    return pool


def _slot_mean(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean over the last axis of its first `sizes` slots; the others are padding."""
    real = np.arange(values.shape[-1]) < sizes[..., None]
    return np.where(real, values, 0).sum(-1) / sizes


def hierarchical_bootstrap(cells: Sequence[Cell], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The grand mean and its percentile interval, resampling domains, data sets, seeds and episodes.

    Seeds and data sets are crossed: one trained model answers every data set of its run, so one draw of seeds
    holds for a whole drawn domain, and for all domains where one run spans several. In the same way one draw
    of episodes holds for all seeds, which were measured on the same episodes.
    """
    mean = grand_mean(cells)
    if not cells or not all(c.values.size and np.isfinite(c.values).all() for c in cells):
        return Interval(mean, float("nan"), float("nan"))
    tree = _tree(cells)
    per_dataset = [units for sets in tree.values() for units in sets.values()]
    units = np.array([len(u) for u in per_dataset])
    pool = _resampled_means(per_dataset, resamples, seed)
    sizes = np.array([len(sets) for sets in tree.values()])  # [D]
    first = np.cumsum(sizes) - sizes

    rng = np.random.default_rng(seed)
    shape = (resamples, len(sizes), sizes.max())
    domain = rng.integers(len(sizes), size=shape[:2])  # [R, D]
    dataset = first[domain][..., None] + (rng.random(shape) * sizes[domain][..., None]).astype(
        int
    )  # [R, D, T]
    shared = 1 if _spans_domains(cells) else len(sizes)
    luck = rng.random((resamples, shared, 1, units.max()))
    chosen = (luck * units[dataset][..., None]).astype(int)  # [R, D, T, U]
    draw = rng.integers(resamples, size=shape)
    values = pool[dataset[..., None], chosen, draw[..., None]]
    samples = _slot_mean(_slot_mean(values, units[dataset]), sizes[domain]).mean(-1)  # [R]
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _spans_domains(cells: Sequence[Cell]) -> bool:
    domains = defaultdict(set)
    for cell in cells:
        domains[cell.run, cell.unit].add(cell.domain)
    return any(len(found) > 1 for found in domains.values())


def dataset_interval(cells: Sequence[Cell]) -> Interval:
    """The interval for one data set: normal over its episodes, bootstrap once there are several seeds."""
    return mean_interval(cells[0].values) if len(cells) == 1 else hierarchical_bootstrap(cells)


def paired_cells(ours: Sequence[Cell], theirs: Sequence[Cell]) -> list[Cell]:
    """Ours minus theirs on the episodes that both have seen, seed by seed.

    Whoever has a single seed (a baseline that nothing random happened to) meets every seed of the other.
    """
    a_sets, b_sets = _by(ours, "domain", "dataset"), _by(theirs, "domain", "dataset")
    pairs = []
    for key in sorted(a_sets.keys() & b_sets.keys()):
        a, b = a_sets[key], b_sets[key]
        if len(a) == 1 or len(b) == 1:
            pairs += [(x, y) for x in a for y in b]
        else:
            pairs += [(x, y) for x in a for y in b if x.unit == y.unit]
    found = [(x, y, _common(x, y)) for x, y in pairs]
    # Whichever of the two has more seeds names the cell, or two cells would carry the same name.
    return [
        (x if len(a_sets[x.domain, x.dataset]) > 1 else y)._replace(values=difference)
        for x, y, difference in found
        if difference.size
    ]


def _common(a: Cell, b: Cell) -> np.ndarray:
    """The differences over the episodes that both cells hold; [0] where they share none."""
    (a_seed, a_start), (b_seed, b_start) = a.episodes, b.episodes
    start = max(a_start, b_start)
    stop = min(a_start + a.values.size, b_start + b.values.size)
    if a_seed != b_seed or stop <= start:
        return np.zeros(0)
    return a.values[start - a_start : stop - a_start] - b.values[start - b_start : stop - b_start]


def pooled_bins(records: Sequence[Record]) -> np.ndarray | None:
    """[3, bins] count, summed confidence and number correct over all records; None where there are none."""
    bins = [r["calibration"] for r in records if r.get("calibration")]
    if not bins:
        return None
    return np.array([[b["count"], b["confidence"], b["correct"]] for b in bins], np.float64).sum(0)


def calibration_error(bins: np.ndarray | None) -> float:
    """Expected calibration error of pooled bins: the gap of confidence and accuracy, weighted by count."""
    if bins is None:
        return float("nan")
    count, confidence, correct = bins
    return float(np.abs(confidence - correct).sum() / count.sum()) if count.sum() else float("nan")


class Summary(NamedTuple):
    """Everything that tables and figures say about one group of records; learners from best to worst."""

    metric: str
    learners: list[str]
    trained: dict[str, bool]
    domains: list[str]
    datasets: dict[str, str]  # data set -> domain, sorted by domain
    overall: dict[str, Interval]
    places: list[str]  # what a table has a column for: the domains, or the data sets of the only domain
    by_place: dict[str, dict[str, Interval]]
    by_dataset: dict[str, dict[str, Interval]]
    baseline: str | None  # the best untrained learner
    to_baseline: dict[str, Interval]
    to_best: dict[str, Interval]
    to_baseline_by_place: dict[str, dict[str, Interval]]
    nll: dict[str, float]
    unsolved: dict[str, float]  # share of the episodes for which a probe found no solution
    bins: dict[str, np.ndarray | None]


def _by(cells: Sequence[Cell], *fields: str) -> dict[Any, list[Cell]]:
    """The cells by one field, or by a tuple of several."""
    key = operator.attrgetter(*fields)
    parts: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        parts[key(cell)].append(cell)
    return dict(parts)


def _intervals(cells: Sequence[Cell], field: str) -> dict[str, Interval]:
    return {
        name: dataset_interval(part) if field == "dataset" else hierarchical_bootstrap(part)
        for name, part in _by(cells, field).items()
    }


def summarise(records: Sequence[Record], metric: str) -> Summary:
    """Compute every number of the report for labelled records of one protocol."""
    by_label = defaultdict(list)
    for record in records:
        by_label[record["label"]].append(record)
    cells = {label: cells_of(members, metric) for label, members in by_label.items()}
    overall = {label: hierarchical_bootstrap(cells[label]) for label in cells}
    sign = -1 if higher_is_better(metric) else 1
    learners = sorted(cells, key=lambda label: (np.nan_to_num(sign * overall[label].mean, nan=np.inf), label))
    trained = {label: any(r["trained"] for r in by_label[label]) for label in learners}
    baseline = next((label for label in learners if not trained[label]), None)
    pairs = (
        {x: paired_cells(cells[x], cells[baseline]) for x in learners if x != baseline} if baseline else {}
    )
    best = {x: paired_cells(cells[x], cells[learners[0]]) for x in learners[1:]}
    where = sorted({(r["domain"], r["dataset"]) for r in records})
    domains = sorted({domain for domain, _ in where})
    field = "domain" if len(domains) > 1 else "dataset"
    return Summary(
        metric=metric,
        learners=learners,
        trained=trained,
        domains=domains,
        datasets={dataset: domain for domain, dataset in where},
        overall=overall,
        places=domains if len(domains) > 1 else [dataset for _, dataset in where],
        by_place={x: _intervals(cells[x], field) for x in learners},
        by_dataset={x: _intervals(cells[x], "dataset") for x in learners},
        baseline=baseline,
        to_baseline={x: hierarchical_bootstrap(pair) for x, pair in pairs.items() if pair},
        to_best={x: hierarchical_bootstrap(pair) for x, pair in best.items() if pair},
        to_baseline_by_place={x: _intervals(pair, field) for x, pair in pairs.items()},
        nll={x: grand_mean(cells_of(by_label[x], "nll")) for x in learners},
        unsolved={x: grand_mean(cells_of(by_label[x], "unsolved")) for x in learners},
        bins={x: pooled_bins(by_label[x]) for x in learners},
    )
