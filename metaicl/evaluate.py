# SPDX-License-Identifier: Apache-2.0
"""The evaluator: a learner, what it learned, and fixed episodes -> per-episode numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaicl import losses
from metaicl.episode import Array, Episode, Examples, PyTree, Source, TaskSpec, host_batch, limit_shots
from metaicl.learners.base import Learner, Meta, answer

ALL_SHOTS = 2**30

# `(spec, outputs [Q, N], query) -> {"values": {metric: scalar}, "calibration": {...}}` of one episode.
Measure = Callable[[TaskSpec, Array, Examples], dict[str, dict[str, Array]]]


def of_answers(spec: TaskSpec, outputs: Array, query: Examples) -> dict[str, dict[str, Array]]:
    """Loss, accuracy and calibration of the answers to one episode."""
    return {
        "values": losses.metrics(spec, outputs, query),
        "calibration": losses.calibration(spec, outputs, query),
    }


def evaluate(
    spec: TaskSpec,
    learner: Learner,
    meta: Meta,
    source: Source,
    episodes: Sequence[int],
    *,
    seed: int = 0,
    batch: int = 32,
    shots: int = ALL_SHOTS,
    progress: Callable[[int], None] | None = None,
    measure: Measure = of_answers,
) -> dict[str, Any]:
    """Answers the given episodes of `source`.

    Args:
      spec, learner, meta: what is evaluated; meta without a replica axis.
      source: where the episodes come from; without a replica axis.
      episodes: their indices.
      seed: of the learner's own randomness; episode i uses `fold_in(key(seed), i)` whatever the batch.
      batch: episodes per call of the jitted evaluator.
      shots: support items per class that the learner may see (0 and up; one program serves all values).
      progress: called with the number of episodes done since the last call.
      measure: what is measured of the answers.

    Returns:
      `{"values": {metric: float64 [episodes]}, "calibration": {...}}`, see `losses.metrics` and
      `losses.calibration` (sums over the episodes; empty for regression).
    """
    run = _evaluator(spec, learner, source.build, measure)
    values: list[dict] = []
    totals: dict[str, np.ndarray] = {}
    for count, padded, host in _batches(source, episodes, batch):
        result = run(meta, source.consts, host, padded, np.int32(shots), np.uint32(seed))
        result = jax.tree.map(lambda a: np.asarray(a, np.float64)[:count], result)
        values.append(result["values"])
        for name, column in result["calibration"].items():
            totals[name] = totals.get(name, 0) + column.sum(0)
        if progress is not None:
            progress(count)
    return {"values": _joined(values), "calibration": totals}


def probed(
    probe: Callable[[PyTree, Episode], dict[str, Array]],
    params: PyTree,
    source: Source,
    episodes: Sequence[int],
    *,
    batch: int = 32,
) -> dict[str, np.ndarray]:
    """What a probe says of the weights, for each of the given episodes: `{metric: float64 [episodes]}`."""
    run, values = _prober(probe, source.build), []
    for count, padded, host in _batches(source, episodes, batch):
        result = run(params, source.consts, host, padded)
        values.append({name: np.asarray(column, np.float64)[:count] for name, column in result.items()})
    return _joined(values)


def _batches(source: Source, episodes: Sequence[int], batch: int):
    """`(number of episodes, their indices padded to a batch, host batch)`: one shape, one program."""
    for start in range(0, len(episodes), batch):
        chosen = list(episodes[start : start + batch])
        padded = chosen + chosen[-1:] * (batch - len(chosen))
        yield len(chosen), np.asarray(padded), host_batch(source, padded)


def _joined(values: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([v[name] for v in values]) for name in values[0]}


def answers(
    spec: TaskSpec,
    learner: Learner,
    meta: Meta,
    source: Source,
    episodes: Sequence[int],
    *,
    seed: int = 0,
    shots: int = ALL_SHOTS,
) -> tuple[Episode, np.ndarray]:
    """The given episodes themselves and the answers to their queries, `[B, Q, N]`, as `evaluate` sees them."""
    run, batch = _answerer(spec, learner, source.build), host_batch(source, episodes)
    numbers = np.asarray(episodes), np.int32(shots), np.uint32(seed)
    return jax.device_get(run(meta, source.consts, batch, *numbers))


@functools.lru_cache(maxsize=64)
def _answerer(spec: TaskSpec, learner: Learner, build: Callable) -> Callable:
    @jax.jit
    def run(meta, consts, host_batch, indices, shots, seed):
        episodes, keys = _built(build, consts, host_batch, indices, seed)
        limited = jax.vmap(limit_shots, in_axes=(0, None))(episodes.support, shots)
        episodes = Episode(limited, episodes.query)
        return episodes, jax.vmap(lambda e, k: answer(spec, learner, meta, e, k))(episodes, keys)

    return run


@functools.lru_cache(maxsize=64)
def _prober(probe: Callable, build: Callable) -> Callable:
    @jax.jit
    def run(params, consts, host_batch, indices):
        episodes, _ = _built(build, consts, host_batch, indices, 0)
        return jax.vmap(probe, in_axes=(None, 0))(params, episodes)

    return run


def _built(build, consts, host_batch, indices, seed):
    """The episodes, and for each the key of the learner's own randomness."""
    root = jax.random.key(seed)
    episodes, _ = build(consts, host_batch, jax.random.fold_in(root, indices[0]))
    return episodes, jax.vmap(lambda i: jax.random.fold_in(root, i))(indices)


@functools.lru_cache(maxsize=64)
def _evaluator(spec: TaskSpec, learner: Learner, build: Callable, measure: Measure) -> Callable:
    """The jitted evaluator of a learner; folds with equal settings share one program."""

    def one(meta, episode: Episode, key, shots):
        episode = Episode(limit_shots(episode.support, shots), episode.query)
        return measure(spec, answer(spec, learner, meta, episode, key), episode.query)

    @jax.jit
    def run(meta, consts, host_batch, indices, shots, seed):
        episodes, keys = _built(build, consts, host_batch, indices, seed)
        return jax.vmap(one, in_axes=(None, 0, 0, None))(meta, episodes, keys, shots)

    return run


def mean_score(spec: TaskSpec, values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over episodes, and under `score` what model selection maximises."""
    means = {name: float(np.mean(column)) for name, column in values.items()}
    return means | {"score": float(losses.score(spec, {k: jnp.float32(v) for k, v in means.items()}))}
