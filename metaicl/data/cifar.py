# SPDX-License-Identifier: Apache-2.0
"""CIFAR-FS made from CIFAR-100: the official archive, read without trusting it, in the layout of its authors.

The authors of CIFAR-FS (Bertinetto et al. 2019) share a file in a private drive. It holds the 60,000 images of
CIFAR-100, training and test images of each class together, and three lists of classes; so does what is made here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from metaicl.data.images import Progress

URL = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
SIZE = 169_001_437  # bytes
PARTS = {"train": 50_000, "test": 10_000}  # file of the archive -> images
SIDE = 32

_CLASSES = {
    "train": """
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud cockroach
        couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard
        lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum
        rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar sunflower tank tiger
        train trout tulip turtle willow_tree wolf
    """,
    "val": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark
        television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table
        telephone wardrobe whale woman worm
    """,
}
SPLITS = {part: names.split() for part, names in _CLASSES.items()}


class _Restricted(pickle.Unpickler):
    """Makes arrays and built-in containers, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        """The three names that a pickled array takes, as old and new versions of NumPy spell them."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")


def _empty_array(kind: type, shape: tuple, dtype: Any) -> np.ndarray:
    """What the state of a pickled array is then put into; it is empty, whatever is asked for."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it asks for another kind of array")
    return np.ndarray((0,), np.uint8)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in one of the archive's files, which Python 2 wrote; bytes that are text become `str`.

    Raises:
      ValueError: if it is damaged, or holds anything but arrays, numbers, text and containers of those.
    """
    try:
        with path.open("rb") as file:
            content = _Restricted(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except Exception as error:  # a damaged pickle raises anything
        fault = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name} of CIFAR-100 cannot be read: {fault}. Download it again.") from error
    return content


class _Part(NamedTuple):
    pixels: np.ndarray  # uint8 [n, 3072], planes of red, green and blue
    labels: np.ndarray  # [n]
    names: list[str]  # of the files that the images were


def _read_part(folder: Path, part: str, images: int) -> _Part:
    content = read_pickle(folder / part)
    pixels, labels = content.get("data"), np.asarray(content.get("fine_labels", []))
    names = content.get("filenames", [])
    shape = (images, 3 * SIDE * SIDE)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        told = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else "missing"
        raise ValueError(f"{part} of CIFAR-100: its data should be uint8 {list(shape)} and are {told}.")
    if labels.shape != (images,) or labels.dtype.kind not in "iu" or len(names) != images:
        raise ValueError(f"{part} of CIFAR-100 should have {images} labels and file names, and has not.")
    if labels.min() < 0 or labels.max() > 99:
        raise ValueError(
            f"{part} of CIFAR-100 has labels from {labels.min()} to {labels.max()}, not 0 to 99."
        )
    return _Part(pixels, labels, [str(name) for name in names])


def write_cifar_fs(source: Path, folder: Path, progress: Progress | None = None) -> tuple[int, int]:
    """Writes `data/<class>/*.png` and `splits/bertinetto/{train,val,test}.txt`, as `read_cifar_fs` reads them.

    Args:
      source: the unpacked archive, with `train`, `test` and `meta`.
      folder: an existing folder.
      progress: called as `progress("cifar_fs", images done, images)`.

    Returns:
      The numbers of classes and images.

    Raises:
      ValueError: if the archive's files are not what they should be, or the classes are not equally large.
    """
    missing = [name for name in ("meta", *PARTS) if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source.name} lacks {', '.join(missing)} of CIFAR-100. Download it again.")
    classes = read_pickle(source / "meta").get("fine_label_names", [])
    if sorted(classes) != sorted(name for names in SPLITS.values() for name in names):
        raise ValueError("The class names of this CIFAR-100 are not the 100 known ones. Download it again.")
    read = {part: _read_part(source, part, images) for part, images in PARTS.items()}
    counts = np.bincount(np.concatenate([part.labels for part in read.values()]), minlength=100)
    if len(set(counts)) != 1:
        raise ValueError(
            f"The classes of this CIFAR-100 have {counts.min()} to {counts.max()} images, not equally many."
        )
    for label in classes:
        (folder / "data" / label).mkdir(parents=True)
    splits = folder / "splits" / "bertinetto"
    splits.mkdir(parents=True)
    for part, names in SPLITS.items():
        (splits / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    total = sum(PARTS.values())
    for done, (label, name, image) in enumerate(_images(read), 1):
        path = folder / "data" / classes[label] / f"{name}.png"
        if path.exists():
            path = path.with_name(f"{name}_{done}.png")
        path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        if progress is not None and (done % 500 == 0 or done == total):
            progress("cifar_fs", done, total)
    return len(classes), total


def _images(read: dict[str, _Part]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Label, name and `uint8 [32, 32, 3]` RGB of each image."""
    for part in read.values():
        for row, label, name in zip(part.pixels, part.labels, part.names, strict=True):
            plain = Path(name.replace("\\", "/")).name
            yield int(label), Path(plain).stem, row.reshape(3, SIDE, SIDE).transpose(1, 2, 0)
