# SPDX-License-Identifier: Apache-2.0
"""What can be prepared: Meta-Album from OpenML, Omniglot, CIFAR-FS, folders of images, data sets of TFDS."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from metaicl.data import cifar, omniglot
from metaicl.data.album_table import (
    OfficialSet,
    choose_official,
    count_remark,
    official_set,
    release_of,
    require_size,
)
from metaicl.data.download import DownloadError, checksum, download
from metaicl.data.images import DataWarning
from metaicl.data.listing import Listing, kind_of, list_dataset, visible_folders
from metaicl.data.meta_album import album_folders, pool_of
from metaicl.data.openml import API, Remote, describe, list_files
from metaicl.data.prepared import Prepared, require_ours
from metaicl.data.preparing import Made, Row, Task, Work, convert, human, require_space, telling
from metaicl.data.unpack import is_archive, unpack
from metaicl.files import given_path

_UNPACKED = ".unpacked"


def meta_album_tasks(work: Work, size: str, names: Sequence[str] = (), server: str = API) -> list[Task]:
    """Tasks for data sets of Meta-Album, below `meta_album_<size>`; asks OpenML about those that are not there.

    Args:
      work: see there.
      size: micro, mini or extended. OCR has no extended release; its mini one is taken.
      names: of the data sets; all 30 by default.
      server: address of OpenML or a mirror.

    Raises:
      ValueError: for an unknown size or name. (What OpenML does not have as expected fails when it is its turn.)
      DownloadError: if OpenML does not answer.
      OSError: if there is not enough space, or something else lies where a data set is to be.
    """
    require_size(size)
    chosen = [(official, *release_of(official, size)) for official in choose_official(names)]
    others = [official.id for official, taken, _ in chosen if taken != size]
    if others:
        work.say(f"{', '.join(others)}: there is no extended release of OCR; the mini one is taken.")
    tasks: list[Task] = []
    sizes: list[int] = []
    targets = [work.out / f"meta_album_{size}" / f"{o.id}_{taken.capitalize()}" for o, taken, _ in chosen]
    missing = [not require_ours(target) for target in targets]
    for (official, taken, release), target, absent in zip(chosen, targets, missing, strict=True):
        try:
            remote = _find_archive(official, taken, release.openml, server) if absent else None
        except (ValueError, DownloadError) as error:
            if isinstance(error, DownloadError) and not sizes:  # the server, rather than this data set
                raise
            tasks.append(Task(target.name, target, _failing(error)))
            continue
        tasks.append(_official_task(work, official, taken, release.openml, target, remote))
        sizes += [remote.size] if remote else []
    if sizes:  # beside what stays: the archive, unpacked, and written anew
        require_space(work.out, sum(sizes) * (2 if work.keep else 1) + 2 * max(sizes))
        work.say(f"{len(sizes)} archives of {human(sum(sizes))} to download from {server}")
    return tasks


def _failing(error: Exception) -> Callable[[Path], Made]:
    """A `make` that cannot."""

    def make(folder: Path) -> Made:
        raise error

    return make


def _find_archive(official: OfficialSet, size: str, number: int, server: str) -> Remote:
    """The archive of images of a release; raises if OpenML knows the number as something else."""
    description = describe(number, server)
    name = description["name"]
    named = official_set(name)
    if (named and named != official) or (named and not name.lower().endswith(size)):
        raise ValueError(f"{server} knows data set {number} as {name!r}, and not as {official.id} ({size}).")
    files = list_files(number, description, server)
    archives = [file for file in files if is_archive(file.name)]
    if len(archives) > 1:
        archives = [file for file in archives if official_set(file.name.split(".")[0]) == official]
    if len(archives) != 1:
        raise ValueError(
            f"Data set {number} at {server} ({official.id}, {size}) has {len(archives)} archives of images, among "
            f"{', '.join(file.name for file in files) or 'no files'}. Try again later, or unpack it by hand and use "
            "`folder PATH`."
        )
    return archives[0]


def _official_task(
    work: Work, official: OfficialSet, size: str, number: int, target: Path, remote: Remote | None
) -> Task:
    """The task of one release; `remote` is None where it is finished."""
    if remote is None:
        return Task(target.name, target, lambda folder: Made("", 0, 0))
    # A changed archive has another tag and so another folder: what a broken download left always fits.
    downloads = work.downloads / f"{number}-{''.join(c for c in remote.tag if c.isalnum())[:16]}"
    archive = downloads / (target.name + "".join(Path(remote.name).suffixes[-2:]))

    def make(folder: Path) -> Made:
        _fetch(work, remote.url, archive, remote.size, remote.md5)
        inner = _find_dataset(unpack(archive, folder / _UNPACKED, progress=work.fetching), archive)
        if (other := official_set(inner.name)) and other != official:
            raise ValueError(f"{remote.url} holds {inner.name}, and not {target.name}.")
        listing = dataclasses.replace(
            list_dataset(inner, work.skip_bad), name=target.name, domain=official.domain
        )
        if work.format == "files":  # as they are
            pool = pool_of(listing, image_size=8, skip_bad=work.skip_bad, progress=work.counting)
            for path in inner.iterdir():
                path.rename(folder / path.name)
        else:
            pool = convert(listing, folder, work)
        shutil.rmtree(folder / _UNPACKED)
        if remark := count_remark(official, size, len(pool.classes), len(pool)):
            warnings.warn(f"{target.name} has {remark}.", DataWarning, stacklevel=2)
        return Made(remote.url, len(pool.classes), len(pool))

    return Task(target.name, target, make, lambda: shutil.rmtree(downloads, ignore_errors=True))


def _fetch(work: Work, url: str, path: Path, size: int | None, md5: str | None) -> None:
    """Downloads a file that is not there, or not what it should be; goes on where it broke off."""
    if path.is_file() and path.stat().st_size == size and (md5 is None or checksum(path, "md5") == md5):
        return
    download(url, path, md5=md5, size=size, same=True, progress=work.fetching)


def _find_dataset(folder: Path, archive: Path) -> Path:
    """The one data set in an unpacked archive: there, or in a folder or two."""
    here = [folder]
    for _ in range(3):
        found = [inner for inner in here if kind_of(inner) == "raw"]
        if len(found) == 1:
            return found[0]
        here = [] if found else [inner for outer in here for inner in visible_folders(outer)]
    raise ValueError(
        f"{archive} does not hold one data set with labels.csv and images/. Try again later, or use `folder PATH`."
    )


def folder_tasks(work: Work, path: str, domain: str | None = None) -> list[Task]:
    """Tasks for the data sets of an album, or the data set in a folder, below `folder/<its name>`.

    Raises:
      FileNotFoundError, ValueError: as `read_album`; also if the outputs would lie inside.
      OSError: if there is not enough space, or something else lies where a data set is to be.
    """
    source = given_path(path).resolve()
    folders = album_folders(source)
    home = work.out / "folder" / source.name
    if home.resolve().is_relative_to(source):
        raise ValueError(f"The outputs would lie in {home}, inside {source} itself. Give another --out.")
    targets = [home if folders == [source] else home / folder.name for folder in folders]
    listings: list[Listing | None] = []
    for folder, target in zip(folders, targets, strict=True):
        if require_ours(target):
            listings.append(None)
        else:
            listing = list_dataset(folder, work.skip_bad)
            listings.append(dataclasses.replace(listing, domain=listing.domain or domain))
    places = [f for f, listing in zip(folders, listings, strict=True) if listing is not None]
    sizes = (file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
    require_space(work.out, sum(sizes))
    return [
        Task(folder.name, target, _converted(work, listing, os.fspath(folder)))
        for folder, target, listing in zip(folders, targets, listings, strict=True)
    ]


def _converted(work: Work, listing: Listing | None, source: str) -> Callable[[Path], Made]:
    """The `make` of a listed data set."""

    def make(folder: Path) -> Made:
        assert listing is not None  # else the task is finished
        pool = convert(listing, folder, work)
        return Made(source, len(pool.classes), len(pool))

    return make


def tfds_tasks(work: Work, name: str, domain: str | None = None) -> list[Task]:
    """The task for a data set of TFDS, below `tfds/`.

    Raises:
      OSError: if something else lies where it is to be.
    """
    plain = name.replace("/", "_").replace(":", "_")
    target, downloads = work.out / "tfds" / plain, work.downloads / "tfds"
    require_ours(target)

    def make(folder: Path) -> Made:
        from metaicl.data.tfds_named import list_named

        listing = dataclasses.replace(list_named(name, downloads), domain=domain)
        return _converted(work, listing, f"tfds {name}")(folder)

    return [Task(plain, target, make, lambda: shutil.rmtree(downloads, ignore_errors=True))]


def cifar_fs_tasks(work: Work, url: str = "") -> list[Task]:
    """The task for CIFAR-FS, made of CIFAR-100, in `cifar_fs/`.

    Raises:
      OSError: if there is not enough space, or something else lies where it is to be.
    """
    address = f"{(url or cifar.URL).rstrip('/')}/{cifar.ARCHIVE}"
    target, downloads = work.out / "cifar_fs", work.downloads / "cifar_fs"
    if not require_ours(target):
        require_space(work.out, 4 * cifar.SIZE)

    def make(folder: Path) -> Made:
        archive = downloads / cifar.ARCHIVE
        _fetch(work, address, archive, None, cifar.MD5)
        inner = unpack(archive, folder / _UNPACKED, progress=work.fetching)
        classes, images = cifar.write_cifar_fs(inner / "cifar-100-python", folder, work.counting)
        shutil.rmtree(inner)
        return Made(address, classes, images)

    return [Task("cifar_fs", target, make, lambda: shutil.rmtree(downloads, ignore_errors=True))]


def prepare_omniglot(work: Work, url: str = "") -> Row:
    """Omniglot's two zip files in `omniglot/`, which are read as they are."""
    folder, address = work.out / "omniglot", url or omniglot.URL
    with telling(work):
        characters, drawings = omniglot.fetch_omniglot(folder, url=address, progress=work.fetching)
    files = [folder / f"{half}.zip" for half in omniglot.HALVES]
    size = sum(file.stat().st_size for file in files)
    return Row("omniglot", folder, Prepared("omniglot", address, characters, drawings, len(files), size, ""))
