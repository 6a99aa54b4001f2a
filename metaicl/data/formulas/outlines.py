# SPDX-License-Identifier: Apache-2.0
"""Pictures of three more families of formulas: closed curves, sums of waves, and scattered shapes.

Each family has a function that draws the formula of a class, and one that draws an image of it; images differ in
small changes of the formula and in its random positions and phases. Images are `uint8 [side, side, 2]`: how much of
the figure there is at a pixel, and its shade.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

_FINE = 4  # bits of a pixel in OpenCV's coordinates
_CURVE = 160  # points of a closed curve
_HARMONICS = 6


class Curve(NamedTuple):
    """A closed curve, the sum of c_k e^(i k t) over k; several of them within each other.

    Attributes:
      coefficients: `complex128 [2 H + 1]`, of k from -H to H.
      filled: areas, or lines.
      width: of a line, as a share of the side.
      rings: how many there are, each smaller than the one before by `shrink` and turned by `turn` (radians).
    """

    coefficients: np.ndarray
    filled: bool
    width: float
    rings: int
    shrink: float
    turn: float


def draw_curve(rng: np.random.Generator) -> Curve:
    """The formula of a class."""
    orders = np.abs(np.arange(-_HARMONICS, _HARMONICS + 1))
    sizes = rng.standard_normal((2, len(orders))) * (rng.random(len(orders)) < 0.5)
    coefficients = (sizes[0] + 1j * sizes[1]) / np.maximum(orders, 1) ** rng.uniform(0.7, 1.8)
    coefficients[_HARMONICS] = 0
    coefficients[_HARMONICS + 1] += np.exp(1j * rng.uniform(0, 2 * np.pi))
    rings = int(rng.integers(1, 6))
    return Curve(
        coefficients,
        bool(rng.random() < 0.5),
        rng.uniform(0.02, 0.08),
        rings,
        rng.uniform(0.6, 0.9),
        rng.uniform(-0.6, 0.6),
    )


def drawn_curve(curve: Curve, rng: np.random.Generator, side: int) -> np.ndarray:
    """An image of a class of curves."""
    size = np.abs(curve.coefficients)
    noise = rng.standard_normal((2, len(size)))
    own = curve.coefficients + 0.1 * (size + 0.05) * (noise[0] + 1j * noise[1])
    t = np.linspace(0, 2 * np.pi, _CURVE, endpoint=False)
    z = np.exp(1j * np.outer(t, np.arange(-_HARMONICS, _HARMONICS + 1))) @ own
    z = (z - z.mean()) / np.abs(z - z.mean()).max()
    ink, shade = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    for ring in range(curve.rings):
        part = z * curve.shrink**ring * np.exp(1j * ring * curve.turn)
        level = 255 if curve.rings == 1 else int(255 * ring / (curve.rings - 1))
        width = max(1, round(side * curve.width * rng.uniform(0.8, 1.25)))
        for canvas, value in ((ink, 255), (shade, level)):
            _put(canvas, np.stack([part.real, part.imag], 1), value, 0 if curve.filled else width)
    return np.stack([ink, shade], -1)


class Waves(NamedTuple):
    """Two sums of K waves, of ink and of shade, with warped coordinates.

    Attributes:
      frequencies: `float64 [2, K, 2]`, cycles across the image.
      sizes: `float64 [2, K]`.
      warp: strength, and `warp_frequency` its cycles.
      sharpness: how steep the edge of the ink is.
    """

    frequencies: np.ndarray
    sizes: np.ndarray
    warp: float
    warp_frequency: float
    sharpness: float


def draw_waves(rng: np.random.Generator) -> Waves:
    """The formula of a class."""
    waves = int(rng.integers(1, 6))
    highest = np.exp(rng.uniform(np.log(3), np.log(16)))
    cycles = np.exp(rng.uniform(np.log(max(1.0, highest / 5)), np.log(highest), (2, waves)))
    spread = rng.uniform(0.1, np.pi)  # narrow: stripes; wide: spots and grids
    angles = rng.uniform(0, np.pi) + rng.uniform(-spread, spread, (2, waves))
    frequencies = np.stack([cycles * np.cos(angles), cycles * np.sin(angles)], -1)
    sizes = rng.uniform(0.3, 1, (2, waves))
    warp = rng.uniform(0, 0.15) * (rng.random() < 0.7)
    return Waves(frequencies, sizes, warp, rng.uniform(1, 4), np.exp(rng.uniform(np.log(0.7), np.log(8))))


def drawn_waves(waves: Waves, rng: np.random.Generator, side: int) -> np.ndarray:
    """An image of a class of waves."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij"), -1)
    phases = rng.uniform(0, 2 * np.pi, (2, *waves.sizes.shape))
    bent = np.sin(2 * np.pi * waves.warp_frequency * grid[:, :, ::-1] + phases[1, 0, :1])
    grid = grid + waves.warp * bent
    turned = np.exp(rng.normal(0, 0.1)) * waves.frequencies
    waving = np.sin(2 * np.pi * np.einsum("hwd,mkd->mkhw", grid, turned) + phases[0][:, :, None, None])
    ink, shade = np.einsum(
        "mk,mkhw->mhw", waves.sizes / np.sqrt((waves.sizes**2).sum(1, keepdims=True)), waving
    )
    both = np.stack([1 / (1 + np.exp(-2 * waves.sharpness * ink)), 0.5 + 0.35 * shade], -1)
    return np.rint(255 * np.clip(both, 0, 1)).astype(np.uint8)


class Shapes(NamedTuple):
    """Many small copies of one shape, later ones over earlier ones (the dead leaves model).

    Attributes:
      outline: `float64 [n, 2]` within the unit disc.
      copies: how many.
      radii: smallest and largest, as shares of the side; small ones are more frequent.
      aligned: how much the copies point the same way, from 0 to 1.
      regular: whether they stand on a jittered grid instead of anywhere.
    """

    outline: np.ndarray
    copies: int
    radii: tuple[float, float]
    aligned: float
    regular: bool


def draw_shapes(rng: np.random.Generator) -> Shapes:
    """The formula of a class."""
    corners = int(rng.integers(3, 9))
    star = rng.uniform(0.3, 1) if rng.random() < 0.5 else 1.0
    angles = np.linspace(0, 2 * np.pi, 2 * corners, endpoint=False)
    radii = np.where(np.arange(2 * corners) % 2, star * np.cos(np.pi / corners) ** (star == 1), 1.0)
    outline = np.stack([radii * np.cos(angles), rng.uniform(0.25, 1) * radii * np.sin(angles)], 1)
    small = np.exp(rng.uniform(np.log(0.025), np.log(0.12)))
    largest = small * rng.uniform(1, 4)
    count = int(np.clip(rng.uniform(0.3, 2.5) / (np.pi * small * largest), 6, 150))
    return Shapes(outline, count, (small, largest), float(rng.random()), bool(rng.random() < 0.35))


def drawn_shapes(shapes: Shapes, rng: np.random.Generator, side: int) -> np.ndarray:
    """An image of a class of scattered shapes."""
    ink, shade = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    small, largest = shapes.radii
    radii = small * (largest / small) ** (rng.random(shapes.copies) ** 2)
    places = rng.uniform(-1.1, 1.1, (shapes.copies, 2))
    if shapes.regular:
        across = int(np.ceil(np.sqrt(shapes.copies)))
        grid = (np.stack(np.divmod(np.arange(shapes.copies), across), 1) + 0.5) / across * 2 - 1
        places = grid + rng.normal(0, 0.15 / across, grid.shape)
    angles = rng.uniform(0, 2 * np.pi) + (1 - shapes.aligned) * rng.uniform(-np.pi, np.pi, shapes.copies)
    for radius, place, angle in zip(radii, places, angles, strict=True):
        c, s = np.cos(angle), np.sin(angle)
        points = 2 * radius * shapes.outline @ np.array([[c, s], [-s, c]]) + place
        _put(ink, points, int(rng.integers(150, 256)), 0)
        _put(shade, points, int(rng.integers(0, 256)), 0)
    return np.stack([ink, shade], -1)


def _put(canvas, points, value, width) -> None:
    """Draws a closed line of `points [n, 2]` in [-1, 1], or its area with width 0."""
    side = canvas.shape[0]
    pixels = np.rint((points * 0.5 + 0.5) * (side - 1) * 2**_FINE).astype(np.int32)
    if width:
        cv2.polylines(canvas, [pixels], True, value, width, cv2.LINE_AA, _FINE)
    else:
        cv2.fillPoly(canvas, [pixels], value, cv2.LINE_AA, _FINE)
