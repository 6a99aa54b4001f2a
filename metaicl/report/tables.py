# SPDX-License-Identifier: Apache-2.0
"""Summaries as rows and tables: `results.json`, terminal and markdown. The page renders the same tables."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaicl.report.reading import FEW_CLASSES, Group, Record, higher_is_better, in_percent, span, unit
from metaicl.report.statistics import Interval, Summary, calibration_error, mean_interval, pooled_bins

WIDTH = 120
SHORTEST = 14  # to which a name in the first column may be cut
MISSING = "–"


class Cell(NamedTuple):
    """One number of a table, already formatted; `best` ones are emphasised."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """A table without a medium: first column the row names, then cells; notes go below."""

    title: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    narrow: int = 0  # the first so many columns may be abbreviated


def pretty(label: str) -> str:
    """A name as people read it."""
    return label.replace("_", " ")


def rounded(value: float, digits: int = 6) -> float | None:
    """Rounded to so many significant digits, for a file; None, JSON's null, for what is not a number."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def result_rows(records: Sequence[Record]) -> list[dict]:
    """The rows of `results.json`: one for each record and metric, and one for its calibration error."""
    rows = []
    for r in records:
        shared = {k: r[k] for k in ("run", "learner", "dataset", "domain", "split")}
        rest = {k: r[k] for k in ("ways", "shots", "seed", "step", "evaluation", "replica", "classes")}
        rest |= {k: r[k] for k in ("setting", "value")} if r["setting"] else {}
        episodes = max(len(v) for v in r["values"].values())
        found = [(metric, mean_interval(values), len(values)) for metric, values in r["values"].items()]
        bins = pooled_bins([r])
        if bins is not None:
            found.append(("ece", Interval(calibration_error(bins), float("nan"), float("nan")), episodes))
        for metric, interval, count in found:
            numbers = {"mean": rounded(interval.mean), "ci95": rounded(interval.half), "episodes": count}
            rows.append({**shared, "metric": metric, **numbers, **rest})
    return rows


def format_value(value: float, metric: str) -> str:
    """Accuracy in percent with one decimal, an error with three digits."""
    if not np.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}" if in_percent(metric) else f"{value:.3g}"


def format_interval(interval: Interval | None, metric: str, signed: bool = False) -> str:
    """`84.3 ±1.2`; with `signed`, `+3.2 ±0.9`."""
    if interval is None or not np.isfinite(interval.mean):
        return MISSING
    value = format_value(interval.mean, metric)
    value = f"+{value}" if signed and interval.mean > 0 else value
    if not np.isfinite(interval.half):
        return value
    return f"{value} ±{100 * interval.half:.1f}" if in_percent(metric) else f"{value} ±{interval.half:.2g}"


def unit_note(metric: str) -> str:
    """How to read the numbers."""
    if in_percent(metric):
        return "percent"
    return "higher is better" if higher_is_better(metric) else "lower is better"


def best_of(values: Sequence[float], largest: bool) -> set[int]:
    """Where the best of several values stands, ties included; nothing is best among fewer than two."""
    finite = [v for v in values if np.isfinite(v)]
    if len(finite) < 2:
        return set()
    best = max(finite) if largest else min(finite)
    return {i for i, v in enumerate(values) if v == best}


def _value_column(summary: Summary, intervals: list[Interval | None]) -> list[Cell]:
    best = best_of([i.mean if i else np.nan for i in intervals], higher_is_better(summary.metric))
    texts = [format_value(i.mean, summary.metric) if i else MISSING for i in intervals]
    return [Cell(text, k in best) for k, text in enumerate(texts)]


def _plain_column(values: list[float], digits: int) -> list[Cell]:
    best = best_of(values, largest=False)
    texts = [f"{v:.{digits}f}" if np.isfinite(v) else MISSING for v in values]
    return [Cell(text, k in best) for k, text in enumerate(texts)]


def headline_table(group: Group, summary: Summary, both: bool = False, single: bool = True) -> Table:
    """Learners by domains (data sets if there is one domain), then mean, difference, nll and ece.

    Args:
      group: the records, for the title and the notes.
      summary: `summarise` of the same records.
      both: also the difference to the best of all learners.
      single: with a column for every domain or data set.
    """
    learners, metric = summary.learners, summary.metric
    by, places = summary.by_place, summary.places if single else []
    columns = [_value_column(summary, [by[x].get(place) for x in learners]) for place in places]
    names = [*map(pretty, places), "mean"]
    means = [summary.overall[x] for x in learners]
    best = best_of([i.mean for i in means], higher_is_better(metric))
    columns.append([Cell(format_interval(i, metric), k in best) for k, i in enumerate(means)])
    against = [("vs baseline", summary.to_baseline)] if summary.to_baseline else []
    against += [("vs best", summary.to_best)] if summary.to_best and (both or not against) else []
    for name, differences in against:
        names.append(name)
        columns.append([Cell(format_interval(differences.get(x), metric, signed=True)) for x in learners])
    if metric != "nll" and any(np.isfinite(summary.nll[x]) for x in learners):
        names.append("nll")
        columns.append(_plain_column([summary.nll[x] for x in learners], 3))
    if any(summary.bins[x] is not None for x in learners):
        names.append("ece")
        columns.append(_plain_column([calibration_error(summary.bins[x]) for x in learners], 3))
    rows = [(pretty(x), [column[k] for column in columns]) for k, x in enumerate(learners)]
    return Table(
        group.title, "learner", names, rows, _headline_notes(group, summary, dict(against)), len(places)
    )


def _headline_notes(group: Group, summary: Summary, against: dict) -> list[str]:
    """What a reader needs to read the table rightly."""
    unit = unit_note(summary.metric)
    notes = [
        f"{measured(group.records)}; {pretty(summary.metric)}, {unit}.",
        "mean: over domains of the mean over data sets; ± is half the 95 % interval of a hierarchical"
        " bootstrap over domains, data sets, seeds and episodes.",
    ]
    if "vs baseline" in against:
        notes.append(
            f"vs baseline: paired difference to {pretty(summary.baseline or '')}, the best untrained learner"
            " here, over the same episodes."
        )
    if "vs best" in against:
        notes.append(
            f"vs best: paired difference to {pretty(summary.learners[0])}, the best of all, over the"
            " same episodes."
        )
    whole = len(summary.datasets)
    for learner in summary.learners:
        done = len(summary.by_dataset[learner])
        if done < whole:
            notes.append(f"{pretty(learner)} was measured on {done} of {whole} data sets only.")
    return notes + unsolved_notes(summary) + few_class_notes(group.records)


def few_class_notes(records: Sequence[Record]) -> list[str]:
    """Names the data sets whose intervals are too narrow because their episodes repeat."""
    few = {
        r["dataset"]: r["classes"]
        for r in records
        if r["classes"] is not None and 0 < r["classes"] < FEW_CLASSES  # 0: regression has none
    }
    if not few:
        return []
    named = ", ".join(f"{name} ({few[name]})" for name in sorted(few))
    return [f"Fewer than {FEW_CLASSES} classes, so few distinct episodes and too narrow intervals: {named}."]


def unsolved_notes(summary: Summary) -> list[str]:
    """For which share of the episodes a distance to a solution ends at none, where records say so."""
    known = {x: share for x, share in summary.unsolved.items() if np.isfinite(share)}
    if not known:
        return []
    some = ", ".join(f"{pretty(x)} {100 * share:.2g} %" for x, share in known.items() if share > 0)
    if not some:
        return ["unsolved: none of the episodes; every distance is to weights that solve the task."]
    return [f"unsolved: {some} of the episodes; their distances are to where the search gave up."]


def split_notes(records: Sequence[Record]) -> list[str]:
    """What was kept from training: domains, classes or only images; data sets are named where they differ."""
    kinds: dict[str, set[str]] = {}
    for r in records:
        if r.get("split_by"):
            kinds.setdefault(r["split_by"], set()).add(r["dataset"])
    if len(kinds) < 2:
        return [f"Held out from training by {kind}." for kind in kinds]
    return [f"Held out from training by {kind}: {', '.join(sorted(kinds[kind]))}." for kind in sorted(kinds)]


def measured(records: Sequence[Record]) -> str:
    """`30 data sets in 10 domains, 600 episodes each, 3 seeds`."""

    def several(count: int, word: str) -> str:
        return f"{count} {word}{'' if count == 1 else 's'}"

    episodes = span([max(len(v) for v in r["values"].values()) for r in records])
    seeds = {unit(r) for r in records if r["trained"]} or {unit(r) for r in records}
    parts = [
        f"{several(len({r['dataset'] for r in records}), 'data set')}"
        f" in {several(len({r['domain'] for r in records}), 'domain')}",
        f"{episodes} episodes each",
        several(len(seeds), "seed"),
    ]
    return ", ".join(parts)


def dataset_table(group: Group, summary: Summary) -> Table:
    """Data sets by learners, every entry with its own 95 % interval."""
    few = {r["dataset"] for r in group.records if r["classes"] is not None and r["classes"] < FEW_CLASSES}
    rows = []
    for dataset, domain in summary.datasets.items():
        intervals = [summary.by_dataset[x].get(dataset) for x in summary.learners]
        best = best_of([i.mean if i else np.nan for i in intervals], higher_is_better(summary.metric))
        cells = [Cell(format_interval(i, summary.metric), k in best) for k, i in enumerate(intervals)]
        where = "" if domain in ("all", dataset) else f" · {pretty(domain)}"
        rows.append((f"{dataset}{' †' if dataset in few else ''}{where}", cells))
    unit = unit_note(summary.metric)
    notes = [
        f"{pretty(summary.metric)}, {unit}; ± is half the 95 % interval over episodes (and seeds, where several ran)."
    ]
    notes += split_notes(group.records) + [f"† {note}" for note in few_class_notes(group.records)]
    return Table(
        f"{group.title}, by data set", "data set", [pretty(x) for x in summary.learners], rows, notes
    )


def markdown(table: Table) -> str:
    """The table in GitHub's markdown, best entries bold, notes as a list."""

    def escape(text: str) -> str:
        return text.replace("|", "\\|")

    lines = [[table.corner, *table.columns], ["---"] + ["---:"] * len(table.columns)]
    lines += [[name] + [f"**{c.text}**" if c.best else c.text for c in cells] for name, cells in table.rows]
    rendered = ["| " + " | ".join(escape(text) for text in line) + " |" for line in lines]
    return "\n".join([*rendered, "", *(f"- {note}" for note in table.notes)]) + "\n"


def abbreviate(names: Sequence[str], width: int) -> list[str]:
    """The names cut to `width` characters and still different from each other."""
    short: list[str] = []
    for name in names:
        candidate, number = name[:width], 2
        while candidate in short:
            candidate = name[: width - len(str(number))] + str(number)
            number += 1
        short.append(candidate)
    return short


def text(table: Table, width: int = WIDTH) -> str:
    """The table for a terminal of `width` columns; the best of each column wears a star."""
    starred = [any(cells[k].best for _, cells in table.rows) for k in range(len(table.columns))]
    bodies = [
        [c.text + ("*" if c.best else " ") * starred[k] for k, c in enumerate(cells)]
        for _, cells in table.rows
    ]
    heads = [name + " " * star for name, star in zip(table.columns, starred, strict=True)]
    names = [name for name, _ in table.rows]
    wide = max(len(name) for name in [table.corner, *names])
    left, heads, notes = _fit(table, wide, heads, bodies, width)
    names = abbreviate(names, left)
    keep = range(len(table.columns) - len(heads), len(table.columns))
    bodies = [[body[k] for k in keep] for body in bodies]
    gaps = [1 + max(len(cell) for cell in column) for column in zip(heads, *bodies, strict=True)]
    rows = [[table.corner, *heads], *([name, *body] for name, body in zip(names, bodies, strict=True))]
    lines = [
        row[0].ljust(left) + "".join(c.rjust(g) for c, g in zip(row[1:], gaps, strict=True)) for row in rows
    ]
    lines.insert(1, "─" * len(lines[0]))
    return "\n".join([table.title, "", *(line.rstrip() for line in lines), "", *wrap(notes, width)]) + "\n"


def _fit(
    table: Table, left: int, heads: list[str], bodies: list[list[str]], width: int
) -> tuple[int, list[str], list[str]]:
    """What fits: width of the first column, heads (abbreviated, or those of places left out) and notes."""
    n, notes = table.narrow, list(table.notes)
    widest = [max(len(head), *(len(body[k]) for body in bodies)) for k, head in enumerate(heads)]
    fixed = sum(1 + w for w in widest[n:])
    if left + fixed + sum(1 + w for w in widest[:n]) <= width:
        return left, heads, notes
    least = max((len(body[k]) for body in bodies for k in range(n)), default=0)
    left = min(left, max(SHORTEST, width - fixed - n * (1 + least)))
    room = (width - fixed - left) // n - 1 if n else 0
    if room < least or not n:
        notes.append(f"The {n} columns of single places do not fit here: see report.html.")
        return max(SHORTEST, min(left, width - fixed)), heads[n:], notes
    short = abbreviate(table.columns[:n], room)
    legend = ", ".join(f"{a} = {b}" for a, b in zip(short, table.columns, strict=False) if a != b)
    return left, short + heads[n:], [*notes, f"{legend}."]


def wrap(notes: Sequence[str], width: int) -> list[str]:
    """Notes broken at spaces, continuation lines indented."""
    lines = []
    for note in notes:
        line = ""
        for word in note.split():
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = " "
            line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
