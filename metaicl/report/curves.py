# SPDX-License-Identifier: Apache-2.0
"""Figures of curves: over training, over shots, over a setting, and fits of functions of one variable."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.report.reading import Record, Run, higher_is_better
from metaicl.report.statistics import Interval, cells_of, hierarchical_bootstrap
from metaicl.report.style import (
    DASHED,
    INK,
    MUTED,
    TRAINED,
    Drawing,
    Look,
    canvas,
    chance_level,
    legend,
    metric_name,
    metric_title,
    png_of,
    scale_of,
)
from metaicl.report.tables import measured, pretty


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
    figure, axes = canvas(5.2 * len(panels) + (1 if len(panels) == 1 else 0), 3.6, len(panels))
    for metric, ax in zip(panels, np.atleast_1d(axes), strict=True):
        for split, color in colors.items():
            series = list(panels[metric][split].values())
            if not series:
                continue
            _draw_runs(ax, series, scale_of(metric), color, split)
        ax.set_xlabel("step")
        ax.set_ylabel(metric_name(metric))
        ax.set_title(metric_title(metric))
        ax.margins(x=0.01)
        ax.legend(loc="best")
    lines = max(len(series) for panel in panels.values() for series in panel.values())
    who = f"{lines} runs and replicas as thin lines, their mean bold" if lines > 1 else "one run"
    caption = f"Training: {who} (long curves as a moving average over 2 % of their points)."
    return Drawing("training", caption, png_of(figure))


def draw_learning(runs: Sequence[Run], look: dict[str, Look], metrics: Sequence[str]) -> list[Drawing]:
    """Validation over steps of the main metric, and of those of `metrics` that were followed: a figure for each."""
    names = {k for run in runs for line in run.metrics if line.get("split") == "validation" for k in line}
    main = "accuracy" if "accuracy" in names else "loss"
    followed = [main, *(m for m in dict.fromkeys(metrics) if m in names and m != main)]
    drawings = [_draw_learning(runs, look, metric) for metric in followed]
    named = [
        d and (d if m == main else d._replace(name=f"learning_{m}"))
        for m, d in zip(followed, drawings, strict=True)
    ]
    return [drawing for drawing in named if drawing]


def _draw_learning(runs: Sequence[Run], look: dict[str, Look], metric: str) -> Drawing | None:
    """A line for every learner that was trained: the mean of its runs and replicas."""
    series = defaultdict(list)
    config_of = {run.name: run.config for run in runs}
    for (run, replica), points in _series(runs, "validation", metric).items():
        own = config_of[run].get("replicas", {}).get(replica, {})
        learner = own.get("label") or config_of[run].get("label") or config_of[run].get("learner")
        if isinstance(learner, str) and len(points) > 1:
            series[learner].append(points)
    if not 1 < len(series) <= len(TRAINED) + len(MUTED):
        return None
    curves = {learner: _mean_curve(found) for learner, found in series.items()}
    sign = -1 if higher_is_better(metric) else 1
    order = sorted(curves, key=lambda x: sign * curves[x][1][-1])
    colors = dict(zip(sorted(curves), TRAINED + MUTED, strict=False))
    colors |= {learner: look[learner].color for learner in curves if learner in look}
    figure, axes = canvas(7.8, 4.3)
    drawn: set[str] = set()
    for learner in order:
        (steps, mean), color = curves[learner], colors[learner]
        style = DASHED if color in drawn else "-"  # of many learners two share a colour
        drawn.add(color)
        axes.plot(steps, mean * scale_of(metric), color=color, ls=style, lw=1.8, label=pretty(learner))
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation {metric_name(metric)}")
    axes.set_title("What each learner learns" if metric in ("accuracy", "loss") else metric_title(metric))
    figure.legend(loc="outside right upper")
    caption = "Validation during training: the mean over the runs and replicas of each learner, best last value first."
    return Drawing("learning", caption, png_of(figure))


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
    scale = scale_of(metric)
    curves = {
        label: {k: hierarchical_bootstrap(cells_of(found, metric)) for k, found in sorted(shots.items())}
        for label, shots in by_label.items()
    }
    sign = -1 if higher_is_better(metric) else 1
    order = sorted(curves, key=lambda x: sign * list(curves[x].values())[-1].mean)
    # Bands of every baseline would cover each other: the best one stands for them.
    banded = [x for x in order if look[x].trained] + [x for x in order if not look[x].trained][:1]
    chance = chance_level(records)
    figure, axes = canvas(7.8, 4.3)
    for label in order:
        _draw_curve(axes, curves[label], look[label], scale, label in banded)
    if chance is not None:
        axes.axhline(100 * chance, color=INK, lw=1, ls=DASHED, zorder=2)
    ticks = sorted({k for curve in curves.values() for k in curve})
    if min(np.diff(ticks), default=1) * 20 > ticks[-1]:  # else the measured numbers would stand too close
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(_whole_numbers())
    axes.set_xlabel(f"shots: examples {'per class' if metric == 'accuracy' else 'in the context'}")
    axes.set_ylabel(metric_name(metric))
    axes.set_title(f"{metric_title(metric)} over shots")
    legend(axes, order, look, lines=True, chance=chance is not None)
    bands = "bands are 95 % intervals (trained learners and the best baseline)"
    return Drawing(
        "shots",
        f"{metric_title(metric)} over the number of shots: {measured(records)}; {bands}.",
        png_of(figure),
    )


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


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


def draw_sweep(records: Sequence[Record], look: dict[str, Look]) -> Drawing | None:
    """The metric over settings of the learners, such as their gradient steps: a panel for every data set and one."""
    if not records:
        return None
    metric = "accuracy" if "accuracy" in records[0]["values"] else next(iter(records[0]["values"]))
    settings = list(dict.fromkeys(r["setting"] for r in records))
    datasets = sorted({r["dataset"] for r in records})
    # "": the mean over all
    panels = [(d, s) for d in (datasets if len(datasets) <= 3 else [""]) for s in settings]
    figure, axes = canvas(4.4 * len(panels) + 2.2, 3.9, len(panels))
    last: dict[str, float] = {}
    for (dataset, setting), ax in zip(panels, np.atleast_1d(axes), strict=True):
        chosen = [r for r in records if dataset in ("", r["dataset"]) and r["setting"] == setting]
        for label, interval in _draw_panel(ax, chosen, metric, look).items():
            last.setdefault(label, interval)
        ax.set_xlabel(pretty(setting))
        ax.set_ylabel(metric_name(metric))
        ax.set_title(pretty(dataset) or metric_title(metric))
        if not higher_is_better(metric):
            _log_axis(ax.yaxis, ax.set_yscale)
    order = sorted(last, key=lambda x: last[x] * (-1 if higher_is_better(metric) else 1))
    legend(np.atleast_1d(axes)[0], order, look, lines=True, chance=False)
    over = " and over ".join(map(pretty, settings))
    caption = f"{metric_title(metric)} over {over}: {measured(records)}; bands are 95 % intervals."
    return Drawing("sweep", caption, png_of(figure))


def _draw_panel(ax: Any, records: Sequence[Record], metric: str, look: dict[str, Look]) -> dict[str, float]:
    """One line for every learner; returns the mean at its last value."""
    values, last = sorted({r["value"] for r in records}), {}
    for label in sorted({r["label"] for r in records}):
        points = {v: [r for r in records if (r["label"], r["value"]) == (label, v)] for v in values}
        curve = {v: hierarchical_bootstrap(cells_of(f, metric)) for v, f in points.items() if f}
        # Evenly spaced: settings like 0, 1, 2, 4, ... would crowd at one end.
        placed = {values.index(v): interval for v, interval in curve.items()}
        _draw_curve(ax, placed, look[label], scale_of(metric), band=True)
        last[label] = list(curve.values())[-1].mean
    ax.set_xticks(range(len(values)), [f"{v:g}" if isinstance(v, int | float) else str(v) for v in values])
    return last


def _log_axis(axis: Any, set_scale: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def draw_fits(runs: Sequence[Run]) -> list[Drawing]:
    """For each data set of functions of one variable: what the learners answer at points of their sweep."""
    curves: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for fit in (fit for fit in run.fits if "setting" in fit):
            curves[fit["dataset"]][fit["learner"]].append(fit)
    return [_draw_fits(dataset, learners) for dataset, learners in sorted(curves.items())]


def _draw_fits(dataset: str, learners: dict[str, list[dict]]) -> Drawing:
    first = next(iter(learners.values()))
    episodes = sorted({fit["episode"] for fit in first})
    values = sorted({fit["value"] for fit in first})
    shown = sorted({values[0], values[1 % len(values)], values[len(values) // 2], values[-1]})
    figure, axes = canvas(3.4 * len(episodes) + 1.2, 2.1 * len(learners) + 0.4, len(episodes), len(learners))
    axes = np.reshape(axes, (len(learners), len(episodes)))
    colors = dict(zip(shown, ["#b8c4d0", "#7fb2e5", "#2f7fd0", "#0b3d91"][-len(shown) :], strict=True))
    for row, (learner, fits) in zip(axes, learners.items(), strict=True):
        for fit in sorted(fits, key=lambda f: f["value"]):
            ax = row[episodes.index(fit["episode"])]
            order = np.argsort(fit["x"])
            x = np.asarray(fit["x"])[order]
            if fit["value"] == shown[0]:
                ax.plot(x, np.asarray(fit["truth"])[order], color=INK, lw=1.1, ls=DASHED, label="truth")
                ax.plot(
                    fit["support_x"], fit["support_y"], "o", color="#d1352b", ms=4, zorder=5, label="given"
                )
            if fit["value"] in colors:
                label = f"{fit['setting'].replace('_', ' ')} {fit['value']}"
                ax.plot(x, np.asarray(fit["fit"])[order], color=colors[fit["value"]], lw=1.6, label=label)
        row[0].set_ylabel(pretty(learner))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    caption = f"{pretty(dataset)}: the first test functions, before and after adapting to the red points."
    return Drawing(f"fits_{dataset}", caption, png_of(figure))
