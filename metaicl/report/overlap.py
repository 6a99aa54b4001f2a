# SPDX-License-Identifier: Apache-2.0
"""Accuracy on data sets beside the share of their classes that a backbone's pretraining has seen."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaicl.report.correlation import LEAST, over_sets, permutation_over_sets
from metaicl.report.reading import Record, label_learners
from metaicl.report.statistics import Interval, cells_of, dataset_interval, grand_mean, paired_cells
from metaicl.report.style import DASHED, INK, Drawing, Look, canvas, looks, png_of
from metaicl.report.tables import MISSING, Cell, Table, format_interval, pretty, rounded


class Overlap(NamedTuple):
    """P data sets, from the largest overlap to the smallest.

    Attributes:
      datasets, domains: names.
      overlap: `[P]` shares of classes.
      learners: those to compare: the trained ones, and the best untrained one behind them.
      trained: which of them are.
      accuracy: `[learner][P]`; None where a learner was not tested, having trained there.
      differences: `[P]`, the second learner less the first one, if just two were trained; else empty.
      relative: `[P]`, the same as a share of the first one's accuracy.
      chance: accuracy of guessing.
    """

    datasets: list[str]
    domains: list[str]
    overlap: np.ndarray
    learners: list[str]
    trained: dict[str, bool]
    accuracy: dict[str, list[Interval | None]]
    differences: list[Interval | None]
    relative: list[float | None]
    chance: float


def load_overlap(records: Sequence[Record]) -> Overlap | None:
    """What the records say of overlap; None where nobody measured it."""
    share = {r["dataset"]: float(r["values"]["overlap"][0]) for r in records if r["evaluation"] == "overlap"}
    main = [r for r in records if r["evaluation"] == "main" and r["split"] == "test"]
    main = [r for r in main if "accuracy" in r["values"]]
    if not share or not main:
        return None
    of: dict[str, list[Record]] = defaultdict(list)
    for r in label_learners(main):
        of[r["label"]].append(r)
    mean = {name: grand_mean(cells_of(own, "accuracy")) for name, own in of.items()}
    trained = {name: bool(own[0]["trained"]) for name, own in of.items()}
    untrained = sorted((name for name in of if not trained[name]), key=lambda n: -mean[n])[:1]
    # Who was tested in most places comes first, then by name.
    chosen = sorted((n for n in of if trained[n]), key=lambda n: (-len({r["dataset"] for r in of[n]}), n))
    domain = {r["dataset"]: r["domain"] for r in main}
    sets = sorted((s for s in domain if s in share), key=lambda s: (-share[s], domain[s], s))
    at = lambda name, s: [r for r in of[name] if r["dataset"] == s]
    found = lambda name, s: dataset_interval(cells_of(at(name, s), "accuracy")) if at(name, s) else None
    learners = [*chosen, *untrained]
    differences: list[Interval | None] = []
    if len(chosen) == 2:
        pair = lambda s: paired_cells(*(cells_of(at(name, s), "accuracy") for name in reversed(chosen)))
        differences = [dataset_interval(pair(s)) if pair(s) else None for s in sets]
    accuracy = {name: [found(name, s) for s in sets] for name in learners}
    base = accuracy[learners[0]]
    return Overlap(
        sets,
        [domain[s] for s in sets],
        np.array([share[s] for s in sets]),
        learners,
        {name: trained[name] for name in learners},
        accuracy,
        differences,
        [d.mean / b.mean if d and b and b.mean else None for d, b in zip(differences, base, strict=False)],
        1 / main[0]["ways"] if main[0]["ways"] else float("nan"),
    )


def agreement(o: Overlap) -> tuple[Interval, float, int] | None:
    """Rank correlation of overlap and difference, its p-value, the number of data sets; None without ranks."""
    both = [(x, d.mean) for x, d in zip(o.overlap, o.differences, strict=False) if d]
    x, y = np.array(both).reshape(-1, 2).T
    if len(both) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return over_sets(x, y), permutation_over_sets(x, y), len(both)


def overlap_table(o: Overlap) -> Table:
    """Data sets by learners, with the difference of the first two in points and relative."""
    columns = ["overlap", *map(pretty, o.learners)]
    if o.differences:
        columns += ["difference", "relative"]
    rows = []
    for k, (name, domain) in enumerate(zip(o.datasets, o.domains, strict=True)):
        texts = [f"{100 * o.overlap[k]:.0f}"]
        texts += [format_interval(o.accuracy[learner][k], "accuracy") for learner in o.learners]
        if o.differences:
            texts.append(format_interval(o.differences[k], "accuracy", signed=True))
            share = o.relative[k]
            texts.append(MISSING if share is None else f"{100 * share:+.1f}")
        rows.append((f"{pretty(name)} · {pretty(domain)}", [Cell(text) for text in texts]))
    notes = ["overlap: percent of a data set's classes that are among ImageNet's 1,000, by name."]
    if o.differences:
        first, second = map(pretty, o.learners[:2])
        notes.append(f"difference: {second} less {first}, points; relative: percent of {first}'s accuracy.")
    if both := agreement(o):
        rho, p, count = both
        notes.append(
            f"Rank correlation of overlap and difference over {count} data sets: {rho.mean:+.2f} (95 % "
            f"{rho.low:+.2f} to {rho.high:+.2f} by bootstrap over data sets; p = {p:.2g} by permutation)."
        )
    return Table("accuracy beside class overlap", "data set", columns, rows, notes)


def overlap_rows(o: Overlap) -> list[dict]:
    """The rows of `results.json`."""
    head = {"run": "overlap", "learner": "", "split": "test"}
    rows: list[dict] = [
        head | {"dataset": name, "domain": domain, "metric": "class_overlap", "mean": rounded(value)}
        for name, domain, value in zip(o.datasets, o.domains, o.overlap, strict=True)
    ]
    if both := agreement(o):
        rho, p, count = both
        about = {
            "dataset": f"{count} data sets",
            "domain": "all",
            "metric": "spearman_overlap_and_difference",
        }
        numbers = {"mean": rounded(rho.mean), "low": rounded(rho.low), "high": rounded(rho.high)}
        rows.append(head | about | numbers | {"p": rounded(p)})
    return rows


def draw_overlap(o: Overlap) -> Drawing:
    """Bars of every data set: accuracy of the learners, and beside them the overlap."""
    figure, (left, right) = canvas(8.6, 1.4 + 0.34 * len(o.datasets), columns=2)
    look = looks(o.trained)
    height = 0.8 / len(o.learners)
    places = np.arange(len(o.datasets))
    for k, learner in enumerate(o.learners):
        _bars(left, places + (k + 0.5) * height - 0.4, o.accuracy[learner], height, look[learner], learner)
    left.axvline(100 * o.chance, color=INK, lw=1, ls=DASHED, label="chance")
    left.set_xlabel("accuracy (%)")
    left.set_yticks(
        places, [f"{pretty(n)} · {pretty(d)}" for n, d in zip(o.datasets, o.domains, strict=True)]
    )
    left.set_title("Accuracy beside class overlap")
    right.barh(places, 100 * o.overlap, 0.8, color=INK, alpha=0.6)
    right.set_xlabel("classes among ImageNet's 1,000 (%)")
    right.set_xlim(0, 100)
    right.set_yticks(places, [])
    for axes in (left, right):
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside right upper", borderaxespad=1.6)
    caption = (
        "Data sets from the largest to the smallest share of classes that are among ImageNet's 1,000, by name. Bars "
        "have 95 % intervals. A learner has no bar where it was trained."
    )
    return Drawing("overlap", caption, png_of(figure))


def _bars(axes, places, found: Sequence[Interval | None], height: float, look: Look, label: str) -> None:
    known = [(y, i) for y, i in zip(places, found, strict=True) if i]
    ends = np.array([[i.mean - i.low, i.high - i.mean] for _, i in known]).reshape(-1, 2).T
    axes.barh(
        [y for y, _ in known],
        [100 * i.mean for _, i in known],
        height,
        xerr=100 * np.clip(np.nan_to_num(ends), 0, None),
        color=look.color,
        label=pretty(label),
        error_kw={"elinewidth": 0.9, "ecolor": INK},
    )
