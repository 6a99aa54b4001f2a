# SPDX-License-Identifier: Apache-2.0
"""Pseudo-tasks: episodes of images without labels, made and embedded on the device (CAMeLU, GEOM-U).

As CAMeLU (arXiv 2405.16124) makes them: each of N images is a class. Its support is strong augmentations of it. Its
queries are other ones, into each of which an image of its own is mixed, less than half. Two things differ from its
public code: images are drawn uniformly, where that drew them by their labels to have different classes; and every class
may have as many queries as one likes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.augmentation import strong_views
from metaicl.data.pool import Pool
from metaicl.data.sampler import Store
from metaicl.episode import Array, Episode, Examples, Source

DrawFrom = Literal["data_set", "pool"]
Mode = Literal["mixed", "strong"]
Encode = Callable[[Any, Array], Array]
MIXING = (0.01, 0.499)  # of CAMeLU's public code


class _Program(NamedTuple):
    """All that the compiled program of a source depends on; the rest is in `consts`."""

    ways: int
    shots: int
    queries: int
    mode: Mode
    encode: Encode | None


def pseudo_tasks(
    store: Store,
    pools: Sequence[Pool],
    *,
    seed: int,
    ways: int,
    shots: int,
    queries: int,
    draw_from: DrawFrom = "data_set",
    weighting: Literal["uniform", "images"] = "uniform",
    mode: Mode = "mixed",
    mixing: tuple[float, float] = MIXING,
    encode: Encode | None = None,
    params: Any = None,
) -> Source:
    """N-way K-shot episodes of images, whose labels are never read.

    Args:
      store: of uint8 images `[n, h, w, 3]`.
      pools: the data sets, or the parts of them, to draw from; their names and rows are used.
      seed: episode i depends on (seed, i) alone.
      ways, shots: N and K.
      queries: queries per class; CAMeLU has K.
      draw_from: the images of an episode are of one data set (GEOM-U), or of all (CAMeLU).
      weighting: data sets are drawn uniformly, or in proportion to their images.
      mode: "mixed"; or "strong", an ablation: an image and its augmentations, with nothing mixed into the queries.
      mixing: the smallest and the largest weight of the other image, from 0 to less than 1. Each episode draws one.
      encode: a frozen backbone: `(params, float32 [n, h, w, 3] from 0 to 255) -> float32 [n, D]`, inside the step.
        Since a normalisation of pixels is affine, mixing before it is mixing after it. None: items are uint8 images,
        rounded.
      params: of the backbone, on the devices.

    Raises:
      ValueError: for settings out of range, items that are not images, and data sets of too few of them.
    """
    _check(store, (ways, shots, queries), draw_from, weighting, mode, mixing)
    drawn = ways * (1 + queries) if mode == "mixed" else ways
    rows = [(store.offsets[pool.name] + pool.rows).astype(np.int32) for pool in pools]
    if draw_from == "pool":
        rows = [np.concatenate(rows)]
    names = ["All of them together"] if draw_from == "pool" else [f"Data set {pool.name!r}" for pool in pools]
    for name, own in zip(names, rows, strict=True):
        if len(own) < drawn:
            raise ValueError(
                f"{name} has {len(own)} images to train on, fewer than the {drawn} of a pseudo-task ({ways} ways, "
                f"{queries} queries of each): ask for fewer ways or queries, or leave small data sets out."
            )
    sizes = np.array([1 if weighting == "uniform" else len(own) for own in rows], np.float64)
    chances = np.cumsum(sizes / sizes.sum())

    def indices(i: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
        number = min(int(np.searchsorted(chances, rng.random(), side="right")), len(rows) - 1)
        chosen = rows[number][rng.choice(len(rows[number]), drawn, replace=False)]
        which = {"bases": chosen[:ways], "others": chosen[ways:], "index": np.asarray(i, np.int32)}
        return which | {"dataset": np.asarray(-1 if draw_from == "pool" else number, np.int32)}

    consts = store.consts | {"seed": np.uint32(seed), "mixing": np.asarray(mixing, np.float32)}
    if encode is not None:
        consts["backbone"] = params
    return Source(indices, consts, _build(_Program(ways, shots, queries, mode, encode)))


def _check(store, sizes, draw_from, weighting, mode, mixing) -> None:
    shape, dtype = store.item
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise ValueError(
            f"Pseudo-tasks are made of uint8 RGB images [h, w, 3], and the items are {dtype} {shape}."
        )
    if min(sizes) < 1:
        raise ValueError(f"Pseudo-tasks of {sizes} ways, shots and queries: each has to be at least 1.")
    for name, given, known in (
        ("draw_from", draw_from, ("data_set", "pool")),
        ("weighting", weighting, ("uniform", "images")),
        ("mode", mode, ("mixed", "strong")),
    ):
        if given not in known:
            raise ValueError(f"{name} of pseudo-tasks is {given!r}; use {' or '.join(map(repr, known))}.")
    if len(mixing) != 2 or not 0 <= mixing[0] <= mixing[1] < 1:
        raise ValueError(f"mixing is {mixing}; give two weights that do not fall, from 0 to less than 1.")


@functools.lru_cache
def _build(program: _Program):
    def build(consts, batch, key):
        del key
        # All images of a batch at once, and not each episode by `vmap`: `strong_views` may go one by one.
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(consts["seed"]), i))(batch["index"])
        view_keys, mixing_keys, order_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
        views = _views(program, consts["x"][batch["bases"]].astype(jnp.float32), view_keys)
        slots = jnp.broadcast_to(jnp.arange(program.ways, dtype=jnp.int32)[:, None], views.shape[1:3])
        support, query = (
            jax.vmap(functools.partial(_shuffled, slots=slots[:, part]))(
                views[:, :, part], jax.vmap(jax.random.fold_in, (0, None))(order_keys, number)
            )
            for number, part in enumerate((slice(program.shots), slice(program.shots, None)))
        )
        info = {"dataset": batch["dataset"], "bases": batch["bases"]}
        if program.mode == "mixed":
            low, high = consts["mixing"]
            weight = jax.vmap(lambda k: jax.random.uniform(k, (), minval=low, maxval=high))(mixing_keys)
            others = consts["x"][batch["others"]].astype(jnp.float32)
            share = weight.reshape(-1, 1, 1, 1, 1)
            query = (share * others + (1 - share) * query[0], query[1])
            info["weight"] = weight
        return _episode(program, consts, support, query), info

    return build


def _views(program: _Program, bases: Array, keys: Array) -> Array:
    """`[B, N, K + Q, h, w, 3]`: strong augmentations of `bases [B, N, h, w, 3]`."""
    count = program.shots + program.queries
    batch, ways, *shape = bases.shape
    each = jax.vmap(lambda k: jax.random.split(k, (ways, count)))(keys)
    views = jnp.broadcast_to(bases[:, :, None], (batch, ways, count, *shape))
    made = strong_views(views.reshape(-1, *shape), each.reshape(-1)).reshape(views.shape)
    return made if program.mode == "mixed" else made.at[:, :, 0].set(bases)


def _shuffled(images: Array, key: Array, *, slots: Array) -> tuple[Array, Array]:
    """Images `[N, n, ...]` of one episode and their slots `[N, n]` in one random order, `[N n, ...]` and `[N n]`."""
    order = jax.random.permutation(key, slots.size)
    return images.reshape(slots.size, *images.shape[2:])[order], slots.reshape(-1)[order]


def _episode(program: _Program, consts, support, query) -> Episode:
    """The episodes of images `[B, n, h, w, 3]` and labels `[B, n]`: embedded, or rounded to uint8."""
    images = jnp.concatenate([support[0], query[0]], axis=1)
    batch, n, *shape = images.shape
    if program.encode is None:
        items = jnp.rint(images).astype(jnp.uint8)
    else:
        flat = program.encode(consts["backbone"], images.reshape(batch * n, *shape))
        items = flat.reshape(batch, n, -1)
    cut = program.ways * program.shots
    ones = jnp.ones((batch, n))
    return Episode(
        Examples(items[:, :cut], support[1], ones[:, :cut]), Examples(items[:, cut:], query[1], ones[:, cut:])
    )
