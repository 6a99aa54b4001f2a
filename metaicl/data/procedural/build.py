# SPDX-License-Identifier: Apache-2.0
"""From (seed, data set, class, image) to pixels. Worker processes import this module: numpy and OpenCV only.

Every random number comes from a Philox stream whose key names what it is for, so an image does not depend on
which worker draws it, on how many others are drawn, or on Python's hash seed.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from metaicl.data.procedural import (
    cells,
    creatures,
    curves,
    glyphs,
    land_cover,
    machines,
    plants,
    reactions,
    solids,
    textures,
)
from metaicl.data.procedural.raster import SIZE, Class, Family, Rng

_DOMAINS = (glyphs, textures, plants, cells, land_cover, machines, curves, creatures, reactions, solids)
FAMILIES: dict[str, Family] = {name: family for d in _DOMAINS for name, family in d.FAMILIES.items()}

_DIMENSIONS = 16
_STRATA = 20


def _stream(seed: int, name: str, *place: int) -> Rng:
    """The random stream of one place in the album; plus one, as trailing zeros vanish in a SeedSequence."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
    key = [seed, *(int(w) for w in words[:4]), *(p + 1 for p in place)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def describe_class(seed: int, name: str, c: int) -> Class:
    """The parameters of class c: evenly spread over every block of 20 classes, plus what its own rng adds."""
    block, stratum = divmod(c, _STRATA)
    shuffle = _stream(seed, f"{name}/strata", block)
    column = np.array([shuffle.permutation(_STRATA)[stratum] for _ in range(_DIMENSIONS)])
    return FAMILIES[name].describe((column + 0.5) / _STRATA, _stream(seed, name, c))


def build_images(name: str, seed: int, classes: int, images_per_class: int, image_size: int) -> np.ndarray:
    """All images of one data set, uint8 `[classes * images_per_class, image_size, image_size, 3]`."""
    images = np.empty((classes, images_per_class, image_size, image_size, 3), np.uint8)
    for c in range(classes):
        description = describe_class(seed, name, c)
        for j in range(images_per_class):
            image = FAMILIES[name].draw(description, _stream(seed, name, c, j))
            images[c, j] = image if image_size == SIZE else _resized(image, image_size)
    return images.reshape(-1, image_size, image_size, 3)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """The image at another size: averaged when smaller, smoothly enlarged when bigger."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if size < SIZE else cv2.INTER_CUBIC)


def one_thread() -> None:
    """Initialises a worker process: the processes are the parallelism, so OpenCV must not add threads."""
    cv2.setNumThreads(1)
