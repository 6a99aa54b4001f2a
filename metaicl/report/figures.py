# SPDX-License-Identifier: Apache-2.0
"""The figures. Drawn without pyplot, so nothing global is touched and no display is needed.

Colours are fixed once for all figures: trained learners saturated, baselines muted; each also has its
own marker.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.report.reading import Group, Record, Run, higher_is_better
from metaicl.report.statistics import (
    Interval,
    Summary,
    calibration_error,
    cells_of,
    grand_mean,
    hierarchical_bootstrap,
)
from metaicl.report.tables import measured, pretty

TRAINED = ["#1261c9", "#d1352b", "#0b8f63", "#7a35b8", "#e07a00", "#c2187a", "#007f9c", "#7a5b00"]
MUTED = ["#8c9aa8", "#c4a484", "#9db79b", "#bfa3bd", "#b9b36f", "#94b4c6", "#c99a9a", "#a39d94"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "<", ">", "p"]
INK, FAINT = "#24292f", "#d8dde3"
DASHED = (0, (4, 3))
DPI = 160

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8b949e",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecef",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class Drawing(NamedTuple):
    """A finished figure: file name without suffix, caption, PNG bytes."""

    name: str
    caption: str
    png: bytes


class Look(NamedTuple):
    """How one learner appears in every figure."""

    color: str
    marker: str
    trained: bool


def looks(trained: dict[str, bool]) -> dict[str, Look]:
    """A look for every learner, the same whatever the order of the scores."""
    chosen = {}
    for palette, kind in ((TRAINED, True), (MUTED, False)):
        names = sorted(name for name in trained if trained[name] is kind)
        for k, name in enumerate(names):
            marker = MARKERS[(k + (0 if kind else 1)) % len(MARKERS)]
            chosen[name] = Look(palette[k % len(palette)], marker, kind)
    return chosen


def looks_of(groups: Sequence[tuple[Group, Summary]], shots: Sequence[Record]) -> dict[str, Look]:
    """The looks of all learners that any figure or table shows."""
    trained = {label: kind for _, summary in groups for label, kind in summary.trained.items()}
    for record in shots:
        trained.setdefault(record["label"], bool(record["trained"]))
    return looks(trained)


def _canvas(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """An empty figure and its axes (an array if there are several)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _png(figure: Any) -> bytes:
    """The figure as PNG; no software or date inside, so equal records give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _scale(metric: str) -> float:
    return 100.0 if higher_is_better(metric) else 1.0


def _name(metric: str) -> str:
    return "accuracy (%)" if metric == "accuracy" else metric


def _title(metric: str) -> str:
    return {"mse": "Mean squared error", "nll": "Negative log-likelihood"}.get(metric, metric.capitalize())


def chance_level(records: Sequence[Record]) -> float | None:
    """Accuracy of guessing, averaged as accuracies are; None where it means nothing."""
    ways = [r for r in records if r["ways"] and "accuracy" in r["values"]]
    if not ways:
        return None
    return grand_mean(
        cells_of([{**r, "values": {"accuracy": np.array([1 / r["ways"]])}} for r in ways], "accuracy")
    )


def _bars(interval: Interval, scale: float) -> np.ndarray:
    """[2, 1] distances from the mean to the ends; none where the interval is unknown."""
    ends = np.array([[interval.mean - interval.low], [interval.high - interval.mean]]) * scale
    return np.clip(np.nan_to_num(ends), 0, None)


def _dot(axes: Any, x: Interval, y: float, look: Look, scale: float) -> None:
    """One learner's mean and interval in a horizontal dot plot."""
    style = {"ms": 6, "lw": 1.9, "zorder": 4} if look.trained else {"ms": 4.6, "lw": 1.3, "zorder": 3}
    axes.errorbar(
        x.mean * scale,
        y,
        xerr=_bars(x, scale),
        fmt=look.marker,
        color=look.color,
        ms=style["ms"],
        elinewidth=style["lw"],
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=style["zorder"],
    )


def _rows(axes: Any, places: Sequence[str]) -> None:
    """Labelled rows with faint separators; the last row, the mean, is set apart."""
    axes.set_yticks(range(len(places)), [pretty(place) for place in places])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    for k in range(len(places) - 1):
        last = k == len(places) - 2
        axes.axhline(k + 0.5, color="#8b949e" if last else FAINT, lw=1.1 if last else 0.8, zorder=1)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(places) - 0.5, -0.5)


def _legend(axes: Any, learners: Sequence[str], look: dict[str, Look], lines: bool, chance: bool) -> None:
    """The legend beside the axes, learners from best to worst, chance last."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=s.color,
            marker=s.marker,
            lw=(2.1 if s.trained else 1.4) * lines,
            ms=6 if s.trained else 5,
        )
        for s in (look[x] for x in learners)
    ]
    labels = [pretty(x) for x in learners]
    if chance:
        handles.append(Line2D([], [], color=INK, lw=1, ls=DASHED))
        labels.append("chance")
    axes.figure.legend(handles, labels, loc="outside right upper", handletextpad=0.6, borderaxespad=1.6)


def draw_places(group: Group, summary: Summary, look: dict[str, Look]) -> Drawing:
    """Every learner in every held-out domain (data set, if there is only one domain), and the mean."""
    by, places = summary.by_place, summary.places
    lanes = len(summary.learners)
    scale = _scale(summary.metric)
    figure, axes = _canvas(8.6, 1.1 + (len(places) + 1) * max(0.42, 0.085 * lanes))
    offsets = np.linspace(-0.36, 0.36, lanes) if lanes > 1 else [0.0]
    for learner, offset in zip(summary.learners, offsets, strict=True):
        for k, place in enumerate(places):
            if place in by[learner]:
                _dot(axes, by[learner][place], k + offset, look[learner], scale)
        _dot(axes, summary.overall[learner], len(places) + offset, look[learner], scale)
    _rows(axes, [*places, "mean"])
    chance = chance_level(group.records)
    if chance is not None:
        axes.axvline(100 * chance, color=INK, lw=1, ls=DASHED, zorder=2)
    axes.set_xlabel(_name(summary.metric))
    place = "held-out domain" if len(summary.domains) > 1 else "data set"
    axes.set_title(f"{_title(summary.metric)} per {place}")
    _legend(axes, summary.learners, look, lines=False, chance=chance is not None)
    caption = (
        f"{group.title}: {measured(group.records)}. Bars are 95 % intervals by hierarchical bootstrap over"
        " whatever is averaged: domains, data sets, seeds, episodes. Full colours: trained learners; grey and"
        " pastel: baselines without training."
    )
    return Drawing("domains", caption, _png(figure))


def draw_differences(group: Group, summary: Summary, look: dict[str, Look]) -> Drawing | None:
    """Forest plot: paired difference of the trained learners to the best baseline, by domain."""
    by, places = summary.to_baseline_by_place, summary.places
    shown = [x for x in summary.learners if x in summary.to_baseline]
    shown = [x for x in shown if summary.trained[x]] or shown
    if not shown:
        return None
    scale = _scale(summary.metric)
    lanes = len(shown)
    figure, axes = _canvas(7.8, 1.3 + (len(places) + 1) * max(0.32, 0.14 * lanes))
    offsets = np.linspace(-0.25, 0.25, lanes) if lanes > 1 else [0.0]
    for learner, offset in zip(shown, offsets, strict=True):
        for k, place in enumerate(places):
            if place in by[learner]:
                _dot(axes, by[learner][place], k + offset, look[learner], scale)
        _dot(axes, summary.to_baseline[learner], len(places) + offset, look[learner], scale)
    _rows(axes, [*places, "mean"])
    axes.axvline(0, color=INK, lw=1.1, zorder=2)
    better = "right" if higher_is_better(summary.metric) else "left"
    unit = "percentage points" if higher_is_better(summary.metric) else summary.metric
    axes.set_xlabel(
        f"difference to {pretty(summary.baseline or '')} ({unit}); better is {better} of the line"
    )
    axes.set_title("Paired difference to the best baseline")
    _legend(axes, shown, look, lines=False, chance=False)
    caption = (
        f"Difference to {pretty(summary.baseline or '')}, the best learner without training, over the same"
        " episodes; 95 % intervals by hierarchical bootstrap on the differences."
    )
    return Drawing("differences", caption, _png(figure))


def _series(runs: Sequence[Run], split: str, metric: str) -> dict[tuple[str, str], np.ndarray]:
    """(run, replica) -> [points, 2] steps and values, in order of the steps."""
    lines = defaultdict(list)
    for run in runs:
        for line in run.metrics:
            value = line.get(metric)
            if line.get("split") == split and isinstance(value, int | float) and np.isfinite(value):
                lines[run.name, line.get("replica", "")].append((line["step"], value))
    return {key: np.array(sorted(points), np.float64) for key, points in lines.items()}


def _mean_curve(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over runs at every logged step that at least half of the runs have reached."""
    steps = np.unique(np.concatenate([s[:, 0] for s in series]))
    inside = np.array([(steps >= s[0, 0]) & (steps <= s[-1, 0]) for s in series])
    values = np.array([np.interp(steps, s[:, 0], s[:, 1]) for s in series])
    enough = inside.sum(0) * 2 >= len(series)
    count = np.maximum(inside.sum(0), 1)
    return steps[enough], (np.where(inside, values, 0).sum(0) / count)[enough]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average, shorter at both ends."""
    sums = np.convolve(values, np.ones(window), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(window), mode="same")


def draw_training(runs: Sequence[Run]) -> Drawing | None:
    """Training and validation over steps: a thin line for every run and replica, the mean bold."""
    names = {k for run in runs for line in run.metrics for k in line}
    metrics = [m for m in ("loss", "accuracy", "mse") if m in names][:2]
    colors = {"train": "#1261c9", "validation": "#e07a00"}
    panels = {m: {split: _series(runs, split, m) for split in colors} for m in metrics}
    panels = {m: p for m, p in panels.items() if any(p.values())}
    if not panels:
        return None
    figure, axes = _canvas(5.2 * len(panels) + (1 if len(panels) == 1 else 0), 3.6, len(panels))
    for metric, ax in zip(panels, np.atleast_1d(axes), strict=True):
        for split, color in colors.items():
            series = list(panels[metric][split].values())
            if not series:
                continue
            _draw_runs(ax, series, _scale(metric), color, split)
        ax.set_xlabel("step")
        ax.set_ylabel(_name(metric))
        ax.set_title(_title(metric))
        ax.margins(x=0.01)
        ax.legend(loc="best")
    lines = max(len(series) for panel in panels.values() for series in panel.values())
    who = f"{lines} runs and replicas as thin lines, their mean bold" if lines > 1 else "one run"
    caption = f"Training: {who} (long curves as a moving average over 2 % of their points)."
    return Drawing("training", caption, _png(figure))


def _draw_runs(axes: Any, series: list[np.ndarray], scale: float, color: str, split: str) -> None:
    """Thin lines and their bold mean, with markers where the points are few."""
    few = all(len(s) <= 40 for s in series)
    for s in series:
        axes.plot(s[:, 0], s[:, 1] * scale, color=color, lw=0.7, alpha=0.22 if len(series) > 1 else 0.4)
    steps, mean = _mean_curve(series)
    mean = mean if few else _smooth(mean, max(1, len(mean) // 50))
    axes.plot(steps, mean * scale, color=color, lw=2.2, marker="o" if few else "", ms=3.5, label=split)


def draw_shots(records: Sequence[Record], look: dict[str, Look]) -> Drawing | None:
    """The metric over the number of shots, mean over data sets with its interval as a band."""
    by_label: dict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    metrics = {m for r in records for m in r["values"]}
    metric = "accuracy" if "accuracy" in metrics else min(metrics, default="")
    for record in records:
        if record["shots"] is not None:
            by_label[record["label"]][record["shots"]].append(record)
    if not by_label:
        return None
    scale = _scale(metric)
    curves = {
        label: {k: hierarchical_bootstrap(cells_of(found, metric)) for k, found in sorted(shots.items())}
        for label, shots in by_label.items()
    }
    sign = -1 if higher_is_better(metric) else 1
    order = sorted(curves, key=lambda x: sign * list(curves[x].values())[-1].mean)
    # Bands of every baseline would cover each other: the best one stands for them.
    banded = [x for x in order if look[x].trained] + [x for x in order if not look[x].trained][:1]
    chance = chance_level(records)
    figure, axes = _canvas(7.8, 4.3)
    for label in order:
        _draw_curve(axes, curves[label], look[label], scale, label in banded)
    if chance is not None:
        axes.axhline(100 * chance, color=INK, lw=1, ls=DASHED, zorder=2)
    ticks = sorted({k for curve in curves.values() for k in curve})
    if min(np.diff(ticks), default=1) * 20 > ticks[-1]:  # else the measured numbers would stand too close
        axes.set_xticks(ticks)
    axes.set_xlabel(f"shots: examples {'per class' if metric == 'accuracy' else 'in the context'}")
    axes.set_ylabel(_name(metric))
    axes.set_title(f"{_title(metric)} over shots")
    _legend(axes, order, look, lines=True, chance=chance is not None)
    bands = "bands are 95 % intervals (trained learners and the best baseline)"
    return Drawing(
        "shots",
        f"{_title(metric)} over the number of shots: {measured(records)}; {bands}.",
        _png(figure),
    )


def _draw_curve(axes: Any, curve: dict[int, Interval], look: Look, scale: float, band: bool) -> None:
    """One learner over the number of shots."""
    shots = list(curve)
    mean, low, high = np.array([(i.mean, i.low, i.high) for i in curve.values()]).T * scale
    width, front = (2.1, 4) if look.trained else (1.4, 3)
    if band:
        axes.fill_between(shots, low, high, color=look.color, alpha=0.13, lw=0)
    axes.plot(
        shots,
        mean,
        color=look.color,
        lw=width,
        marker=look.marker,
        ms=4.5 if look.trained else 3.5,
        zorder=front,
    )


def draw_reliability(summary: Summary, look: dict[str, Look]) -> Drawing | None:
    """Confidence against accuracy for the best trained learner and the best baseline."""
    trained = [x for x in summary.learners if summary.trained[x]][:1]
    bins_of = {x: summary.bins[x] for x in [*trained, summary.baseline] if x is not None}
    shown = {x: bins for x, bins in bins_of.items() if bins is not None}
    if not shown:
        return None
    figure, axes = _canvas(4.1 * len(shown), 4.2, len(shown))
    for (learner, bins), ax in zip(shown.items(), np.atleast_1d(axes), strict=True):
        count, confidence, correct = bins
        full = count > 0
        x, y = 100 * confidence[full] / count[full], 100 * correct[full] / count[full]
        edges = np.linspace(0, 100, len(count) + 1)
        ax.bar(
            edges[:-1],
            100 * count / count.sum(),
            width=100 / len(count),
            align="edge",
            color=FAINT,
            edgecolor="white",
            label="share of answers",
        )
        ax.plot([0, 100], [0, 100], color=INK, lw=1, ls=DASHED, label="perfect")
        ax.vlines(x, np.minimum(x, y), np.maximum(x, y), color=look[learner].color, lw=2, alpha=0.35)
        ax.plot(x, y, color=look[learner].color, marker=look[learner].marker, lw=2, ms=5.5, label="accuracy")
        ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="confidence (%)", ylabel="accuracy (%)")
        ax.set_title(f"{pretty(learner)}: ece {calibration_error(bins):.3f}")
    np.atleast_1d(axes)[0].legend(loc="upper left")
    caption = (
        "Reliability, all data sets pooled in bins of confidence: who is calibrated follows the diagonal."
    )
    return Drawing("reliability", caption, _png(figure))


def draw_all(
    groups: Sequence[tuple[Group, Summary]], shots: Sequence[Record], runs: Sequence[Run]
) -> list[Drawing]:
    """Every figure for which there are records, in the order of the page."""
    import matplotlib

    look = looks_of(groups, shots)
    drawings: list[Drawing | None] = []
    with matplotlib.rc_context(STYLE):
        for group, summary in groups:
            suffix = f"_{group.name}" if group.name else ""
            found = [
                draw_places(group, summary, look),
                draw_differences(group, summary, look),
                draw_reliability(summary, look),
            ]
            drawings += [d._replace(name=d.name + suffix) for d in found if d]
        drawings += [draw_shots(shots, look), draw_training(runs)]
    return [drawing for drawing in drawings if drawing]
