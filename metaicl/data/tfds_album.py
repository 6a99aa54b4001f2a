# SPDX-License-Identifier: Apache-2.0
"""Albums as TensorFlow Datasets: prepared once into array_record files, read back by random access.

Nothing here needs TensorFlow: images are stored as the bytes they came in and decoded by our own code.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaicl.data.images import Progress
from metaicl.data.listing import Listing, list_dataset
from metaicl.data.meta_album import pool_of
from metaicl.data.pool import Pool

VERSION = "1.0.0"
_SPLIT = "train"  # TFDS reserves the name "all"; every item is in this one split


@functools.cache
def _tfds() -> Any:
    """TFDS, imported when first needed (it is slow) and kept off the network."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True  # its own tests' switch; there is no public one
    return tfds


@functools.cache
def _builder_class() -> type:
    """The TFDS builder `meta_album`; one builder config for each data set, named after it."""
    tfds = _tfds()

    base: Any = tfds.core.GeneratorBasedBuilder

    class MetaAlbum(base):
        """Labelled images of one data set, in the order of category and file name."""

        VERSION = tfds.core.Version(VERSION)
        code_path = None  # nothing is downloaded, so there are no checksums to look for beside the code

        def __init__(self, *, listing: Listing, **kwargs):
            self._listing = listing
            config = tfds.core.BuilderConfig(name=listing.name, version=self.VERSION)
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
    tfds = _tfds()
    listing = list_dataset(source_folder, skip_bad)
    # Reading it as a Pool checks every image and fixes the order, which is that of the raw folder's Pool.
    pool = pool_of(listing, image_size=8, skip_bad=skip_bad)
    place = {name: i for i, name in enumerate(listing.places)}
    rows = [place[name] for name in pool.x.names]
    ordered = dataclasses.replace(
        listing,
        file_names=[listing.file_names[i] for i in rows],
        categories=[listing.categories[i] for i in rows],
        read=lambda i: listing.read(rows[i]),
    )
    builder = _builder_class()(listing=ordered, data_dir=os.fspath(data_dir))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_path)


def list_prepared(path: str | os.PathLike) -> Listing:
    """Lists a data set that `prepare` wrote; for its folder or the folder of one version inside.

    Raises:
      ValueError: if TFDS prepared it with other features than `prepare` does, or its files are damaged.
    """
    tfds = _tfds()
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
    rows = [source[i] for i in range(len(source))]
    names = builder.info.features["label"].names
    metadata = builder.info.metadata or {}
    return Listing(
        name=metadata.get("name") or folder.parent.name,
        domain=metadata.get("domain"),
        place=folder,
        file_names=[row["file_name"].decode() for row in rows],
        categories=[names[row["label"]] for row in rows],
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
