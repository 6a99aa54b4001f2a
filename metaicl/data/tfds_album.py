# SPDX-License-Identifier: Apache-2.0
"""Albums as TensorFlow Datasets: prepared once into array_record files, read back by random access.

Nothing here needs TensorFlow: images are stored as the bytes they came in and decoded by our own code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from metaicl.data.images import Progress
from metaicl.data.listing import Listing, list_dataset
from metaicl.data.meta_album import pool_of
from metaicl.data.pool import Pool

VERSION = "1.0.0"
_SPLIT = "train"  # TFDS reserves the name "all"; every item is in this one split


@functools.cache
def import_tfds() -> Any:
    """TFDS, imported when first needed (it is slow) and kept away from its store of prepared data sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True  # its own tests' switch; there is no public one
    return tfds


@functools.cache
def _builder_class() -> type:
    """The TFDS builder `meta_album`; one builder config for each data set, named after it."""
    tfds = import_tfds()

    base: Any = tfds.core.GeneratorBasedBuilder

    class MetaAlbum(base):
        """Labelled images of one data set, in the order of category and file name."""

        VERSION = tfds.core.Version(VERSION)
        code_path = None  # nothing is downloaded, so there are no checksums to look for beside the code

        def __init__(self, *, listing: Listing, **kwargs):
            self._listing = listing
            name = re.sub(r"[^\w.-]", "_", listing.name)  # a folder is named after it
            config = tfds.core.BuilderConfig(name=name, version=self.VERSION)
            super().__init__(config=config, file_format="array_record", **kwargs)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=sorted(set(self._listing.categories))),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
                metadata=tfds.core.MetadataDict(name=self._listing.name, domain=self._listing.domain),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(len(self._listing.file_names)):
                yield (
                    i,
                    {
                        "image": self._listing.read(i),
                        "label": self._listing.categories[i],
                        "file_name": self._listing.file_names[i],
                    },
                )

    return MetaAlbum


def prepare(source_folder: str | os.PathLike, data_dir: str | os.PathLike, skip_bad: bool = False) -> Path:
    """Prepares a data set (Meta-Album's layout or class folders) as a TFDS of array_record files.

    A data set that is prepared already is left as it is.

    Args:
      source_folder: the data set.
      data_dir: where TFDS keeps its data sets; the result lies in `meta_album/<name>/<version>` below.
      skip_bad: leave out, with a `DataWarning`, listed images that are missing or do not decode.

    Returns:
      The folder of the prepared data set, for `read_prepared`, `read_dataset` or `read_album`.

    Raises:
      FileNotFoundError, ValueError: as `read_dataset`.
    """
    ordered, _ = _in_order(list_dataset(source_folder, skip_bad), skip_bad, None)
    return _write(ordered, Path(data_dir))


def write_prepared(
    listing: Listing, folder: Path, *, skip_bad: bool = False, progress: Progress | None = None
) -> Pool:
    """Writes a listed data set as TFDS does, into a folder `1.0.0` below `folder`, and reads it again.

    Args:
      listing: the data set.
      folder: an existing folder.
      skip_bad: leave out, with a `DataWarning`, images that do not decode.
      progress: called as `progress(what, images done, images)`.

    Returns:
      The Pool that was read again: its items are those of the listing, byte for byte.

    Raises:
      ValueError: as `pool_of`.
      OSError: if what is read again is not what was written.
    """
    ordered, pool = _in_order(listing, skip_bad, progress)
    work = folder / ".tfds"
    if progress is not None:
        ordered = dataclasses.replace(ordered, read=_counted(ordered, progress))
    final = folder / VERSION
    os.rename(_write(ordered, work), final)
    shutil.rmtree(work)
    again = read_prepared(final, image_size=pool.x.size, progress=progress)
    same = again.digests.tolist() == pool.digests.tolist() and again.labels.tolist() == pool.labels.tolist()
    if not same or again.classes != pool.classes:
        raise OSError(
            f"{listing.name}: what was written to {folder} reads back as something else. Try again."
        )
    return again


def _in_order(listing: Listing, skip_bad: bool, progress: Progress | None) -> tuple[Listing, Pool]:
    """The listing with the items and in the order of its Pool, and that Pool, which checks every image."""
    pool = pool_of(listing, image_size=8, skip_bad=skip_bad, progress=progress)
    place = {name: i for i, name in enumerate(listing.places)}
    rows = [place[name] for name in pool.x.names]
    ordered = dataclasses.replace(
        listing,
        file_names=[listing.file_names[i] for i in rows],
        categories=[listing.categories[i] for i in rows],
        read=lambda i: listing.read(rows[i]),
    )
    return ordered, pool


def _counted(ordered: Listing, progress: Progress) -> Callable[[int], bytes]:
    """The `read` of a listing whose images are read in order, with progress."""

    def read(i: int) -> bytes:
        progress(f"{ordered.name}: write", i + 1, len(ordered.file_names))
        return ordered.read(i)

    return read


def _write(ordered: Listing, data_dir: Path) -> Path:
    """Has TFDS write a listing, without a word; returns the folder."""
    tfds = import_tfds()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of every config that it does not know
    builder = _builder_class()(listing=ordered, data_dir=os.fspath(data_dir))
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except RuntimeError as error:  # how array_record's writer tells of the disk
        if (full := os.strerror(errno.ENOSPC)) in str(error):
            raise OSError(errno.ENOSPC, full, os.fspath(data_dir)) from error
        raise
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
    return Path(builder.data_path)


def list_prepared(path: str | os.PathLike) -> Listing:
    """Lists a data set that `prepare` wrote; for its folder or the folder of one version inside.

    Raises:
      ValueError: if TFDS prepared it with other features than `prepare` does, or its files are damaged.
    """
    tfds = import_tfds()
    folder = Path(path)
    if not (folder / "dataset_info.json").is_file():
        versions = sorted(inner.parent for inner in folder.glob("*/dataset_info.json"))
        if not versions:
            raise FileNotFoundError(f"{folder} was not prepared by TFDS. Prepare the data set there first.")
        folder = versions[-1]
    builder = tfds.builder_from_directory(os.fspath(folder))
    missing = {"image", "label", "file_name"} - set(builder.info.features)
    if missing or _SPLIT not in builder.info.splits:
        raise ValueError(
            f"{folder} is a TFDS without {', '.join(sorted(missing)) or f'split {_SPLIT!r}'}. "
            "Prepare the data set with metaicl.data.tfds_album.prepare."
        )
    source = builder.as_data_source(split=_SPLIT, decoders={"image": tfds.decode.SkipDecoding()})
    items = (source[i] for i in range(len(source)))  # one after another: the images need not fit in memory
    rows = [(item["file_name"].decode(), item["label"]) for item in items]
    names = builder.info.features["label"].names
    metadata = builder.info.metadata or {}
    return Listing(
        name=metadata.get("name") or folder.parent.name,
        domain=metadata.get("domain"),
        place=folder,
        file_names=[name for name, _ in rows],
        categories=[names[label] for _, label in rows],
        read=lambda i: source[i]["image"],
    )


def read_prepared(path: str | os.PathLike, *, image_size: int, progress: Progress | None = None) -> Pool:
    """Reads a prepared data set: the Pool that its source folder gives, equal in all but the place it is in.

    Args:
      path: what `prepare` returned.
      image_size: height and width that the images are decoded to.
      progress: called as `progress(name, images done, images)`.
    """
    return pool_of(list_prepared(path), image_size=image_size, progress=progress)
