# SPDX-License-Identifier: Apache-2.0
"""Orders over P data sets that are fixed before training: by domain, by how easy they are, by how near they are.

An order is a list of P positions in `names`. Names break ties, so that equal numbers give one order on any machine.
The rules are those of GEOM (arXiv 2507.05019), which names neither the first data set nor what happens on ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Direction = Literal["nearest", "farthest"]

# What `walk` does step after step, over and over.
NEAREST: tuple[Direction, ...] = ("nearest",)
FARTHEST: tuple[Direction, ...] = ("farthest",)
SWITCH: tuple[Direction, ...] = ("nearest", "farthest")


def check_order(order: Sequence[int], names: Sequence[str]) -> list[int]:
    """The order as a list of integers.

    Raises:
      ValueError: for an order that is no permutation of the data sets, naming what it lacks or repeats.
    """
    found = [int(k) for k in order]
    if sorted(found) == list(range(len(names))):
        return found
    counts = {k: found.count(k) for k in range(len(names))}
    wrong: dict[str, list] = {
        "lacks": [names[k] for k, n in counts.items() if n == 0],
        "repeats": [names[k] for k, n in counts.items() if n > 1],
        "has no data set at": [k for k in found if k not in counts],
    }
    said = "; ".join(f"it {what} {', '.join(map(str, which))}" for what, which in wrong.items() if which)
    raise ValueError(f"The order {found} of {len(names)} data sets is no permutation: {said}.")


def domain_order(names: Sequence[str], domains: Sequence[str]) -> list[int]:
    """Domain after domain, and in a domain data set after data set, both in alphabetical order."""
    return sorted(range(len(names)), key=lambda k: (domains[k], names[k]))


def random_order(names: Sequence[str], seed: int) -> list[int]:
    """An order drawn from a seed; it depends on the names, not on where they stand."""
    by_name = sorted(range(len(names)), key=lambda k: names[k])
    return [by_name[k] for k in np.random.default_rng(seed).permutation(len(names))]


def by_ease(names: Sequence[str], ease: np.ndarray, *, hardest_first: bool = False) -> list[int]:
    """From the easiest data set to the hardest (E2H), or the other way round (H2E).

    Args:
      names: of the data sets.
      ease: `[P]`, larger is easier, such as the accuracy of a simple classifier.
      hardest_first: H2E. Ties stay in the order of the names either way.

    Raises:
      ValueError: for numbers that do not fit the names or are not finite.
    """
    ease = np.asarray(ease, np.float64)
    if ease.shape != (len(names),) or not np.isfinite(ease).all():
        raise ValueError(
            f"ease has shape {ease.shape} and must hold a finite number for each of {len(names)} data sets."
        )
    sign = 1 if hardest_first else -1
    return sorted(range(len(names)), key=lambda k: (sign * ease[k], names[k]))


def walk(
    names: Sequence[str], distances: np.ndarray, start: int, directions: Sequence[Direction] = NEAREST
) -> list[int]:
    """From data set to data set, each time to the nearest or the farthest of those that are left.

    Args:
      names: of the data sets.
      distances: `[P, P]`, symmetric; the diagonal is not looked at.
      start: position of the first data set.
      directions: what the steps do in turn: `NEAREST` (E2E), `FARTHEST` (H2H), `SWITCH` (nearest, then farthest,
        and so on).

    Raises:
      ValueError: for distances that do not fit the names, are not finite or not symmetric, or no such start.
    """
    distances = check_distances(names, distances)
    if not 0 <= start < len(names):
        raise ValueError(f"start is {start}; it must be the position of one of {len(names)} data sets.")
    order, left = [start], set(range(len(names))) - {start}
    while left:
        sign = 1 if directions[(len(order) - 1) % len(directions)] == "nearest" else -1
        here = distances[order[-1]]
        order.append(min(left, key=lambda k: (sign * here[k], names[k])))
        left.remove(order[-1])
    return order


def check_distances(names: Sequence[str], distances: np.ndarray) -> np.ndarray:
    """The distances as `float64 [P, P]`; see `walk` for what is refused."""
    distances = np.asarray(distances, np.float64)
    count = len(names)
    if distances.shape != (count, count):
        raise ValueError(f"distances have shape {distances.shape}; {count} data sets need {(count, count)}.")
    others = ~np.eye(count, dtype=bool)
    bad = np.argwhere(others & ~np.isfinite(distances))
    if not len(bad):
        bad = np.argwhere(others & ~np.isclose(distances, distances.T, rtol=1e-6, atol=1e-12))
    if len(bad):
        i, j = bad[0]
        raise ValueError(
            f"The distance of {names[i]} to {names[j]} is {distances[i, j]:g} and back {distances[j, i]:g}: "
            "distances must be finite and symmetric."
        )
    return distances
