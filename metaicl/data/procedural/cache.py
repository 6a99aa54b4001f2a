# SPDX-License-Identifier: Apache-2.0
"""Where drawn data sets are kept: in files whose names depend on all that they come from."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib


@functools.cache
def _source_digest() -> bytes:
    """SHA-256 over the names and bytes of this package's source files."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()


def cache_file(folder: str | os.PathLike, name: str, shape: dict[str, int]) -> pathlib.Path:
    """The file of one data set; its name holds the hash of the sources and of the arguments in `shape`."""
    arguments = ",".join(f"{key}={value}" for key, value in sorted(shape.items()))
    key = hashlib.sha256(_source_digest() + arguments.encode()).hexdigest()[:20]
    return pathlib.Path(folder) / f"embedded-{name}-{key}.npz"
