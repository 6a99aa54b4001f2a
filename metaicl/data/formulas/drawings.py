# SPDX-License-Identifier: Apache-2.0
"""The drawings of all classes: each formula several times, without colours."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from metaicl.data.formulas import outlines, systems
from metaicl.files import load_arrays, save_arrays

_PERTURBATION = 0.03  # of the numbers of a system, from image to image


def _drawn_system(system: systems.System, rng: np.random.Generator, side: int) -> np.ndarray:
    return systems.drawn(systems.perturbed(system, rng, _PERTURBATION), rng, side)


# Families in the order in which classes take turns: every second class is an iterated function system.
_FAMILIES: tuple[tuple[str, Callable[..., Any], Callable[..., np.ndarray]], ...] = (
    ("system", systems.draw_system, _drawn_system),
    ("curve", outlines.draw_curve, outlines.drawn_curve),
    ("system", systems.draw_system, _drawn_system),
    ("waves", outlines.draw_waves, outlines.drawn_waves),
    ("system", systems.draw_system, _drawn_system),
    ("shapes", outlines.draw_shapes, outlines.drawn_shapes),
)


class Drawings(NamedTuple):
    """What is drawn of the formulas.

    Attributes:
      maps: `uint8 [classes * images, side, side, 2]`, the images of a class one after another: how much of the figure
        there is at a pixel, and its shade.
      classes, images: numbers of classes, and of images of each.
    """

    maps: np.ndarray
    classes: int
    images: int


def family(number: int) -> str:
    """The family of a class: `system`, `curve`, `waves` or `shapes`."""
    return _FAMILIES[number % len(_FAMILIES)][0]


def draw_formulas(
    *,
    seed: int = 0,
    classes: int = 1000,
    images: int = 16,
    side: int = 64,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Drawings:
    """Draws all images of all classes, or reads them from the cache.

    Image j of class c depends only on (seed, c, j, side).

    Args:
      seed: other seeds give other formulas.
      classes, images: how many classes, and images of each.
      side: pixels.
      cache_dir: folder of the cache, made if need be; None draws without one.
      progress: called with (classes done, classes).

    Raises:
      ValueError: for numbers too small to draw anything.
    """
    for name, value, least in (("classes", classes, 2), ("images", images, 1), ("side", side, 16)):
        if value < least:
            raise ValueError(f"Formulas with {name}={value}: give at least {least}.")
    shape = {"seed": seed, "classes": classes, "images": images, "side": side}
    path = None if cache_dir is None else _cache_file(cache_dir, shape)
    found = None if path is None else load_arrays(path)
    if found is None:
        maps = np.empty((classes * images, side, side, 2), np.uint8)
        for number in range(classes):
            maps[number * images : (number + 1) * images] = _class(seed, number, images, side)
            if progress is not None:
                progress(number + 1, classes)
        found = {"maps": maps}
        if path is not None:
            save_arrays(path, found)
    return Drawings(found["maps"], classes, images)


def _class(seed: int, number: int, images: int, side: int) -> np.ndarray:
    _, draw, drawn = _FAMILIES[number % len(_FAMILIES)]
    formula = draw(np.random.default_rng([seed, number]))
    return np.stack(
        [drawn(formula, np.random.default_rng([seed, number, 1 + j]), side) for j in range(images)]
    )


@functools.cache
def _sources() -> bytes:
    """SHA-256 over the files that decide what is drawn."""
    digest = hashlib.sha256()
    for module in ("drawings", "outlines", "systems"):
        digest.update((pathlib.Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.digest()


def _cache_file(folder: str | os.PathLike, shape: dict[str, int]) -> pathlib.Path:
    arguments = ",".join(f"{key}={value}" for key, value in sorted(shape.items()))
    key = hashlib.sha256(_sources() + arguments.encode()).hexdigest()[:20]
    return pathlib.Path(folder).expanduser() / f"formulas-{key}.npz"
