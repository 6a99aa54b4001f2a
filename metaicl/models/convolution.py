# SPDX-License-Identifier: Apache-2.0
"""Convolutional encoders, with convolutions that stay fast when the weights carry a task axis."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models import bilinear
from metaicl.models.bilinear import settled

GROUPS = 8  # channels are normalised in up to this many groups
_EPSILON = 1e-5
_MONOTONE = ("relu", "leaky_relu", "tanh", "sigmoid", "softplus")  # rising functions


def conv3x3(x: jax.Array, kernel: jax.Array, stride: int, task_batched: bool) -> jax.Array:
    """A 3 x 3 convolution with SAME padding: `[n, h, w, c]`, kernel `[3, 3, c, f]` -> `[n, h', w', f]`.

    `vmap` over the kernel turns `lax.conv` into a grouped convolution, which is several times slower than the
    forms that `task_batched` chooses: `bilinear.conv` with stride 1, and a matrix product of patches otherwise.
    """
    if not task_batched:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if stride == 1:
        return bilinear.conv(x, kernel)
    h, w = x.shape[1:3]
    out_h, out_w = -(-h // stride), -(-w // stride)
    # SAME puts the smaller half of the padding in front, as lax.conv does.
    pad_h, pad_w = (max((o - 1) * stride + 3 - n, 0) for o, n in ((out_h, h), (out_w, w)))
    x = jnp.pad(x, ((0, 0), (pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0)))
    rows, columns = (out_h - 1) * stride + 1, (out_w - 1) * stride + 1
    patches = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class ConvStack(nn.Module):
    """Convolution, normalisation, activation, halving; once per entry of `filters`."""

    filters: tuple[int, ...]
    downsample: str
    pool: str
    norm: str
    activation: str
    task_batched: bool
    adapters: bool
    kernel_init: str
    dtype: Any

    @nn.compact
    def __call__(self, x, mask):
        """`float [n, h, w, c]`, mask `[n]` -> `[n, D]`."""
        x = x.astype(self.dtype)
        for i, features in enumerate(self.filters):
            initializer = getattr(nn.initializers, self.kernel_init)()
            kernel = self.param(f"kernel_{i}", initializer, (3, 3, x.shape[-1], features), jnp.float32)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (features,), jnp.float32)
            stride = 2 if self.downsample == "stride" else 1
            x = conv3x3(x, kernel.astype(self.dtype), stride, self.task_batched)
            if self.norm != "batch":  # batch norm subtracts every constant again
                x = x + bias.astype(self.dtype)[None, None, None, :]
            if self.adapters:
                adapter = self.param(f"adapter_{i}", nn.initializers.zeros, (features, features), jnp.float32)
                x = x + x @ adapter.astype(self.dtype)
            x = self._normalized_and_halved(i, x, mask)
        n, h, w, c = x.shape
        return jnp.mean(x, axis=(1, 2)) if self.pool == "mean" else x.reshape(n, h * w * c)

    def _normalized_and_halved(self, i, x, mask):
        activation = getattr(nn, self.activation)
        if self.norm == "none":
            return self._halved(activation(x))
        channels = x.shape[-1]
        scale = self.param(f"scale_{i}", nn.initializers.ones, (channels,), jnp.float32)
        offset = self.param(f"offset_{i}", nn.initializers.zeros, (channels,), jnp.float32)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.norm == "group":
            y = group_normalized(y) * scale[None, None, None, :] + offset[None, None, None, :]
            return self._halved(activation(y.astype(self.dtype)))
        slope, shift = batch_affine(y, mask, scale, offset)
        if self.activation not in _MONOTONE:
            y = y * slope[None, None, None, :] + shift[None, None, None, :]
            return self._halved(activation(y.astype(self.dtype)))
        # The largest of four rising functions is that of the largest, and of falling ones that of the smallest:
        # a quarter of the elements to normalise.
        sign = settled(jax.lax.stop_gradient(jnp.where(slope < 0, -1.0, 1.0).astype(y.dtype)))
        y = settled(self._halved(y * sign[None, None, None, :])) * sign[None, None, None, :]
        y = y * slope[None, None, None, :] + shift[None, None, None, :]
        return activation(y.astype(self.dtype))

    def _halved(self, x):
        if self.downsample == "stride":
            return x
        return halved_by_max(x, keep_border=self.downsample == "max_pool_same")


def batch_affine(
    x: jax.Array, mask: jax.Array, scale: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Slope and shift, `[c]` each, that normalise `x [n, h, w, c]` over the rows of `mask [n]` and all positions."""
    weight = mask / jnp.maximum(jnp.sum(mask), 1.0) / (x.shape[1] * x.shape[2])
    mean, variance = moments(x, weight)
    slope = scale * jax.lax.rsqrt(variance + _EPSILON)
    return settled(slope), settled(offset - mean * slope)


@jax.custom_jvp
def moments(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every channel, rows weighted: `[n, h, w, c]`, `[n]` -> `[c]`, `[c]`.

    The variance has no derivative through its mean, which autodiff does not know and would sum up.
    """
    mean = _weighted_sum(x, weight)
    centred = x - mean[None, None, None, :]
    return mean, _weighted_sum(centred * centred, weight)


@moments.defjvp
def _moments_jvp(primals, tangents):
    (x, weight), (x_dot, weight_dot) = primals, tangents
    mean, variance = moments(x, weight)
    centred = x - mean[None, None, None, :]
    mean_dot = _weighted_sum(x_dot, weight) + _weighted_sum(x, weight_dot)
    variance_dot = 2 * _weighted_sum(centred * x_dot, weight) + _weighted_sum(centred * centred, weight_dot)
    return (mean, variance), (mean_dot, variance_dot)


def _weighted_sum(x, weight):  # [n, h, w, c], [n] -> [c]
    return weight @ jnp.sum(x, axis=(1, 2))


def group_normalized(x: jax.Array) -> jax.Array:
    """Normalises groups of channels of every row (Wu and He 2018): `[n, h, w, c]`.

    Moments are summed over positions, and then over the channels of a group by a product with a small matrix: on a
    CPU the derivative of this is twice as fast as that of a reduction over a reshaped array.
    """
    n, h, w, c = x.shape
    groups = next(g for g in range(min(GROUPS, c), 0, -1) if c % g == 0)
    member = jnp.repeat(jnp.eye(groups, dtype=x.dtype), c // groups, axis=0)  # [c, groups]
    mean_of_group = member @ member.T / (h * w * c // groups)  # [c, c]
    rows = x.reshape(n, h * w, c)
    centred = rows - (jnp.sum(rows, axis=1) @ mean_of_group)[:, None, :]
    variance = jnp.sum(centred * centred, axis=1) @ mean_of_group
    return (centred * jax.lax.rsqrt(variance + _EPSILON)[:, None, :]).reshape(x.shape)


def halved_by_max(x: jax.Array, keep_border: bool = False) -> jax.Array:
    """2 x 2 maximum with stride 2: `[n, h, w, c]`; of equal entries the first has the derivative.

    An odd border is dropped (VALID padding), or with `keep_border` a window of its own (SAME padding).
    """
    if keep_border:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    h, w = x.shape[1:3]
    if h < 2 or w < 2:
        return x
    return _block_max(x[:, : h // 2 * 2, : w // 2 * 2])


@jax.custom_jvp
def _block_max(x):
    a, b, c, d = bilinear.quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@_block_max.defjvp
def _block_max_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    a, b, c, d = bilinear.quarters(x)
    above, below = (b > a).astype(jnp.int8), (d > c).astype(jnp.int8) + jnp.int8(2)
    index = settled(jnp.where(jnp.maximum(c, d) > jnp.maximum(a, b), below, above))
    return _block_max(x), bilinear.kept(index, x_dot)
