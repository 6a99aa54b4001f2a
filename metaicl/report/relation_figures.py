# SPDX-License-Identifier: Apache-2.0
"""Figures of distance against transfer: the scatter of all pairs, and the correlation of every target."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.report.correlation import target_intervals
from metaicl.report.distances import Matrix, draw_matrix
from metaicl.report.relations import Finding, Study
from metaicl.report.statistics import Interval
from metaicl.report.style import FAINT, INK, MUTED, TRAINED, Drawing, canvas, png_of
from metaicl.report.tables import pretty


def draw_relations(study: Study, found: Sequence[Finding]) -> list[Drawing]:
    """The distances, the scatter and the correlations."""
    matrix = draw_matrix(Matrix(study.datasets, study.domains, study.distance))
    rho = next(f.rho for f in found if f.key == "within_targets")
    return [draw_scatter(study), draw_targets(study, rho), matrix]


def draw_scatter(study: Study) -> Drawing:
    """Every pair of source and target, and every data set that was left out."""
    left_out = np.isfinite(study.without).all()
    figure, axes = canvas(6.2 + 4.6 * left_out, 4.4, 1 + int(left_out))
    axes = np.atleast_1d(axes)
    gain = study.single - study.untrained if np.isfinite(study.untrained).all() else study.single
    within = study.others & ~study.across
    for pairs, color, label in (
        (study.across, MUTED[0], "across domains"),
        (within, TRAINED[1], "within a domain"),
    ):
        if pairs.any():
            axes[0].plot(study.distance[pairs], 100 * gain[pairs], ls="none", marker="o", ms=4.5, color=color,
                         markeredgecolor="white", markeredgewidth=0.5, label=label)  # fmt: skip
    axes[0].axhline(0, color=INK, lw=1)
    axes[0].set_ylabel("gain over untrained (points)")
    axes[0].set_title("Trained on one, tested on another")
    axes[0].legend(loc="best")
    if left_out:
        _draw_left_out(axes[1], study)
    for ax in axes:
        ax.set_xlabel("OTDD (root)" if ax is axes[0] else "smallest OTDD (root) to the others")
    caption = (
        "Each point on the left is a source and a target: their distance, and what training on the source alone gained "
        "on unseen images of the target over the untrained learner."
        + (" On the right each data set when it was left out." if left_out else "")
    )
    return Drawing("distance_transfer", caption, png_of(figure))


def _draw_left_out(axes: Any, study: Study) -> None:
    """What leaving a data set out cost; or, where nothing was trained on all, the accuracy on it."""
    known = np.isfinite(study.joint).all()
    values = 100 * (study.joint - study.without if known else study.without)
    nearest = np.where(study.others, study.distance, np.inf).min(axis=0)
    axes.plot(nearest, values, ls="none", marker="s", ms=5, color=TRAINED[0], markeredgecolor="white")
    for name, x, y in zip(study.datasets, nearest, values, strict=True):
        axes.annotate(pretty(name), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
    if known:
        axes.axhline(0, color=INK, lw=1)
    axes.set_ylabel("cost of leaving it out (points)" if known else "accuracy (%)")
    axes.set_title("Trained on all but one")
    axes.margins(0.12)


def draw_targets(study: Study, mean: Interval) -> Drawing:
    """Forest plot: the correlation over sources of every target, and their mean."""
    intervals = [*target_intervals(study.distance, study.single), mean]
    names = [f"{pretty(n)} · {pretty(d)}" for n, d in zip(study.datasets, study.domains, strict=True)]
    rows = range(len(intervals))
    figure, axes = canvas(7.2, 1.2 + 0.27 * len(intervals))
    for k, rho in enumerate(intervals):
        last = k == len(intervals) - 1
        axes.plot([rho.low, rho.high], [k, k], color=INK if last else TRAINED[0], lw=2.2 if last else 1.5)
        axes.plot([rho.mean], [k], marker="D" if last else "o", ms=6, color=INK if last else TRAINED[0],
                  markeredgecolor="white")  # fmt: skip
    axes.set_yticks(rows, [*names, "mean"])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.axhline(len(names) - 0.5, color="#8b949e", lw=1.1)
    axes.axvline(0, color=INK, lw=1.1)
    axes.grid(axis="y", color=FAINT)
    axes.set(xlim=(-1.05, 1.05), ylim=(len(intervals) - 0.5, -0.5))
    axes.set_xlabel("rank correlation of distance and accuracy; left: near sources are better")
    axes.set_title("Does distance predict transfer, target by target?")
    caption = (
        "Spearman's rank correlation over the sources of each target, with 95 % intervals by bootstrap over sources; "
        "mean: over targets, by bootstrap over data sets as both."
    )
    return Drawing("distance_targets", caption, png_of(figure))
