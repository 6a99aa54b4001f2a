# SPDX-License-Identifier: Apache-2.0
"""Problems whose episodes are functions: mixtures of function classes, and sine curves."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from metaicl.configuration import ConfigError, as_json
from metaicl.data import functions
from metaicl.data.functions.classes import nearest
from metaicl.episode import Source, TaskSpec
from metaicl.experiment.parts import Problem, TestSet

MIXTURE = "mixture"  # what a test set is of where it is of the training mixture itself
_ENTRY = ("name", "of", "settings", "inputs", "shots", "setting", "value")


def mixture_problem(data, task, evaluation, place: Callable) -> Problem:
    """A mixture of function classes, tested on functions of another seed: of the classes of `data.test`.

    Every entry of `data.test` is a mapping: `name`; `of`, a class of `data.classes` or "mixture"; `settings` and
    `inputs`, what differs from that class and from `data.inputs`; `shots`, points shown if not all; `setting` and
    `value`, which make it a point of a curve.

    Raises:
      ConfigError, ValueError: for an entry, a class, a weight or a shift that does not fit.
    """
    whole = as_json(data)
    weights = whole.pop("weights")
    entries, curriculum = whole["test"], whole["curriculum"]
    chosen = functions.Curriculum(**curriculum) if curriculum["every"] else None
    of_mixture = any(entry.get("of") == MIXTURE for entry in entries)
    shared = json.dumps([whole, as_json(task), evaluation.seed, weights if of_mixture else {}])

    def train(seed):
        made = _source(whole, weights, seed, task.shots, task.queries, fewest=data.fewest, curriculum=chosen)
        return made._replace(consts=place(made.consts))

    train(0)  # refuses what does not fit now
    validation = _held(
        whole, weights, {"name": MIXTURE, "of": MIXTURE}, as_json(task), evaluation.seed + 1, place
    )
    spec = TaskSpec("regress", (data.dimensions,), "float32", 1)
    return Problem(spec, train, [validation], _test_sets(shared, place))


@functools.lru_cache(maxsize=64)
def _test_sets(shared: str, place: Callable) -> list[TestSet]:
    """The test sets, one object for all problems that differ in the training weights only."""
    data, task, seed, weights = json.loads(shared)
    names = [(entry.get("name"), entry.get("value")) for entry in data["test"]]
    if repeated := [name for k, name in enumerate(names) if name in names[:k]]:
        raise ConfigError(f"data.test names {repeated[0][0]!r} twice.")
    return [_held(data, weights, entry, task, seed, place) for entry in data["test"]]


def _held(data, weights, entry: dict[str, Any], task, seed: int, place) -> TestSet:
    """One test set. The program has all classes, so that sets that differ in their class share it."""
    if unknown := [key for key in entry if key not in _ENTRY]:
        raise ConfigError(f"data.test has an entry with {unknown[0]!r}; {nearest(unknown[0], _ENTRY)}")
    if missing := [key for key in ("name", "of") if key not in entry]:
        raise ConfigError(f"data.test has an entry without {missing[0]!r}: {entry}.")
    name, of, settings = entry["name"], entry["of"], entry.get("settings", {})
    if of != MIXTURE and of not in data["classes"]:
        raise ConfigError(
            f"data.test {name!r} is of the function class {of!r}; {nearest(of, [*data['classes'], MIXTURE])}"
        )
    if of != MIXTURE:
        weights = {other: float(other == of) for other in data["classes"]}
        data = data | {"classes": data["classes"] | {of: data["classes"][of] | settings}}
    elif settings:
        raise ConfigError(f"data.test {name!r} is of the whole mixture, which takes no settings.")
    data = data | {"inputs": data["inputs"] | entry.get("inputs", {})}
    shots, queries = entry.get("shots", task["shots"]), task["test_queries"]
    if not 0 <= shots <= task["shots"]:
        raise ConfigError(f"data.test {name!r} shows {shots} points of {task['shots']} (task.shots).")
    # An orthogonal query has to know which points are shown; all others leave the rest to a mask.
    points = shots if data["inputs"]["shift"] == "orthogonal" else task["shots"]
    source = _source(data, weights, seed, points, queries)
    components = functions.mixture(data["classes"], weights, data["dimensions"], _inputs(data))
    return TestSet(
        name,
        "functions",
        0,
        "functions",
        1,
        shots,
        queries,
        source._replace(consts=place(source.consts)),
        functions.mixture_variance(components, weights),
        entry.get("setting", ""),
        entry.get("value", 0.0),
    )


def _source(data, weights, seed, points, queries, *, fewest=-1, curriculum=None) -> Source:
    return functions.prompts(
        seed=seed,
        dimensions=data["dimensions"],
        points=points,
        queries=queries,
        classes=data["classes"],
        weights=weights,
        inputs=_inputs(data),
        fewest=None if fewest < 0 else fewest,
        curriculum=curriculum,
    )


def _inputs(data) -> functions.Inputs:
    try:
        return functions.Inputs(**data["inputs"] | {"interval": tuple(data["inputs"]["interval"])})
    except TypeError as error:
        known = functions.Inputs.__dataclass_fields__
        unknown = next(key for key in data["inputs"] if key not in known)
        raise ConfigError(f"data.inputs has {unknown!r}; {nearest(unknown, known)}") from error


def check_curriculum(config, batch: int) -> None:
    """Refuses a curriculum that counts its steps in another batch than training has."""
    curriculum = as_json(config.data).get("curriculum", {"every": 0})
    if curriculum["every"] and curriculum["batch"] != batch:
        raise ConfigError(
            f"data.curriculum.batch is {curriculum['batch']} and train.batch {batch}: set both to the same."
        )


def told(settings: dict[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """Settings of a learner, with the functions themselves where a component is of a pool that training drew from.

    A component of the Bayes mixture that gives `pool` and `pool_seed`, as a class of `data.classes` does, is told the
    `vectors` of that pool: learners do not draw data.
    """
    parts = dict(settings.get("components", {}))
    for name, part in parts.items():
        if "pool" in part:
            own = {key: value for key, value in part.items() if key not in ("pool", "pool_seed")}
            vectors = functions.weight_pool(part.get("pool_seed", 0), part["pool"], math.prod(spec.x_shape))
            parts[name] = own | {"vectors": np.asarray(vectors)}
    return settings | {"components": parts} if parts else settings


def sinusoids_problem(data, task, evaluation, place: Callable) -> Problem:
    """Sine curves, tested on curves of another seed, over a grid so that a fit can be drawn."""
    spec = TaskSpec("regress", (1,), "float32", 1)

    def source(seed, points, queries):
        ranges = {name: tuple(data[name]) for name in ("amplitude", "phase", "interval")}
        made = functions.sinusoids(seed=seed, points=points, queries=queries, grid=data.grid, **ranges)
        return made._replace(consts=place(made.consts))

    def held(seed):
        drawn = source(seed, task.test_shots, task.test_queries)
        return TestSet(data.name, "sinusoids", 0, "functions", 1, task.test_shots, task.test_queries, drawn)

    return Problem(
        spec,
        lambda seed: source(seed, task.shots, task.queries),
        [held(evaluation.seed + 1)],
        [held(evaluation.seed)],
    )
