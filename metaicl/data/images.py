# SPDX-License-Identifier: Apache-2.0
"""From encoded bytes to uint8 RGB arrays, lazily or all at once, and the hash that finds near-copies."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from metaicl.data.pool import Pool

Progress = Callable[[str, int, int], None]  # (what, done, total)

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = 32  # images a thread decodes before it reports
_REMEDY = "Replace or remove the file, or read the data set with skip_bad=True."


class DataWarning(UserWarning):
    """Something in the data was left out or mended; the text says what, where and how many."""


class BadImage(ValueError):
    """The stored bytes are not an image that can be used."""


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG stops before its end: OpenCV would fill what is missing without an error."""
    if data.startswith(_PNG):
        return b"IEND" not in data[-4096:] and b"IEND" not in data
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # segments before the scan
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) < 0


def check_image(data: bytes, name: str) -> None:
    """Raises `BadImage` for bytes that are no image or stop too early, mostly without decoding them.

    JPEG and PNG are judged by their first bytes and their end marker; other formats are decoded.
    """
    if not data:
        raise BadImage(f"{name} is an empty file. {_REMEDY}")
    if not data.startswith((_JPEG, _PNG)):
        decode_image(data, 8, name)
    elif _cut_short(data):
        raise BadImage(f"{name} is cut short: its end marker is missing. {_REMEDY}")


def _may_be_transparent(data: bytes) -> bool:
    if data.startswith(_JPEG):
        return False
    if data.startswith(_PNG):  # byte 25 is the colour type; 4 and 6 carry alpha, tRNS adds it to the others
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return True


def _to_uint8(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:  # the whole range maps to the whole range: 65535 / 257 = 255
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise BadImage(f"{name} has {image.dtype} pixels; only 8 and 16 bit images are read. {_REMEDY}")


def _over_white(image: np.ndarray) -> np.ndarray:
    """Composites uint8 BGRA (or grey with alpha) `[h, w, c + 1]` over white."""
    alpha = image[..., -1:].astype(np.float32) / 255.0
    return np.rint(255.0 + (image[..., :-1] - 255.0) * alpha).astype(np.uint8)


def _decode_bgr(data: bytes, name: str) -> np.ndarray:
    buffer = np.frombuffer(data, np.uint8)
    image = None
    try:
        if _may_be_transparent(data):
            image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
            if image is not None and image.ndim == 3 and image.shape[2] in (2, 4):
                image = _over_white(_to_uint8(image, name))
                return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
        # This flag, unlike IMREAD_UNCHANGED, turns the image as its EXIF orientation says.
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise BadImage(f"{name} cannot be decoded ({error.err}). {_REMEDY}") from error
    if image is None:
        raise BadImage(f"{name} cannot be decoded: it is damaged or not an image. {_REMEDY}")
    return _to_uint8(image, name)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes `[h, w, c]` to `[size, size, c]`: both sides, without keeping the aspect ratio.

    A side that shrinks is averaged over areas and a side that grows is interpolated; where one does each,
    they go one after the other, since OpenCV would not average then.
    """
    height, width = image.shape[:2]
    if height > size or width > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def decode_image(data: bytes, size: int, name: str = "image") -> np.ndarray:
    """Decodes one image of any format that OpenCV reads.

    Grey becomes three equal channels, palettes are resolved, alpha is composited over white, 16 bits are
    scaled to 8, and the EXIF orientation of an image without alpha is honoured.

    Args:
      data: the stored bytes.
      size: height and width of the result.
      name: what an error calls the image; a file's path.

    Returns:
      `uint8 [size, size, 3]`, RGB.

    Raises:
      BadImage: if the bytes are not an image, or stop before its end.
    """
    if not data:
        raise BadImage(f"{name} is an empty file. {_REMEDY}")
    if data.startswith((_JPEG, _PNG)) and _cut_short(data):
        raise BadImage(f"{name} is cut short: its end marker is missing. {_REMEDY}")
    return cv2.cvtColor(resize_image(_decode_bgr(data, name), size), cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV's own threads only get in the way while images are decoded side by side."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def run_threads(work: Callable[[int, int], None], n: int, progress: Progress | None, what: str) -> None:
    """Calls `work(start, stop)` over chunks of `range(n)` from several threads; the first error is raised."""
    spans = [(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
    with _one_opencv_thread(), ThreadPoolExecutor(max(2, min(os.cpu_count() or 2, 32))) as executor:
        try:
            done = executor.map(lambda span: work(*span), spans)
            for (_, stop), _ in zip(spans, done, strict=True):
                if progress is not None:
                    progress(what, stop, n)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


class EncodedImages:
    """Images that stay encoded until they are asked for, wherever the bytes come from.

    `images[rows]` with an int array or a slice is another lazy view, `images[3]` is one decoded image, and
    `np.asarray(images)` or `images.decode()` decodes everything. `shape` and `dtype` are those of the result.
    """

    def __init__(
        self, read: Callable[[int], bytes], names: Sequence[str], size: int, rows: np.ndarray | None = None
    ):
        """Takes `read(i)`, which gives the bytes of item i, the items' names, and the size to decode to.

        `rows` restricts the view to some of the items; `read` must be safe to call from several threads.
        """
        self._read, self._names = read, names
        self.size = int(size)
        self._rows = np.arange(len(names)) if rows is None else np.asarray(rows)

    def __len__(self) -> int:
        """Number of images in this view."""
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the decoded array, `(n, size, size, 3)`."""
        return (len(self), self.size, self.size, 3)

    @property
    def ndim(self) -> int:
        """4, as the decoded array."""
        return 4

    @property
    def dtype(self) -> np.dtype:
        """uint8, as the decoded array."""
        return np.dtype(np.uint8)

    @property
    def names(self) -> list[str]:
        """Names of the items in this view."""
        return [self._names[int(i)] for i in self._rows]

    def encoded(self, i: int) -> bytes:
        """The stored bytes of item i of this view."""
        return self._read(int(self._rows[i]))

    def with_size(self, size: int) -> EncodedImages:
        """The same items, to be decoded to another size."""
        return EncodedImages(self._read, self._names, size, self._rows)

    def __getitem__(self, rows: int | slice | np.ndarray) -> EncodedImages | np.ndarray:
        """A lazy view of the given rows, or one decoded image for a plain int."""
        if isinstance(rows, int | np.integer):
            return decode_image(self.encoded(int(rows)), self.size, self._names[int(self._rows[rows])])
        return EncodedImages(self._read, self._names, self.size, self._rows[rows])

    def decode(self, rows: np.ndarray | None = None, progress: Progress | None = None) -> np.ndarray:
        """Decodes the given rows of this view (all of them by default) with a pool of threads.

        Args:
          rows: int array into this view, or None.
          progress: called as `progress("decode", done, total)` from the calling thread.

        Returns:
          `uint8 [n, size, size, 3]`, RGB.

        Raises:
          BadImage: for the first image found that does not decode; the message names it.
        """
        rows = self._rows if rows is None else self._rows[np.asarray(rows)]
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)

        def work(start: int, stop: int) -> None:
            for i in range(start, stop):
                item = int(rows[i])
                out[i] = decode_image(self._read(item), self.size, self._names[item])

        run_threads(work, len(rows), progress, "decode")
        return out

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Decodes everything, for `np.asarray`."""
        if copy is False:
            raise ValueError("Encoded images must be decoded to become an array; copy=False cannot be.")
        return self.decode().astype(dtype or np.uint8, copy=False)


def _area_matrix(size: int, out: int) -> np.ndarray:
    """`[out, size]`: row i averages the i-th of `out` equal stretches of `size` pixels."""
    edges = np.linspace(0, size, out + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.clip(overlap, 0, None) * out / size


def _dct_matrix(frequencies: int, size: int) -> np.ndarray:
    """`[frequencies, size]`: the first rows of the orthonormal type-2 discrete cosine transform."""
    angle = np.pi * (np.arange(size) + 0.5) * np.arange(frequencies)[:, None] / size
    return np.cos(angle) * np.where(np.arange(frequencies) == 0, 1, np.sqrt(2))[:, None] / np.sqrt(size)


def _grey(images: np.ndarray) -> np.ndarray:
    """`float32 [n, h, w]` luma (0 to 255) of uint8 RGB `[n, h, w, 3]`."""
    return images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def grey_thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    """`float32 [n, side * side]` area-averaged grey thumbnails (0 to 255) of uint8 RGB `[n, h, w, 3]`."""
    rows = _area_matrix(images.shape[1], side).astype(np.float32)  # [side, h]
    columns = _area_matrix(images.shape[2], side).astype(np.float32)  # [side, w]
    return (rows @ (_grey(images) @ columns.T)).reshape(len(images), side * side)


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """A 64 bit hash of each image that survives recompression, resizing and small changes of brightness.

    The grey image is averaged down to 32 x 32 and transformed by a cosine transform; each of its 8 x 8 lowest
    frequencies but the constant one gives a bit, set where the coefficient exceeds their median. The constant
    one's bit is never set. Near-copies differ in few bits: `np.bitwise_count(a ^ b)`.

    Args:
      images: `uint8 [n, h, w, 3]`, RGB.

    Returns:
      `uint64 [n]`.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"perceptual_hash takes uint8 [n, h, w, 3], got {images.dtype} {images.shape}.")
    n, height, width, _ = images.shape
    rows = (_dct_matrix(8, 32) @ _area_matrix(height, 32)).astype(np.float32)  # [8, h]
    columns = (_dct_matrix(8, 32) @ _area_matrix(width, 32)).astype(np.float32)  # [8, w]
    hashes = np.zeros(n, np.uint64)
    for start in range(0, n, 256):
        grey = _grey(images[start : start + 256])
        # Rounding keeps the float noise of a flat image from becoming random bits.
        low = np.round(rows @ (grey @ columns.T), 2).reshape(len(grey), 64)
        bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
        bits[:, 0] = False
        hashes[start : start + 256] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def decode_pool(pool: Pool, progress: Progress | None = None) -> Pool:
    """The pool with its images decoded to `uint8 [n, size, size, 3]` and their perceptual hashes.

    A pool that already holds an array only gains the hashes. `progress(name, done, total)` counts images.

    Raises:
      BadImage: if an image does not decode.
    """
    if not isinstance(pool.x, EncodedImages):
        images = np.asarray(pool.x)
    else:
        named = None if progress is None else lambda _, done, total: progress(pool.name, done, total)
        images = pool.x.decode(progress=named)
    phashes = pool.phashes if pool.phashes is not None else perceptual_hash(images)
    return dataclasses.replace(pool, x=images, phashes=phashes)
