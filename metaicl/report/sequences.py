# SPDX-License-Identifier: Apache-2.0
"""Training in stages in the report: one table of transfer for all orders, a heat map for each, their courses."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.report import transfer
from metaicl.report.reading import Run
from metaicl.report.stages import Stages
from metaicl.report.statistics import Cell, Interval, hierarchical_bootstrap, paired_cells
from metaicl.report.style import DASHED, FAINT, INK, MUTED, TRAINED, Drawing, canvas, png_of
from metaicl.report.tables import MISSING, Table, best_of, format_interval, pretty
from metaicl.report.tables import Cell as Entry

_NUMBERED = 12  # up to so many data sets a heat map has its numbers in it


def labelled(runs: Sequence[Run]) -> dict[str, tuple[str, Stages]]:
    """What the report calls the runs that trained in stages: label -> (name of the run, its stages)."""
    found = [(run.name, run.stages) for run in runs if run.stages is not None]
    several = len({stages.learner for _, stages in found}) > 1
    names = [", ".join([s.order, *["replay"] * s.replay, *[pretty(s.learner)] * several]) for _, s in found]
    often = Counter(names)
    return {
        name if often[name] == 1 else run: (run, stages)
        for name, (run, stages) in zip(names, found, strict=True)
    }


def quantities(stages: Stages) -> dict[str, np.ndarray]:
    """Everything that is said of a run, for every data set, seed and episode: `{metric: [P, R, E]}`.

    NaN for data sets that a quantity leaves out; see `transfer`.
    """
    r, own = stages.accuracy, transfer.own_stages(stages.adds)
    return {
        "final_accuracy": r[-1],
        "accuracy_over_stages": r[1:].mean(axis=0) if len(r) > 2 else np.full(r.shape[1:], np.nan),
        "backward_transfer": transfer.backward(r, own),
        "backward_transfer_since_domain": transfer.backward(r, transfer.domain_stages(own, stages.domains)),
        "forward_transfer": transfer.forward(r, own),
        "learned_in_own_stage": transfer.learned(r, own),
        "forgetting": transfer.forgetting(r, own),
    }


def cells(run: str, stages: Stages, values: np.ndarray) -> list[Cell]:
    """`[P, R, E]` as the cells that intervals are taken over; data sets of NaN are left out."""
    return [
        Cell(domain, dataset, unit, run, stages.episodes, values[d, u])
        for d, (dataset, domain) in enumerate(zip(stages.datasets, stages.domains, strict=True))
        for u, unit in enumerate(stages.units)
        if not np.isnan(values[d, u]).any()
    ]


def intervals(run: str, stages: Stages) -> dict[str, Interval | None]:
    """Every quantity of a run with its interval; None for one that nothing can be said of."""
    found = {metric: cells(run, stages, values) for metric, values in quantities(stages).items()}
    return {metric: hierarchical_bootstrap(own) if own else None for metric, own in found.items()}


def transfer_rows(runs: Sequence[Run]) -> list[dict]:
    """The rows of `results.json` about transfer over stages."""
    rows = []
    for run, stages in labelled(runs).values():
        sets, episodes = len(stages.datasets), stages.accuracy.shape[-1]
        shared = {"run": run, "learner": stages.learner, "dataset": f"{sets} data sets", "domain": "all"}
        for metric, interval in intervals(run, stages).items():
            if interval is not None:
                numbers = {"mean": _rounded(interval.mean), "ci95": _rounded(interval.half)}
                rest = {"episodes": episodes, "seeds": len(stages.units), "stages": len(stages.accuracy) - 1}
                rows.append({**shared, "split": "test", "metric": metric, **numbers, **rest})
    return rows


def matrices(runs: Sequence[Run]) -> dict[str, dict]:
    """R for `results.json`, by run: the accuracy of every data set after every stage, row 0 before the first."""
    return {
        run: {
            "stages": [_stage_name(stages, t) for t in range(len(stages.accuracy))],
            "datasets": stages.datasets,
            "accuracy": [[_rounded(v) for v in row] for row in stages.accuracy.mean(axis=(2, 3))],
        }
        for run, stages in labelled(runs).values()
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def transfer_table(runs: Sequence[Run]) -> Table | None:
    """Orders and bounds by final accuracy, with the difference to the order of domains and all transfers."""
    found = labelled(runs)
    if not found:
        return None
    numbers = {label: intervals(run, stages) for label, (run, stages) in found.items()}
    order = sorted(numbers, key=lambda label: (-_mean(numbers[label]["final_accuracy"]), label))
    differences = {label: _to_domain_order(label, found) for label in order}
    best = {
        m: best_of([_mean(numbers[x][m]) for x in order], True)
        for m in ("final_accuracy", "accuracy_over_stages")
    }
    rows = []
    for k, label in enumerate(order):
        own = numbers[label]
        shown = [Entry(format_interval(own[m], "accuracy"), k in best[m]) for m in best]
        signed = [differences[label], *(own[m] for m in own if m not in best)]
        rows.append((label, shown + [Entry(format_interval(i, "accuracy", signed=True)) for i in signed]))
    names = [
        "final",
        "over stages",
        "vs domain",
        "backward",
        "since domain",
        "forward",
        "own stage",
        "forgetting",
    ]
    rows += _untrained_rows(found, len(names))
    return Table("training in stages, test images", "order", names, rows, _notes(found))


def _mean(interval: Interval | None) -> float:
    return float("nan") if interval is None else interval.mean


def _to_domain_order(label: str, found: dict[str, tuple[str, Stages]]) -> Interval | None:
    """Paired difference of final accuracies to the same learner's plain order of domains."""
    run, stages = found[label]
    for other_run, other in found.values():
        if (other.order, other.replay, other.learner) == (
            "domain",
            False,
            stages.learner,
        ) and other_run != run:
            pairs = paired_cells(
                cells(run, stages, stages.accuracy[-1]), cells(other_run, other, other.accuracy[-1])
            )
            return hierarchical_bootstrap(pairs) if pairs else None
    return None


def _untrained_rows(found: dict[str, tuple[str, Stages]], columns: int) -> list[tuple[str, list[Entry]]]:
    """Each learner before its first stage; all its orders begin with the same parameters."""
    rows = {}
    for run, stages in found.values():
        interval = hierarchical_bootstrap(cells(run, stages, stages.accuracy[0]))
        rows[stages.learner] = [Entry(format_interval(interval, "accuracy"))] + [Entry(MISSING)] * (
            columns - 1
        )
    return [(f"untrained {pretty(x)}" if len(rows) > 1 else "untrained", row) for x, row in rows.items()]


def _notes(found: dict[str, tuple[str, Stages]]) -> list[str]:
    sizes = {(len(s.accuracy) - 1, len(s.datasets)) for _, s in found.values() if s.order != "joint"}
    _, any_stages = next(iter(found.values()))
    counted = " or ".join(f"{t} stages over {p} data sets" for t, p in sorted(sizes)) or "one stage"
    seeds, episodes = len(any_stages.units), any_stages.accuracy.shape[-1]
    return [
        f"{counted}, {episodes} episodes of every data set after each stage, {seeds} seed{'' if seeds == 1 else 's'}; "
        "percent, means over domains of means over data sets, ± half the 95 % interval of a hierarchical bootstrap.",
        "final: after the last stage; over stages: mean over all stages; vs domain: paired difference of the final "
        "accuracy to the order of domains.",
        "backward: accuracy at the end minus right after a data set's own stage; since domain: minus that when its "
        "domain was first complete. Data sets whose reference is the last stage are left out.",
        "forward: accuracy right before a data set's own stage minus that of the untrained learner; own stage: what "
        "that stage added.",
        "forgetting: best accuracy after any earlier stage minus that at the end.",
    ]


def draw_stages(runs: Sequence[Run]) -> list[Drawing]:
    """The course of the average accuracy for all orders, and a heat map for each with several stages."""
    found = labelled(runs)
    if not found:
        return []
    maps = [draw_change(x, stages) for x, (_, stages) in sorted(found.items()) if len(stages.accuracy) > 2]
    return [draw_courses({label: stages for label, (_, stages) in found.items()}), *maps]


def draw_courses(found: dict[str, Stages]) -> Drawing:
    """Average accuracy over all data sets after each stage: a line for each order, one level for joint training."""
    figure, axes = canvas(7.8, 4.3)
    courses = {
        label: 100 * transfer.domain_mean(np.moveaxis(s.accuracy.mean(axis=(2, 3)), 0, 1), s.domains)
        for label, s in found.items()
    }
    colors = dict(zip(sorted(found), (TRAINED + MUTED) * len(found), strict=False))
    last = max(len(course) for course in courses.values()) - 1
    for label in sorted(courses, key=lambda x: -courses[x][-1]):
        course, style = courses[label], "-" if not found[label].replay else DASHED
        if len(course) == 2:
            axes.plot([0, last], [course[-1]] * 2, color=colors[label], lw=1.6, ls=":", label=label)
        else:
            few = len(course) <= 40
            axes.plot(
                course, color=colors[label], lw=1.9, ls=style, marker="o" if few else "", ms=3, label=label
            )
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
    axes.set_yticks(range(count), [_stage_name(stages, t) for t in range(1, count + 1)])
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


def _stage_name(stages: Stages, number: int) -> str:
    added = [name for name, adds in zip(stages.datasets, stages.adds[number], strict=True) if adds]
    if number == 0:
        return "0 untrained"
    return f"{number} {pretty(added[0]) if len(added) == 1 else f'{len(added)} data sets'}"


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
