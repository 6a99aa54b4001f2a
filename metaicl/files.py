# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and arrays that are checked when they are read again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

_CHECK = "check"


class DamagedFile(UserWarning):
    """A cached file was damaged and is made again."""


def given_path(path: str | os.PathLike) -> pathlib.Path:
    """A path as a user gives it: `~` and environment variables are replaced.

    Raises:
      FileNotFoundError: if it names a variable that is not set.
    """
    text = os.path.expandvars(path)
    if unset := re.search(r"\$\{?(\w+)", text):
        raise FileNotFoundError(
            f"{text}: the environment variable {unset[1]} is not set. Set it, or give the path itself."
        )
    return pathlib.Path(text).expanduser()


def writable_folder(path: str | os.PathLike, *, flag: str = "workdir") -> pathlib.Path:
    """The absolute path of a folder for outputs, which is made where there is none; `flag` is what named it.

    Raises:
      OSError: if no file can be written there.
    """
    root = pathlib.Path(path).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root):
            pass
    except OSError as error:
        raise OSError(
            f"The {flag} {root} cannot be written to ({error.strerror}): choose another --{flag}."
        ) from error
    return root


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its place when the block ends without an error.

    Readers see the old file or the new one, never a part, whenever the process is killed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file at once."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a text file (UTF-8) at once."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def building(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder beside `folder` that takes its name when the block ends without an error.

    Nobody sees a part of it, whenever the process is killed; what a killed one left there is removed first. One
    process at a time may build a folder.

    Raises:
      FileExistsError: if there is something at `folder`.
    """
    folder = pathlib.Path(folder)
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"There is something at {folder} already. Move or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def array_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of arrays, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as one npz file with their digest, at once."""
    with replacing(path) as file:
        columns: dict[str, Any] = {**arrays, _CHECK: np.array(array_digest(arrays))}
        np.savez(file, **columns)


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray] | None:
    """What `save_arrays` wrote; None where there is no file or, with a `DamagedFile` warning, a damaged one."""
    try:
        # Opened here, since np.load leaves open a file that turns out to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays.pop(_CHECK)) == array_digest(arrays):
            return arrays
        fault = "its contents do not match their digest"
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        fault = str(error)
    warnings.warn(f"{path} is damaged ({fault}); it is rebuilt.", DamagedFile, stacklevel=3)
    return None
