# SPDX-License-Identifier: Apache-2.0
"""Training in stages in the report: what is said of each order, and one table of transfer for all."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from metaicl.report import transfer
from metaicl.report.reading import Run
from metaicl.report.stages import Stages
from metaicl.report.statistics import Cell, Interval, hierarchical_bootstrap, paired_cells
from metaicl.report.tables import MISSING, Table, best_of, format_interval, pretty, rounded
from metaicl.report.tables import Cell as Entry


def labelled(runs: Sequence[Run]) -> dict[str, tuple[str, Stages]]:
    """What the report calls the runs that trained in stages: label -> (name of the run, its stages)."""
    found = [(run.name, run.stages) for run in runs if run.stages is not None]
    learners = len({stages.learner for _, stages in found}) > 1
    # Joint training has one stage, whatever the budget: it does not make a second kind.
    budgets = len({stages.budget for _, stages in found if stages.order != "joint"}) > 1
    names = [
        ", ".join(
            [s.order]
            + ["replay"] * s.replay
            + [s.budget] * (budgets and s.order != "joint")
            + [pretty(s.learner)] * learners
        )
        for _, s in found
    ]
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


def backward_course(run: str, stages: Stages) -> list[Interval | None]:
    """After each stage from the second on: the change of the data sets seen before it since their own stages."""
    own = transfer.own_stages(stages.adds)
    change = transfer.change(stages.accuracy, own)  # [T + 1, P, R, E]
    course = []
    for t in range(2, len(change)):
        earlier = np.where(((own > 0) & (own < t))[:, None, None], change[t], np.nan)
        found = cells(run, stages, earlier)
        course.append(hierarchical_bootstrap(found) if found else None)
    return course


def transfer_rows(runs: Sequence[Run]) -> list[dict]:
    """The rows of `results.json` about transfer over stages."""
    rows = []
    for run, stages in labelled(runs).values():
        sets, episodes = len(stages.datasets), stages.accuracy.shape[-1]
        shared = {"run": run, "learner": stages.learner, "dataset": f"{sets} data sets", "domain": "all"}
        for metric, interval in intervals(run, stages).items():
            if interval is not None:
                numbers = {"mean": rounded(interval.mean), "ci95": rounded(interval.half)}
                rest = {"episodes": episodes, "seeds": len(stages.units), "stages": len(stages.accuracy) - 1}
                rows.append({**shared, "split": "test", "metric": metric, **numbers, **rest})
    return rows


def matrices(runs: Sequence[Run]) -> dict[str, dict]:
    """R for `results.json`, by run: the accuracy of every data set after every stage, row 0 before the first.

    With it the backward transfer after each stage from the second on, `[mean, half of its interval]` or null.
    """
    return {
        run: {
            "stages": [stage_name(stages, t) for t in range(len(stages.accuracy))],
            "datasets": stages.datasets,
            "accuracy": [[rounded(v) for v in row] for row in stages.accuracy.mean(axis=(2, 3))],
            "backward": [i and [rounded(i.mean), rounded(i.half)] for i in backward_course(run, stages)],
        }
        for run, stages in labelled(runs).values()
    }


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
    """Paired difference of final accuracies to the same learner's plain order of domains, with the same budget."""
    run, stages = found[label]
    for other_run, other in found.values():
        plain = (other.order, other.replay) == ("domain", False)
        alike = stages.order == "joint" or other.budget == stages.budget  # joint training has one stage
        if plain and alike and other.learner == stages.learner and other_run != run:
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


def stage_name(stages: Stages, number: int) -> str:
    """Its number and the data set that it adds, or how many."""
    added = [name for name, adds in zip(stages.datasets, stages.adds[number], strict=True) if adds]
    if number == 0:
        return "0 untrained"
    return f"{number} {pretty(added[0]) if len(added) == 1 else f'{len(added)} data sets'}"
