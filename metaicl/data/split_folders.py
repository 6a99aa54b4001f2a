# SPDX-License-Identifier: Apache-2.0
"""Reading data sets that come divided into training, validation and test classes: Mini-ImageNet, CIFAR-FS."""

from __future__ import annotations

import csv
import dataclasses
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metaicl.data.images import DataWarning, Progress
from metaicl.data.listing import Listing, visible_folders
from metaicl.data.meta_album import pool_of
from metaicl.data.pool import Pool
from metaicl.data.splits import Split
from metaicl.files import given_path

_COLUMNS = ("filename", "label")
_ENDINGS = (".png", ".jpg", ".jpeg")
_CSV_PARTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_META_PARTS = {"train": "meta-train", "validation": "meta-val", "test": "meta-test"}
_TEXT_PARTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
_CIFAR_FS_CLASSES = (64, 16, 20)  # of training, validation and test
_CIFAR_FS_IMAGES = 600  # of each class


class _Image(NamedTuple):
    label: str
    path: Path


_Parts = dict[
    str, list[_Image]
]  # by the file or folder that says what is in the part; train, validation, test


def read_csv_splits(
    folder: str | os.PathLike,
    *,
    name: str,
    domain: str,
    image_size: int = 84,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Reads a folder with `images/`, `train.csv`, `val.csv` and `test.csv`, as Mini-ImageNet is passed on.

    The csv files are those of Ravi and Larochelle (2017): columns `filename` and `label`, one row per image,
    which is `images/<filename>` or `images/<label>/<filename>`. Images are averaged over areas where they shrink
    (see `metaicl.data.images.resize_image`).

    Args:
      folder: the data set.
      name, domain: of the pools.
      image_size: height and width, in pixels.
      skip_bad: leave out, with a `DataWarning` that counts them, images that do not decode.
      progress: called as `progress(name, images done, images)`, of each part, first for the check of the files,
        then as `progress("decode", ...)`.

    Returns:
      A Split of one Pool each: `x` is `uint8 [n, image_size, image_size, 3]`, RGB, without perceptual hashes,
      since a published split is used as it is. `rows` count on through the parts, so that the parts' items,
      joined in the order train, validation, test, are one store of the data set.

    Raises:
      FileNotFoundError: if the folder, a csv file, `images/` or a listed image is missing.
      ValueError: if a csv file is empty or lacks a column, or a class or an image is in two parts.
      BadImage: for a file that is no whole image.
    """
    folder = _existing(folder, "train.csv, val.csv, test.csv and images/")
    absent = [n for n in [*_CSV_PARTS.values(), "images"] if not (folder / n).exists()]
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(absent)}. It must hold {', '.join(_CSV_PARTS.values())} (columns "
            f"{' and '.join(_COLUMNS)}) and images/."
        )
    rows = {file: _read_rows(folder / file) for file in _CSV_PARTS.values()}
    parts = {file: _find_images(folder, file, listed) for file, listed in rows.items()}
    return _split_of(parts, folder, name, domain, image_size, skip_bad, progress)


def read_cifar_fs(
    folder: str | os.PathLike,
    *,
    image_size: int = 32,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Reads CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 in 64 training, 16 validation and 20 test classes.

    Two layouts are understood, in `folder` itself or in a `cifar-fs/` or `cifar100/` inside it:

    - `meta-train/<class>/*.png`, `meta-val/` and `meta-test/` likewise;
    - `data/<class>/*.png` with `splits/bertinetto/train.txt`, `val.txt` and `test.txt`, one class per line.

    Args:
      folder: the data set.
      image_size: height and width, in pixels; the images have 32.
      skip_bad, progress: as in `read_csv_splits`.

    Returns:
      As `read_csv_splits`; name `cifar_fs`, domain `objects`. A `DataWarning` says so where the classes are not
      the 64, 16 and 20 of 600 images each.

    Raises:
      FileNotFoundError: if the folder or a class is missing, or it has neither layout.
      ValueError: if a part has no class, a class no image, or a class is in two parts.
      BadImage: for a file that is no whole image.
    """
    outer = _existing(folder, "meta-train/, meta-val/ and meta-test/")
    for inner in (outer, outer / "cifar-fs", outer / "cifar100"):
        if (inner / "meta-train").is_dir():
            parts = _list_meta_folders(inner)
        elif (inner / "splits" / "bertinetto").is_dir():
            parts = _list_text_splits(inner)
        else:
            continue
        split = _split_of(parts, inner, "cifar_fs", "objects", image_size, skip_bad, progress)
        _warn_if_incomplete(inner, split)
        return split
    raise FileNotFoundError(
        f"{outer} is not CIFAR-FS: it has neither {', '.join(_META_PARTS.values())} with a folder per class, nor "
        f"data/ with splits/bertinetto/{', '.join(_TEXT_PARTS.values())}. Give the folder that has."
    )


def _existing(folder: str | os.PathLike, content: str) -> Path:
    path = given_path(folder).resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}. Give the one that holds {content}.")
    return path


def _read_rows(path: Path) -> list[tuple[str, str]]:
    """`(file name, label)` of each row of a csv file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [column.strip().lower() for column in next(lines, [])]
        absent = [column for column in _COLUMNS if column not in header]
        if absent:
            raise ValueError(
                f"{path} has no column {' and no column '.join(map(repr, absent))}; its columns are "
                f"{', '.join(map(repr, header)) or 'none: it is empty'}. Rename one, or restore the file."
            )
        places = [header.index(column) for column in _COLUMNS]
        rows = []
        for line in filter(None, lines):
            values = [line[at].strip() if at < len(line) else "" for at in places]
            if not all(values):
                raise ValueError(f"{path}, line {lines.line_num}: {line} needs a {' and a '.join(_COLUMNS)}.")
            rows.append((values[0], values[1]))
    if not rows:
        raise ValueError(f"{path} lists no images. Restore the file.")
    return rows


def _find_images(folder: Path, file: str, rows: list[tuple[str, str]]) -> list[_Image]:
    found, missing = [], []
    for name, label in rows:
        places = (folder / "images" / name, folder / "images" / label / name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            found.append(_Image(label, path))
    if missing:
        raise FileNotFoundError(
            f"{folder / file} lists {len(missing)} files, of {len(rows)}, that are neither {folder}/images/<filename> "
            f"nor {folder}/images/<label>/<filename>, first {missing[0]!r}. Unpack the images again."
        )
    return found


def _list_class(folder: Path, label: str) -> list[_Image]:
    paths = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in _ENDINGS)
    images = [_Image(label, path) for path in paths if not path.name.startswith(".")]
    if not images:
        raise ValueError(f"{folder} holds no image. Unpack the data set again.")
    return images


def _list_meta_folders(folder: Path) -> _Parts:
    """The images of `meta-train/<class>/*.png` and so on."""
    parts: _Parts = {}
    for part in _META_PARTS.values():
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} lacks {part}. Unpack the data set again.")
        parts[part] = [i for f in visible_folders(folder / part) for i in _list_class(f, f.name)]
        if not parts[part]:
            raise ValueError(f"{folder / part} holds no class folders. Unpack the data set again.")
    return parts


def _list_text_splits(folder: Path) -> _Parts:
    """The images of `data/<class>/*.png`, by the class names in `splits/bertinetto/*.txt`."""
    parts: _Parts = {}
    for file in _TEXT_PARTS.values():
        path = folder / "splits" / "bertinetto" / file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. Unpack the data set again.")
        labels = path.read_text(encoding="utf-8-sig").split()
        if not labels:
            raise ValueError(f"{path} lists no classes. Restore the file.")
        missing = [label for label in labels if not (folder / "data" / label).is_dir()]
        if missing:
            raise FileNotFoundError(
                f"{path} lists {len(missing)} classes without a folder in {folder / 'data'}, first {missing[0]!r}. "
                "Unpack the data set again."
            )
        parts[file] = [i for label in labels for i in _list_class(folder / "data" / label, label)]
    return parts


def _check_disjoint(parts: _Parts, folder: Path) -> None:
    """Raises if a class is in two parts, or an image twice."""
    part_of: dict[str, str] = {}
    seen: dict[Path, str] = {}
    for part, images in parts.items():
        for label, path in images:
            other = part_of.setdefault(label, part)
            if other != part:
                raise ValueError(
                    f"{folder}: the class {label!r} is in {other} and in {part}; a class belongs to one part. "
                    "Restore the split."
                )
            if path in seen:
                raise ValueError(
                    f"{folder}: {path} is listed twice, in {seen[path]} and in {part}. Restore the split."
                )
            seen[path] = part


def _split_of(
    parts: _Parts,
    folder: Path,
    name: str,
    domain: str,
    image_size: int,
    skip_bad: bool,
    progress: Progress | None,
) -> Split:
    """Checks and decodes the images of three parts."""
    _check_disjoint(parts, folder)
    encoded = []
    for images in parts.values():  # every file is checked before the first is decoded
        files = [image.path.relative_to(folder).as_posix() for image in images]
        labels = [image.label for image in images]
        read = lambda i, images=images: images[i].path.read_bytes()
        listing = Listing(name, domain, folder, files, labels, read)
        encoded.append(pool_of(listing, image_size=image_size, skip_bad=skip_bad, progress=progress))
    pools: list[list[Pool]] = []
    start = 0
    for pool in encoded:
        rows = np.arange(start, start + len(pool))
        pools.append([dataclasses.replace(pool, x=pool.x.decode(progress=progress), rows=rows)])
        start += len(pool)
    return Split(*pools)


def _warn_if_incomplete(folder: Path, split: Split) -> None:
    classes = tuple(len(pool.classes) for part in split for pool in part)
    counts = np.concatenate([pool.counts for part in split for pool in part])
    if classes != _CIFAR_FS_CLASSES or np.any(counts != _CIFAR_FS_IMAGES):
        warnings.warn(
            f"{folder} has {classes} classes of {counts.min()} to {counts.max()} images; CIFAR-FS has "
            f"{_CIFAR_FS_CLASSES} of {_CIFAR_FS_IMAGES}. Results on it compare with no published ones.",
            DataWarning,
            stacklevel=3,
        )
