# SPDX-License-Identifier: Apache-2.0
"""States of a frozen encoder's lower layers, one for each token: computed once, so that only the upper layers run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from metaicl.data.images import Progress
from metaicl.data.pool import Pool
from metaicl.features.cache import (
    Widths,
    check_items,
    feature_key,
    feature_path,
    sentence_batches,
    weights_digest,
)
from metaicl.files import load_arrays, save_arrays
from metaicl.models.squeezenet import Backbone


def token_states(
    pools: Sequence[Pool],
    backbone: Backbone,
    params: Any,
    *,
    padding: int,
    cache_dir: str | os.PathLike | None,
    backbone_name: str,
    batch: int = 64,
    widths: Widths | None = None,
    progress: Progress | None = None,
) -> tuple[list[Pool], np.ndarray]:
    """Turns Pools of sentences into rows of a table that holds the state of every token.

    Without padding, the states of a sentence take a fraction of what rows of equal width would. Files, keys and the
    other arguments are those of `cache.embed_pools`.

    Args:
      pools: of `int32 [n, T]` token ids that end in padding.
      backbone: its `apply` maps `(params, ids [batch, T])` to `[batch, T, D]`.
      padding: the id that is no token.

    Returns:
      The pools in order, with `x` int32 `[n, T]`, numbers of rows of the table; and the table, float32 `[m, D]`. Its
      row 0 is zeros, and stands for padding.

    Raises:
      ValueError: for a pool of nothing or of other items, or states that are not finite.
    """
    for pool in pools:
        check_items(pool)
    apply, weights = jax.jit(backbone.apply), weights_digest(params)
    numbered, tables = [], [np.zeros((1, backbone.width), np.float32)]
    first = 1
    for pool in pools:
        ids = np.asarray(pool.x)
        path = None
        if cache_dir is not None:
            key = feature_key(pool, weights, backbone_name, backbone.preprocessing)
            path = feature_path(cache_dir, f"{pool.name}-{backbone_name}-states", key)
        arrays = load_arrays(path) if path is not None else None
        if arrays is None:
            arrays = {"states": _states(pool, lambda x: apply(params, x), padding, batch, widths, progress)}
            if path is not None:
                save_arrays(path, arrays)
        real = ids != padding
        rows = np.zeros(ids.shape, np.int32)
        rows[real] = first + np.arange(real.sum(), dtype=np.int32)
        first += int(real.sum())
        numbered.append(dataclasses.replace(pool, x=rows))
        tables.append(arrays["states"])
    return numbered, np.concatenate(tables)


def _states(
    pool: Pool,
    apply: Callable[[np.ndarray], jax.Array],
    padding: int,
    batch: int,
    widths: Widths | None,
    progress: Progress | None,
) -> np.ndarray:
    """The states of all tokens of a pool, sentence after sentence, `[m, D]`."""
    found: list[np.ndarray] = [np.zeros(0)] * len(pool)
    done = 0
    for rows, part in sentence_batches(pool, batch, widths):
        filled = np.concatenate([part, np.full((batch - len(part), part.shape[1]), padding, part.dtype)])
        states = np.asarray(apply(filled), np.float32)
        for row, ids, one in zip(rows, part, states, strict=False):
            found[row] = one[ids != padding]
            if not np.isfinite(found[row]).all():
                raise ValueError(
                    f"{pool.name}: sentence {row} has states that are not finite. Check the weights."
                )
        done += len(part)
        if progress is not None:
            progress(pool.name, done, len(pool))
    return np.concatenate(found)
