# SPDX-License-Identifier: Apache-2.0
"""How every figure looks: drawn without pyplot, so nothing global is touched and no display is needed.

Colours are fixed once for all figures: trained learners saturated, baselines muted; each also has its
own marker.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.report.reading import Group, Record, in_percent
from metaicl.report.statistics import Summary, cells_of, grand_mean
from metaicl.report.tables import pretty

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


def looks(trained: dict[str, bool], curved: frozenset[str] = frozenset()) -> dict[str, Look]:
    """A look for every learner, the same whatever the order of the scores.

    Where there are more learners than colours, those of curves, `curved`, are the last to share one.
    """
    chosen = {}
    for palette, kind in ((TRAINED, True), (MUTED, False)):
        names = sorted(name for name in trained if trained[name] is kind)
        if len(names) > len(palette):
            names.sort(key=lambda name: name not in curved)
        for k, name in enumerate(names):
            marker = MARKERS[(k + (0 if kind else 1)) % len(MARKERS)]
            chosen[name] = Look(palette[k % len(palette)], marker, kind)
    return chosen


def looks_of(groups: Sequence[tuple[Group, Summary]], curves: Sequence[Record]) -> dict[str, Look]:
    """The looks of all learners that any figure or table shows; `curves` are labelled records."""
    trained = {label: kind for _, summary in groups for label, kind in summary.trained.items()}
    for record in curves:
        trained.setdefault(record["label"], bool(record["trained"]))
    return looks(trained, frozenset(record["label"] for record in curves))


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """An empty figure and its axes (an array if there are several)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def png_of(figure: Any) -> bytes:
    """The figure as PNG; no software or date inside, so equal records give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def scale_of(metric: str) -> float:
    """Accuracies are drawn in percent."""
    return 100.0 if in_percent(metric) else 1.0


def metric_name(metric: str) -> str:
    """Name of an axis."""
    return "accuracy (%)" if metric == "accuracy" else metric.replace("_", " ")


def metric_title(metric: str) -> str:
    """The metric as a title begins with it."""
    return {"mse": "Mean squared error", "nll": "Negative log-likelihood"}.get(
        metric, metric.replace("_", " ").capitalize()
    )


def chance_level(records: Sequence[Record]) -> float | None:
    """Accuracy of guessing, averaged as accuracies are; None where it means nothing."""
    ways = [r for r in records if r["ways"] and "accuracy" in r["values"]]
    if not ways:
        return None
    return grand_mean(
        cells_of([{**r, "values": {"accuracy": np.array([1 / r["ways"]])}} for r in ways], "accuracy")
    )


def legend(axes: Any, learners: Sequence[str], look: dict[str, Look], lines: bool, chance: bool) -> None:
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
