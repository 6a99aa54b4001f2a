# SPDX-License-Identifier: Apache-2.0
"""What is measured of a learner in a run, and the lines of records.jsonl that come of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from metaicl.configuration import as_json
from metaicl.evaluate import answers, evaluate, of_answers
from metaicl.experiment.parts import TestSet
from metaicl.learners import Meta
from metaicl.scope import separation


class Evaluation(NamedTuple):
    """One thing to measure of a learner on a data set.

    Attributes:
      kind: `main`, `shots` (a point of the shot curve), `sweep` (a point of a curve over another setting) or
        `out_of_scope` (does a score tell queries of no class apart). What is `main` is recorded as `transfer` where
        the run trained on some of its data sets only (`data.train_on`).
      shots: support items per class.
      episodes: how many.
      variant: name of the variant of the learner; "" for itself.
      settings: what it overrides of the learner's settings.
      beside: what else its record says.
    """

    kind: str
    shots: int
    episodes: int
    variant: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    beside: Mapping[str, Any] = MappingProxyType({})


def evaluations(config: ConfigDict, name: str, held: TestSet) -> list[Evaluation]:
    """What is measured of the learner `name`: itself and its variants, the shot curve, and its own sweep.

    A test set that is a point of a curve is measured as that point alone.
    """
    e, entry = config.evaluate, as_json(config.learners[name])
    if held.setting:
        beside = {"setting": held.setting, "value": held.value}
        return [Evaluation("sweep", held.shots, e.episodes, beside=beside)]
    found = [Evaluation("main", held.shots, e.episodes)]
    for variant, settings in entry.get("variants", {}).items():
        found.append(Evaluation("main", held.shots, e.episodes, variant, settings))
    if held.with_outsiders is not None:
        found.append(Evaluation("out_of_scope", held.shots, e.episodes))
    if name in e.shot_curve_learners or not e.shot_curve_learners:
        found += [Evaluation("shots", k, e.shot_curve_episodes) for k in e.shot_curve if k <= held.shots]
    return found + sweep(config, name, held)


def sweep(config: ConfigDict, name: str, held: TestSet) -> list[Evaluation]:
    """The points of the curve over one setting that a learner's entry may ask for."""
    asked = as_json(config.learners[name]).get("sweep", {"setting": "", "values": ()})
    settings = [{asked["setting"]: value} for value in asked["values"]]
    return [
        Evaluation("sweep", held.shots, config.evaluate.episodes, "", s, {"setting": k, "value": v})
        for s in settings
        for k, v in s.items()
    ]


def records(run, replica, name: str, meta: Meta, step: int) -> list[dict[str, Any]]:
    """The lines of records.jsonl for one learner of a replica, in the order of `evaluations`."""
    problem = replica.problem
    sets = {"test": problem.test, "validation": problem.validation}
    jobs = [
        (split, held, evaluation)
        for split in run.config.evaluate.splits
        for held in sets[split]
        for evaluation in evaluations(run.config, name, held)
    ]
    total, quiet = sum(job.episodes for _, _, job in jobs), jax.process_index() != 0
    with tqdm(
        total=total, desc=f"  {name}", unit="episode", leave=False, file=sys.stderr, disable=quiet
    ) as bar:
        return [_record(run, replica, name, meta, step, *job, bar.update) for job in jobs]


def placed(found: list[dict[str, Any]], name: str, configs: Sequence[ConfigDict]) -> list[dict[str, Any]]:
    """Makes what was measured a point of a curve over a setting of training, where the config says so.

    `evaluate.point` names the setting and its value. The main records are then points of that curve too. In the table
    they have a row for every point: by their labels where replicas have some, else as a part of its own of the data
    set.

    Args:
      found: the records of one learner.
      name: what the learner is called on the curve.
      configs: of the replicas that the records are of; a baseline may be the same in several.
    """
    lines = []
    for config in {config.evaluate.point.value: config for config in configs}.values():
        point, labelled = config.evaluate.point, bool(config.get("label", ""))
        if not point.setting:
            return found
        curve = [r | point.to_dict() | {"evaluation": "sweep"} for r in found if r["evaluation"] == "main"]
        if labelled:
            lines += [r | {"learner": name} for r in curve]
        else:
            lines += [
                r | {"dataset": f"{r['dataset']}, {point.setting} {point.value:g}"} for r in found
            ] + curve
    return [*found, *lines] if labelled else lines


def _record(run, replica, name, meta, step, split, held, evaluation, progress) -> dict[str, Any]:
    outside = evaluation.kind == "out_of_scope"
    result = evaluate(
        replica.problem.spec,
        run.learner(name, evaluation.settings, of=replica),
        meta,
        held.with_outsiders if outside else held.source,
        range(evaluation.episodes),
        batch=run.config.evaluate.batch,
        shots=evaluation.shots,
        progress=progress,
        measure=separation if outside else of_answers,
    )
    if not outside:  # the same supports' answers have been checked before
        check_finite(result["values"]["loss"], name, held, evaluation)
    about = head(run, replica, name, meta, step, split, held, evaluation)
    return about | dict(evaluation.beside) | _rounded(result, held.scale)


def label_of(run, replica, name: str) -> str:
    """What a learner is called in the report: by its name in the config, or as its replica says (`label`)."""
    label = replica.config.get("label", "")
    return label if label and name == run.config.learner else name


def identity(config: ConfigDict) -> dict[str, Any]:
    """The config as config.json holds it: what a run does, not where its data are kept."""
    plain = as_json(config)
    plain.get("data", {}).pop("cache", None)
    return plain


def head(
    run, replica, name: str, meta: Meta, step: int, split: str, held: TestSet, evaluation: Evaluation
) -> dict[str, Any]:
    """What a record says beside its values."""
    e, data = run.config.evaluate, replica.config.data
    # With `one_set` they are all that is trained on, as a domain's are elsewhere; else they are some of several.
    some = list(data.get("train_on", ())) if data.get("split", "") != "one_set" else []
    return {
        "run": run.name,
        "replica": replica.name,
        "learner": f"{label_of(run, replica, name)} {evaluation.variant}".strip(),
        "trained": bool(step or started_with(run.config, name)) and bool(jax.tree.leaves(meta.params)),
        "dataset": held.dataset,
        "domain": held.domain,
        "split": split,
        "split_by": held.split_by,
        "evaluation": "transfer" if some and evaluation.kind == "main" else evaluation.kind,
        "ways": held.ways,
        "shots": evaluation.shots,
        "queries": held.queries,
        "classes": held.classes,
        "seed": replica.config.seed,
        "step": step,
        "episodes": {"seed": e.seed + (split == "validation"), "start": 0, "count": evaluation.episodes},
    } | ({"train_on": some} if some else {})


def started_with(config: ConfigDict, name: str) -> str:
    """The file of weights that the run's own learner begins with; "" for initial ones."""
    return config.get("start", "") if name == config.learner else ""


def check_finite(loss: np.ndarray, name: str, held: TestSet, evaluation: Evaluation) -> None:
    """Refuses answers that are not numbers; only a sweep may go on to where a learner diverges."""
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad) and evaluation.kind != "sweep":
        raise FloatingPointError(
            f"The answers of {f'{name} {evaluation.variant}'.strip()} to episode {bad[0]} of {held.dataset} (and "
            f"{len(bad) - 1} others) are not finite. If it adapts by gradient steps, lower inner_lr in its entry's "
            "'test', or take fewer inner_steps."
        )


def short(values: Mapping[str, np.ndarray], digits: int = 5) -> dict[str, list[float]]:
    """Five significant digits of every number, which is what a record keeps; what is not a number stays."""
    return {k: [float(f"{v:.{digits}g}") for v in np.asarray(column)] for k, column in values.items()}


def _rounded(result: dict[str, Any], scale: float) -> dict[str, Any]:
    """Per-episode values in the names of the report: losses are `nll` or `mse`, and with a scale `error` first."""
    values = dict(result["values"])
    if "loss" in values:
        values["nll" if "accuracy" in values else "mse"] = values.pop("loss")
    if scale:
        values = {"error": values["mse"] / scale} | values
    record: dict[str, Any] = {"values": short(values)}
    if result["calibration"]:
        record["calibration"] = short(result["calibration"], 6)
    return record


def fits(run, replica, name: str, meta: Meta) -> list[dict[str, Any]]:
    """Curves to draw for learners of y = f(x): the first test episodes at every point of the learner's sweep."""
    found = []
    count = run.config.evaluate.fits
    for held in replica.problem.test if count else ():
        asked = sweep(run.config, name, held) or evaluations(run.config, name, held)[:1]
        for evaluation in () if held.setting else asked:
            learner = run.learner(name, evaluation.settings, of=replica)
            episodes, outputs = answers(replica.problem.spec, learner, meta, held.source, range(count))
            for i in range(count):
                points: dict[str, Any] = {
                    "x": episodes.query.x[i, :, 0],
                    "fit": outputs[i, :, 0],
                    "truth": episodes.query.y[i, :, 0],
                    "support_x": episodes.support.x[i, :, 0],
                    "support_y": episodes.support.y[i, :, 0],
                }
                called = label_of(run, replica, name)
                about = {"learner": called, "dataset": held.dataset, "episode": i, **evaluation.beside}
                found.append(about | short(points, 4))
    return found
