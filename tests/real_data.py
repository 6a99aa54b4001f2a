# SPDX-License-Identifier: Apache-2.0
"""Where tests find real data: METAICL_DATA, else the folder shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PLACE = Path(os.environ.get("METAICL_DATA") or Path(__file__).parents[2] / "shared" / "data")
REAL_DATA: Path | None = _PLACE if (_PLACE / "album").is_dir() else None


def real_marks() -> list:
    """What `needs_real` puts on a test, for one of its parameters."""
    missing = f"no real data at {_PLACE}; set METAICL_DATA"
    return [pytest.mark.real, pytest.mark.skipif(REAL_DATA is None, reason=missing)]


def needs_real(test):
    """Marks a test `real` and skips it where there is no real data."""
    for mark in real_marks():
        test = mark(test)
    return test
