# SPDX-License-Identifier: Apache-2.0
"""Iterated function systems: affine contractions whose attractor is the picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAPS = (2, 8)  # contractions of a system
_CANDIDATES = 512  # sets of singular values drawn at a time
_POINTS, _BURN_IN, _STEPS = (
    384,
    10,
    28,
)  # of the chaos game: points side by side, steps not shown, steps shown
_MARGIN = 0.02  # share of points that may lie outside of the frame, on each side


class System(NamedTuple):
    """An iterated function system of n maps x -> A x + b.

    Attributes:
      matrices: `float64 [n, 2, 2]`.
      shifts: `float64 [n, 2]`.
      chances: `float64 [n]`, how often each map is applied; 1 in sum.
      shades: `float64 [n]` in [0, 1], what a map pulls the shade of a point towards.
    """

    matrices: np.ndarray
    shifts: np.ndarray
    chances: np.ndarray
    shades: np.ndarray


def draw_system(rng: np.random.Generator) -> System:
    """A random system whose attractor fills some area, by the sum of its singular values.

    With n maps, the sum of sigma_1 + 2 sigma_2 lies between (5 + n) / 2 and (6 + n) / 2 (Anderson and Farrell,
    section 3.2); all singular values are below 1.
    """
    n = int(rng.integers(MAPS[0], MAPS[1] + 1))
    values = _singular_values(rng, n)
    turns = rng.uniform(-np.pi, np.pi, (2, n))
    mirrors = rng.choice([-1.0, 1.0], (n, 2))
    matrices = _rotations(turns[0]) * (values * mirrors)[:, None, :] @ _rotations(turns[1])
    return System(matrices, rng.uniform(-1, 1, (n, 2)), _chances(matrices), rng.permutation(n) / (n - 1))


def perturbed(system: System, rng: np.random.Generator, amount: float) -> System:
    """The system with every number changed by normal noise of this size, its contractions kept."""
    matrices = system.matrices + amount * rng.standard_normal(system.matrices.shape)
    largest = np.linalg.svd(matrices, compute_uv=False)[:, 0]
    matrices = matrices * np.minimum(1, 0.98 / largest)[:, None, None]
    shifts = system.shifts + amount * rng.standard_normal(system.shifts.shape)
    return System(matrices, shifts, _chances(matrices), system.shades)


def drawn(system: System, rng: np.random.Generator, side: int) -> np.ndarray:
    """The attractor by the chaos game: `uint8 [side, side, 2]`, log of visits and mean shade of each pixel."""
    points, shade = np.zeros((_POINTS, 2)), np.full(_POINTS, 0.5)
    columns = np.concatenate([system.matrices.reshape(-1, 4), system.shifts, system.shades[:, None]], axis=1)
    edges = np.cumsum(system.chances)[:-1]
    shown = []
    for step in range(_BURN_IN + _STEPS):
        a, b, c, d, e, f, s = columns[np.searchsorted(edges, rng.random(_POINTS))].T
        x, y = points.T
        points = np.stack([a * x + b * y + e, c * x + d * y + f], axis=1)
        shade = (shade + s) / 2
        if step >= _BURN_IN:
            shown.append(np.column_stack([points, shade]))
    return _binned(np.concatenate(shown), side)


def _singular_values(rng, n) -> np.ndarray:  # [n, 2], the larger one first
    while True:
        values = np.sort(rng.random((_CANDIDATES, n, 2)), axis=2)[:, :, ::-1]
        total = values[:, :, 0].sum(1) + 2 * values[:, :, 1].sum(1)
        good = np.flatnonzero((total >= (5 + n) / 2) & (total <= (6 + n) / 2))
        if len(good):
            return values[good[0]]


def _rotations(angles) -> np.ndarray:
    c, s = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def _chances(matrices) -> np.ndarray:
    areas = np.abs(np.linalg.det(matrices)) + 0.01
    return areas / areas.sum()


def _binned(points, side) -> np.ndarray:
    """Counts and mean shades on the frame that holds nearly all points; the longer side fills it."""
    ordered = np.sort(points[:, :2], axis=0)
    skipped = int(_MARGIN * len(points))
    low, high = ordered[skipped], ordered[-1 - skipped]
    scale = max(np.max(high - low), 1e-6)
    pixels = ((points[:, :2] - (low + high) / 2) / scale + 0.5) * (side - 1)
    whole = np.rint(pixels).astype(np.int64)
    inside = np.all((whole >= 0) & (whole < side), axis=1)
    cells = whole[inside, 0] * side + whole[inside, 1]
    counts = np.bincount(cells, minlength=side * side)
    shades = np.bincount(cells, weights=points[inside, 2], minlength=side * side) / np.maximum(counts, 1)
    density = np.log1p(counts) / np.log1p(max(np.quantile(counts[counts > 0], 0.95), 1))
    density = np.where(counts > 0, 0.3 + 0.7 * density, 0)  # what is visited once can be seen
    both = np.stack([np.clip(density, 0, 1), shades], axis=-1).reshape(side, side, 2)
    return np.rint(255 * both).astype(np.uint8)
