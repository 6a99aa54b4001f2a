# SPDX-License-Identifier: Apache-2.0
"""Does the distance between data sets predict transfer? Distances against what training on others was good for."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metaicl.report import correlation
from metaicl.report.reading import Record
from metaicl.report.statistics import Interval
from metaicl.report.tables import MISSING, Cell, Table, pretty, rounded


class Study(NamedTuple):
    """P data sets; accuracies are means over episodes and seeds on images that nothing was trained on.

    Attributes:
      learner: what was trained.
      datasets, domains: sorted by domain, then name.
      distance: `[P, P]`, OTDD between training images.
      single: `[P, P]`, accuracy on each target (column) after training on one source (row) alone.
      untrained: `[P]`, of the learner as initialised.
      without: `[P]`, of the learner that was trained on all other data sets; NaN where it was not.
      joint: `[P]`, of the learner that was trained on all; NaN where there is none.
      seeds: number of learners behind each accuracy.
    """

    learner: str
    datasets: list[str]
    domains: list[str]
    distance: np.ndarray
    single: np.ndarray
    untrained: np.ndarray
    without: np.ndarray
    joint: np.ndarray
    seeds: int

    @property
    def others(self) -> np.ndarray:
        """`bool [P, P]`: pairs of different data sets."""
        return ~np.eye(len(self.datasets), dtype=bool)

    @property
    def across(self) -> np.ndarray:
        """`bool [P, P]`: pairs of different domains."""
        domains = np.array(self.domains)
        return domains[:, None] != domains[None, :]


class Finding(NamedTuple):
    """One rank correlation: what of the transfer with what of the distance, and the sign it would have."""

    name: str
    key: str
    expected: str
    rho: Interval
    p: float


def load_study(records: Sequence[Record]) -> Study | None:
    """The study in the records of an experiment; None where there is none, or a source is still to be trained on."""
    pairs = [r for r in records if r["evaluation"] == "distance"]
    trained_on: dict[tuple, list[Record]] = defaultdict(list)
    for r in records:
        if r["evaluation"] == "transfer" and r["trained"]:
            trained_on[tuple(sorted(r["train_on"]))].append(r)
    where = {r["dataset"]: r["domain"] for part in trained_on.values() for r in part}
    names = sorted(where, key=lambda name: (where[name], name))
    complete = {n for r in pairs for n in (r["dataset"], r["value"])} == set(names)
    if len(names) < correlation.LEAST or not complete or not all((name,) in trained_on for name in names):
        return None
    learner = trained_on[names[0],][0]["learner"]
    own = [
        r for r in records if r["learner"] == learner and r["evaluation"] == "main" and r["split"] == "test"
    ]
    single = np.array([_accuracies(trained_on[name,], names) for name in names])
    rest = {name: trained_on[tuple(sorted(set(names) - {name}))] for name in names}
    return Study(
        learner,
        names,
        [where[name] for name in names],
        _distances(pairs, names),
        single,
        _accuracies([r for r in own if not r["trained"]], names),
        np.diag([_accuracies(rest[name], names) for name in names]),
        _accuracies([r for r in own if r["trained"]], names),
        len({(r["replica"], r["seed"]) for r in trained_on[names[0],]}),
    )


def _accuracies(records: Sequence[Record], names: Sequence[str]) -> np.ndarray:
    """`[P]`, means over seeds and episodes; NaN where nothing was measured."""
    means = defaultdict(list)
    for r in records:
        means[r["dataset"]].append(r["values"]["accuracy"].mean())
    return np.array([np.mean(means[name]) if means[name] else np.nan for name in names])


def _distances(pairs: Sequence[Record], names: Sequence[str]) -> np.ndarray:
    place = {name: k for k, name in enumerate(names)}
    found = np.zeros((len(names), len(names)))
    for r in pairs:
        i, j = place[r["dataset"]], place[r["value"]]
        found[i, j] = found[j, i] = r["values"]["distance"].mean()
    return found


def findings(study: Study) -> list[Finding]:
    """The rank correlations that can be said of a study; see `correlation` for intervals and p-values."""
    d, single = study.distance, study.single
    within = correlation.within_targets
    found = [
        Finding(
            "one source, within each target",
            "within_targets",
            "−",
            within(d, single, study.others),
            correlation.mantel_within_targets(d, single),
        ),
        Finding(
            "one source, all pairs: accuracy",
            "accuracy_over_pairs",
            "−",
            correlation.over_pairs(d, single),
            correlation.mantel_over_pairs(d, single),
        ),
    ]
    if np.isfinite(study.untrained).all():
        gain = single - study.untrained
        rho, p = correlation.over_pairs(d, gain), correlation.mantel_over_pairs(d, gain)
        found.insert(1, Finding("one source, all pairs: gain", "gain_over_pairs", "−", rho, p))
    if (study.across.sum(axis=0) > 1).any() and not (study.across == study.others).all():
        rho = within(d, single, study.across)
        name = "one source of another domain, within each target"
        found.insert(1, Finding(name, "within_targets_across_domains", "−", rho, float("nan")))
    return found + _left_out(study)


def _left_out(study: Study) -> list[Finding]:
    """Accuracy on each data set when it was left out, what that gained, and what it cost, with its distances."""
    quantities = {
        "accuracy": ("−", study.without),
        "gain": ("−", study.without - study.untrained),
        "cost": ("+", study.joint - study.without),
    }
    far = np.where(study.others, study.distance, np.nan)
    distances: dict[str, Callable] = {"mean distance": np.nanmean, "smallest distance": np.nanmin}
    found = []
    for what, (expected, values) in quantities.items():
        for which, summary in distances.items():
            if np.isfinite(values).all():
                x = summary(far, axis=0)
                rho, p = correlation.over_sets(x, values), correlation.permutation_over_sets(x, values)
                key = f"left_out_{what}_{which.replace(' ', '_')}"
                found.append(Finding(f"all but one: {what}, {which}", key, expected, rho, p))
    return found


def finding_table(study: Study, found: Sequence[Finding]) -> Table:
    """The headline: every correlation with its interval and p-value."""
    rows = []
    for f in found:
        p = MISSING if np.isnan(f.p) else f"{f.p:.4f}" if f.p < 0.01 else f"{f.p:.2f}"
        cells = [_signed(f.rho.mean), f"{_signed(f.rho.low)} to {_signed(f.rho.high)}", p, f.expected]
        rows.append((f.name, [Cell(text) for text in cells]))
    count, domains = len(study.datasets), len(set(study.domains))
    notes = [
        f"{pretty(study.learner)}, {count} data sets of {domains} domains, {study.seeds} "
        f"seed{'' if study.seeds == 1 else 's'}; accuracy on images that nothing was trained on.",
        "ρ: Spearman's rank correlation with the OTDD of training images; sign: what it would be if near data sets "
        "were the better ones to train on.",
        "one source: trained on one data set, tested on another; within each target: mean over targets of the "
        "correlation over sources, the same for accuracy and gain; gain: over the untrained learner.",
        "all but one: a data set that was left out, against its mean and smallest distance to the others; cost: "
        "accuracy of training on all, less that.",
        "95 % intervals by bootstrap over data sets, as sources and targets at once; p, two-sided, by permuting the "
        f"data sets of the distances (Mantel), {correlation.PERMUTATIONS} times.",
    ]
    return Table("distance and transfer", "transfer", ["ρ", "95 %", "p", "sign"], rows, notes)


def target_table(study: Study) -> Table:
    """Every data set as a target: its correlation, its nearest and its best source, and all that it is compared to."""
    rows = []
    intervals = correlation.target_intervals(study.distance, study.single)
    for t, rho in enumerate(intervals):
        others = np.flatnonzero(study.others[:, t])
        near = others[np.argmin(study.distance[others, t])]
        best = others[np.argmax(study.single[others, t])]
        shown = [study.untrained[t], study.single[near, t], study.single[best, t]]
        shown += [study.without[t], study.joint[t], study.single[t, t]]
        cells = [_signed(rho.mean), *map(_percent, shown)]
        for place, source in ((2, near), (4, best)):
            cells.insert(place, study.datasets[source])
        name = f"{study.datasets[t]} · {pretty(study.domains[t])}"
        rows.append((name, [Cell(text) for text in cells]))
    columns = ["ρ", "untrained", "nearest", "after it", "best", "after it", "all but it", "all", "itself"]
    notes = [
        "Percent. ρ: rank correlation of distance and accuracy over the other data sets as the one source.",
        "best: in hindsight, by test accuracy; it is no choice that could have been made.",
    ]
    return Table("transfer by target", "data set", columns, rows, notes)


def _signed(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:+.2f}"


def _percent(value: float) -> str:
    return MISSING if np.isnan(value) else f"{100 * value:.1f}"


def relation_rows(study: Study, found: Sequence[Finding]) -> list[dict]:
    """The rows of `results.json` about a study: its findings, and the correlation of every target."""
    count = len(study.datasets)
    shared = {"run": "distances", "learner": study.learner, "split": "test"}
    rest = {"data_sets": count, "seeds": study.seeds}
    whole = shared | {"dataset": f"{count} data sets", "domain": "all"}
    rows = [
        whole | {"metric": f"spearman_{f.key}"} | _interval(f.rho) | {"p": rounded(f.p)} | rest for f in found
    ]
    intervals = correlation.target_intervals(study.distance, study.single)
    for name, domain, rho in zip(study.datasets, study.domains, intervals, strict=True):
        own = shared | {"dataset": name, "domain": domain, "metric": "spearman_over_sources"}
        rows.append(own | _interval(rho) | rest)
    return rows


def relation_matrices(study: Study) -> dict[str, dict]:
    """Distances and accuracies for `results.json`."""
    numbers = lambda values: [rounded(v) for v in values]
    accuracy = {name: numbers(getattr(study, name)) for name in ("untrained", "without", "joint")}
    single = [numbers(row) for row in study.single]
    return {
        "distance": {"datasets": study.datasets, "otdd": [numbers(row) for row in study.distance]},
        "transfer": {"datasets": study.datasets, "single": single, **accuracy},
    }


def _interval(rho: Interval) -> dict[str, float | None]:
    low, high = rounded(rho.low), rounded(rho.high)
    return {"mean": rounded(rho.mean), "ci95": rounded(rho.half), "low": low, "high": high}
