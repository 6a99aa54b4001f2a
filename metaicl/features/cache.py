# SPDX-License-Identifier: Apache-2.0
"""Frozen features of Pools, computed once and kept in files named after everything they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metaicl.data.images import Progress, perceptual_hash
from metaicl.data.pool import Pool
from metaicl.files import array_digest, load_arrays, save_arrays
from metaicl.models.squeezenet import Backbone

CODE_VERSION = 1  # bump when this file would compute other features or hashes from the same images
Widths = Callable[[np.ndarray], np.ndarray]
_BATCHES_DECODED = 8  # batches decoded at a time: enough work for the threads, little memory


def weights_digest(params: Any) -> str:
    """SHA-256 (hex) of all parameters: their names, dtypes, shapes and bytes."""
    leaves = jax.tree.flatten_with_path(params)[0]
    return array_digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def feature_key(pool: Pool, weights: str, backbone_name: str, preprocessing: str) -> str:
    """SHA-256 (hex) of all that the features of a pool depend on: items in order, size, network and code."""
    parts = (CODE_VERSION, backbone_name, preprocessing, weights, *pool.x.shape[1:], len(pool))
    digest = hashlib.sha256("\n".join(map(str, parts)).encode())
    digest.update(np.ascontiguousarray(pool.digests.astype("S64")).tobytes())
    return digest.hexdigest()


def _embed(
    pool: Pool,
    apply: Callable[[np.ndarray], jax.Array],
    batch: int,
    widths: Widths | None,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Features and digests of a pool, a few batches at a time, and of images their perceptual hashes."""
    phashes: list[np.ndarray] = []
    images = _has_images(pool)
    done, order, features = 0, [], []
    for rows, part in (
        _image_batches(pool, batch, phashes) if images else sentence_batches(pool, batch, widths)
    ):
        padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        features.append(np.asarray(apply(padded), np.float32)[: len(part)])
        order.append(rows)
        done += len(part)
        if progress is not None:
            progress(pool.name, done, len(pool))
    result = np.concatenate(features)[np.argsort(np.concatenate(order))]
    if not np.isfinite(result).all():
        bad = int(np.argmin(np.isfinite(result).all(axis=1)))
        raise ValueError(f"{pool.name}: item {bad} has features that are not finite. Check the weights.")
    arrays = {"features": result, "digests": pool.digests.astype("S64")}
    return arrays | {"phashes": np.concatenate(phashes)} if phashes else arrays


def _image_batches(
    pool: Pool, batch: int, phashes: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and pixels of images, batch by batch; a few batches are decoded at a time, and their hashes kept."""
    for start in range(0, len(pool), batch * _BATCHES_DECODED):
        items = np.asarray(pool.x[start : start + batch * _BATCHES_DECODED])
        phashes.append(perceptual_hash(items))
        for first in range(0, len(items), batch):
            part = items[first : first + batch]
            yield np.arange(start + first, start + first + len(part)), part


def sentence_batches(
    pool: Pool, batch: int, widths: Widths | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and tokens of sentences, narrow ones first, so that a batch is as wide as its own sentences need."""
    ids = np.asarray(pool.x)
    needed = np.full(len(ids), ids.shape[1]) if widths is None else widths(ids)
    order = np.argsort(needed, kind="stable")
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        yield rows, ids[rows, : needed[rows].max()]


def _has_images(pool: Pool) -> bool:
    return len(pool.x.shape) == 4 and pool.x.shape[3] == 3 and pool.x.dtype == np.uint8


def check_items(pool: Pool) -> None:
    """Refuses a pool that holds neither images nor sentences."""
    sentences = len(pool.x.shape) == 2 and pool.x.dtype == np.int32
    if not len(pool) or not (_has_images(pool) or sentences):
        raise ValueError(
            f"{pool.name} holds {pool.x.dtype} {tuple(pool.x.shape)}; a backbone takes uint8 images [n, h, w, 3] or "
            "int32 token ids [n, T] with n > 0. Give the pools that the readers return."
        )


def feature_path(cache_dir: str | os.PathLike, name: str, key: str) -> Path:
    """The file of a data set's features."""
    plain = re.sub(r"[^\w.-]+", "_", name)  # names may hold what file names must not
    return Path(cache_dir).expanduser() / f"{plain}-{key[:32]}.npz"


def embed_pools(
    pools: Sequence[Pool],
    backbone: Backbone,
    params: Any,
    *,
    cache_dir: str | os.PathLike | None,
    backbone_name: str,
    batch: int = 64,
    widths: Widths | None = None,
    progress: Progress | None = None,
) -> list[Pool]:
    """Turns Pools of images or sentences into Pools of frozen features, from the cache where they are there already.

    Each data set has one file, written when it is done, so that killed work goes on with the data set it was
    at. Its name depends on the items' digests, the shape of an item, the backbone's name, weights and
    preprocessing (of sentences: with the tokenizer), and this code's version; whatever changes, no stale feature
    is read.

    Args:
      pools: pools of `uint8 [n, h, w, 3]` images, encoded or decoded, or of `int32 [n, T]` token ids; the digests
        must be the items' own.
      backbone: its `apply` maps `(params, items [batch, ...])` to `[batch, D]`.
      params: parameters of the backbone.
      cache_dir: folder of the cache, made if need be; None computes without one.
      backbone_name: names the network in files and keys.
      batch: items at a time. The last batch is padded, so there is one program for each shape.
      widths: from token ids `[n, T]` to how many of the T each sentence needs, `[n]`: all, if None. A batch is as wide
        as the widest of its sentences needs; give few different numbers, since each is a program.
      progress: called as `progress(name, items done, items)`, for what is computed.

    Returns:
      The pools in order, with `x` float32 `[n, D]`, and perceptual hashes of images.

    Raises:
      ValueError: for a pool of nothing or of other items, or features that are not finite. `BadImage` where one
        does not decode.
    """
    for pool in pools:
        check_items(pool)
    apply = jax.jit(backbone.apply)
    preprocessing = getattr(backbone, "preprocessing", "")
    weights = weights_digest(params)
    embedded = []
    for pool in pools:
        key = feature_key(pool, weights, backbone_name, preprocessing)
        path = None if cache_dir is None else feature_path(cache_dir, f"{pool.name}-{backbone_name}", key)
        arrays = load_arrays(path) if path is not None else None
        if arrays is None:
            arrays = _embed(pool, lambda items: apply(params, items), batch, widths, progress)
            if path is not None:
                save_arrays(path, arrays)
        embedded.append(dataclasses.replace(pool, x=arrays["features"], phashes=arrays.get("phashes")))
    return embedded
