# SPDX-License-Identifier: Apache-2.0
"""ResNet-18, 34 and 50 without their classifier (He et al., arXiv 1512.03385), as PyTorch computes them.

ResNet-50 is "v1.5": its bottlenecks stride in the 3 x 3 convolution, not in the first 1 x 1 one. Batch normalisation
goes by fixed statistics, and so is an affine map of each channel: parameters are its slope (`scale`) and offset
(`bias`), see `resnet_weights.py` for how they follow from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.squeezenet import Backbone

# Bump when the same bytes of an image would give other features: caches of features are keyed by it.
PREPROCESSING = "rgb-unit-imagenet-mean-std-v1"

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB from 0 to 1
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # by depth: blocks of the four layers
_PIECE = 4  # images at a time on a CPU
_CHANNELS = (64, 128, 256, 512)
_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class _ConvNorm(nn.Module):
    """A convolution without bias and the affine map behind it: `[n, h, w, c] -> [n, h / stride, w / stride, C]`.

    The slope multiplies the kernel, which is smaller than the images are, and the offset is left to be added.
    """

    channels: int
    size: int
    stride: int
    dtype: Any
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", _FAN_OUT, shape)
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        folded = (kernel * scale[None, None, None, :]).astype(self.dtype)
        return _convolved(x, folded, self.stride) + bias.astype(self.dtype)[None, None, None, :]


def _convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution with a border of half the kernel. Of 1 x 1 a matrix product, which XLA does faster on CPUs."""
    size = kernel.shape[0]
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    border = (size // 2, size // 2)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (border, border), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _halved_by_max(x: jax.Array, axis: int) -> jax.Array:
    """The largest of three along an axis, at every other place, with a border of one; of x that is at least 0.

    The border may be of zeros then. Slices are several times as fast as a pooling on CPUs.
    """
    last = x.shape[axis] - 1 - (x.shape[axis] - 1) % 2
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    bordered = jnp.pad(x, padding)
    a, b, c = (jax.lax.slice_in_dim(bordered, i, i + last + 1, 2, axis) for i in range(3))
    return jnp.maximum(jnp.maximum(a, b), c)


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or with `bottleneck` 1 x 1, 3 x 3 and 1 x 1 to four times as many.

    At random weights the residual branch starts at zero, without which activations would grow from block to block:
    there is no batch to normalise by (De and Smith, arXiv 2002.10444).
    """

    channels: int
    stride: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = self.channels * (4 if self.bottleneck else 1)
        conv = lambda name, channels, size, stride, scale=1.0: _ConvNorm(
            channels, size, stride, self.dtype, scale, name=name
        )
        if self.bottleneck:
            y = nn.relu(conv("conv1", self.channels, 1, 1)(x))
            y = nn.relu(conv("conv2", self.channels, 3, self.stride)(y))
            y = conv("conv3", wide, 1, 1, 0.0)(y)
        else:
            y = nn.relu(conv("conv1", self.channels, 3, self.stride)(x))
            y = conv("conv2", wide, 3, 1, 0.0)(y)
        if self.stride != 1 or x.shape[-1] != wide:
            x = conv("downsample", wide, 1, self.stride)(x)
        return nn.relu(x + y)


class _ResNet(nn.Module):
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """All stages by name, `features [n, width]` last; those that nobody uses cost nothing under jit."""
        mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, 3) for v in (_MEAN, _STD))
        x = ((x.astype(jnp.float32) / 255 - mean) / std).astype(self.dtype)
        x = nn.relu(_ConvNorm(64, 7, 2, self.dtype, name="conv1")(x))
        x = _halved_by_max(_halved_by_max(x, 1), 2)
        stages = {"stem": x}
        for layer, (blocks, channels) in enumerate(zip(BLOCKS[self.depth], _CHANNELS, strict=True), 1):
            for block in range(blocks):
                stride = 2 if layer > 1 and block == 0 else 1
                name = f"layer{layer}_{block}"
                x = _Block(channels, stride, self.depth >= 50, self.dtype, name=name)(x)
            stages[f"layer{layer}"] = x
        return stages | {"features": x.astype(jnp.float32).mean(axis=(1, 2))}


def stages(depth: int, params: Any, x: jax.Array, dtype: str = "float32") -> dict[str, jax.Array]:
    """Activations of every stage by name (`stem`, `layer1` to `layer4`, `features`).

    Args:
      depth: 18, 34 or 50.
      params: of `resnet(depth)`.
      x: RGB from 0 to 255, uint8 or float `[n, h, w, 3]`.
      dtype: that the convolutions compute in. The features are float32 all the same.

    Raises:
      ValueError: for images of fewer than 32 pixels a side.
    """
    if x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < 32:
        raise ValueError(f"ResNet-{depth} takes RGB [n, h, w, 3] of at least 32 x 32 pixels, got {x.shape}.")
    found: Any = _ResNet(depth, jnp.dtype(dtype)).apply({"params": params}, x)
    return found


def width_of(depth: int) -> int:
    """Number of features: 512 of ResNet-18 and 34, 2048 of ResNet-50."""
    return _CHANNELS[-1] * (4 if depth >= 50 else 1)


def _in_pieces(features: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`features` of a few images at a time, whose activations stay in a CPU's cache."""
    whole = len(x) - len(x) % _PIECE
    if not whole:
        return features(x)
    found = jax.lax.map(features, x[:whole].reshape(-1, _PIECE, *x.shape[1:]))
    found = found.reshape(whole, found.shape[-1])
    return found if whole == len(x) else jnp.concatenate([found, features(x[whole:])])


def resnet(depth: int, dtype: str = "float32") -> Backbone:
    """ResNet-18, 34 or 50 up to the global average: images to 512 or 2048 features, all of them at least 0.

    Raises:
      ValueError: for another depth.
    """
    if depth not in BLOCKS:
        raise ValueError(
            f"There is no ResNet of depth {depth!r} here; use one of {', '.join(map(str, BLOCKS))}."
        )
    module = _ResNet(depth, jnp.dtype(dtype))
    features = lambda params, x: stages(depth, params, x, dtype)["features"]
    return Backbone(
        init=lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)))["params"],
        apply=lambda params, x: jax.lax.platform_dependent(
            params,
            x,
            cpu=lambda params, x: _in_pieces(lambda part: features(params, part), x),
            default=features,
        ),
        width=width_of(depth),
        preprocessing=PREPROCESSING + ("" if dtype == "float32" else f"-{dtype}"),
    )
