# SPDX-License-Identifier: Apache-2.0
"""Residual networks and SqueezeNet as encoders that are trained: `[n, h, w, 3]` of 0..255 to features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metaicl.models import resnet as resnets
from metaicl.models import resnet_weights
from metaicl.models import small_resnet as residual_network
from metaicl.models.network import Network, Normalization, normalized
from metaicl.models.squeezenet import load_squeezenet, squeezenet


def squeezenet_encoder(
    x_shape, *, dtype, task_batched, weights: str = "", normalize: Normalization = "none"
) -> Network:
    """SqueezeNet 1.1 up to its global average, to be trained on: `[n, h, w, 3]` of 0..255 to `[n, 512]`.

    It starts from the pretrained `weights` (a safetensors file), or at random if none are given. The features are
    normalised as those of `identity`, so that `normalize="sqrt_unit"` starts where frozen features do.
    """
    del task_batched
    if dtype != "float32":
        raise ValueError(f"Encoder 'squeezenet' computes in float32, not in {dtype}.")
    net = squeezenet()
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    jax.eval_shape(net.apply, shapes, jnp.zeros((1, *x_shape), jnp.uint8))  # refuses what are no such images

    def init(key):
        return load_squeezenet(weights) if weights else net.init(key)

    def apply(params, x, mask):
        del mask
        return normalized(net.apply(params, x), normalize)

    return Network(init, apply, net.width)


def resnet(
    x_shape,
    *,
    dtype,
    task_batched,
    depth: int = 50,
    weights: str = "",
    normalize: Normalization = "none",
) -> Network:
    """ResNet-18, 34 or 50 up to its global average, trained end to end: `[n, h, w, 3]` of 0..255 to `[n, D]`.

    Batch normalisation stays at the running statistics of the file: slope and offset of every channel are trained,
    and no item depends on the others. Without weights it starts at random, the residual branches at zero.

    Args:
      x_shape, dtype, task_batched: see `make_encoder`.
      depth: 18 and 34 have 512 features, 50 has 2048.
      weights: a file, folder or hub name, see `resnet_weights`; empty for random weights.
      normalize: of the features, see `identity`.
    """
    del task_batched  # its convolutions of 1 x 1 are matrix products as it is
    net = resnets.resnet(depth, dtype)
    features = lambda params, x: resnets.stages(depth, params, x, dtype)["features"]
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    jax.eval_shape(features, shapes, jnp.zeros((1, *x_shape), jnp.uint8))  # refuses what are no such images
    init = (lambda key: resnet_weights.pretrained(depth, weights)) if weights else net.init
    return Network(init, lambda params, x, mask: normalized(features(params, x), normalize), net.width)


def small_resnet(
    x_shape,
    *,
    dtype,
    task_batched,
    widths: Sequence[int] = residual_network.Size().widths,
    blocks: Sequence[int] = residual_network.Size().blocks,
    pooled: int = 1,
    weights: str = "",
    normalize: Normalization = "none",
) -> Network:
    """A small residual network with group normalisation, of `[n, h, w, 3]` of 0..255; see `models.small_resnet`.

    `widths` and `blocks` are those of its stages; the features are the averages of the last `pooled` of them. It
    starts at random, or from `weights`: a safetensors file, or `package` for the weights that come with it.
    """
    size = residual_network.Size(tuple(widths), tuple(blocks), pooled)
    if len(size.widths) != len(size.blocks) or not 1 <= pooled <= len(size.widths):
        raise ValueError(
            f"Encoder 'small_resnet': widths {size.widths}, blocks {size.blocks} and pooled={pooled} do not fit: "
            "give one number of blocks for each width, and pool at most as many stages."
        )

    def apply(params, x, mask):
        del mask
        return normalized(residual_network.features(params, x, size, task_batched, dtype), normalize)

    def init(key):
        if weights:
            return residual_network.load_small_resnet("" if weights == "package" else weights)
        return residual_network.init(key, size)

    shapes = jax.eval_shape(lambda key: residual_network.init(key, size), jax.random.key(0))
    jax.eval_shape(
        apply, shapes, jnp.zeros((1, *x_shape), jnp.uint8), jnp.ones(1)
    )  # refuses what is no such image
    return Network(init, apply, size.features)
