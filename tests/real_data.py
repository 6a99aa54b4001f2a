# SPDX-License-Identifier: Apache-2.0
"""Where tests find real data: METAICL_DATA, else the folder shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PLACE = Path(os.environ.get("METAICL_DATA") or Path(__file__).parents[2] / "shared" / "data")
REAL_DATA: Path | None = _PLACE if (_PLACE / "album").is_dir() else None


def needs_real(test):
    """Marks a test `real` and skips it where there is no real data."""
    skip = pytest.mark.skipif(REAL_DATA is None, reason=f"no real data at {_PLACE}; set METAICL_DATA")
    return pytest.mark.real(skip(test))
