# SPDX-License-Identifier: Apache-2.0
"""A picture of an album: for each data set a labelled row of classes with several images each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaicl.data.pool import Pool

_GAP = 8
_TITLE = 22


def contact_sheet(pools: Sequence[Pool], *, per_set: int = 8, per_class: int = 3) -> np.ndarray:
    """One row of `per_set` classes with `per_class` images each for every Pool of uint8 images.

    Args:
      pools: Pools whose items are images `[n, h, w, 3]`, all of one size.
      per_set: classes to show of each data set (fewer where it has fewer).
      per_class: images to show of each class, side by side.

    Returns:
      uint8 `[height, width, 3]` RGB, each row under its "domain / name".
    """
    if not pools:
        raise ValueError("a contact sheet needs at least one pool")
    size = pools[0].x[np.array([0])].shape[1]
    block = per_class * size + _GAP
    sheet = np.full((len(pools) * (_TITLE + size) + _GAP, _GAP + per_set * block, 3), 255, np.uint8)
    for r, pool in enumerate(pools):
        top = r * (_TITLE + size)
        _title(sheet, f"{pool.domain} / {pool.name}", top)
        starts = np.concatenate([[0], np.cumsum(pool.counts)])
        for b, c in enumerate(range(min(per_set, len(pool.classes)))):
            rows = np.arange(starts[c], min(starts[c] + per_class, starts[c + 1]))
            for i, image in enumerate(pool.x[rows]):
                left = _GAP + b * block + i * size
                sheet[top + _TITLE : top + _TITLE + size, left : left + size] = image
    return sheet


def _title(sheet: np.ndarray, text: str, top: int) -> None:
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(sheet, text, (_GAP, top + _TITLE - 6), font, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
