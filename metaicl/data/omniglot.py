# SPDX-License-Identifier: Apache-2.0
"""Reading Omniglot from its two official zip files, divided and drawn as Reptile's and MAML's authors do it."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metaicl.data.download import checksum, download
from metaicl.data.images import BadImage, DataWarning, Progress, decode_image, run_threads
from metaicl.data.pool import Pool
from metaicl.data.splits import Split
from metaicl.files import given_path

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
SIDE = 105  # pixels of a stored drawing
DRAWINGS = 20  # of each character

_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Half(NamedTuple):
    """One of the two official archives: how many characters it holds, and the MD5 (hex) of the zip at `URL`."""

    characters: int
    md5: str


HALVES = {
    "images_background": Half(964, "68d2efa1b9178cc56df9314c21c6e718"),
    "images_evaluation": Half(659, "6b91aef0f799c5bb55b94e3f2daec811"),
}


class Published(NamedTuple):
    """How a paper's code divides and draws Omniglot.

    Attributes:
      characters: of training, validation and test, of the pooled and shuffled characters of both halves.
      rotated: in which of them each turn of a character by 90, 180 and 270 degrees is a class of its own.
      inverted: strokes are 255 on 0; otherwise they are 0 on 255, as stored.
    """

    characters: tuple[int, int, int]
    rotated: tuple[bool, bool, bool]
    inverted: bool


SPLITS = {
    "reptile": Published((1200, 0, 423), (True, False, False), inverted=False),
    "maml": Published((1100, 100, 423), (True, True, True), inverted=True),
}


class _Drawing(NamedTuple):
    png: bytes
    place: str


def read_omniglot(
    folder: str | os.PathLike,
    *,
    split: str = "reptile",
    image_size: int = 28,
    seed: int = 0,
    progress: Progress | None = None,
    fetch: bool = False,
    url: str = URL,
) -> Split:
    """Reads all 1,623 characters of Omniglot (Lake et al. 2015), 20 drawings each, and divides them.

    The characters of both halves are pooled and, sorted by name, shuffled by `seed`, whatever their alphabet:

    - `reptile` (openai/supervised-reptile): 1,200 train and 423 test, none validate. Training characters and
      their three rotations are 4,800 classes; test characters are not rotated. Background 255, strokes 0.
    - `maml` (cbfinn/maml): 1,100 train, 100 validate and 423 test, all rotated: 4,400, 400 and 1,692 classes.
      Background 0, strokes 255. (That code turns each class of an episode at random instead, so that two turns
      of one character never meet in an episode.)

    Which characters fall to which part is not that of the authors' runs, which followed the order of their
    disks. Drawings are resized to the nearest pixel, as Pillow resizes 1 bit images, and then rotated
    counterclockwise, so that every pixel stays 0 or 255.

    Args:
      folder: with `images_background.zip` and `images_evaluation.zip`, or with the folders unpacked from them.
      split: `"reptile"` or `"maml"`.
      image_size: height and width, in pixels.
      seed: of the shuffle of the characters.
      progress: called as `progress("omniglot", drawings done, drawings)`, and by `download` for each file.
      fetch: download what `folder` lacks, and check it against the known MD5.
      url: where the two zip files are.

    Returns:
      A Split of one Pool each, named `omniglot` (an empty list where nothing validates): `x` is
      `uint8 [n, image_size, image_size, 1]` and the classes are `Greek/character03`, `Greek/character03/rot90`
      and so on. `rows` count on through the parts, so that the parts' items, joined in the order train,
      validation, test, are one store of the data set.

    Raises:
      ValueError: for an unknown split, or a half that is damaged, incomplete, or not laid out as it should be.
      FileNotFoundError: if a half is missing and `fetch` is False.
      BadImage: for a drawing that does not decode or is not 105 x 105 pixels in black and white.
      DownloadError: if it is to be fetched and cannot be.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r} of Omniglot; use {' or '.join(map(repr, SPLITS))}.")
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1 pixel.")
    folder = given_path(folder).resolve()
    _require_halves(folder, fetch, url, progress)
    listed = {half: _list_half(folder, half) for half in HALVES}  # both, before a drawing is read
    drawings = {
        name: d for half, names in listed.items() for name, d in _read_half(folder, half, names).items()
    }
    names = sorted(drawings)
    flat = [drawing for name in names for drawing in drawings[name]]
    images = _decode(flat, image_size, progress).reshape(len(names), DRAWINGS, image_size, image_size)
    if SPLITS[split].inverted:
        images = 255 - images
    return _divide(names, images, flat, SPLITS[split], seed)


def _require_halves(folder: Path, fetch: bool, url: str, progress: Progress | None) -> None:
    """Raises for missing halves, or downloads them."""
    missing = [h for h in HALVES if not ((folder / f"{h}.zip").is_file() or (folder / h).is_dir())]
    if missing and not fetch:
        files = " and ".join(f"{half}.zip" for half in missing)
        there = "lacks" if folder.is_dir() else "does not exist, and is to hold"
        raise FileNotFoundError(
            f"{folder} {there} {files} of Omniglot. Put {'it' if len(missing) == 1 else 'them'} there (from {url}), "
            "or have them downloaded: download=true in a config, fetch=True of read_omniglot."
        )
    for half in missing:
        name = f"{half}.zip"
        download(f"{url.rstrip('/')}/{name}", folder / name, md5=HALVES[half].md5, progress=progress)


def fetch_omniglot(
    folder: str | os.PathLike, *, url: str = URL, progress: Progress | None = None
) -> tuple[int, int]:
    """Downloads what `folder` lacks of the two zip files, and checks both against their MD5 and their contents.

    Returns:
      The numbers of characters and drawings.

    Raises:
      ValueError: if a file that is there already is damaged or incomplete. (Of another one with as many drawings a
        `DataWarning` tells.)
      DownloadError: if one cannot be fetched.
    """
    folder = given_path(folder)
    for half, known in HALVES.items():
        path = folder / f"{half}.zip"
        if not path.is_file():
            download(f"{url.rstrip('/')}/{path.name}", path, md5=known.md5, progress=progress)
            continue
        if (digest := checksum(path, "md5")) != known.md5:
            _read_half(folder, half, _list_half(folder, half))  # raises for what is damaged or incomplete
            warnings.warn(
                f"{path} is not the official file (its MD5 is {digest} and not {known.md5}), but holds all its "
                "drawings.",
                DataWarning,
                stacklevel=2,
            )
    characters = sum(len(_list_half(folder, half)) for half in HALVES)
    return characters, characters * DRAWINGS


def _list_half(folder: Path, half: str) -> dict[str, list[str]]:
    """Paths of each character's drawings below `folder` or inside the zip, without reading them."""
    archive, root = folder / f"{half}.zip", folder / half
    if not archive.is_file():
        paths = (p.relative_to(folder).as_posix() for p in root.rglob("*.png") if p.is_file())
        return _characters(paths, half, root)
    try:
        with zipfile.ZipFile(archive) as opened:
            return _characters(opened.namelist(), half, archive)
    except _UNREADABLE as error:
        raise ValueError(
            f"{archive} is no whole zip file ({error}). Delete and download it again."
        ) from error


def _characters(paths: Iterable[str], half: str, place: Path) -> dict[str, list[str]]:
    """Sorts paths `half/alphabet/characterNN/drawing.png` by character; refuses other layouts and counts."""
    hidden = re.compile(r"(^|/)(\.|__)")  # what a Mac adds to folders and archives
    drawings = sorted(p for p in paths if p.lower().endswith(".png") and not hidden.search(p))
    tops = {path.split("/")[0] for path in drawings}
    if tops & (HALVES.keys() - {half}):
        raise ValueError(
            f"{place} holds {', '.join(sorted(tops))} and not {half}: the names of the two halves of Omniglot "
            "are swapped, or one is there twice. Rename them."
        )
    characters: dict[str, list[str]] = {}
    for path in drawings:
        found = re.fullmatch(rf"{half}/([^/]+/character\d+)/[^/]+", path)
        if not found:
            raise ValueError(_wrong_layout(place, half, f"it has {path}"))
        characters.setdefault(found[1], []).append(path)
    if not characters:
        raise ValueError(_wrong_layout(place, half, "it has no png file"))
    for name, files in characters.items():
        if len(files) != DRAWINGS:
            raise ValueError(
                f"{place}: {name} has {len(files)} drawings and should have {DRAWINGS}. Download or unpack it again."
            )
    if len(characters) != HALVES[half].characters:
        known = ", ".join(f"{name} has {known.characters}" for name, known in HALVES.items())
        raise ValueError(
            f"{place} holds {len(characters)} characters; of the official halves {known}. "
            "Download or unpack it again."
        )
    return characters


def _wrong_layout(place: Path, half: str, fault: str) -> str:
    return (
        f"{place} is not laid out as {half}/alphabet/characterNN/drawing.png: {fault}. Use the official file, or "
        "the folder unpacked from it."
    )


def _read_half(folder: Path, half: str, characters: dict[str, list[str]]) -> dict[str, list[_Drawing]]:
    """The stored bytes of each character's drawings."""
    archive = folder / f"{half}.zip"
    if not archive.is_file():
        read = lambda path: _Drawing((folder / path).read_bytes(), str(folder / path))
        return {name: [read(path) for path in paths] for name, paths in characters.items()}
    member = ""
    try:
        with zipfile.ZipFile(archive) as opened:
            result: dict[str, list[_Drawing]] = {}
            for name, members in characters.items():
                result[name] = []
                for member in members:
                    result[name].append(_Drawing(opened.read(member), f"{archive}: {member}"))
            return result
    except _UNREADABLE as error:
        raise ValueError(
            f"{archive} is damaged at {member} ({error}). Delete and download it again."
        ) from error


def nearest_pixels(side: int, size: int) -> np.ndarray:
    """`int64 [size]`: which of `side` pixels lies under the middle of each of `size`, as Pillow's nearest does."""
    return (2 * np.arange(size) + 1) * side // (2 * size)


def _pixels(drawing: _Drawing) -> np.ndarray:
    """`uint8 [105, 105]`; refuses everything but black and white of that size."""
    width, height = (int.from_bytes(drawing.png[at : at + 4], "big") for at in (16, 20))
    if not drawing.png.startswith(b"\x89PNG") or (width, height) != (SIDE, SIDE):
        raise BadImage(
            f"{drawing.place} is no PNG of {SIDE} x {SIDE} pixels, as all drawings are. Use the official files, "
            "not resized ones."
        )
    try:
        image = decode_image(drawing.png, SIDE, drawing.place)[..., 0]
    except BadImage as error:
        raise BadImage(f"{drawing.place} is damaged or no image. Download Omniglot again.") from error
    if np.any((image != 0) & (image != 255)):
        raise BadImage(f"{drawing.place} is not in black and white alone. Use the official files.")
    return image


def _decode(drawings: list[_Drawing], size: int, progress: Progress | None) -> np.ndarray:
    """`uint8 [n, size, size]`."""
    nearest = nearest_pixels(SIDE, size)
    out = np.empty((len(drawings), size, size), np.uint8)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            out[i] = _pixels(drawings[i])[nearest[:, None], nearest]

    run_threads(work, len(drawings), progress, "omniglot")
    return out


def _digest(png: bytes, turns: int) -> str:
    """SHA-256 (hex) of the stored bytes and the rotation.

    Not of the pixels: those change with the size and the inversion, and sparse drawings may coincide when they
    are small. An unrotated item keeps the digest of its file, by which it is found in other data sets too.
    """
    return hashlib.sha256(png + (f"rot{90 * turns}".encode() if turns else b"")).hexdigest()


def _divide(
    names: list[str], images: np.ndarray, drawings: list[_Drawing], how: Published, seed: int
) -> Split:
    """Shuffles the characters of `images` `[characters, 20, size, size]` and makes the pools of the parts."""
    order = np.random.default_rng(seed).permutation(len(names))
    parts: list[list[Pool]] = []
    start = 0
    for chosen, rotated in zip(np.split(order, np.cumsum(how.characters)[:-1]), how.rotated, strict=True):
        chosen = np.sort(chosen)
        turns = range(4 if rotated else 1)
        classes = [names[c] + (f"/rot{90 * k}" if k else "") for c in chosen for k in turns]
        items = np.stack([np.rot90(images[chosen], k, axes=(2, 3)) for k in turns], axis=1)
        digests = [
            _digest(drawing.png, k)
            for c in chosen
            for k in turns
            for drawing in drawings[c * DRAWINGS : (c + 1) * DRAWINGS]
        ]
        n = len(digests)
        pool = Pool(
            name="omniglot",
            domain="characters",
            classes=tuple(classes),
            labels=np.repeat(np.arange(len(classes), dtype=np.int32), DRAWINGS),
            x=items.reshape(n, *images.shape[2:], 1),
            digests=np.array(digests, "S64"),
            rows=np.arange(start, start + n),
        )
        parts.append([pool] if n else [])
        start += n
    return Split(*parts)
