# SPDX-License-Identifier: Apache-2.0
"""How far the answers of two replicas lie apart, on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaicl.configuration import ConfigError, as_json
from metaicl.evaluate import answers
from metaicl.experiment.parts import TestSet
from metaicl.experiment.recording import Evaluation, head, label_of, short
from metaicl.learners import Meta


def check_comparisons(run) -> None:
    """Refuses a comparison of labels that no replica has, or of what is no function."""
    pairs = as_json(run.config.evaluate).get("compare", ())
    labels = [label_of(run, replica, run.config.learner) for replica in run.replicas]
    for pair in pairs:
        if missing := [label for label in pair if label not in labels]:
            raise ConfigError(
                f"evaluate.compare names {missing[0]!r}; the replicas of run {run.name!r} are labelled "
                f"{', '.join(dict.fromkeys(labels))}."
            )
    if pairs and not all(held.scale for replica in run.replicas for held in replica.problem.test):
        raise ConfigError("evaluate.compare is of test sets of functions; leave it out.")


def comparisons(run, chosen: Sequence[tuple[int, Meta]]) -> list[dict[str, Any]]:
    """The lines of records.jsonl for the pairs of labels of `evaluate.compare`, of replicas with equal seeds.

    Their `distance` is the mean square of the difference of the two answers, divided by the scale of the test set,
    as the error is.

    Args:
      run: with its replicas.
      chosen: the step and the parameters of every replica that are tested.
    """
    lines = []
    for first, second in as_json(run.config.evaluate).get("compare", ()):
        for k, one in enumerate(run.replicas):
            for j, other in enumerate(run.replicas):
                same = one.config.seed == other.config.seed
                if same and (first, second) == tuple(
                    label_of(run, r, run.config.learner) for r in (one, other)
                ):
                    lines += _pair(run, one, f"{first} to {second}", *chosen[k], chosen[j][1])
    return lines


def _pair(run, replica, label: str, step: int, meta: Meta, other: Meta) -> list[dict[str, Any]]:
    lines = []
    for held in replica.problem.test:
        values = _distances(run, replica, held, meta, other)
        beside = {"setting": held.setting, "value": held.value} if held.setting else {}
        measured = Evaluation("distance", held.shots, len(values))
        about = head(run, replica, run.config.learner, meta, step, "test", held, measured)
        lines.append(about | beside | {"learner": label, "values": short({"distance": values})})
    return lines


def _distances(run, replica, held: TestSet, meta: Meta, other: Meta) -> np.ndarray:
    e, learner = run.config.evaluate, run.learner(run.config.learner, {})
    found = []
    for start in range(0, e.episodes, e.batch):
        episodes = [min(i, e.episodes - 1) for i in range(start, start + e.batch)]  # one shape, one program
        one, two = (
            answers(replica.problem.spec, learner, m, held.source, episodes, shots=held.shots)[1]
            for m in (meta, other)
        )
        found.append(np.mean(np.sum((one - two) ** 2, axis=-1), axis=-1))
    return np.concatenate(found)[: e.episodes].astype(np.float64) / held.scale
