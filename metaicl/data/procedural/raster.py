# SPDX-License-Identifier: Apache-2.0
"""What every generator of the procedural album draws with: coordinates, colours, noise fields and a canvas.

Images are drawn at `SIZE` pixels. The unit square runs from -1 to 1 in x (right) and y (down). Colours and
photographs in the making are float32 RGB in 0..1; `finish` turns one into the final uint8 image.

Arithmetic is float64 where angles are involved: numpy's single-precision sines differ between processors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np

SIZE = 64
TAU = 2 * np.pi
_SUBPIXEL_BITS = 6

_ticks = (np.arange(SIZE) + 0.5) * (2 / SIZE) - 1
X, Y = np.meshgrid(_ticks, _ticks)

Class = SimpleNamespace
Rng = np.random.Generator
Image = np.ndarray


class Family(NamedTuple):
    """A data set as a generator: how its classes are drawn up, and how one image of a class is drawn.

    Attributes:
      describe: (u `[16]` in 0..1, class rng) -> parameters of the class. Each entry of u takes evenly spread
        values over the classes (a Latin hypercube), so that classes do not coincide by accident.
      draw: (parameters, image rng) -> uint8 `[SIZE, SIZE, 3]`.
    """

    describe: Callable[[np.ndarray, Rng], Class]
    draw: Callable[[Class, Rng], Image]


def pick(u: float, options: Sequence):
    """The option at fraction u (0..1) of the list."""
    return options[min(int(u * len(options)), len(options) - 1)]


def between(u, low, high):
    """The value at fraction u (0..1) of the way from low to high; any of the three may be an array."""
    low = np.asarray(low)
    return low + u * (np.asarray(high) - low)


def whole(u: float, low: int, high: int) -> int:
    """The integer at fraction u (0..1) of low..high, both included."""
    return pick(u, range(low, high + 1))


def hsv(hue, saturation, value) -> np.ndarray:
    """RGB `[..., 3]` of a colour; hue in turns (wraps), saturation and value clipped to 0..1."""
    hue, saturation, value = np.broadcast_arrays(hue, np.clip(saturation, 0, 1), np.clip(value, 0, 1))
    sector = (hue[..., None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6
    pure = np.clip(np.abs(sector - 3) - 1, 0, 1)
    return value[..., None] * (1 - saturation[..., None] * (1 - pure))


def clouds(rng: Rng, cells: int, octaves: int = 1) -> np.ndarray:
    """Smooth noise `float64 [SIZE, SIZE]`, about 0..1: `cells` blobs across, each octave twice as fine."""
    field = np.zeros((SIZE, SIZE))
    for octave in range(octaves):
        n = (cells << octave) + 3
        fine = cv2.resize(
            rng.random((n, n)), (SIZE * n // (n - 3), SIZE * n // (n - 3)), interpolation=cv2.INTER_CUBIC
        )
        edge = (fine.shape[0] - SIZE) // 2
        field += fine[edge : edge + SIZE, edge : edge + SIZE] / (1 << octave)
    return field / (2 - 2 / (1 << octaves))


def ramp(field: np.ndarray, colours: np.ndarray) -> Image:
    """Colours `[k, 3]` laid evenly along 0..1 and looked up, linearly between, for a field of any shape."""
    place = np.clip(field, 0, 1) * (len(colours) - 1)
    left = np.minimum(place.astype(np.int64), len(colours) - 2)
    weight = (place - left)[..., None]
    return colours[left] * (1 - weight) + colours[left + 1] * weight


def backdrop(rng: Rng, colour: np.ndarray, contrast: float = 0.15, cells: int = 3) -> Image:
    """A cloudy background of about one colour, `[SIZE, SIZE, 3]`."""
    return np.clip(colour * (1 + contrast * (2 * clouds(rng, cells)[..., None] - 1)), 0, 1)


def turned(rng: Rng, turn: float, scale: tuple[float, float], shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (x, y), each `[SIZE, SIZE]`, of the unit square after a random rotation, zoom and shift."""
    angle, zoom = rng.uniform(-turn, turn), rng.uniform(*scale)
    dx, dy = rng.uniform(-shift, shift, 2)
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    return c * (X - dx) + s * (Y - dy), c * (Y - dy) - s * (X - dx)


def pose(rng: Rng, turn: float, scale: tuple[float, float], shift: float, squeeze: float = 0.0) -> np.ndarray:
    """A random affine map `[2, 3]` from unit coordinates to pixels: rotation, size, place and squeeze."""
    angle, zoom = rng.uniform(-turn, turn), rng.uniform(*scale)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    sx, shear = 1 + rng.uniform(-squeeze, squeeze), rng.uniform(-squeeze, squeeze)
    dx, dy = rng.uniform(-shift, shift, 2)
    linear = np.array([[c, -s], [s, c]]) @ np.array([[sx, shear], [0, 1 / sx]])
    return np.column_stack([linear, [dx, dy]]) * (SIZE / 2) + np.array([[0, 0, SIZE / 2 - 0.5]] * 2)


def ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 24, tilt: float = 0.0) -> np.ndarray:
    """The outline `[n, 2]` of an ellipse."""
    t = np.arange(n) * (TAU / n)
    x, y = rx * np.cos(t), ry * np.sin(t)
    return np.column_stack(
        [cx + x * np.cos(tilt) - y * np.sin(tilt), cy + x * np.sin(tilt) + y * np.cos(tilt)]
    )


def polar(radius: np.ndarray, start: float = 0.0) -> np.ndarray:
    """The outline `[n, 2]` whose distance from the origin is `radius [n]` at n equal angles."""
    t = start + np.arange(len(radius)) * (TAU / max(1, len(radius)))
    return np.column_stack([radius * np.cos(t), radius * np.sin(t)])


class Canvas:
    """A uint8 picture that takes polygons and strokes in unit coordinates, with smooth edges."""

    def __init__(self, background: Image, place: np.ndarray):
        self.pixels = np.ascontiguousarray((np.clip(background, 0, 1) * 255 + 0.5).astype(np.uint8))
        self.place = place
        self.zoom = float(np.sqrt(abs(np.linalg.det(place[:, :2]))))

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        pixels = points @ self.place[:, :2].T + self.place[:, 2]
        return np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def fill(self, contours: np.ndarray | Sequence[np.ndarray], colour: np.ndarray) -> None:
        """Fills one outline `[n, 2]`, or several at once by the even-odd rule (the second is a hole)."""
        contours = [contours] if isinstance(contours, np.ndarray) else contours
        fixed = [self._fixed(c) for c in contours]
        cv2.fillPoly(self.pixels, fixed, _ink(colour), cv2.LINE_AA, _SUBPIXEL_BITS)

    def stroke(self, lines: np.ndarray | Sequence[np.ndarray], colour, width: float, closed=False) -> None:
        """Draws one line `[n, 2]` or several, `width` in unit lengths (at least one pixel)."""
        lines = [lines] if isinstance(lines, np.ndarray) else lines
        fixed = [self._fixed(line) for line in lines]
        thick = max(1, round(width * self.zoom))
        cv2.polylines(self.pixels, fixed, closed, _ink(colour), thick, cv2.LINE_AA, _SUBPIXEL_BITS)

    def photo(self) -> Image:
        """The picture as float64 `[SIZE, SIZE, 3]` in 0..1."""
        return self.pixels / 255


def _ink(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(np.asarray(colour) * 255 + 0.5, 0, 255))


def finish(image: Image, rng: Rng, noise: float = 0.03, light: float = 0.12, gain: float = 0.15) -> Image:
    """The last step of every image: uneven light, exposure and sensor noise; uint8 `[SIZE, SIZE, 3]`."""
    a, b, g = rng.uniform(-1, 1, 3)
    shade = 1 + gain * g + light * (a * X + b * Y)
    grain = noise * rng.standard_normal((SIZE, SIZE))
    return (np.clip(image * shade[..., None] + grain[..., None], 0, 1) * 255 + 0.5).astype(np.uint8)
