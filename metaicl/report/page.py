# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that needs nothing else, neither a network nor the figures' files."""

import base64
import html
import json
from collections.abc import Sequence
from typing import NamedTuple

from metaicl.report.reading import Group, Run, protocol
from metaicl.report.statistics import Summary
from metaicl.report.style import Drawing
from metaicl.report.tables import Table, dataset_table, headline_table, measured, pretty

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dde3; --paper: #ffffff;
  --tint: #f4f6f8; --best: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #363d45;
  --paper: #14181c; --tint: #1d2329; --best: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p, li { max-width: 75ch; }
.soft, figcaption, .notes { color: var(--soft); font-size: .9rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .85rem; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .6rem; text-align: right; white-space: nowrap; }
th { background: var(--tint); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th:first-child { background: var(--tint); }
tbody tr + tr td { border-top: 1px solid var(--line); }
td.best { color: var(--best); font-weight: 700; }
td:first-child i { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%;
  margin-right: .5rem; }
.notes { padding-left: 1.1rem; } .notes li { margin: .15rem 0; }
figure { margin: 1.6rem 0 2.2rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff;
  border-radius: 8px; border: 1px solid var(--line); padding: .6rem; }
figcaption { margin: .6rem auto 0; max-width: 75ch; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; }
  h1 { font-size: 1.5rem; } }
@media print { main { max-width: none; } }
"""


class Contents(NamedTuple):
    """What the page tells: all of it is read or computed before, the page only arranges it."""

    experiment: str
    version: str
    command: str
    runs: list[Run]
    groups: list[tuple[Group, Summary]]
    drawings: list[Drawing]
    colors: dict[str, str]  # a learner's readable name -> its colour in the figures
    tables: Sequence[Table] = ()  # of single kinds of experiment: training in stages, distance and transfer
    late: Sequence[Table] = ()  # by data set, behind the figures


def _table(table: Table, colors: dict[str, str]) -> str:
    """A table with its notes; learners wear the colour they have in the figures."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in [table.corner, *table.columns])
    body = []
    for name, cells in table.rows:
        dot = f'<i style="background:{colors[name]}"></i>' if name in colors else ""
        kinds = [' class="best"' if c.best else "" for c in cells]
        data = "".join(f"<td{k}>{html.escape(c.text)}</td>" for k, c in zip(kinds, cells, strict=True))
        body.append(f"<tr><td>{dot}{html.escape(name)}</td>{data}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div><ul class="notes">{notes}</ul>'


def _titled(table: Table) -> str:
    return f"<h2>{html.escape(table.title.capitalize())}</h2>{_table(table, {})}"


def _means_first(table: Table) -> Table:
    """The columns of single places last: wide tables scroll sideways, the means should stay in sight."""
    n = table.narrow
    rows = [(name, cells[n:] + cells[:n]) for name, cells in table.rows]
    return table._replace(columns=table.columns[n:] + table.columns[:n], rows=rows)


def _measured(contents: Contents) -> str:
    """What was measured, as a list of terms; unfinished runs are named."""
    terms = []
    for group, _ in contents.groups:
        names: dict[str, list[str]] = {}
        for record in group.records:
            known = names.setdefault(record["domain"], [])
            if record["dataset"] not in known:
                known.append(record["dataset"])
        listed = "; ".join(
            f"{pretty(domain)}: {', '.join(sorted(found))}" for domain, found in sorted(names.items())
        )
        terms.append(("protocol", f"{protocol(group.records) or group.metric}, {measured(group.records)}"))
        terms.append(("data sets", listed))
    done = [run for run in contents.runs if run.records]
    terms.append(("runs", f"{len(done)} of {len(contents.runs)} with records"))
    for run in contents.runs:
        if not run.records:
            last = max((line.get("step", 0) for line in run.metrics), default=None)
            reached = f"; last logged step {last}" if last is not None else ""
            terms.append(("unfinished", f"{run.name}: no records yet{reached}"))
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in terms) + "</dl>"


def _figure(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.png).decode()
    caption = html.escape(drawing.caption)
    return (
        f'<figure><img alt="{html.escape(drawing.name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _flat(config: dict, prefix: str = "") -> dict[str, str]:
    """A nested config as `a.b.c` -> value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def _configs(runs: Sequence[Run]) -> str:
    """The settings all runs share once, then for every run what sets it apart."""
    flat = {run.name: _flat(run.config) for run in runs if run.config}
    if not flat:
        return ""
    first = next(iter(flat.values()))
    shared = {k: v for k, v in first.items() if all(other.get(k) == v for other in flat.values())}

    def block(title: str, settings: dict[str, str]) -> str:
        lines = "\n".join(f"{key} = {value}" for key, value in sorted(settings.items()))
        return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(lines)}</pre></details>"

    parts = [block("shared by all runs" if len(flat) > 1 else "settings", shared)]
    for name, settings in flat.items():
        own = {k: v for k, v in settings.items() if k not in shared}
        parts += [block(name, own)] if own else []
    return "<h2>Configuration</h2>" + "".join(parts)


def render(contents: Contents) -> str:
    """The whole page."""
    title = html.escape(contents.experiment)
    parts = [f"<h1>{title}</h1>", f'<p class="soft">metaicl {html.escape(contents.version)}</p>']
    if contents.command:
        parts.append(f'<pre class="command">{html.escape(contents.command)}</pre>')
    parts += ["<h2>What was measured</h2>", _measured(contents)]
    for group, summary in contents.groups:
        table = _means_first(headline_table(group, summary, both=True))
        parts += [f"<h2>{html.escape(group.title.capitalize())}</h2>", _table(table, contents.colors)]
    parts += [_titled(table) for table in contents.tables]
    if contents.drawings:
        parts += ["<h2>Figures</h2>", *(_figure(drawing) for drawing in contents.drawings)]
    parts += [_titled(table) for table in contents.late]
    for group, summary in contents.groups:
        table = dataset_table(group, summary)
        parts += [f"<h2>{html.escape(table.title.capitalize())}</h2>", _table(table, contents.colors)]
    parts.append(_configs(contents.runs))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
