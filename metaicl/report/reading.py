# SPDX-License-Identifier: Apache-2.0
"""What a finished or half-finished experiment left on disk, and which of its records belong together.

A record is a plain dict, one line of `records.jsonl`, whose `values` became arrays. What an interrupted run
leaves is tolerated (no records yet, a last line cut short), everything else is checked.
"""

import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaicl.report.stages import Stages, load_stages

Record = dict[str, Any]

# Below this many classes the episodes of a data set repeat the same few problems: its interval is too narrow.
FEW_CLASSES = 10

OF_DATA = ("distance", "ease", "overlap")  # evaluations of data sets, not of learners
OUT_OF_SCOPE = "out_of_scope"  # an evaluation by metrics of its own, in a table of its own

DEFAULTS = {
    "replica": "",
    "trained": False,
    "domain": "",
    "split": "test",
    "evaluation": "main",
    "ways": None,
    "shots": None,
    "classes": None,
    "seed": 0,
    "step": None,
    "setting": "",
    "value": None,
}


class Run(NamedTuple):
    """One folder of an experiment; `records` is empty as long as the run is unfinished.

    `fits` are the curves of `fits.json`: learners of y = f(x) at points of their sweep. `stages` is what a run that
    trained in stages measured after each of them.
    """

    name: str
    config: dict
    metrics: list[dict]
    records: list[Record]
    fits: Sequence[dict] = ()
    stages: Stages | None = None


class Group(NamedTuple):
    """Records that make one headline table: one metric and one protocol, every learner under its `label`."""

    title: str
    name: str  # short, for file names
    metric: str
    records: list[Record]


def higher_is_better(metric: str) -> bool:
    """Whether a larger value is the better one; every other metric is an error or a distance."""
    return metric in ("accuracy", "gradient_cosine", "gradient_product") or metric.startswith("auroc")


def in_percent(metric: str) -> bool:
    """Whether people read the metric in percent."""
    return metric == "accuracy"


def read_lines(path: pathlib.Path) -> list[dict]:
    """The objects of a JSON-lines file; [] if it is missing, without the last line if that was cut short."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return found


def read_records(path: pathlib.Path) -> list[Record]:
    """The records of one run; one written again (after a resume) replaces the earlier one."""
    latest = {}
    for number, line in enumerate(read_lines(path), start=1):
        missing = [key for key in ("learner", "dataset", "values") if key not in line]
        if missing:
            raise ValueError(f"{path}, record {number}: no {', '.join(missing)}")
        record = {**DEFAULTS, "run": path.parent.name, **line}
        record["values"] = {k: np.asarray(v, np.float64) for k, v in line["values"].items()}
        record["domain"] = record["domain"] or "all"
        latest[identity(record), record["replica"]] = record
    return list(latest.values())


def load_runs(root: str | pathlib.Path) -> list[Run]:
    """Every run below `root`, by name; an error that names the folder where there is none."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"nothing to report: {root} is not a folder")
    runs = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = [folder / name for name in ("config.json", "metrics.jsonl", "records.jsonl")]
        if not any(file.exists() for file in files):
            continue
        config = json.loads(files[0].read_text()) if files[0].exists() else {}
        records, fits = read_records(files[2]), folder / "fits.json"
        curves = json.loads(fits.read_text()) if records and fits.exists() else []
        stages = load_stages(folder) if records else None
        runs.append(Run(folder.name, config, read_lines(files[1]), records, curves, stages))
    if not runs:
        raise FileNotFoundError(
            f"nothing to report: {root} holds no run (a folder with config.json or records.jsonl)"
        )
    return runs


def load_records(root: str | pathlib.Path) -> list[Record]:
    """All records of the experiment in `root`, `values` as arrays; [] while no run has finished."""
    return [record for run in load_runs(root) for record in run.records]


def unit(record: Record) -> str:
    """The name of the seed, the only part of a replica that is averaged over."""
    seeds = [part for part in record["replica"].split(",") if part.startswith("seed=")]
    return seeds[0] if seeds else f"seed={record['seed']}"


def variant(record: Record) -> str:
    """What a replica varies beside its seed, for example a mixture weight."""
    return ",".join(p for p in record["replica"].split(",") if p and not p.startswith("seed="))


def identity(record: Record) -> tuple:
    """What two records share that measure the same learner on the same episodes with the same seed."""
    episodes = record.get("episodes", {})
    fields = ("learner", "dataset", "domain", "split", "evaluation", "ways", "shots", "setting", "value")
    return (
        *(record[field] for field in fields),
        unit(record),
        episodes.get("seed", 0),
        episodes.get("start", 0),
        tuple(record["values"]),
    )


def _same_values(a: Record, b: Record) -> bool:
    pairs = [(a["values"][k], b["values"][k]) for k in a["values"]]
    return all(x.shape == y.shape and np.allclose(x, y, rtol=1e-4, equal_nan=True) for x, y in pairs)


def label_learners(records: list[Record]) -> list[Record]:
    """Give every record a `label`, so that label, data set and seed name it uniquely.

    The same learner measured twice on the same thing is either a baseline that every run repeated (equal
    values, one is kept) or a variant of the experiment (then the label says which run or replica it is).
    """
    groups = defaultdict(list)
    for record in records:
        groups[identity(record)].append(record)
    varied = {
        same[0]["learner"] for same in groups.values() if not all(_same_values(same[0], r) for r in same[1:])
    }
    chosen = [r for same in groups.values() for r in (same if same[0]["learner"] in varied else same[:1])]
    runs, variants = defaultdict(set), defaultdict(set)
    for record in chosen:
        runs[record["learner"]].add(record["run"])
        variants[record["learner"]].add(variant(record))
    labelled = []
    for record in chosen:
        name = record["learner"]
        parts = [record["run"]] if len(runs[name]) > 1 else []
        parts += [variant(record)] if len(variants[name]) > 1 else []
        parts = [part for part in parts if part] if name in varied else []
        labelled.append({**record, "label": f"{name} ({', '.join(parts)})" if parts else name})
    return labelled


def primary_metric(record: Record) -> str:
    """The metric a record is about: accuracy, or the first one written."""
    return "accuracy" if "accuracy" in record["values"] else next(iter(record["values"]))


def span(values: list) -> str:
    """`5`, or `2 to 5` where several values occur."""
    known = sorted({value for value in values if value is not None})
    return "" if not known else f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def protocol(records: list[Record]) -> str:
    """`5-way 5-shot`, as far as the records know."""
    ways, shots = span([r["ways"] for r in records]), span([r["shots"] for r in records])
    classify = "accuracy" in records[0]["values"]
    return " ".join([f"{ways}-way"] * bool(ways and classify) + [f"{shots}-shot"] * bool(shots))


def headline_groups(records: list[Record]) -> list[Group]:
    """The records of the headline tables: test split, main protocol, a group for each metric and setting."""
    records = [r for r in records if r["evaluation"] not in (*OF_DATA, OUT_OF_SCOPE)]
    chosen = [r for r in records if r["evaluation"] == "main"]
    if not chosen:
        most = max((r["shots"] or 0 for r in records), default=0)
        chosen = [r for r in records if (r["shots"] or 0) == most]
    split = "test" if any(r["split"] == "test" for r in chosen) else "validation"
    chosen = [r for r in chosen if r["split"] == split]
    by_metric = defaultdict(list)
    for record in chosen:
        by_metric[primary_metric(record)].append(record)
    groups = []
    for metric, members in by_metric.items():
        for part in _settings(members):
            name = "" if len(by_metric) == 1 else metric
            setting = protocol(part)
            name = "_".join(
                filter(None, [name, setting.replace(" ", "_") if len(part) < len(members) else ""])
            )
            title = f"{metric.replace('_', ' ')}, {setting}, {split}"
            groups.append(Group(title, name, metric, label_learners(part)))
    return groups


def _settings(records: list[Record]) -> list[list[Record]]:
    """One part, unless some data set was measured at several ways or shots: then one for each of those."""
    per_dataset, per_setting = defaultdict(set), defaultdict(list)
    for record in records:
        setting = (record["ways"] or 0, record["shots"] or 0)
        per_dataset[record["dataset"]].add(setting)
        per_setting[setting].append(record)
    if all(len(settings) == 1 for settings in per_dataset.values()):
        return [records]
    return [per_setting[setting] for setting in sorted(per_setting)]


def shot_records(records: list[Record]) -> list[Record]:
    """The labelled records of the shot curve: an evaluation that visits several numbers of shots, or []."""
    shots = defaultdict(set)
    for record in records:
        shots[record["evaluation"]].add(record["shots"])
    curves = [name for name in shots if name not in ("main", OUT_OF_SCOPE) and len(shots[name] - {None}) > 1]
    chosen = [r for r in records if curves and r["evaluation"] == curves[0]]
    tested = [r for r in chosen if r["split"] == "test"] or chosen
    return label_learners(tested)


def sweep_records(records: list[Record]) -> list[Record]:
    """The labelled records of curves over another setting than the number of shots, or []."""
    return label_learners([r for r in records if r["evaluation"] == "sweep"])


def distance_records(records: list[Record]) -> list[Record]:
    """The labelled records of how far two learners' answers lie apart over a setting, or []."""
    return label_learners([r for r in records if r["evaluation"] == "distance" and r["setting"]])
