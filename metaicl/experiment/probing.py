# SPDX-License-Identifier: Apache-2.0
"""Probes of a learner's weights, as a config asks for them: followed in validation, recorded at the end."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from metaicl.analysis.probes import PROBES, Probe
from metaicl.configuration import ConfigError, as_json
from metaicl.evaluate import probed
from metaicl.experiment.parts import TestSet
from metaicl.experiment.recording import Evaluation, head, short
from metaicl.learners import Meta
from metaicl.learners.classifier import make_classifier


def probe_records(run, replica, name: str, meta: Meta, step: int) -> list[dict[str, Any]]:
    """The lines of records.jsonl for what probes say of a learner's weights, a line for each probe and test set."""
    found = []
    for held in replica.problem.test if meta.params else ():
        for kind, values in probes(run, replica, name, meta, held, run.config.evaluate.episodes).items():
            main = Evaluation("main", held.shots, run.config.evaluate.episodes)
            about = head(run, replica, name, meta, step, "test", held, main)
            found.append(about | {"probe": kind, "values": short(values)})
    return found


def probes(
    run, replica, name: str, meta: Meta, held: TestSet, episodes: int
) -> dict[str, dict[str, np.ndarray]]:
    """What the probes of `evaluate.probes` say of a learner's weights before it adapts: `{probe: {metric: [n]}}`."""
    weights, batch = probed_weights(meta), run.config.evaluate.batch
    return {
        kind: probed(probe, weights, held.source, range(episodes), batch=batch)
        for kind, probe in probes_of(run, replica, name).items()
    }


def probes_of(run, replica, name: str) -> dict[str, Probe]:
    """The probes of `evaluate.probes`, for the network of a learner."""
    asked = as_json(run.config.evaluate.probes)
    return {kind: _probe(run, replica, name, kind, json.dumps(settings)) for kind, settings in asked.items()}


def probed_weights(meta: Meta) -> dict[str, Any]:
    """The weights of the network, without learned rates of the inner loop."""
    return {part: weights for part, weights in meta.params.items() if part != "rates"}


def _probe(run, replica, name: str, kind: str, settings: str):
    entry = as_json(run.config.learners[name])
    if kind not in PROBES:
        raise ConfigError(f"evaluate.probes has {kind!r}; there are {', '.join(PROBES)}.")
    if "encoder" not in entry:
        raise ConfigError(f"Learner {name!r} has no encoder for evaluate.probes to look at: leave them out.")
    network = entry["encoder"], json.dumps(entry.get("encoder_settings", {}), sort_keys=True)
    try:
        return _memoised_probe(replica.problem.spec, *network, entry.get("dtype", "float32"), kind, settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"evaluate.probes.{kind}: {error}") from error


@functools.lru_cache
def _memoised_probe(spec, encoder: str, encoder_settings: str, dtype: str, kind: str, settings: str):
    """Equal settings give the same object, so that runs share their compiled programs."""
    network = make_classifier(spec, encoder, json.loads(encoder_settings), dtype)
    return PROBES[kind](spec, network, **json.loads(settings))
