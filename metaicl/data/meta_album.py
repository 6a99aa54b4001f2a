# SPDX-License-Identifier: Apache-2.0
"""Reading albums of images: Meta-Album's own layout, plain folders of images, and what TFDS prepared."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaicl.data.album_table import DOMAINS, OFFICIAL, OfficialSet, Release, official_set
from metaicl.data.images import (
    BadImage,
    DataWarning,
    EncodedImages,
    Progress,
    check_image,
    decode_image,
    run_threads,
)
from metaicl.data.listing import Listing, kind_of, list_dataset, visible_folders
from metaicl.data.pool import Pool
from metaicl.data.splits import drop_small_classes
from metaicl.files import given_path

__all__ = [
    "DOMAINS",
    "OFFICIAL",
    "OfficialSet",
    "Release",
    "list_domains",
    "official_set",
    "pool_of",
    "read_album",
    "read_dataset",
]


def _hash_and_check(
    images: EncodedImages, skip_bad: bool, progress: Progress | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """`S64 [n]` digests and `bool [n]` which images are sound; raises for a bad one unless skipping."""
    digests, good = np.empty(len(images), "S64"), np.ones(len(images), bool)
    names = images.names

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            data = images.encoded(i)
            digests[i] = hashlib.sha256(data).hexdigest()
            try:
                if skip_bad:  # skipping promises that whatever is left decodes
                    decode_image(data, 8, names[i])
                else:
                    check_image(data, names[i])
            except BadImage:
                if not skip_bad:
                    raise
                good[i] = False

    run_threads(work, len(images), progress, name)
    return digests, good


def pool_of(
    listing: Listing,
    *,
    image_size: int,
    skip_bad: bool = False,
    min_images: int = 1,
    domain: str | None = None,
    progress: Progress | None = None,
) -> Pool:
    """The Pool of a listing, its images still encoded; see `read_dataset`."""
    if not listing.file_names:
        raise ValueError(f"{listing.place} lists no images. Restore its files, or leave the data set out.")
    names, categories = listing.file_names, listing.categories
    order = np.array(sorted(range(len(names)), key=lambda i: (categories[i], names[i])))
    images = EncodedImages(listing.read, listing.places, image_size, order)
    digests, good = _hash_and_check(images, skip_bad, progress, listing.name)
    remarks = list(listing.remarks)
    if not good.all():
        first = images.names[int(np.argmin(good))]
        remarks.append(f"left out {np.sum(~good)} images that do not decode, first {first}")
    if remarks:
        warnings.warn(f"{listing.name}: {'; '.join(remarks)}.", DataWarning, stacklevel=3)
    if not good.any():
        raise ValueError(f"{listing.place}: not one of its {len(good)} images decodes. Download it again.")
    classes, labels = np.unique(np.array(categories)[order], return_inverse=True)
    pool = Pool(
        name=listing.name,
        domain=listing.domain or domain or "unknown",
        classes=tuple(map(str, classes)),
        labels=labels.astype(np.int32),
        x=images,
        digests=digests,
    )
    pool = pool if good.all() else pool.select(np.flatnonzero(good))
    pool = drop_small_classes(pool, min_images)
    # For everyone else what is left out here was never read: the rows count on without gaps.
    return dataclasses.replace(pool, rows=np.arange(len(pool)))


def read_dataset(
    path: str | os.PathLike,
    *,
    image_size: int,
    skip_bad: bool = False,
    min_images: int = 1,
    domain: str | None = None,
    progress: Progress | None = None,
) -> Pool:
    """Reads one data set: Meta-Album's layout, folders of images by class, or what TFDS prepared.

    Every file is read once, for its digest and a check that it is a whole image; nothing is decoded yet (see
    `metaicl.data.images.decode_pool`). Items are ordered by category, then file name.

    Args:
      path: the folder of the data set.
      image_size: height and width that the images are decoded to.
      skip_bad: leave out, with a `DataWarning` that counts them, images that are missing or do not decode.
      min_images: leave out classes with fewer images, with a `DataWarning`.
      domain: the domain where neither info.json nor the table of official data sets tells it.
      progress: called as `progress(name, images done, images)`.

    Returns:
      A Pool whose `x` is an `EncodedImages` and which has no perceptual hashes yet.

    Raises:
      FileNotFoundError, ValueError: as `list_dataset`; `BadImage` for an image that is none.
    """
    listing = list_dataset(path, skip_bad)
    return pool_of(
        listing,
        image_size=image_size,
        skip_bad=skip_bad,
        min_images=min_images,
        domain=domain,
        progress=progress,
    )


def _dataset_folders(folder: Path) -> list[Path]:
    """The folders of the data sets of an album, those that TFDS keeps one level deeper included."""
    found = []
    for inner in visible_folders(folder):
        kind = kind_of(inner)
        if kind == "album":
            found.extend(_dataset_folders(inner))
        elif kind != "other":
            found.append(inner)
    return sorted(found, key=lambda p: p.name)


def _choose(album: Path, folders: list[Path], datasets: Sequence[str] | None) -> list[Path]:
    """The folders of the named data sets, or all; refuses a name that two folders or none have."""
    known = {p.name: p for p in folders}
    if len(known) < len(folders):
        twice = next(p for p in folders if known[p.name] != p)
        raise ValueError(f"{twice} and {known[twice.name]} have one name. Rename or remove one of them.")
    for name in datasets or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{album} has no data set {name!r}.{hint} There are: {', '.join(known)}.")
    return folders if datasets is None else [known[name] for name in sorted(set(datasets))]


def album_folders(path: str | os.PathLike) -> list[Path]:
    """The folders of an album's data sets, or the folder of a single one; raises where there is neither."""
    folder = given_path(path).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no album at {folder}. Give a folder of data sets (each with labels.csv and images/) "
            "or a folder of class folders of images."
        )
    folders = _dataset_folders(folder) if kind_of(folder) in ("album", "other") else [folder]
    if not folders:
        raise FileNotFoundError(
            f"{folder} holds no data set: neither folders with labels.csv and images/, nor class folders of "
            "images. Give another folder, or unpack the data sets there."
        )
    return folders


def list_domains(path: str | os.PathLike, datasets: Sequence[str] = ()) -> list[str]:
    """The domains of an album, or of some of its data sets, sorted, as its labels and info files tell them.

    Opens no image.

    Raises:
      FileNotFoundError: if the album or a part of it does not exist, or it has no data set.
    """
    return sorted(
        {
            list_dataset(folder, skip_bad=True).domain or "unknown"
            for folder in album_folders(path)
            if not datasets or folder.name in datasets
        }
    )


def list_datasets(path: str | os.PathLike) -> list[str]:
    """The names of an album's data sets, sorted; opens no image. Errors as `list_domains`."""
    return sorted(folder.name for folder in album_folders(path))


def read_album(
    path: str | os.PathLike,
    *,
    image_size: int,
    skip_bad: bool = False,
    min_images: int = 1,
    domain: str | None = None,
    datasets: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Pool]:
    """Reads an album: a folder of data sets, or the folder of a single one; see `read_dataset`.

    All data sets are listed and checked for missing parts before the first image is read.

    Args:
      path: the album. Its data sets may have different layouts.
      datasets: names of the data sets to read; all of them by default.
      image_size, skip_bad, min_images, domain, progress: as in `read_dataset`.

    Returns:
      Pools, sorted by name.

    Raises:
      FileNotFoundError: if the album or a part of it does not exist, or it has no data set.
      ValueError: for an unknown name in `datasets`, or as `read_dataset`.
    """
    folders = _choose(Path(path), album_folders(path), datasets)
    listings = [list_dataset(inner, skip_bad) for inner in folders]
    return [
        pool_of(
            listing,
            image_size=image_size,
            skip_bad=skip_bad,
            min_images=min_images,
            domain=domain,
            progress=progress,
        )
        for listing in listings
    ]
