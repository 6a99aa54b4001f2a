# SPDX-License-Identifier: Apache-2.0
"""The frozen backbones that `data.backbone` of a config may name: their networks, weights and features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from metaicl.configuration import ConfigError
from metaicl.data.pool import Pool
from metaicl.experiment.progress import ProgressBar, cache_folder
from metaicl.models.resnet import resnet
from metaicl.models.resnet_weights import load_resnet, where_to_get
from metaicl.models.small_resnet import load_small_resnet, small_resnet
from metaicl.models.squeezenet import Backbone, load_squeezenet, squeezenet


class Pretrained(NamedTuple):
    """A kind of backbone.

    Attributes:
      network: makes it.
      load: `(path) -> params`, from a file of weights.
      needs: what to do where no weights are given; "" where that is right.
    """

    network: Callable[[], Backbone]
    load: Callable[[str], Any]
    needs: str = ""


def _resnet(depth: int) -> Pretrained:
    return Pretrained(lambda: resnet(depth), lambda path: load_resnet(depth, path), where_to_get(depth))


def _untrained(weights: str) -> Any:
    """Random parameters of the network of formulas, to compare with."""
    if weights:
        raise ConfigError(
            "The backbone 'untrained' has random weights: leave weights away, or take 'formulas'."
        )
    return jax.jit(small_resnet().init)(jax.random.key(0))


# How large the images are that each is given by default: `defaults.image_size`.
BACKBONES = {
    "formulas": Pretrained(small_resnet, load_small_resnet),
    "untrained": Pretrained(small_resnet, _untrained),
    "squeezenet": Pretrained(squeezenet, load_squeezenet, "give weights=PATH.safetensors"),
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
}


def load_backbone(data) -> tuple[Backbone, Any] | None:
    """The backbone of a config's `data` and its parameters, or None; opens no image.

    Raises:
      ConfigError, FileNotFoundError, ValueError: for an unknown backbone, weights that are not there or do not fit,
        and images too small for it.
    """
    if data.backbone == "none":
        return None
    if data.backbone not in BACKBONES:
        raise ConfigError(f"data.backbone is {data.backbone!r}; there are none, {', '.join(BACKBONES)}.")
    kind = BACKBONES[data.backbone]
    if kind.needs and not data.weights:
        raise ConfigError(f"The backbone {data.backbone!r} needs its pretrained weights: {kind.needs}.")
    network, params = kind.network(), kind.load(data.weights)
    one_image = jax.ShapeDtypeStruct((1, data.image_size, data.image_size, 3), np.uint8)
    jax.eval_shape(network.apply, params, one_image)
    return network, params


def features(pools: list[Pool], data, frozen: tuple[Backbone, Any]) -> list[Pool]:
    """The pools with the features of a backbone from `load_backbone`, which the cache keeps."""
    from metaicl.features.cache import embed_pools

    network, params = frozen
    with ProgressBar("features") as bar:
        return embed_pools(
            pools,
            network,
            params,
            cache_dir=cache_folder(data.cache) / "features",
            backbone_name=data.backbone,
            progress=lambda name, done, total: bar(f"embedding {name}", done, total),
        )
