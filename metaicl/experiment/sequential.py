# SPDX-License-Identifier: Apache-2.0
"""Training in stages: one data set after another in an order, each with its budget, all measured after each stage.

What is measured after stage t goes to `stages/00t.npz` of the run's folder (row 0 is the untrained learner), before
the checkpoint that ends the stage. So a run that is killed resumes in its stage, and a stage that is trained again
writes the same file again.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from metaicl import curricula, sharding
from metaicl.configuration import ConfigError, as_json
from metaicl.episode import Source, Stage, replicate
from metaicl.evaluate import evaluate
from metaicl.experiment.ordering import BY_EASE, ORDERS, check_order_settings, check_probe, order_of
from metaicl.experiment.problems import album_names
from metaicl.experiment.progress import cache_folder
from metaicl.experiment.recording import Evaluation, check_finite, records
from metaicl.files import load_arrays, save_arrays, write_text
from metaicl.learners import Meta
from metaicl.train import NextStage, initial, listed

Chosen = tuple[list[str], int]  # the data sets that a stage adds, and its steps
Validate = Callable[[Meta, int], dict[str, float]]


class Plan(NamedTuple):
    """What a run trains on.

    Attributes:
      next_stage: see `train.train`.
      after_stage: see `train.Hooks`.
      total: steps of all stages; None where they are not known before.
      span: steps that the optimiser's schedule covers: all, or those of the longest stage where it is reset.
    """

    next_stage: NextStage
    after_stage: Callable[[Stage, list[Meta]], dict] | None
    total: int | None
    span: int


def one_stage(run, steps: int) -> Plan:
    """Ordinary training: one stage with all data sets."""
    return Plan(listed([Stage("main", _source(run, 1, ()), steps)]), None, steps, steps)


def make_plan(run, steps: int, validate: Validate) -> Plan:
    """The stages of a run whose config has a `sequence`; measures the untrained learner and what the order needs.

    Args:
      run: its config's `sequence` says `order`: one of `ORDERS`; `joint` for one stage with every data set; `adaptive`
        for data sets that a bandit chooses by what stages gain in validation. `replay`: every stage trains on the
        data sets so far too. `budget`: see `curricula.stage_steps`. `reset_optimizer`: at the start of each stage.
      steps: of all stages together.
      validate: `(meta of one replica, replica number) -> means`, among them `score`.
    """
    s, pools = run.config.sequence, run.replicas[0].problem.pools
    if sharding.agreed(load_row(run.folder, 0) is None):
        write_row(run, 0, _initial(run), [])
    choices = _adaptive(run, steps, validate) if s.order == "adaptive" else _fixed(run, steps)
    planned: dict[str, tuple[int, list[str]]] = {}

    def next_stage(history: list[dict]) -> Stage | None:
        if not planned:
            _check_rows(run, len(history))
        chosen = choices.choose(history)
        if chosen is None:
            return None
        sets, each = chosen
        number = len(history) + 1
        name = f"{number} {sets[0] if len(sets) == 1 else 'all'}"
        planned[name] = number, sets
        earlier = {old for done in history for old in done["result"]["sets"]} if s.replay else set()
        source = _source(run, number, [p.name for p in pools if p.name in {*earlier, *sets}])
        return Stage(name, source, each, s.reset_optimizer)

    def after_stage(stage: Stage, metas: list[Meta]) -> dict:
        number, sets = planned[stage.name]
        write_row(run, number, metas, sets)
        judged = enumerate(metas) if s.order == "adaptive" else ()
        return {"sets": sets, "scores": [validate(meta, r)["score"] for r, meta in judged]}

    return Plan(next_stage, after_stage, choices.total, choices.longest if s.reset_optimizer else steps)


class _Choices(NamedTuple):
    """`choose(history)` gives what the next stage adds; `total` and `longest` are steps, see `Plan`."""

    choose: Callable[[list[dict]], Chosen | None]
    total: int | None
    longest: int


def _fixed(run, steps: int) -> _Choices:
    """An order that does not depend on training, or all data sets at once."""
    s, pools = run.config.sequence, run.replicas[0].problem.pools
    sizes = {p.name: len(p) for p in pools}
    if s.order == "joint":
        chosen = [(list(sizes), steps)]
    else:
        cache = cache_folder(run.config.data.cache) / "distances"
        order = order_of(s, pools, run.config.seed, run.folder, cache)
        shares = curricula.stage_steps(s.budget, steps, [sizes[name] for name in order])
        chosen = [([name], each) for name, each in zip(order, shares, strict=True)]
    choose = lambda history: chosen[len(history)] if len(history) < len(chosen) else None
    return _Choices(choose, steps, max(each for _, each in chosen))


def _adaptive(run, steps: int, validate: Validate) -> _Choices:
    """Data sets chosen by a bandit from the gains of stages so far, means over the replicas.

    With a proportional budget a stage takes its data set's share of what the stages would take on average.
    """
    s, pools = run.config.sequence, run.replicas[0].problem.pools
    names, count = [p.name for p in pools], s.stages or len(pools)
    shares = np.array([len(p) if s.budget == "proportional" else 1 for p in pools])
    each = np.maximum(np.rint(steps / count * shares / shares.mean()), 1).astype(int).tolist()
    before = float(np.mean([validate(meta, r)["score"] for r, meta in enumerate(_initial(run))]))

    def choose(history: list[dict]) -> Chosen | None:
        if len(history) == count:
            return None
        scores = [before, *(float(np.mean(done["result"]["scores"])) for done in history)]
        arms = [names.index(done["result"]["sets"][0]) for done in history]
        gains = list(zip(arms, np.diff(scores).tolist(), strict=True))
        arm = curricula.choose(s.bandit, gains, names, seed=run.config.seed, rate=s.rate)
        return [names[arm]], each[arm]

    return _Choices(choose, count * each[0] if len(set(each)) == 1 else None, max(each))


def _source(run, number: int, datasets: Sequence[str]) -> Source:
    """Training episodes of some data sets (all if none are named); other ones in every stage."""
    which = (datasets,) if datasets else ()  # problems without pools take a seed only
    sources = [r.problem.train(r.config.seed + ((number - 1) << 32), *which) for r in run.replicas]
    return replicate(sources) if run.replica_names else sources[0]


def _initial(run) -> list[Meta]:
    learner = run.learner(run.config.learner)
    return [initial(learner, seed) for seed in run.seeds]


def check_settings(config: ConfigDict, training: ConfigDict) -> None:
    """Refuses settings of a `sequence` that could not be trained, before any data are read or drawn."""
    s, known = config.sequence, (*ORDERS, "joint", "adaptive")
    if s.order not in known:
        raise ConfigError(f"sequence.order is {s.order!r}; there are {', '.join(known)}.")
    if not training.steps:
        raise ConfigError(
            "train.steps is 0: give training in stages some; the untrained learner is measured anyway."
        )
    if training.validate_every and config.evaluate.select != "last":
        raise ConfigError(
            f"train.validate_every is {training.validate_every}, which would choose among the parameters of all "
            "stages: give evaluate.select='last'."
        )
    if config.data.kind == "album":
        check_order_settings(s, album_names(config.data))


def check_sequence(run, training: ConfigDict) -> None:
    """Refuses a `sequence` that its data sets could not be trained in, before any long work."""
    s, first = run.config.sequence, run.replicas[0]
    pools, tested = first.problem.pools, [held.dataset for held in first.problem.test]
    if [p.name for p in pools] != tested:
        raise ConfigError(
            "Training in stages needs data sets that are trained on and tested on alike, such as an album with "
            f"data.split='images' or 'within'; here {len(pools)} are trained on and {len(tested)} are tested."
        )
    if any(r.problem is not first.problem or r.config.sequence != s for r in run.replicas):
        raise ConfigError(
            "Replicas that train in stages may differ in their seeds only: use runs for the rest."
        )
    if s.order == "adaptive" and not first.problem.validation:
        raise ConfigError(
            "sequence.order='adaptive' needs images to validate on: give data.fractions a second part."
        )
    try:
        curricula.choose(s.bandit, [], tested, rate=s.rate)
        curricula.stage_steps(
            s.budget, training.steps, [1] * (1 if s.order == "joint" else s.stages or len(pools))
        )
    except ValueError as error:
        raise ConfigError(f"sequence: {error}") from error
    if s.order in BY_EASE:
        check_probe(pools[0], as_json(s.probe), "sequence.probe")


# What is known after each stage


def write_row(run, number: int, metas: Sequence[Meta], sets: Sequence[str]) -> None:
    """Measures every data set on its fixed test episodes, and writes it as row `number`.

    The file holds `correct [R, P, E]`, the right answers of E episodes of P data sets for R replicas, and
    `adds bool [P]`, the data sets that the stage added.
    """
    test = run.replicas[0].problem.test
    correct = np.stack([[_right_answers(run, meta, held) for held in test] for meta in metas])
    adds = np.array([held.dataset in sets for held in test])
    if jax.process_index() == 0:
        smallest = np.min_scalar_type(max(held.queries for held in test))
        save_arrays(row_path(run.folder, number), {"correct": correct.astype(smallest), "adds": adds})


def _right_answers(run, meta: Meta, held) -> np.ndarray:
    """`[E]` of the learner as it is tested."""
    s, name = run.config.sequence, run.config.learner
    values = evaluate(
        run.replicas[0].problem.spec,
        run.learner(name, {}),
        meta,
        held.source,
        range(s.episodes),
        batch=run.config.evaluate.batch,
    )["values"]
    check_finite(values["loss"], name, held, Evaluation("main", held.shots, s.episodes))
    return np.rint(values["accuracy"] * held.queries)


def row_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where the row of a stage is."""
    return folder / "stages" / f"{number:03}.npz"


def load_row(folder: pathlib.Path, number: int) -> dict[str, np.ndarray] | None:
    """The row of a stage; None where it is missing or damaged."""
    return load_arrays(row_path(folder, number))


def _check_rows(run, last: int) -> None:
    """Refuses to go on behind a row that is lost: the parameters that it was measured with are, too."""
    lost = next((k for k in range(last + 1) if load_row(run.folder, k) is None), -1)
    if (lost := sharding.agreed(lost)) >= 0:
        raise ConfigError(
            f"{row_path(run.folder, lost)} is missing or damaged, and training is past its stage: delete the folder "
            f"{run.folder} and run again."
        )


def finish(run) -> list[dict[str, Any]]:
    """Describes the rows in `stages.json`; returns lines of records.jsonl for the learner before training."""
    s, problem, name = run.config.sequence, run.replicas[0].problem, run.config.learner
    if jax.process_index() == 0:
        about = {
            "learner": name,
            **{key: s[key] for key in ("order", "replay", "budget")},
            "stages": len(list((run.folder / "stages").glob("*.npz"))) - 1,
            "datasets": [held.dataset for held in problem.test],
            "domains": [held.domain for held in problem.test],
            "queries": [held.queries for held in problem.test],
            "replicas": [r.name for r in run.replicas],
            "seeds": run.seeds,
            "episodes": {"seed": run.config.evaluate.seed, "start": 0, "count": s.episodes},
        }
        write_text(run.folder / "stages.json", json.dumps(as_json(about), indent=1) + "\n")
    found = []
    for replica, meta in zip(run.replicas, _initial(run), strict=True):
        lines = records(run, replica, name, meta, 0)
        found += [line | {"learner": f"{line['learner']} untrained"} for line in lines]
    return found
