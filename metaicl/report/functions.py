# SPDX-License-Identifier: Apache-2.0
"""Figures of functions in context: normalised error over examples and settings, distances, fits."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metaicl.report.reading import Record, Run, distance_records
from metaicl.report.statistics import cells_of, hierarchical_bootstrap
from metaicl.report.style import DASHED, INK, Drawing, Look, canvas, legend, looks, png_of
from metaicl.report.tables import measured, pretty

COLUMNS = 3
FLOOR = 1e-5  # of the logarithmic axis: below it there is rounding only


def are_functions(records: Sequence[Record]) -> bool:
    """Whether these are errors divided by the variance of a function class."""
    return bool(records) and all("error" in record["values"] for record in records)


def draw_functions(
    shots: Sequence[Record], sweeps: Sequence[Record], runs: Sequence[Run], look: dict[str, Look]
) -> list[Drawing | None]:
    """All figures of functions, None for those without records."""
    distances = distance_records([record for run in runs for record in run.records])
    return [
        draw_examples(shots, look),
        draw_settings(sweeps, look),
        draw_distances(distances),
        draw_curves(runs, look),
    ]


def draw_examples(records: Sequence[Record], look: dict[str, Look]) -> Drawing | None:
    """Error over the number of examples, a panel for every test set."""
    if not records:
        return None
    panels = _grouped(records, lambda r: (r["dataset"],))
    axes = _grid(len(panels))
    for ax, ((dataset,), found) in zip(axes, panels.items(), strict=False):
        _lines(ax, found, "error", "shots", look)
        _finish(ax, found, pretty(dataset), "examples in the context")
    order = _order(records, look, "error")
    legend(axes[0], order, look, lines=True, chance=False)
    caption = (
        "Squared error divided by the variance of the functions, over the number of examples:"
        f" {measured(records)}; 1 is what answering 0 gives (dashed), bands are 95 % intervals of trained models."
    )
    return Drawing("shots", caption, png_of(axes[0].figure))


def draw_settings(records: Sequence[Record], look: dict[str, Look]) -> Drawing | None:
    """Error over a setting of the test functions or of pretraining, a panel for every set and setting."""
    if not records:
        return None
    panels = _grouped(records, lambda r: (r["dataset"].split(f", {r['setting']}")[0], r["setting"]))
    axes = _grid(len(panels))
    for ax, ((dataset, setting), found) in zip(axes, panels.items(), strict=False):
        _lines(ax, found, "error", "value", look)
        _scale_x(ax, found)
        _finish(ax, found, pretty(dataset), pretty(setting))
    order = _order(records, look, "error")
    legend(axes[0], order, look, lines=True, chance=False)
    over = ", ".join(dict.fromkeys(pretty(setting) for _, setting in panels))
    points = sorted({r["shots"] for r in records if r["shots"] is not None})
    caption = (
        f"Squared error divided by the variance of the functions, over {over}, after"
        f" {' or '.join(map(str, points))} examples: {measured(records)}; bands are 95 % intervals of trained models."
    )
    return Drawing("settings", caption, png_of(axes[0].figure))


def draw_distances(records: Sequence[Record]) -> Drawing | None:
    """How far the answers of two models lie apart, over a setting of the test functions."""
    if not records:
        return None
    panels = _grouped(records, lambda r: (r["dataset"], r["setting"]))
    look = looks({record["label"]: True for record in records})
    axes = _grid(len(panels))
    for ax, ((dataset, setting), found) in zip(axes, panels.items(), strict=False):
        _lines(ax, found, "distance", "value", look)
        _scale_x(ax, found)
        ax.set(title=pretty(dataset), xlabel=pretty(setting), ylabel="distance / variance")
        ax.set_ylim(bottom=0)
    legend(axes[0], _order(records, look, "distance"), look, lines=True, chance=False)
    caption = (
        "Mean squared difference of the answers of two models, divided by the variance of the functions:"
        f" {measured(records)}; bands are 95 % intervals."
    )
    return Drawing("distances", caption, png_of(axes[0].figure))


def draw_curves(runs: Sequence[Run], look: dict[str, Look]) -> Drawing | None:
    """What the models answer between the given points of functions of one variable."""
    fits = [fit for run in runs for fit in run.fits if "setting" not in fit]
    if not fits:
        return None
    datasets = list(dict.fromkeys(fit["dataset"] for fit in fits))
    episodes = sorted({fit["episode"] for fit in fits})
    names = list(dict.fromkeys(fit["learner"] for fit in fits))
    known = look | looks({name: True for name in names if name not in look})
    axes = _canvas(3.3 * len(episodes) + 1.6, 2.1 * len(datasets) + 0.4, len(episodes), len(datasets))
    for fit in fits:
        ax = axes[datasets.index(fit["dataset"])][episodes.index(fit["episode"])]
        order = np.argsort(fit["x"])
        x = np.asarray(fit["x"])[order]
        if fit["learner"] == names[0]:
            ax.plot(x, np.asarray(fit["truth"])[order], color=INK, lw=1.2, ls=DASHED, label="truth")
            ax.plot(fit["support_x"], fit["support_y"], "o", color=INK, ms=3.6, zorder=5, label="given")
            low, high = min(fit["truth"]), max(fit["truth"])
            room = 0.5 * max(high - low, 0.5)  # answers that leave the picture are wrong enough
            ax.set_ylim(low - room, high + room)
        style = known[fit["learner"]]
        width = 1.6 if style.trained else 1.0
        ax.plot(x, np.asarray(fit["fit"])[order], color=style.color, lw=width, label=pretty(fit["learner"]))
    for row, dataset in zip(axes, datasets, strict=True):
        row[0].set_ylabel(pretty(dataset))
    handles, labels = axes[0][0].get_legend_handles_labels()
    axes[0][0].figure.legend(handles, labels, loc="outside right upper")
    caption = "The first test functions of each class, and what the models make of the given points."
    return Drawing("curves", caption, png_of(axes[0][0].figure))


def _canvas(width: float, height: float, columns: int, rows: int) -> np.ndarray:
    _, axes = canvas(width, height, columns, rows)
    return np.reshape(axes, (rows, columns))


def _grouped(records: Sequence[Record], key: Callable[[Record], tuple]) -> dict[tuple, list[Record]]:
    panels = defaultdict(list)
    for record in records:
        panels[key(record)].append(record)
    return panels


def _grid(panels: int) -> list[Any]:
    """Axes for so many panels, row by row; what is left of the last row is empty."""
    columns = min(panels, COLUMNS)
    rows = math.ceil(panels / columns)
    axes = _canvas(3.7 * columns + 2.4, 3.1 * rows + 0.3, columns, rows).ravel()
    for ax in axes[panels:]:
        ax.set_visible(False)
    return list(axes[:panels])


def _lines(ax: Any, records: Sequence[Record], metric: str, field: str, look: dict[str, Look]) -> None:
    """One line for every learner over `field` of the records; bands for trained ones."""
    by_label = _grouped(records, lambda r: (r["label"],))
    for (label,), found in sorted(by_label.items(), key=lambda item: look[item[0][0]].trained):
        points = _grouped(found, lambda r: (r[field],))
        at = sorted(points)
        each = [hierarchical_bootstrap(cells_of(points[k], metric)) for k in at]
        mean, low, high = np.array([(i.mean, i.low, i.high) for i in each]).T
        x, style = [k[0] for k in at], look[label]
        if style.trained:
            ax.fill_between(x, np.maximum(low, FLOOR / 10), high, color=style.color, alpha=0.15, lw=0)
        many = len(x) > 15
        ax.plot(
            x,
            np.maximum(mean, FLOOR / 10),
            color=style.color,
            lw=2.0 if style.trained else 1.3,
            marker="" if many else style.marker,
            ms=4.2 if style.trained else 3.4,
            zorder=4 if style.trained else 3,
        )


def _finish(ax: Any, records: Sequence[Record], title: str, xlabel: str) -> None:
    """A logarithmic error axis, with the error of answering 0 as a line; exact baselines may leave it below."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    trained = [np.mean(r["values"]["error"]) for r in records if r["trained"]]
    ax.set_ylim(max(low, FLOOR, min(trained, default=0) / 20), high)
    ax.axhline(1.0, color=INK, lw=0.9, ls=DASHED, zorder=2)
    ax.set(title=title, xlabel=xlabel, ylabel="error / variance")


def _scale_x(ax: Any, records: Sequence[Record]) -> None:
    """Logarithmic where the values span more than a factor of twelve and none is 0; whole ticks for whole values."""
    from matplotlib.ticker import MaxNLocator

    values = [record["value"] for record in records]
    if min(values) > 0 and max(values) > 12 * min(values):
        ax.set_xscale("log", base=2 if all(math.log2(v).is_integer() for v in values) else 10)
    elif all(float(v).is_integer() for v in values):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _order(records: Sequence[Record], look: dict[str, Look], metric: str) -> list[str]:
    """Labels for the legend: trained first, each group by its mean."""
    means = {
        label: float(np.mean([np.mean(r["values"][metric]) for r in found]))
        for (label,), found in _grouped(records, lambda r: (r["label"],)).items()
    }
    return sorted(means, key=lambda label: (not look[label].trained, means[label]))
