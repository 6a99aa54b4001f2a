# SPDX-License-Identifier: Apache-2.0
"""Figures of the distances between data sets: matrix, dendrogram and map. Reads `results.json` only.

All show the p-th root of the divergence, which is a length in the space of the features.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.files import write_bytes
from metaicl.report.style import FAINT, INK, MARKERS, MUTED, STYLE, TRAINED, Drawing, canvas, png_of
from metaicl.report.tables import pretty

_LABELLED = 20  # up to so many sets the matrix has its numbers in it


class Matrix(NamedTuple):
    """P data sets, ordered by domain: names, domains and lengths `[P, P]`."""

    names: list[str]
    domains: list[str]
    lengths: np.ndarray


def write_distance_report(root: str | pathlib.Path) -> str:
    """Writes `figures/*.png` from the `results.json` in `root`; returns a table of nearest and farthest sets."""
    root = pathlib.Path(root)
    matrix = read_matrix(json.loads((root / "results.json").read_text()))
    for drawing in draw_distances(matrix):
        write_bytes(root / "figures" / f"{drawing.name}.png", drawing.png)
    return neighbour_table(matrix)


def read_matrix(results: dict) -> Matrix:
    """The matrix in a `results.json`, its sets sorted by domain and name."""
    sets = sorted(results["sets"], key=lambda s: (s["domain"], s["name"]))
    place = {s["name"]: k for k, s in enumerate(sets)}
    values = np.zeros((len(sets), len(sets)))
    for row in results["rows"]:
        i, j = place[row["a"]], place[row["b"]]
        values[i, j] = values[j, i] = row["value"]
    settings = results["settings"]
    power = 1.0 if settings["root"] else 1 / settings["p"]
    lengths = np.maximum(values, 0.0) ** power
    return Matrix([s["name"] for s in sets], [s["domain"] for s in sets], lengths)


def draw_distances(matrix: Matrix) -> list[Drawing]:
    """The three figures; with two sets there is but the matrix."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawings = [draw_matrix(matrix)]
        if len(matrix.names) > 2:
            drawings += [draw_dendrogram(matrix), draw_map(matrix)]
    return drawings


def draw_matrix(matrix: Matrix) -> Drawing:
    """Heat map, domains side by side."""
    names, domains, lengths = matrix
    count = len(names)
    side = max(4.5, 0.42 * count)
    figure, axes = canvas(side + 2.4, side + 1.4)
    off = lengths[~np.eye(count, dtype=bool)]
    shown = np.where(np.eye(count, dtype=bool), np.nan, lengths)
    image = axes.imshow(shown, cmap="viridis_r", vmin=off.min(), vmax=off.max())
    axes.set_xticks(range(count), [pretty(n) for n in names], rotation=90)
    axes.set_yticks(range(count), [pretty(n) for n in names])
    for label, domain in [*zip(axes.get_yticklabels(), domains, strict=True),
                          *zip(axes.get_xticklabels(), domains, strict=True)]:  # fmt: skip
        label.set_color(_look(domain, domains)["color"])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for k in range(1, count):
        if domains[k] != domains[k - 1]:
            axes.axhline(k - 0.5, color="white", lw=2)
            axes.axvline(k - 0.5, color="white", lw=2)
    if count <= _LABELLED:
        middle = (off.min() + off.max()) / 2
        for i, j in np.argwhere(~np.isnan(shown)):
            dark = lengths[i, j] > middle
            axes.text(j, i, f"{lengths[i, j]:.3g}", ha="center", va="center", fontsize=7,
                      color="white" if dark else INK)  # fmt: skip
    axes.set_title("Distances between data sets")
    figure.colorbar(image, ax=axes, shrink=0.8, label="OTDD (root)")
    return Drawing("distances", "OTDD of every pair; names in the colour of their domain.", png_of(figure))


def draw_dendrogram(matrix: Matrix) -> Drawing:
    """Average linkage."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    tree = hierarchy.dendrogram(
        hierarchy.linkage(squareform(matrix.lengths, checks=False), "average", optimal_ordering=True),
        no_plot=True,
        labels=matrix.names,
    )
    figure, axes = canvas(7.6, 1.2 + 0.3 * len(matrix.names))
    for heights, places in zip(tree["dcoord"], tree["icoord"], strict=True):
        axes.plot(heights, [(place - 5) / 10 for place in places], color=INK, lw=1.3)
    axes.yaxis.tick_right()
    axes.set_yticks(range(len(matrix.names)), [pretty(name) for name in tree["ivl"]])
    domain_of = dict(zip(matrix.names, matrix.domains, strict=True))
    for k, name in enumerate(tree["ivl"]):
        _dot(axes, 0, k, domain_of[name], matrix.domains)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(1.05 * max(map(max, tree["dcoord"])), 0)
    axes.invert_yaxis()
    axes.set_xlabel("OTDD (root), average linkage")
    axes.set_title("Which data sets are alike")
    _domain_legend(figure, matrix.domains)
    return Drawing("dendrogram", "Average linkage of the distances.", png_of(figure))


def draw_map(matrix: Matrix) -> Drawing:
    """The plane on which distances are kept best, by classical scaling."""
    places, share = classical_scaling(matrix.lengths)
    span = np.ptp(places, axis=0) + 1e-9
    figure, axes = canvas(9.2, float(np.clip(7.2 * span[1] / span[0], 3.2, 7.2)) + 0.8)
    for domain, (x, y) in zip(matrix.domains, places, strict=True):
        _dot(axes, x, y, domain, matrix.domains)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.13)
    axes.set_title(f"Map of the data sets ({100 * share:.0f} % of the spread lies in this plane)")
    _domain_legend(figure, matrix.domains)
    _name_points(figure, axes, [pretty(name) for name in matrix.names], places)
    return Drawing("map", "Classical multidimensional scaling of the distances.", png_of(figure))


def classical_scaling(lengths: np.ndarray, dimensions: int = 2) -> tuple[np.ndarray, float]:
    """Points `[P, dimensions]` whose distances are near the given ones, and their share of the positive spread."""
    count = len(lengths)
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ lengths**2 @ centring)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[np.argmax(np.abs(vectors), axis=0), range(count)] < 0, -1, 1)
    positive = np.maximum(values, 0.0)
    share = positive[:dimensions].sum() / max(positive.sum(), np.finfo(float).tiny)
    return vectors[:, :dimensions] * np.sqrt(positive[:dimensions]), float(share)


def neighbour_table(matrix: Matrix) -> str:
    """For the terminal: the nearest and the farthest set of every set."""
    rows = [("data set", "domain", "nearest", "", "farthest", "")]
    for i, (name, domain) in enumerate(zip(matrix.names, matrix.domains, strict=True)):
        others = np.delete(np.arange(len(matrix.names)), i)
        near, far = (others[pick(matrix.lengths[i, others])] for pick in (np.argmin, np.argmax))
        cells = [(matrix.names[j], f"{matrix.lengths[i, j]:.4g}") for j in (near, far)]
        rows.append((name, pretty(domain), *cells[0], *cells[1]))
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    aligned = [
        "  ".join(
            cell.rjust(w) if k in (3, 5) else cell.ljust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([aligned[0].rstrip(), "─" * len(aligned[0]), *aligned[1:]])


def _name_points(figure: Any, axes: Any, names: Sequence[str], places: np.ndarray) -> None:
    """Writes names beside points, each at the nearest place that is still free, with a line to it if it is far."""
    figure.draw_without_rendering()  # the layout is only known then
    points = axes.transData.transform(places) * 72 / figure.dpi
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    rings = [
        (radius, angle) for radius in (10, 18, 30, 45, 60, 80) for angle in np.pi * np.arange(0.5, 2.5, 0.25)
    ]
    for name, place, (x, y) in zip(names, places, points, strict=True):
        width, height = 4.3 * len(name), 9.0
        for radius, angle in rings:
            dx, dy = radius * np.cos(angle), radius * np.sin(angle)
            centre = x + dx + np.sign(round(dx, 6)) * width / 2, y + dy
            box = (
                centre[0] - width / 2,
                centre[1] - height / 2,
                centre[0] + width / 2,
                centre[1] + height / 2,
            )
            if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                break
        taken.append(box)
        line = dict(arrowstyle="-", color=FAINT, lw=0.8) if radius > 10 else None
        offset = (centre[0] - x, centre[1] - y)
        text = dict(fontsize=7.5, ha="center", va="center", textcoords="offset points", arrowprops=line)
        axes.annotate(name, place, xytext=offset, annotation_clip=False, **text)


def _look(domain: str, domains: Sequence[str]) -> dict[str, Any]:
    """Colour and marker of a domain, the same in all figures."""
    palette = [*TRAINED, INK, *MUTED]
    k = sorted(set(domains)).index(domain)
    return dict(color=palette[k % len(palette)], marker=MARKERS[k % len(MARKERS)])


def _dot(axes: Any, x: float, y: float, domain: str, domains: Sequence[str]) -> None:
    look = _look(domain, domains)
    axes.plot([x], [y], ls="none", ms=8, markeredgecolor="white", clip_on=False, zorder=5, **look)


def _domain_legend(figure: Any, domains: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = sorted(set(domains))
    handles = [Line2D([], [], ls="none", ms=7, **_look(name, domains)) for name in names]
    figure.legend(handles, [pretty(name) for name in names], loc="outside right upper")
