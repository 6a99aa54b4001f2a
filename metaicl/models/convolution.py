# SPDX-License-Identifier: Apache-2.0
"""Convolutional encoders, with convolutions that stay fast when the weights carry a task axis."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

GROUPS = 8  # channels are normalised in up to this many groups
_EPSILON = 1e-5


def conv3x3(x: jax.Array, kernel: jax.Array, stride: int, as_matmul: bool) -> jax.Array:
    """A 3 x 3 convolution with SAME padding: `[n, h, w, c]`, kernel `[3, 3, c, f]` -> `[n, h', w', f]`.

    `vmap` over the kernel turns `lax.conv` into a grouped convolution, which is several times slower than
    the matrix product of patches on every backend measured; `as_matmul` chooses the latter.
    """
    if not as_matmul:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
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
    as_matmul: bool
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
            x = conv3x3(x, kernel.astype(self.dtype), stride, self.as_matmul)
            x = x + bias.astype(self.dtype)[None, None, None, :]
            if self.adapters:
                adapter = self.param(f"adapter_{i}", nn.initializers.zeros, (features, features), jnp.float32)
                x = x + x @ adapter.astype(self.dtype)
            x = self._normalized(i, x, mask)
            x = getattr(nn, self.activation)(x)
            if self.downsample != "stride":
                x = halved_by_max(x, keep_border=self.downsample == "max_pool_same")
        n, h, w, c = x.shape
        return jnp.mean(x, axis=(1, 2)) if self.pool == "mean" else x.reshape(n, h * w * c)

    def _normalized(self, i, x, mask):
        if self.norm == "none":
            return x
        channels = x.shape[-1]
        scale = self.param(f"scale_{i}", nn.initializers.ones, (channels,), jnp.float32)
        offset = self.param(f"offset_{i}", nn.initializers.zeros, (channels,), jnp.float32)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = batch_normalized(y, mask) if self.norm == "batch" else group_normalized(y)
        return (y * scale[None, None, None, :] + offset[None, None, None, :]).astype(self.dtype)


def batch_normalized(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Normalises every channel over the real rows and all positions: `[n, h, w, c]`, mask `[n]`."""
    weight = (mask / jnp.maximum(jnp.sum(mask), 1.0))[:, None, None, None] / (x.shape[1] * x.shape[2])
    mean = jnp.sum(x * weight, axis=(0, 1, 2), keepdims=True)
    variance = jnp.sum((x - mean) ** 2 * weight, axis=(0, 1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + _EPSILON)


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
    """2 x 2 maximum with stride 2, as array operations (fast second derivatives): `[n, h, w, c]`.

    An odd border is dropped (VALID padding), or with `keep_border` a window of its own (SAME padding).
    """
    n, h, w, c = x.shape
    if keep_border:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        n, h, w, c = x.shape
    if h < 2 or w < 2:
        return x
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return jnp.max(x, axis=(2, 4))
