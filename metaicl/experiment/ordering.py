# SPDX-License-Identifier: Apache-2.0
"""The order in which a run trains on data sets, and what is measured of them for it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from metaicl import curricula, sharding
from metaicl.configuration import ConfigError, as_json
from metaicl.data import splits
from metaicl.data.pool import Pool
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.experiment.distances import all_pairs, distance_settings
from metaicl.files import array_digest, write_text
from metaicl.learners import Learner, answer, make_learner

BY_EASE = {"E2H": False, "H2E": True}  # whether the hardest comes first
WALKS = {"E2E": curricula.NEAREST, "H2H": curricula.FARTHEST, "Switch": curricula.SWITCH}
ORDERS = ("domain", "random", *BY_EASE, *WALKS, "path")


def order_of(
    sequence: ConfigDict, pools: Sequence[Pool], seed: int, folder: pathlib.Path, cache: pathlib.Path
) -> list[str]:
    """Names of the data sets in the order of `sequence.order`.

    What is measured for it (accuracies of a linear probe, distances) depends on the training parts of the data sets
    alone, and is kept in `folder` with the digest of what it was measured on.

    Args:
      sequence: with `order` (one of `ORDERS`), `probe`, `distance` and `start`, the first data set of the orders by
        distance; empty for the first in the order of domains, and for `path` wherever it is shortest.
      pools: the data sets, as far as they are trained on.
      seed: of the random order.
      folder: of the run.
      cache: folder of distances that runs share.
    """
    kind, names, domains = sequence.order, [p.name for p in pools], [p.domain for p in pools]
    if kind == "domain":
        order = curricula.domain_order(names, domains)
    elif kind == "random":
        order = curricula.random_order(names, seed)
    elif kind in BY_EASE:
        ease = _kept(folder / "ease.json", pools, as_json(sequence.probe), probe_accuracies)
        order = curricula.by_ease(names, ease, hardest_first=BY_EASE[kind])
    else:
        measure = functools.partial(_distance_matrix, cache=cache)
        distances = _kept(folder / "distances.json", pools, as_json(sequence.distance), measure)
        start = names.index(sequence.start) if sequence.start else None
        first = curricula.domain_order(names, domains)[0] if start is None else start
        order = (
            curricula.shortest_path(names, distances, start)
            if kind == "path"
            else curricula.walk(names, distances, first, WALKS[kind])
        )
    chosen = [names[k] for k in curricula.check_order(order, names)]
    sharding.check_same("orders of the data sets", json.dumps(chosen).encode())
    return chosen


def check_order_settings(sequence: ConfigDict, names: Sequence[str]) -> None:
    """Says what is wrong with how the order is asked for, as far as the names of the data sets tell."""
    if sequence.order in (*WALKS, "path"):
        distance_settings(as_json(sequence.distance), "sequence.distance")
    if sequence.start and sequence.start not in names:
        near = difflib.get_close_matches(sequence.start, names, 1, cutoff=0.0)
        raise ConfigError(f"sequence.start={sequence.start!r} is no data set; did you mean {near[0]!r}?")


def probe_accuracies(pools: Sequence[Pool], probe: dict[str, Any]) -> np.ndarray:
    """`[P]`: how well a linear classifier does on images of each data set that it has not seen.

    The cheap form of difficulty: seconds for an album. `configs/difficulty.py` has the one by transfer.
    It is fitted to 80 % of every class's images and answers the other 20 %. So that data sets compare, no more than
    `probe["classes"]` classes and `probe["images"]` images of each take part, drawn by a fixed seed.

    Args:
      pools: the data sets.
      probe: `classes`, `images`, and `learner`: the entry of one that is fitted by its support set.
    """
    return np.array([_probe_accuracy(pool, probe) for pool in pools])


def _probe_accuracy(pool: Pool, probe: dict[str, Any]) -> float:
    fitted, _, held = splits.split_within(_sample(pool, probe), (0.8, 0.0, 0.2), 0, sys.maxsize)[0]
    ways = len(fitted[0].classes)
    spec, learner = _probe_learner(pool, ways, probe)
    episode = Episode(*(_all_of(part[0]) for part in (fitted, held)))
    meta = learner.init(jax.random.key(0))
    outputs = jax.jit(lambda e: answer(spec, learner, meta, e, jax.random.key(0)))(episode)
    return float(np.mean(np.argmax(np.asarray(outputs), axis=1) == held[0].labels))


def check_probe(pool: Pool, probe: dict[str, Any], where: str) -> None:
    """Refuses a probe that does not fit the items of a data set, naming `where` it stands in the config."""
    try:
        _probe_learner(pool, len(pool.classes), probe)
    except ValueError as error:
        raise ConfigError(f"{where}.learner: {error}") from error


def _probe_learner(pool: Pool, ways: int, probe: dict[str, Any]) -> tuple[TaskSpec, Learner]:
    spec = TaskSpec("classify", tuple(pool.x.shape[1:]), str(pool.x.dtype), ways)
    return spec, make_learner(spec=spec, **probe["learner"])


def _sample(pool: Pool, probe: dict[str, Any]) -> Pool:
    """At most so many classes, and images of each."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(pool.classes))[: probe["classes"]]
    rows = [rng.permutation(np.flatnonzero(pool.labels == c))[: probe["images"]] for c in chosen]
    return pool.select(np.sort(np.concatenate(rows)))


def _all_of(pool: Pool) -> Examples:
    x, y = jnp.asarray(np.asarray(pool.x)), jnp.asarray(pool.labels, jnp.int32)
    return Examples(x, y, jnp.ones(len(pool), jnp.float32))


def _distance_matrix(pools: Sequence[Pool], settings: dict[str, Any], cache: pathlib.Path) -> np.ndarray:
    """`[P, P]`: OTDD between the data sets; finished matrices are kept in `cache`, for other runs too."""
    return np.asarray(all_pairs(pools, distance_settings(settings, "sequence.distance"), cache).values)


def _kept(
    path: pathlib.Path,
    pools: Sequence[Pool],
    settings: dict[str, Any],
    measure: Callable[[Sequence[Pool], dict[str, Any]], np.ndarray],
) -> np.ndarray:
    """What `measure(pools, settings)` gives, or is told to have given by a file of the same content and settings."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for pool in pools:
        key.update(f"{pool.name} {array_digest({'x': np.asarray(pool.x), 'labels': pool.labels})};".encode())
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key.hexdigest():
            return np.array(stored["values"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or one that cannot be used: it is measured again
    values = measure(pools, settings)
    if jax.process_index() == 0:
        names = [pool.name for pool in pools]
        text = json.dumps({"key": key.hexdigest(), "names": names, "values": values.tolist()})
        write_text(path, text + "\n")
    return values
