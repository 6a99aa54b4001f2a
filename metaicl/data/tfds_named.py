# SPDX-License-Identifier: Apache-2.0
"""Any data set of TFDS's catalogue that has labelled images, listed as the data sets of an album are."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from metaicl.data.listing import Listing
from metaicl.data.tfds_album import import_tfds

_ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}  # by how a file begins


def list_named(name: str, data_dir: str | os.PathLike) -> Listing:
    """Downloads and prepares data set `name` of TFDS and lists its labelled images, of all its splits.

    Images are those of the feature that is the supervised input (or the only image), classes those of the class
    label beside it. Items without a label, as test splits may have, are left out with a remark.

    Args:
      name: as in `tfds.load`: `NAME`, `NAME/CONFIG` or `NAME/CONFIG:VERSION`.
      data_dir: where TFDS keeps what it downloads and prepares.

    Raises:
      ValueError: if TFDS has no such data set, it is not one of labelled images, or preparing it takes
        TensorFlow, which is not there.
    """
    tfds = import_tfds()
    builder = _builder(tfds, name, data_dir)
    image, label = _features(tfds, name, builder.info)
    _prepare(tfds, name, builder)
    file_names, categories, places = [], [], []
    unlabelled = 0
    classes = builder.info.features[label].names
    for split in sorted(builder.info.splits):
        source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
        for i in range(len(source)):
            item = source[i]
            if item[label] < 0:
                unlabelled += 1
                continue
            ending = next((e for start, e in _ENDINGS.items() if item[image].startswith(start)), ".img")
            file_names.append(f"{split}/{i:07d}{ending}")
            categories.append(classes[item[label]])
            places.append((source, i))
    remarks = [f"left out {unlabelled} items without a label"] if unlabelled else []

    def read(i: int) -> bytes:
        source, row = places[i]
        return source[row][image]

    plain = name.replace("/", "_").replace(":", "_")
    return Listing(plain, None, Path(builder.data_path), file_names, categories, read, remarks)


def _builder(tfds: Any, name: str, data_dir: str | os.PathLike) -> Any:
    try:
        return tfds.builder(name, data_dir=os.fspath(data_dir), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0], known, n=1, cutoff=0.0)
        raise ValueError(
            f"TFDS has no data set {name!r}. Did you mean {near[0]!r}? All of them are listed at "
            "https://www.tensorflow.org/datasets/catalog/overview."
        ) from error
    except ImportError as error:
        raise _needs_more(name, error) from error


def _needs_more(name: str, error: Exception) -> ValueError:
    """Most of TFDS's builders decode or parse with TensorFlow, which is none of our dependencies."""
    missing = getattr(error, "name", None) or "tensorflow"
    return ValueError(
        f"TFDS needs {missing} to prepare {name} ({str(error).splitlines()[0]}). Install it beside metaicl for "
        f"this one command (pip install {missing}); what it writes is read without."
    )


def _features(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    """The names of the image and of its label."""
    features = dict(info.features.items()) if hasattr(info.features, "items") else {}
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if info.supervised_keys and len(info.supervised_keys) == 2:
        image, label = info.supervised_keys
        if image in images and label in labels:
            return image, label
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        f"{name} is no data set of labelled images: it has {len(images)} images and {len(labels)} class labels "
        f"an item, among {', '.join(features) or 'no features'}. Take another, or write class folders and use "
        "`folder PATH`."
    )


def _prepare(tfds: Any, name: str, builder: Any) -> None:
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except ImportError as error:
        raise _needs_more(name, error) from error
