# SPDX-License-Identifier: Apache-2.0
"""The shortest path through all data sets: exactly where there are few, else improved from greedy walks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaicl.curricula.orders import check_distances, check_order, walk

EXACT_UP_TO = 12  # 2^12 sets of data sets take a fraction of a second, 2^15 ten


def path_length(order: Sequence[int], distances: np.ndarray) -> float:
    """Sum of the distances from each data set to the next."""
    path = np.asarray(order)
    return float(np.asarray(distances, np.float64)[path[:-1], path[1:]].sum())


def shortest_path(names: Sequence[str], distances: np.ndarray, start: int | None = None) -> list[int]:
    """The shortest Hamiltonian path, from `start` or from wherever it is shortest.

    Exact for at most `EXACT_UP_TO` data sets. For more, the best of the greedy walks (from every data set, or from
    `start`), each improved by 2-opt until no reversal shortens it: never longer than the walks, not always shortest.

    Args:
      names: of the P data sets; they break ties.
      distances: `[P, P]`, see `orders.walk`, which also says what is refused.
      start: position of the first data set; None for a free one.
    """
    if len(names) <= EXACT_UP_TO:
        return exact_path(names, distances, start)
    starts = sorted(range(len(names)), key=lambda k: names[k]) if start is None else [start]
    paths = [two_opt(walk(names, distances, k), distances, free_start=start is None) for k in starts]
    return min(paths, key=lambda path: path_length(path, distances))


def two_opt(order: Sequence[int], distances: np.ndarray, *, free_start: bool = False) -> list[int]:
    """Reverses stretches of an open path, the one that shortens it most first, until none shortens it (Croes 1958).

    Args:
      order: the path to begin with.
      distances: `[P, P]`, symmetric.
      free_start: whether the first data set may become another one.
    """
    distances = np.asarray(distances, np.float64)
    path = np.asarray(check_order(order, [str(k) for k in range(len(distances))]))
    least = 1e-12 * np.abs(distances[path[:-1], path[1:]]).sum()  # else rounding could go in circles
    while True:
        gain, i, j = _best_reversal(path, distances, 0 if free_start else 1)
        if gain <= least:
            return [int(k) for k in path]
        path[i : j + 1] = path[i : j + 1][::-1]


def _best_reversal(path: np.ndarray, distances: np.ndarray, first: int) -> tuple[float, int, int]:
    """What the best reversal of `path[i..j]` with i >= first saves, and its i and j; an open end costs nothing."""
    best, count = (0.0, 0, 0), len(path)
    for i in range(first, count - 1):
        for j in range(i + 1, count):
            gain = 0.0
            if i > 0:
                gain += distances[path[i - 1], path[i]] - distances[path[i - 1], path[j]]
            if j < count - 1:
                gain += distances[path[j], path[j + 1]] - distances[path[i], path[j + 1]]
            if gain > best[0]:
                best = (float(gain), i, j)
    return best


def exact_path(names: Sequence[str], distances: np.ndarray, start: int | None = None) -> list[int]:
    """The shortest Hamiltonian path by dynamic programming over sets of data sets (Held & Karp 1962).

    Time and memory grow as 2^P P; see `shortest_path` for the arguments. A path with a free start and its reverse
    are equally long: the one whose first name comes first is returned.
    """
    distances = check_distances(names, distances)
    by_name = sorted(range(len(names)), key=lambda k: names[k])
    d, count = distances[np.ix_(by_name, by_name)], len(names)
    length = np.full((1 << count, count), np.inf)  # of the shortest path over a set that ends in j
    before = np.zeros((1 << count, count), np.int32)
    for j in range(count) if start is None else [by_name.index(start)]:
        length[1 << j, j] = 0.0
    for members in range(1, 1 << count):
        for j in range(count):
            rest = members & ~(1 << j)
            if rest == members or not rest:
                continue
            came = length[rest] + d[:, j]
            before[members, j] = np.argmin(came)
            length[members, j] = came[before[members, j]]
    path = _traced_back(length, before)
    if start is None and path[0] > path[-1]:
        path.reverse()
    return [by_name[k] for k in path]


def _traced_back(length: np.ndarray, before: np.ndarray) -> list[int]:
    """The path that ends where the full set's is shortest."""
    members = len(length) - 1
    path = [int(np.argmin(length[members]))]
    while members & (members - 1):  # more than one is left
        last = path[-1]
        path.append(int(before[members, last]))
        members &= ~(1 << last)
    return path[::-1]
