# SPDX-License-Identifier: Apache-2.0
"""How hard data sets are: by one recipe of supervised learning, and by the cheap probe that orders go by."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from metaicl.report.correlation import LEAST, over_sets, permutation_over_sets
from metaicl.report.reading import Record
from metaicl.report.statistics import Interval, cells_of, dataset_interval
from metaicl.report.style import INK, TRAINED, Drawing, canvas, png_of
from metaicl.report.tables import MISSING, Cell, Table, format_interval, pretty, rounded


class Difficulty(NamedTuple):
    """P data sets, from the hardest to the easiest; the difficulty is 1 less the accuracy.

    Attributes:
      learner: what was trained on each data set.
      datasets, domains: names.
      classes: `[P]`, which chance depends on.
      accuracy: of the recipe, on images that it was not trained on.
      ease: `[P]`, accuracy of the cheap probe; NaN where it was not measured.
      seeds: number of learners behind each accuracy.
    """

    learner: str
    datasets: list[str]
    domains: list[str]
    classes: np.ndarray
    accuracy: list[Interval]
    ease: np.ndarray
    seeds: int

    @property
    def means(self) -> np.ndarray:
        """`[P]` accuracies."""
        return np.array([interval.mean for interval in self.accuracy])


def load_difficulty(records: Sequence[Record]) -> Difficulty | None:
    """What the records of an experiment say of difficulty; None where nobody asked for it."""
    ease = {r["dataset"]: float(r["values"]["accuracy"].mean()) for r in records if r["evaluation"] == "ease"}
    by_set: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        if r["evaluation"] == "main" and r["split"] == "test" and r["trained"]:
            by_set[r["dataset"]].append(r)
    if not ease or not by_set:
        return None
    found = {name: dataset_interval(cells_of(own, "accuracy")) for name, own in by_set.items()}
    names = sorted(found, key=lambda name: (found[name].mean, name))
    first = by_set[names[0]]
    return Difficulty(
        first[0]["learner"],
        names,
        [by_set[name][0]["domain"] for name in names],
        np.array([by_set[name][0]["classes"] for name in names]),
        [found[name] for name in names],
        np.array([ease.get(name, np.nan) for name in names]),
        len(first),
    )


def agreement(d: Difficulty) -> tuple[Interval, float] | None:
    """Rank correlation of both accuracies with its p-value; None where not all, or too few, were measured."""
    if len(d.datasets) < LEAST or not np.isfinite(d.ease).all():
        return None
    return over_sets(d.means, d.ease), permutation_over_sets(d.means, d.ease)


def above_chance(d: Difficulty) -> np.ndarray:
    """`[P]`: accuracies with guessing at 0 and knowing at 1, so that numbers of classes weigh less."""
    return (d.means - 1 / d.classes) / (1 - 1 / d.classes)


def difficulty_table(d: Difficulty) -> Table:
    """The data sets from hard to easy."""
    known = np.isfinite(d.ease)
    place = np.full(len(d.ease), np.nan)
    place[known] = rankdata(d.ease[known])
    rows = []
    for k, (name, domain) in enumerate(zip(d.datasets, d.domains, strict=True)):
        probe = [f"{100 * d.ease[k]:.1f}", f"{place[k]:g}"] if known[k] else [MISSING] * 2
        own = [format_interval(d.accuracy[k], "accuracy"), f"{100 * above_chance(d)[k]:.1f}"]
        texts = [f"{k + 1}", f"{d.classes[k]}", *own, *probe]
        rows.append((f"{name} · {pretty(domain)}", [Cell(text) for text in texts]))
    columns = ["from hard", "classes", "accuracy", "above chance", "probe", "from hard"]
    both = agreement(d)
    notes = [
        f"accuracy: {pretty(d.learner)}, percent, all classes of a data set at once, on images that it was not trained "
        f"on; ± is half the 95 % interval over draws of test images{' and seeds' if d.seeds > 1 else ''}.",
        "above chance: guessing is 0 and knowing is 100; probe: ridge regression on at most 20 classes, by which "
        "sequence.order goes.",
    ]
    if both:
        rho, p = both
        notes.append(
            f"Rank correlation of accuracy and probe: {rho.mean:+.2f} (95 % {rho.low:+.2f} to {rho.high:+.2f} by "
            f"bootstrap over data sets; p = {p:.2g} by permutation)."
        )
    return Table("difficulty of data sets", "data set", columns, rows, notes)


def difficulty_rows(d: Difficulty) -> list[dict]:
    """The rows of `results.json`: the difficulty of every data set, and how far both measures agree."""
    shared = {"learner": d.learner, "split": "test"}
    rows: list[dict] = []
    for name, domain, accuracy in zip(d.datasets, d.domains, d.accuracy, strict=True):
        numbers = {"mean": rounded(1 - accuracy.mean), "ci95": rounded(accuracy.half), "seeds": d.seeds}
        head = {"run": f"dataset={name}", "dataset": name, "domain": domain, "metric": "difficulty"}
        rows.append(head | shared | numbers)
    if both := agreement(d):
        rho, p = both
        numbers = {"mean": rounded(rho.mean), "ci95": rounded(rho.half), "low": rounded(rho.low)}
        numbers |= {"high": rounded(rho.high), "p": rounded(p)}
        head = {"run": "ease", "dataset": f"{len(d.datasets)} data sets", "domain": "all"}
        rows.append(head | {"metric": "spearman_accuracy_and_ease"} | shared | numbers)
    return rows


def draw_difficulty(d: Difficulty) -> Drawing:
    """Both accuracies of every data set."""
    figure, axes = canvas(7.0, 4.8)
    axes.plot(
        100 * d.ease, 100 * d.means, ls="none", marker="o", ms=5.5, color=TRAINED[0], markeredgecolor="white"
    )
    for name, x, y in zip(d.datasets, 100 * d.ease, 100 * d.means, strict=True):
        if np.isfinite(x):
            axes.annotate(
                pretty(name), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5, color=INK
            )
    axes.set_xlabel("cheap probe: accuracy (%)")
    axes.set_ylabel(f"{pretty(d.learner)}: accuracy (%)")
    axes.set_title("Which data sets are hard?")
    axes.margins(0.1)
    caption = (
        "Accuracy on unseen images: of the recipe on all classes, and of ridge regression on at most 20 classes, which "
        "orders from easy to hard go by."
    )
    return Drawing("difficulty", caption, png_of(figure))
