# SPDX-License-Identifier: Apache-2.0
"""Figures of training in stages: the courses of all orders, and a heat map of what each stage changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.report import transfer
from metaicl.report.reading import Run
from metaicl.report.sequences import backward_course, labelled, stage_name
from metaicl.report.stages import Stages
from metaicl.report.style import DASHED, FAINT, INK, MUTED, TRAINED, Drawing, canvas, png_of
from metaicl.report.tables import pretty

_BANDED = 4  # up to so many courses have their intervals drawn
_NUMBERED = 12  # up to so many data sets a heat map has its numbers in it


def draw_stages(runs: Sequence[Run]) -> list[Drawing]:
    """The course of the average accuracy for all orders, and a heat map for each with several stages."""
    found = labelled(runs)
    if not found:
        return []
    maps = [draw_change(x, stages) for x, (_, stages) in sorted(found.items()) if len(stages.accuracy) > 2]
    stages = {label: stages for label, (_, stages) in found.items()}
    courses = [draw_courses(stages), draw_backward(found)]
    return [*filter(None, courses), *maps]


def _looks(found: dict[str, Stages]) -> dict[str, tuple[str, Any]]:
    """Colour and style of the line of each run: a colour for each order, dashes for a proportional budget."""
    kinds = list(dict.fromkeys((s.learner, s.order, s.replay) for _, s in sorted(found.items())))
    colors = dict(zip(kinds, (TRAINED + MUTED) * len(kinds), strict=False))
    style = lambda s: DASHED if s.budget == "proportional" else "-"
    return {label: (colors[s.learner, s.order, s.replay], style(s)) for label, s in found.items()}


def draw_courses(found: dict[str, Stages]) -> Drawing:
    """Average accuracy over all data sets after each stage: a line for each order, one level for joint training."""
    figure, axes = canvas(7.8, 4.3)
    courses = {
        label: 100 * transfer.domain_mean(np.moveaxis(s.accuracy.mean(axis=(2, 3)), 0, 1), s.domains)
        for label, s in found.items()
    }
    looks = _looks(found)
    last = max(len(course) for course in courses.values()) - 1
    for label in sorted(courses, key=lambda x: -courses[x][-1]):
        course, (color, style) = courses[label], looks[label]
        if len(course) == 2:
            axes.plot([0, last], [course[-1]] * 2, color=color, lw=1.6, ls=":", label=label)
        else:
            few = len(course) <= 40
            axes.plot(course, color=color, lw=1.9, ls=style, marker="o" if few else "", ms=3, label=label)
    start = next(iter(courses.values()))[0]
    axes.axhline(start, color=INK, lw=1, ls=DASHED, label="untrained", zorder=1)
    axes.set_xlim(0, last)
    axes.set_xlabel("stage")
    axes.set_ylabel("accuracy (%)")
    axes.set_title("Average accuracy over all data sets, seen or not")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper")
    caption = (
        "Accuracy on unseen images after each stage: mean over domains of the mean over data sets, those still to "
        "come among them. Dotted: all data sets in one stage. Intervals are in the table."
    )
    return Drawing("stages", caption, png_of(figure))


def draw_backward(found: dict[str, tuple[str, Stages]]) -> Drawing | None:
    """Backward transfer after each stage, a line with its interval for each order that went through several."""
    courses = {x: backward_course(run, s) for x, (run, s) in found.items() if len(s.accuracy) > 3}
    if not courses:
        return None
    figure, axes = canvas(7.8, 4.3)
    looks = _looks({x: stages for x, (_, stages) in found.items()})
    for label, course in sorted(
        courses.items(), key=lambda x: -(-np.inf if x[1][-1] is None else x[1][-1].mean)
    ):
        points = [(t, i) for t, i in enumerate(course, 2) if i is not None]
        stage = [t for t, _ in points]
        mean, low, high = 100 * np.array([(i.mean, i.low, i.high) for _, i in points]).T
        color, style = looks[label]
        axes.plot(stage, mean, color=color, lw=1.9, ls=style, marker="o", ms=3, label=label)
        if len(courses) <= _BANDED:
            axes.fill_between(stage, low, high, color=color, alpha=0.13, lw=0)
    axes.axhline(0, color=INK, lw=1, ls=DASHED, zorder=1)
    axes.set_xlabel("stage")
    axes.set_ylabel("backward transfer (points)")
    axes.set_title("What later stages did to the data sets before them")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper")
    caption = (
        "Accuracy after each stage minus that right after a data set's own stage: mean over domains of the mean over "
        "the data sets of earlier stages; above 0, later stages helped."
    )
    return Drawing("backward", caption, png_of(figure))


def draw_change(label: str, stages: Stages) -> Drawing:
    """Heat map, stage by data set: what each stage has changed since the data set's own stage."""
    own = transfer.own_stages(stages.adds)
    order = [k for k in sorted(range(len(own)), key=lambda k: own[k]) if own[k] > 0]
    change = 100 * transfer.change(stages.accuracy.mean(axis=(2, 3)), own)[1:, order]  # [T, P]
    count, sets = change.shape
    names = [pretty(stages.datasets[k]) for k in order]
    figure, axes = canvas(max(5.0, 0.3 * sets + 3.4), max(3.6, 0.27 * count + 1.9))
    most = max(5.0, float(np.nanmax(np.abs(change))))
    axes.set_facecolor(FAINT)
    image = axes.imshow(change, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(sets), names, rotation=90)
    axes.set_yticks(range(count), [stage_name(stages, t) for t in range(1, count + 1)])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    _mark(axes, change, own[order])
    axes.set_ylabel("after stage")
    axes.set_title(f"{label}: change since own stage")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("accuracy, percentage points")
    bar.outline.set_visible(False)
    unseen = len(own) - sets
    caption = (
        f"{label}: accuracy on unseen images of each data set after each stage, minus that right after its own stage "
        "(framed); blue: later stages helped; grey: before its own stage."
        + (f" {unseen} data sets that no stage chose are left out." if unseen else "")
    )
    safe = "".join(c if c.isalnum() else "_" for c in label)
    return Drawing(f"transfer_{safe}", caption, png_of(figure))


def _mark(axes: Any, change: np.ndarray, own: np.ndarray) -> None:
    """Frames the own stage of every data set, and writes the numbers where there is room."""
    from matplotlib.patches import Rectangle

    for column, stage in enumerate(own):
        corner = (column - 0.5, stage - 1.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, lw=0.9))
    if change.shape[1] > _NUMBERED:
        return
    most = np.nanmax(np.abs(change), initial=5.0)
    for (row, column), value in np.ndenumerate(change):
        if np.isfinite(value) and row != own[column] - 1:
            color = "white" if abs(value) > 0.6 * most else INK
            text = f"{value:+.0f}" if round(value) else "0"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
