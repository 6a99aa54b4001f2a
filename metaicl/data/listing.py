# SPDX-License-Identifier: Apache-2.0
"""What a folder says about its data set before any image is opened: files, categories, domain."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from metaicl.data.album_table import DOMAINS, official_set
from metaicl.files import given_path

_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}
_COLUMNS = {"image": "FILE_NAME", "category": "CATEGORY"}


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder says about its data set before any image is opened.

    Attributes:
      name: name of the data set.
      domain: name of its domain, or None where nothing tells.
      place: the folder, for errors.
      file_names: name of each image inside the data set.
      categories: category of each image.
      read: `(i) -> bytes` of image i; may be called from several threads.
      remarks: what was left out, for a warning.
    """

    name: str
    domain: str | None
    place: Path
    file_names: list[str]
    categories: list[str]
    read: Callable[[int], bytes]
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def places(self) -> list[str]:
        """Where each image is, for errors."""
        return [f"{self.place}: {name}" for name in self.file_names]


def _read_info(folder: Path) -> dict:
    path = folder / "info.json"
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Mend or delete it.") from error
    if not isinstance(info, dict):
        raise ValueError(f"{path} must hold one JSON object. Mend or delete it.")
    return {re.sub(r"[\s_]+", "_", str(key).strip().lower()): value for key, value in info.items()}


def _domain_of(info: dict, name: str) -> str | None:
    given = info.get("domain") or info.get("domain_id")
    if given:
        return DOMAINS.get(str(given).strip().upper(), str(given).strip())
    known = official_set(name) or official_set(str(info.get("dataset_name") or ""))
    return known.domain if known else None


def _pick_column(path: Path, header: Sequence[str], role: str, info: dict) -> int:
    """Place of a column: as info.json names it, else by its usual name, capitals and spaces not minding."""
    wanted = [str(info[f"{role}_column_name"])] if info.get(f"{role}_column_name") else []
    plain = [column.strip().lower() for column in header]
    for name in [*wanted, _COLUMNS[role]]:
        if name.strip().lower() in plain:
            return plain.index(name.strip().lower())
    raise ValueError(
        f"{path} has no {role} column {(wanted or [_COLUMNS[role]])[0]!r}; its columns are "
        f"{', '.join(map(repr, header)) or 'none'}. Rename one, or set {role}_column_name in info.json."
    )


def _read_labels(path: Path, info: dict) -> tuple[list[tuple[str, str]], list[str]]:
    """`(file name, category)` rows of labels.csv without strays and repetitions, and remarks about those."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        image, category = (_pick_column(path, header, role, info) for role in _COLUMNS)
        rows: list[tuple[str, str]] = []
        seen: dict[str, str] = {}
        stray = repeated = contradicting = 0
        for line in lines:
            if not line:
                continue
            if len(line) <= max(image, category) or not line[category].strip():
                raise ValueError(
                    f"{path}, line {lines.line_num}: {line} has no category. Complete or remove it."
                )
            name, label = line[image].strip().replace("\\", "/"), line[category].strip()
            if name.rsplit("/", 1)[-1].startswith("."):
                stray += 1
            elif name in seen:
                repeated += 1
                contradicting += seen[name] != label
            else:
                seen[name] = label
                rows.append((name, label))
    remarks = [f"left out {stray} rows of hidden files such as .DS_Store"] if stray else []
    if repeated:
        remarks.append(
            f"left out {repeated} rows that repeat a file name, {contradicting} of them with another "
            "category (the first row counts)"
        )
    return rows, remarks


def _list_raw(folder: Path, skip_bad: bool) -> Listing:
    """Lists a data set in Meta-Album's layout, checking that every file is there before any is opened."""
    info = _read_info(folder)
    rows, remarks = _read_labels(folder / "labels.csv", info)
    images = folder / "images"
    if not images.is_dir():
        raise FileNotFoundError(f"{folder} has labels.csv but no images/. Download or unpack it again.")
    there = set(os.listdir(images))
    spelt: dict[str, list[str]] = {}
    for name in there:
        spelt.setdefault(name.lower(), []).append(name)
    names, categories, missing = [], [], []
    for name, category in rows:
        others = spelt.get(name.lower(), [])  # labels.csv and the disk may differ in capitals
        if name in there or ("/" in name and (images / name).is_file()):
            names.append(name)
        elif len(others) == 1:
            names.append(others[0])
        else:
            missing.append(name)
            continue
        categories.append(category)
    if missing and not skip_bad:
        raise FileNotFoundError(
            f"{folder / 'labels.csv'} lists {len(missing)} files that are not in {images}, first "
            f"{missing[0]!r}. Download or unpack it again, remove their rows, or read it with skip_bad=True."
        )
    if missing:
        remarks.append(f"left out {len(missing)} listed files that do not exist, first {missing[0]!r}")
    read = lambda i: (images / names[i]).read_bytes()
    return Listing(folder.name, _domain_of(info, folder.name), folder, names, categories, read, remarks)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _IMAGE_ENDINGS


def visible_folders(folder: Path) -> list[Path]:
    """Folders inside, sorted, without hidden ones and `__MACOSX` and the like."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _list_folders(folder: Path) -> Listing:
    """Lists a plain folder of images, one folder per class; deeper folders count to their class."""
    names, categories = [], []
    for class_folder in visible_folders(folder):
        for path in sorted(class_folder.rglob("*")):
            if _is_image(path.name) and path.is_file():
                names.append(path.relative_to(folder).as_posix())
                categories.append(class_folder.name)
    read = lambda i: (folder / names[i]).read_bytes()
    return Listing(folder.name, _domain_of(_read_info(folder), folder.name), folder, names, categories, read)


Kind = Literal["raw", "prepared", "folders", "incomplete", "album", "other"]


def kind_of(folder: Path) -> Kind:
    """What a folder is: a data set in one of three layouts, a broken one, an album of data sets, or none."""
    if (folder / "labels.csv").is_file():
        return "raw"
    if (folder / "dataset_info.json").is_file() or any(folder.glob("*/dataset_info.json")):
        return "prepared"
    if (folder / "images").is_dir():
        return "incomplete"
    inner = visible_folders(folder)
    if any((p / "labels.csv").is_file() or any(p.glob("*/dataset_info.json")) for p in inner):
        return "album"
    if any(_is_image(name) for p in inner for name in os.listdir(p)):
        return "folders"
    if (folder / "info.json").is_file():
        return "incomplete"
    return "album" if any(kind_of(p) != "other" for p in inner) else "other"


def list_dataset(path: str | os.PathLike, skip_bad: bool = False) -> Listing:
    """Lists one data set in whichever layout it has; opens no image.

    Raises:
      FileNotFoundError: if the folder, its labels.csv, its images/ or a listed image is missing.
      ValueError: if labels.csv or info.json cannot be understood.
    """
    folder = given_path(path).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the folder of a data set.")
    kind = kind_of(folder)
    if kind == "raw":
        return _list_raw(folder, skip_bad)
    if kind == "prepared":
        from metaicl.data.tfds_album import list_prepared

        return list_prepared(folder)
    if kind == "folders":
        return _list_folders(folder)
    raise FileNotFoundError(
        f"{folder} is no data set: it has no labels.csv (with images/), is not a folder of class folders of "
        "images, and was not prepared by TFDS. Restore labels.csv, or give another folder."
    )
