# SPDX-License-Identifier: Apache-2.0
"""The 1,000 classes that backbones pretrained on ImageNet have seen, and which classes of a data set are among them.

The list beside this file has a line for each class: its WordNet number and its names (ILSVRC 2012; Russakovsky et al.,
ImageNet Large Scale Visual Recognition Challenge, IJCV 2015).
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Sequence

from metaicl.data.pooling import plain

_LIST = pathlib.Path(__file__).with_name("imagenet_classes.txt")
_NUMBER = re.compile(r"\bn\d{8}\b")


@functools.cache
def imagenet_classes() -> dict[str, tuple[str, ...]]:
    """The names of each class, by WordNet number: `{"n01440764": ("tench", "Tinca tinca"), ...}`."""
    lines = _LIST.read_text().splitlines()
    return {number: tuple(names.split(", ")) for number, _, names in (line.partition(" ") for line in lines)}


def in_imagenet(name: str) -> bool:
    """Whether a class is one of ImageNet's 1,000: by a WordNet number in its name, else by the name itself.

    Capitals, `_` and `-` do not matter. A name that means something else there (a crane that is a bird) counts, a kind
    of what is there under another name (`rose` for no flower of ImageNet) does not.
    """
    numbers = _NUMBER.findall(name)
    return any(n in imagenet_classes() for n in numbers) if numbers else plain(name) in _names()


def class_overlap(classes: Sequence[str]) -> float:
    """The share of classes that ImageNet's 1,000 have too, of 0 to 1.

    Raises:
      ValueError: if there is no class.
    """
    if not classes:
        raise ValueError("There is no class whose overlap could be told.")
    return sum(map(in_imagenet, classes)) / len(classes)


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(plain(name) for names in imagenet_classes().values() for name in names)
