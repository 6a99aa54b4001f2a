# SPDX-License-Identifier: Apache-2.0
"""Measurements of an album's data sets: how far they are from each other, how easy a linear probe finds them, and how
many of their classes ImageNet has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metaicl import sharding
from metaicl.configuration import ConfigError, as_json
from metaicl.data.imagenet_classes import class_overlap
from metaicl.data.pool import Pool
from metaicl.experiment.distances import all_pairs, distance_settings
from metaicl.experiment.ordering import check_probe, probe_accuracies
from metaicl.experiment.problems import make_problem, whole_pools
from metaicl.experiment.progress import cache_folder
from metaicl.experiment.recording import short


def check_distances(run) -> list[Pool]:
    """The parts of the data sets that are trained on; a ConfigError if they or the settings do not fit."""
    distance_settings(as_json(run.config.measure.distance), "measure.distance")
    pools = list(make_problem(run.config, sharding.placer(run.mesh)).pools)
    if len(pools) < 2:
        raise ConfigError(
            f"There are {len(pools)} data sets to measure distances between: give data.datasets two or more, with "
            "data.split='images' or 'within'."
        )
    return pools


def distances(run) -> list[dict[str, Any]]:
    """A line for every pair of data sets: their OTDD on training images, `values.distance` for every draw of items."""
    pools = check_distances(run)
    settings = distance_settings(as_json(run.config.measure.distance), "measure.distance")
    found = all_pairs(pools, settings, cache_folder(run.config.data.cache) / "distances")
    lines = []
    for i, j in zip(*np.triu_indices(len(pools), 1), strict=True):
        pair = {
            "dataset": found.names[i],
            "domain": found.domains[i],
            "setting": "to",
            "value": found.names[j],
        }
        converged = bool(found.converged[:, i, j].all()) and not found.label_failed
        values = short({"distance": found.each[:, i, j]})
        lines.append(_head(run, "otdd", "distance") | pair | {"converged": converged, "values": values})
    return lines


def check_ease(run) -> list[Pool]:
    """The whole data sets; a ConfigError for a probe that does not fit them, or one of a single class."""
    pools = whole_pools(run.config.data, sharding.placer(run.mesh))
    for pool in pools:
        if len(pool.classes) < 2:
            raise ConfigError(f"{pool.name} has one class, which says nothing of ease: leave it out.")
    check_probe(pools[0], as_json(run.config.measure.probe), "measure.probe")
    return pools


def ease(run) -> list[dict[str, Any]]:
    """A line for every data set: the accuracy by which `sequence.order` has it before or after others."""
    pools = check_ease(run)
    found = probe_accuracies(pools, as_json(run.config.measure.probe))
    return [
        _head(run, "ridge_probe", "ease")
        | {"dataset": pool.name, "domain": pool.domain, "values": short({"accuracy": np.array([value])})}
        for pool, value in zip(pools, found, strict=True)
    ]


def check_overlap(run) -> list[Pool]:
    """The whole data sets."""
    return whole_pools(run.config.data, sharding.placer(run.mesh))


def overlap(run) -> list[dict[str, Any]]:
    """A line for every data set: the share of its classes that ImageNet's 1,000 have too, by name."""
    return [
        _head(run, "names", "overlap")
        | {
            "dataset": p.name,
            "domain": p.domain,
            "values": short({"overlap": np.array([class_overlap(p.classes)])}),
        }
        for p in check_overlap(run)
    ]


def _head(run, learner: str, evaluation: str) -> dict[str, Any]:
    about = {"run": run.name, "learner": learner, "trained": False, "split": "train"}
    return about | {"evaluation": evaluation, "seed": run.config.seed, "step": 0}
