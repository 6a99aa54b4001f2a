# SPDX-License-Identifier: Apache-2.0
"""The figures of a comparison: learners by place, paired differences, reliability."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.report.curves import draw_fits, draw_learning, draw_shots, draw_sweep, draw_training
from metaicl.report.functions import are_functions, draw_functions
from metaicl.report.reading import Group, Record, Run, higher_is_better, in_percent
from metaicl.report.stage_figures import draw_stages
from metaicl.report.statistics import Interval, Summary, calibration_error
from metaicl.report.style import (
    DASHED,
    FAINT,
    INK,
    STYLE,
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


def draw_places(group: Group, summary: Summary, look: dict[str, Look]) -> Drawing:
    """Every learner in every held-out domain (data set, if there is only one domain), and the mean."""
    by, places = summary.by_place, summary.places
    lanes = len(summary.learners)
    scale = scale_of(summary.metric)
    figure, axes = canvas(8.6, 1.1 + (len(places) + 1) * max(0.42, 0.085 * lanes))
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
    if summary.metric == "error":  # from 1 down to what only rounding leaves
        axes.set_xscale("log")
    axes.set_xlabel(metric_name(summary.metric))
    place = "held-out domain" if len(summary.domains) > 1 else "data set"
    axes.set_title(f"{metric_title(summary.metric)} per {place}")
    legend(axes, summary.learners, look, lines=False, chance=chance is not None)
    caption = (
        f"{group.title}: {measured(group.records)}. Bars are 95 % intervals by hierarchical bootstrap over"
        " whatever is averaged: domains, data sets, seeds, episodes. Full colours: trained learners; grey and"
        " pastel: baselines without training."
    )
    return Drawing("domains", caption, png_of(figure))


def draw_differences(group: Group, summary: Summary, look: dict[str, Look]) -> Drawing | None:
    """Forest plot: paired difference of the trained learners to the best baseline, by domain."""
    by, places = summary.to_baseline_by_place, summary.places
    shown = [x for x in summary.learners if x in summary.to_baseline]
    shown = [x for x in shown if summary.trained[x]] or shown
    if not shown:
        return None
    scale = scale_of(summary.metric)
    lanes = len(shown)
    figure, axes = canvas(7.8, 1.3 + (len(places) + 1) * max(0.32, 0.14 * lanes))
    offsets = np.linspace(-0.25, 0.25, lanes) if lanes > 1 else [0.0]
    for learner, offset in zip(shown, offsets, strict=True):
        for k, place in enumerate(places):
            if place in by[learner]:
                _dot(axes, by[learner][place], k + offset, look[learner], scale)
        _dot(axes, summary.to_baseline[learner], len(places) + offset, look[learner], scale)
    _rows(axes, [*places, "mean"])
    axes.axvline(0, color=INK, lw=1.1, zorder=2)
    better = "right" if higher_is_better(summary.metric) else "left"
    unit = "percentage points" if in_percent(summary.metric) else summary.metric
    axes.set_xlabel(
        f"difference to {pretty(summary.baseline or '')} ({unit}); better is {better} of the line"
    )
    axes.set_title("Paired difference to the best baseline")
    legend(axes, shown, look, lines=False, chance=False)
    caption = (
        f"Difference to {pretty(summary.baseline or '')}, the best learner without training, over the same"
        " episodes; 95 % intervals by hierarchical bootstrap on the differences."
    )
    return Drawing("differences", caption, png_of(figure))


def draw_reliability(summary: Summary, look: dict[str, Look]) -> Drawing | None:
    """Confidence against accuracy for the best trained learner and the best baseline."""
    trained = [x for x in summary.learners if summary.trained[x]][:1]
    bins_of = {x: summary.bins[x] for x in [*trained, summary.baseline] if x is not None}
    shown = {x: bins for x, bins in bins_of.items() if bins is not None}
    if not shown:
        return None
    figure, axes = canvas(4.1 * len(shown), 4.2, len(shown))
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
    return Drawing("reliability", caption, png_of(figure))


def draw_all(
    groups: Sequence[tuple[Group, Summary]],
    shots: Sequence[Record],
    sweeps: Sequence[Record],
    runs: Sequence[Run],
    look: dict[str, Look],
) -> list[Drawing]:
    """Every figure for which there are records, in the order of the page."""
    import matplotlib

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
        drawings += draw_stages(runs)
        if are_functions([*shots, *sweeps]):
            drawings += draw_functions(shots, sweeps, runs, look)
        else:
            drawings += [draw_shots(shots, look), draw_sweep(sweeps, look)]
        drawings += draw_fits(runs)
        drawings += draw_learning(runs, look, [group.metric for group, _ in groups])
        drawings.append(draw_training(runs))
    return [drawing for drawing in drawings if drawing]
