# SPDX-License-Identifier: Apache-2.0
"""What a prepared data set says about itself: its counts and the digest of its files, to know it again by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from metaicl.data.images import Progress
from metaicl.files import write_text

NOTE = "prepared.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that was prepared.

    Attributes:
      name: of the data set.
      source: where it is from.
      classes, images: their numbers.
      files, bytes: what it takes on the disk.
      digest: SHA-256 (hex) over the paths, sizes and contents of its files.
    """

    name: str
    source: str
    classes: int
    images: int
    files: int
    bytes: int
    digest: str


def _measure(folder: Path, what: str, progress: Progress | None) -> tuple[int, int, str]:
    """Files, bytes and digest of a folder without its note."""
    paths = [Path(top) / name for top, _, names in os.walk(folder) for name in names]
    paths = sorted(path for path in paths if path != folder / NOTE)
    digest, total = hashlib.sha256(), 0
    for done, path in enumerate(paths, 1):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        total += size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0{content}\n".encode())
        if progress is not None and (done % 100 == 0 or done == len(paths)):
            progress(what, done, len(paths))
    return len(paths), total, digest.hexdigest()


def write_note(
    folder: Path, *, name: str, source: str, classes: int, images: int, progress: Progress | None = None
) -> Prepared:
    """Writes `prepared.json` into the folder of a data set that is whole."""
    files, size, digest = _measure(folder, f"{name}: digest", progress)
    result = Prepared(name, source, classes, images, files, size, digest)
    write_text(folder / NOTE, json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def require_ours(folder: Path) -> bool:
    """Whether `folder` was prepared before; False where nothing is there.

    Raises:
      FileExistsError: if something else is there.
    """
    if (folder / NOTE).is_file():
        return True
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists and was not made by this command (it has no {NOTE}). Move or remove it, or give "
            "another --out."
        )
    return False


def read_note(folder: Path, progress: Progress | None = None) -> Prepared:
    """What `write_note` wrote, once the files are found to be the same.

    Raises:
      ValueError: if a file was added, removed or changed, or the note is damaged.
    """
    path = folder / NOTE
    remedy = "Remove the folder to have it made again, or give another --out."
    try:
        told = Prepared(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). {remedy}") from error
    files, size, digest = _measure(folder, f"{told.name}: check", progress)
    if (files, size) != (told.files, told.bytes):
        raise ValueError(
            f"{folder} has changed since it was prepared: {files:,} files of {size:,} bytes, where there were "
            f"{told.files:,} of {told.bytes:,}. {remedy}"
        )
    if digest != told.digest:
        raise ValueError(f"{folder} has changed since it was prepared: a file has other content. {remedy}")
    return told
