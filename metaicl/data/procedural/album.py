# SPDX-License-Identifier: Apache-2.0
"""Builds the embedded album with a few processes and returns it as Pools."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from metaicl.data.pool import Pool
from metaicl.data.procedural.cache import cache_file
from metaicl.files import load_arrays, save_arrays

EMBEDDED_DOMAINS: dict[str, tuple[str, str, str]] = {
    "glyphs": ("printed_letters", "chalk_scripts", "neon_symbols"),
    "textures": ("weaves", "stones", "tilings"),
    "plants": ("shrubs", "flowers", "leaves"),
    "cells": ("blood_smears", "bacteria", "tissues"),
    "land_cover": ("farmland", "towns", "coasts"),
    "machines": ("gears", "flanges", "circuit_parts"),
    "curves": ("pendulums", "spirographs", "string_art"),
    "creatures": ("beetles", "fishes", "butterflies"),
    "reactions": ("gray_scott", "animal_coats", "spiral_waves"),
    "solids": ("polyhedra", "vessels", "cube_stacks"),
}

# Below this many images, drawing takes less time than starting the processes that would share the work.
_ALONE = 2000


def embedded_album(
    cache_dir: str | os.PathLike,
    *,
    seed: int = 0,
    image_size: int = 64,
    datasets: Sequence[str] | None = None,
    classes: int = 20,
    images_per_class: int = 40,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pool]:
    """The data sets of the embedded album, one Pool each, in the order of `EMBEDDED_DOMAINS` or as asked.

    Each data set has its own file in `cache_dir`, whose name holds a hash of the generators' source and of
    all arguments that shape it; what is missing or damaged is drawn again.

    Args:
      cache_dir: folder of the cache; made when absent.
      seed: seed of the album, not negative; other seeds give other classes in the same styles.
      image_size: images are uint8 `[image_size, image_size, 3]`, drawn at 64 pixels and resampled.
      datasets: names of data sets; all thirty by default.
      classes: classes of each data set; the first ones are the same for any number.
      images_per_class: images of each class; the first ones are the same for any number.
      workers: processes to draw with; by default one per core, or none of their own for a small album. As
        always with started processes, a script needs `if __name__ == "__main__":` unless this is 1.
      progress: called with (done, total) data sets, first with what the cache already had.
    """
    homes = {name: domain for domain, names in EMBEDDED_DOMAINS.items() for name in names}
    names = list(homes) if datasets is None else list(datasets)
    for name in names:
        if name not in homes:
            raise ValueError(f"no embedded data set {name!r}; there are {', '.join(homes)}")
    shape = {"seed": seed, "classes": classes, "images_per_class": images_per_class, "image_size": image_size}
    files = {name: cache_file(cache_dir, name, shape) for name in names}
    found = {}
    for name in files:
        columns = load_arrays(files[name])
        if columns is not None:
            found[name] = columns
    missing = [name for name in files if name not in found]
    report = progress or (lambda done, total: None)
    report(len(found), len(files))
    for name, images in _draw(missing, shape, workers):
        found[name] = _columns(images)
        save_arrays(files[name], found[name])
        report(len(found), len(files))
    return [_pool(name, homes[name], classes, images_per_class, found[name]) for name in names]


def _draw(names: list[str], shape: dict[str, int], workers: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, images) as they are finished."""
    # Imported here so that the table of domains costs no OpenCV.
    from metaicl.data.procedural.build import build_images, one_thread

    if workers is None:
        small = len(names) * shape["classes"] * shape["images_per_class"] < _ALONE
        workers = 1 if small else _cores()
    workers = min(workers, len(names))
    if workers <= 1:
        yield from ((name, build_images(name, **shape)) for name in names)
        return
    done: set[str] = set()
    try:
        for name, images in _draw_beside(build_images, one_thread, names, shape, workers):
            done.add(name)
            yield name, images
    except BrokenProcessPool:
        # Started processes import the main script again, which fails for one that lacks the usual guard.
        left = [name for name in names if name not in done]
        warnings.warn(
            f"no processes could be started; drawing {len(left)} sets alone", RuntimeWarning, stacklevel=3
        )
        yield from ((name, build_images(name, **shape)) for name in left)


def _draw_beside(
    build: Callable[..., np.ndarray], begin: Callable, names: list[str], shape: dict[str, int], workers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, images) as processes finish them; those not begun are dropped if the reader stops."""
    # A forked child of a process that runs JAX may hang on a lock of one of its threads; a spawned one not.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin) as pool:
        try:
            waiting = {pool.submit(build, name, **shape): name for name in names}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _columns(images: np.ndarray) -> dict[str, np.ndarray]:
    """The images `[n, h, w, 3]` with the digests and perceptual hashes that a Pool wants."""
    from metaicl.data.images import perceptual_hash

    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images], "S64")
    return {"images": images, "digests": digests, "phashes": perceptual_hash(images)}


def _pool(name: str, domain: str, classes: int, images_per_class: int, columns: dict[str, Any]) -> Pool:
    return Pool(
        name=name,
        domain=domain,
        classes=tuple(f"{name}_{c:02d}" for c in range(classes)),
        labels=np.repeat(np.arange(classes, dtype=np.int32), images_per_class),
        x=columns["images"],
        digests=columns["digests"],
        phashes=columns["phashes"],
    )
