# SPDX-License-Identifier: Apache-2.0
"""Unpacking of archives from elsewhere: nothing outside the target, no links, no bombs, and whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from metaicl.data.images import Progress
from metaicl.files import building

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_CHUNK = 1 << 20  # bytes
_JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\.DS_Store$|\._[^/]*$)")  # what a Mac adds to archives
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,  # zipfile's word for a password
)


class UnsafeArchive(ValueError):
    """An archive holds what no data set holds, and none of it was unpacked."""


class Limits(NamedTuple):
    """What an archive may hold at most.

    Attributes:
      entries: files and folders.
      bytes: of all files.
      ratio: bytes of all files to those of the archive, once they are more than `slack`.
      slack: bytes.
    """

    entries: int = 4_000_000
    bytes: int = 1 << 40
    ratio: float = 50.0
    slack: int = 1 << 26


LIMITS = Limits()


class _Entry(NamedTuple):
    """A file or folder; `kind` says what else it is, if it is neither."""

    name: str
    is_folder: bool
    kind: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Whether a file is one that `unpack` takes, by its name."""
    return name.lower().endswith(ENDINGS)


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    limits: Limits = LIMITS,
    progress: Progress | None = None,
) -> Path:
    """Unpacks a zip or tar file (also compressed) into a new folder, which appears when it is whole.

    Only plain files and folders are taken, with the permissions of new files. What Macs add is left out.

    Args:
      archive: the file.
      folder: must not exist.
      limits: of what it may hold. What a file should take is counted before it is written, and it gets no more.
      progress: called as `progress(archive name, bytes done, bytes in all)`.

    Returns:
      `folder`.

    Raises:
      UnsafeArchive: for a path outside the folder, a link or device, a path that comes twice, or a broken limit.
      ValueError: if the file is no such archive, or damaged.
      OSError: if it does not fit on the disk, or `folder` exists.
    """
    archive, folder = Path(archive), Path(folder)
    with building(folder) as temporary:
        try:
            with _entries(archive, temporary, limits) as (entries, place):
                _write(archive, entries, temporary, limits, place, progress)
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
                raise
            fault = " ".join(str(error).split())
            raise ValueError(f"{archive} is damaged ({fault}). Delete it and download it again.") from error
    return folder


_Place = Callable[[int], tuple[int, int]]  # from bytes written to how far that is, and how far it goes


@contextlib.contextmanager
def _entries(archive: Path, temporary: Path, limits: Limits) -> Iterator[tuple[Iterator[_Entry], _Place]]:
    """The entries of an archive, one after another."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
            total = sum(info.file_size for info in infos)
            _refuse_too_much(archive, len(infos), total, limits)
            _require_space(archive, total, temporary)
            yield (_zip_entry(opened, info) for info in infos), lambda written: (written, total)
        return
    size = archive.stat().st_size
    with archive.open("rb") as raw:
        try:
            opened_tar = tarfile.open(fileobj=raw)  # noqa: SIM115 (entered below)
        except tarfile.ReadError as error:
            raise ValueError(
                f"{archive} is no zip or tar file, or damaged. Delete it and download it again."
            ) from error
        with opened_tar:
            yield (_tar_entry(opened_tar, member) for member in opened_tar), lambda _: (raw.tell(), size)


def _zip_entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: made on Unix
    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
    kind = "" if plain else "a link" if stat.S_ISLNK(mode) else "a device"
    name = info.orig_filename
    return _Entry(name, name.endswith(("/", "\\")), kind, info.file_size, lambda: opened.open(info))


def _tar_entry(opened: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    plain = member.isdir() or (member.isreg() and not member.issparse())
    linked = member.issym() or member.islnk()
    kind = "" if plain else "a link" if linked else "a device or the like"

    def read() -> IO[bytes]:
        file = opened.extractfile(member)
        assert file is not None  # it is a file
        return file

    return _Entry(member.name, member.isdir(), kind, member.size, read)


def safe_path(name: str) -> str | None:
    """A path inside a folder, with `/` between its parts, or None for one that leads or may lead out of it."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or re.match("[A-Za-z]:", plain) or ".." in parts or "\0" in name or not name:
        return None
    return "/".join(parts)


def _refuse_too_much(archive: Path, entries: int, written: int, limits: Limits) -> None:
    """Raises if a limit is broken."""
    packed = archive.stat().st_size
    fault = ""
    if entries > limits.entries:
        fault = f"more than {limits.entries:,} files and folders"
    elif written > limits.bytes:
        fault = f"more than {limits.bytes:,} bytes"
    elif written > max(limits.slack, limits.ratio * packed):
        fault = f"more than {limits.ratio:g} times its own {packed:,} bytes"
    if fault:
        raise UnsafeArchive(f"{archive} unpacks to {fault}, as no data set does; it was not unpacked.")


def _require_space(archive: Path, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        told = f"{archive} unpacks to {needed:,} bytes, and there are {free:,} left on the disk of {folder}"
        raise OSError(errno.ENOSPC, told)


def _write(
    archive: Path,
    entries: Iterator[_Entry],
    folder: Path,
    limits: Limits,
    place: _Place,
    progress: Progress | None,
) -> None:
    """Writes the entries below `folder`."""
    count = written = 0
    files: set[str] = set()
    for count, entry in enumerate(entries, 1):
        path = safe_path(entry.name)
        if path is None:
            raise UnsafeArchive(f"{archive} holds {entry.name!r}, a path outside; it was not unpacked.")
        if entry.kind:
            raise UnsafeArchive(f"{archive} holds {entry.kind}, {entry.name!r}; it was not unpacked.")
        _refuse_too_much(archive, count, written + entry.size, limits)
        if _JUNK.search(path):
            continue
        if path in files or (not entry.is_folder and (folder / path).exists()):
            raise UnsafeArchive(f"{archive} holds {entry.name!r} twice; it was not unpacked.")
        if any(str(parent) in files for parent in Path(path).parents):
            raise UnsafeArchive(f"{archive} holds {entry.name!r} inside a file; it was not unpacked.")
        if entry.is_folder:
            (folder / path).mkdir(parents=True, exist_ok=True)
            continue
        files.add(path)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, (folder / path).open("xb") as target:
            while chunk := source.read(_CHUNK):  # no more than is told: both libraries see to that
                written += len(chunk)
                target.write(chunk)
        if progress is not None and (count % 100 == 0 or entry.size > _CHUNK):
            progress(archive.name, *place(written))
    if progress is not None and count:
        _, total = place(written)
        progress(archive.name, total, total)
