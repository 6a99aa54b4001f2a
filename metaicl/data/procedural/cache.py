# SPDX-License-Identifier: Apache-2.0
"""Drawn data sets on disk: keyed by their origin, written whole or not at all, checked when read."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import tempfile
import warnings
import zipfile

import numpy as np

_COLUMNS = ("images", "digests", "phashes")


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


def _check(columns: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) over all columns."""
    digest = hashlib.sha256()
    for name in _COLUMNS:
        column = np.ascontiguousarray(columns[name])
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        digest.update(column.view(np.uint8).data if column.size else b"")
    return digest.hexdigest()


def save(path: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
    """Writes the columns to a temporary file in the same folder, then renames: readers see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, check=np.array(_check(columns)), **columns)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The columns, or None where there is no file; a damaged file gives a warning and counts as none."""
    try:
        # Opened here, since np.load leaves open a file that turns out to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in _COLUMNS}
            if str(archive["check"]) == _check(columns):
                return columns
        reason = "its digest does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error)
    warnings.warn(f"{path} is damaged ({reason}); drawing it again", RuntimeWarning, stacklevel=3)
    return None
