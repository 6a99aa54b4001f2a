# SPDX-License-Identifier: Apache-2.0
"""Where what is built once is kept, and how far its building is."""

from __future__ import annotations

import os
import pathlib
from typing import Any


def cache_folder(configured: str) -> pathlib.Path:
    """Where built and embedded data are kept: the config's folder, else METAICL_CACHE, else ~/.cache/metaicl."""
    return pathlib.Path(configured or os.environ.get("METAICL_CACHE") or "~/.cache/metaicl").expanduser()


class ProgressBar:
    """A progress bar that takes what is being done, how much is done and how much there is."""

    def __init__(self, unit: str, *, scale: bool = False):
        """A bar in some unit; `scale` writes 1.2M where there are 1,234,567."""
        self._unit, self._scale, self._what = unit, scale, ""
        self._bar: Any = None

    def __enter__(self):
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar; another `what` begins a new one."""
        from tqdm import tqdm

        if what != self._what:
            self.__exit__()
            self._what = what
            settings = dict(desc=what, unit=self._unit, unit_scale=self._scale, leave=False)
            self._bar = None if done >= total else tqdm(total=total, **settings)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        if done >= total:  # the next one may have the same name
            self.__exit__()
            self._what = ""

    def __exit__(self, *error):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
