# SPDX-License-Identifier: Apache-2.0
"""Records to means, intervals, tables, figures and one HTML page. Reads files only.

write_report(root)      results.json, report.html and figures/*.png from what the runs below `root` left
load_records(root)      their per-episode records
markdown_table(records) the same tables for a README
"""

import functools
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence

from metaicl.files import write_bytes, write_text
from metaicl.report.reading import (
    Group,
    Record,
    Run,
    headline_groups,
    load_records,
    load_runs,
    shot_records,
    sweep_records,
)
from metaicl.report.statistics import Summary, summarise
from metaicl.report.tables import Table, dataset_table, headline_table, markdown, pretty, result_rows, text

__all__ = ["load_records", "markdown_table", "write_report"]


def write_report(root: str | pathlib.Path) -> str:
    """Writes `results.json`, `report.html` and `figures/*.png` below `root`; returns the terminal's table.

    Runs without records are named as unfinished. Where there is no run at all, raises FileNotFoundError
    with the name of the folder.
    """
    # Here, so that tables alone do not load matplotlib.
    from metaicl.report import figures, page, sections, sequences, style

    root = pathlib.Path(root)
    runs = load_runs(root)
    records = [record for run in runs for record in run.records]
    groups = summaries(records)
    shots, sweeps = shot_records(records), sweep_records(records)
    looks = style.looks_of(groups, [*shots, *sweeps])
    parts = sections.sections(records)
    drawings = [drawing for part in parts for drawing in part.drawings]
    drawings += figures.draw_all(groups, shots, sweeps, runs, looks)
    staged = sequences.transfer_table(runs)
    command = root / "command.txt"
    contents = page.Contents(
        experiment=root.resolve().name,
        version=_version(),
        command=command.read_text().strip() if command.exists() else "",
        runs=runs,
        groups=groups,
        drawings=drawings,
        colors={pretty(label): look.color for label, look in looks.items()},
        tables=[*([staged] if staged else []), *(part.table for part in parts)],
        late=[table for part in parts for table in part.late],
    )
    (root / "figures").mkdir(exist_ok=True)
    for drawing in drawings:
        write_bytes(root / "figures" / f"{drawing.name}.png", drawing.png)
    rows = [*result_rows(records), *sequences.transfer_rows(runs)]
    rows += [row for part in parts for row in part.rows]
    matrices = sequences.matrices(runs) | {k: v for part in parts for k, v in part.matrices.items()}
    write_text(root / "results.json", _results(contents.experiment, contents.command, rows, matrices))
    write_text(root / "report.html", page.render(contents))
    return terminal_text(groups, runs, contents.tables)


def summaries(records: Sequence[Record]) -> list[tuple[Group, Summary]]:
    """The groups of records that make one headline table each, with their numbers."""
    return [(group, summarise(group.records, group.metric)) for group in headline_groups(list(records))]


def markdown_table(records: Sequence[Record], by: str = "dataset", places: bool = True) -> str:
    """Tables of the records in markdown: data sets by learners, or with `by="learner"` the headline table.

    `places=False` leaves the headline table's columns of single domains or data sets out.
    """
    if by not in ("dataset", "learner"):
        raise ValueError(f"by must be 'dataset' or 'learner', not {by!r}")
    make = dataset_table if by == "dataset" else functools.partial(headline_table, single=places)
    tables = [make(group, summary) for group, summary in summaries(records)]
    if len(tables) == 1:
        return markdown(tables[0])
    return "\n".join(f"**{table.title}**\n\n{markdown(table)}" for table in tables)


def terminal_text(
    groups: Sequence[tuple[Group, Summary]], runs: Sequence[Run], tables: Sequence[Table] = ()
) -> str:
    """The headline tables for a terminal, those of single kinds of experiment, and which runs are still to come."""
    parts = [text(headline_table(group, summary)) for group, summary in groups]
    parts += [text(table) for table in tables]
    unfinished = [run.name for run in runs if not run.records]
    if unfinished:
        parts.append(f"No records yet: {', '.join(unfinished)}.\n")
    return "\n".join(parts)


def _results(experiment: str, command: str, found: Sequence[dict], matrices: dict[str, dict]) -> str:
    """`results.json`, one row or matrix a line so that a change shows as one line."""
    head = json.dumps({"experiment": experiment, "version": _version(), "command": command})
    rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in found)
    whole = f'{head[:-1]}, "rows": [\n  {rows}\n]' if rows else f'{head[:-1]}, "rows": []'
    if matrices:
        lines = ",\n  ".join(f"{json.dumps(run)}: {json.dumps(matrix)}" for run, matrix in matrices.items())
        whole += f', "matrices": {{\n  {lines}\n}}'
    return whole + "}\n"


def _version() -> str:
    """The installed version; reports are also made from a source tree that was never installed."""
    try:
        return importlib.metadata.version("metaicl")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
