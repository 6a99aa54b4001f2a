# SPDX-License-Identifier: Apache-2.0
"""Drawings of formulas as a Source of plain supervised batches: the support is empty."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.formulas.drawings import Drawings
from metaicl.data.formulas.painting import Painting, noise_tile, paint
from metaicl.episode import Episode, Examples, Source


def painted(
    consts: dict,
    *,
    classes: int,
    images: int,
    of_class: tuple[int, int],
    seed: int,
    items: int,
    side: int,
    painting: Painting | None = None,
) -> Source:
    """Batches of images, painted inside the jitted step from the drawings.

    Args:
      consts: of `make_consts`, where the step wants them.
      classes, images: as of the drawings.
      of_class: first and last + 1 of the images of each class that are taken, so that others can be held out.
      seed: episode i depends on (seed, i) alone. The palettes of the classes do not depend on it.
      items: images of an episode.
      side: pixels of an image.
      painting: how much the drawings are changed.

    Raises:
      ValueError: if there are no such images.
    """
    first, last = of_class
    if not 0 <= first < last <= images:
        raise ValueError(f"Images {first} to {last} of each class: there are {images}.")

    def indices(i: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
        labels = rng.integers(0, classes, items).astype(np.int32)
        rows = labels * images + rng.integers(first, last, items)
        return {"rows": rows.astype(np.int32), "labels": labels, "index": np.asarray(i, np.int32)}

    return Source(indices, consts | {"seed": np.uint32(seed)}, _build(side, painting or Painting()))


@functools.lru_cache
def _build(side: int, painting: Painting):
    one = functools.partial(paint, painting, side)

    def episode(consts, batch):
        key = jax.random.fold_in(jax.random.key(consts["seed"]), batch["index"])
        tile = noise_tile(jax.random.fold_in(key, 0), side)
        keys = jax.random.split(key, batch["rows"].shape[0])
        of_class = jax.vmap(lambda label: jax.random.fold_in(jax.random.key(0), label))(batch["labels"])
        drawings = jnp.take(consts["maps"], batch["rows"], axis=0, mode="clip")
        x = jax.vmap(one, in_axes=(0, 0, 0, None))(keys, of_class, drawings, tile)
        nothing = Examples(x[:0], batch["labels"][:0], jnp.zeros(0))
        return Episode(nothing, Examples(x, batch["labels"], jnp.ones(len(batch["rows"]))))

    def build(consts, batch, key):
        del key
        episodes = jax.vmap(episode, in_axes=(None, 0))(consts, batch)
        # Else XLA paints an image again for every view of it that the first convolution takes: 5 times slower.
        episodes = jax.lax.optimization_barrier(episodes)
        return episodes, {"index": batch["index"]}

    return build


def make_consts(drawings: Drawings) -> dict[str, np.ndarray]:
    """What `painted` takes: both bytes of a pixel as one number, so that they are looked up together."""
    n, side = drawings.maps.shape[:2]
    ink, shade = (drawings.maps[..., i].astype(np.uint16) for i in (0, 1))
    return {"maps": (ink | (shade << 8)).reshape(n, side * side)}
