# SPDX-License-Identifier: Apache-2.0
"""The matrix of distances for one draw of items: the cost between sets, and its transport for all pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.pool import Pool
from metaicl.distances.labels import powered_distances
from metaicl.distances.settings import Settings
from metaicl.distances.transport import Solution, mean_cost, side_by_side, solve

_SMALLEST = 64  # rows to which small sets are padded

Items = tuple[np.ndarray, np.ndarray]
"""Features `[n, D]` of a set's items, and the numbers `[n]` of their classes among those of all sets."""


class Group(NamedTuple):
    """Pairs of sets whose transport problems have one shape.

    Attributes:
      sizes: rows and columns, padding included.
      sets: `[N, 2]` numbers of the sets of every pair.
      places: `[N, 2]` their numbers in the stacks of `consts`.
      consts: what `_dataset_problem` needs.
    """

    sizes: tuple[int, int]
    sets: np.ndarray
    places: np.ndarray
    consts: Any


def subsample(pool: Pool, samples: int, seed: int) -> np.ndarray:
    """Rows of at most `samples` items, ascending, in proportion to the classes.

    Which items are drawn depends on their features and the seed, not on their order or labels.
    """
    if len(pool) <= samples:
        return np.arange(len(pool))
    salt = seed.to_bytes(8, "little", signed=True)
    x = np.ascontiguousarray(pool.x)
    lots = np.array([hashlib.blake2b(row.tobytes(), digest_size=8, salt=salt).digest() for row in x], "S8")
    lots = np.frombuffer(lots.tobytes(), ">u8")
    order = np.lexsort((lots, pool.labels))
    firsts = np.cumsum(pool.counts) - pool.counts
    place = np.empty(len(pool))
    place[order] = np.arange(len(pool)) - firsts[pool.labels[order]]
    share = (place + 0.5) / pool.counts[pool.labels]  # of its class, up to this item
    return np.sort(np.lexsort((lots, share))[:samples])


def matrix_of_draw(
    sets: Sequence[Items], label_cost: np.ndarray, settings: Settings, tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """One draw's `each`, `errors`, `iterations`, `converged` and `epsilons`, as `Distances` has them.

    Args:
      sets: the items.
      label_cost: `[C, C]`, W^p between all classes.
      settings: definition and solver.
      tick: called as `tick(done, total)`.
    """
    groups = _groups(sets, label_cost, settings)
    scale = _mean_cost(sets, groups, label_cost, settings) if settings.relative else 1.0
    if not scale > 0:
        raise ValueError(
            "All items of all pools are the same: a relative regularisation has no scale. Check them."
        )
    epsilon = settings.regularisation * scale
    count = len(sets)
    shape = (count, count)
    whole = Solution(np.zeros(shape), np.zeros(shape), np.zeros(shape, int), np.ones(shape, bool))
    total, done = sum(len(group.sets) for group in groups), 0

    def advance(number):
        nonlocal done
        done += number
        tick(done, total)

    for group in groups:
        found = _solved(group, settings, epsilon, advance)
        i, j = group.sets.T
        for matrix, values in zip(whole, found, strict=True):
            matrix[i, j] = matrix[j, i] = values
    own = np.diag(whole.value) if settings.debiased else np.zeros(count)
    value = whole.value - (own[:, None] + own[None, :]) / 2
    if settings.root:
        value = np.maximum(value, 0.0) ** (1 / settings.p)
    report = dict(errors=whole.error, iterations=whole.iterations, converged=whole.converged)
    return dict(each=value, epsilons=epsilon, **report)


def _solved(group: Group, settings: Settings, epsilon: float, tick: Callable[[int], None]) -> Solution:
    return solve(
        _dataset_problem,
        group.consts,
        group.places,
        p=settings.p,
        same=group.sizes[0] == group.sizes[1],
        epsilon=epsilon,
        threshold=settings.threshold,
        max_iterations=settings.max_iterations,
        at_once=side_by_side(group.sizes[0] * group.sizes[1]),
        tick=tick,
    )


def _groups(sets: Sequence[Items], label_cost: np.ndarray, settings: Settings) -> list[Group]:
    """All pairs of sets, and of a set with itself if debiased, by the shape of their problems."""
    sizes = [max(_SMALLEST, 1 << (len(x) - 1).bit_length()) for x, _ in sets]  # powers of two: few shapes
    place = [sizes[:k].count(size) for k, size in enumerate(sizes)]
    stacks = {size: _stack([s for s, own in zip(sets, sizes, strict=True) if own == size], size, _centre(sets))
              for size in set(sizes)}  # fmt: skip
    dtype = jnp.result_type(float)
    labels = jnp.asarray(settings.factor * settings.label_weight * label_cost, dtype)
    features = jnp.asarray(settings.factor * settings.feature_weight, dtype)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i in range(len(sets)):
        for j in range(i + (not settings.debiased), len(sets)):
            first, second = sorted((i, j), key=lambda k: sizes[k])  # the smaller first: fewer shapes
            pairs.setdefault((sizes[first], sizes[second]), []).append((first, second))
    groups = []
    for shape, chosen in pairs.items():
        consts = (stacks[shape[0]], stacks[shape[1]], labels, features)
        groups.append(Group(shape, np.array(chosen), np.array(place)[np.array(chosen)], consts))
    return groups


def _centre(sets: Sequence[Items]) -> np.ndarray:
    """The mean of the sets' means `[D]`; moved there, features lose fewest digits to the cost."""
    return np.mean([np.mean(x, axis=0, dtype=np.float64) for x, _ in sets], axis=0)


def _stack(members: Sequence[Items], size: int, centre: np.ndarray) -> tuple[jax.Array, ...]:
    """Features `[A, size, D]`, class numbers and weights `[A, size]`; the weights of padding are 0."""
    dtype = jnp.result_type(float)
    x = np.zeros((len(members), size, len(centre)), dtype)
    ids, weights = np.zeros(x.shape[:2], np.int32), np.zeros(x.shape[:2], dtype)
    for k, (items, labels) in enumerate(members):
        x[k, : len(items)] = items - centre
        ids[k, : len(items)] = labels
        weights[k, : len(items)] = 1 / len(items)
    return jnp.asarray(x), jnp.asarray(ids), jnp.asarray(weights)


def _mean_cost(
    sets: Sequence[Items], groups: Sequence[Group], label_cost: np.ndarray, settings: Settings
) -> float:
    """The mean cost over all pairs of different sets."""
    if settings.p == 2:
        return _mean_squared_cost(sets, label_cost, settings)
    means = [
        mean_cost(_dataset_problem, g.consts, g.places, settings.p)[g.sets[:, 0] != g.sets[:, 1]]
        for g in groups
    ]
    return float(np.mean(np.concatenate(means)))


def _mean_squared_cost(sets: Sequence[Items], label_cost: np.ndarray, settings: Settings) -> float:
    """The same for p = 2, from moments: no distance of two items is needed."""
    centre = _centre(sets)
    means = np.stack([np.mean(x, axis=0, dtype=np.float64) - centre for x, _ in sets])
    norms = np.array([np.mean(np.sum((x - centre) ** 2, axis=1)) for x, _ in sets])
    shares = np.stack([np.bincount(labels, minlength=len(label_cost)) / len(labels) for _, labels in sets])
    features = norms[:, None] + norms[None, :] - 2 * means @ means.T
    cost = settings.feature_weight * features + settings.label_weight * shares @ label_cost @ shares.T
    return settings.factor * float(np.mean(cost[np.triu_indices(len(sets), 1)]))


def _dataset_problem(consts, pair: jax.Array, p: int):
    """The ground cost between two sets, by their numbers in their stacks, and their weights."""
    (xs, ids, weights), (ys, other_ids, other_weights), label_cost, feature_weight = consts
    i, j = pair[0], pair[1]
    between = label_cost[ids[i][:, None], other_ids[j][None, :]]
    return feature_weight * powered_distances(xs[i], ys[j], p) + between, weights[i], other_weights[j]
