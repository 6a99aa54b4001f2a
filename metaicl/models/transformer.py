# SPDX-License-Identifier: Apache-2.0
"""A pre-norm Transformer encoder whose context can be cached.

One set of weights, two ways to use it: `context` reads tokens that see each other (as `visible` allows) and
returns the keys and values of every layer; `extend` reads further tokens, each of which sees the cached
context and itself only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.pointwise import LayerNorm, gelu

# Finite: a row that sees nothing gives a mean, never NaN; every caller lets a token see itself.
_MASKED = -1e9


class Transformer(NamedTuple):
    """Pure functions of one Transformer; T tokens of width D, L layers, H heads.

    Attributes:
      init: `(key) -> params`.
      context: `(params, tokens [..., T, D], visible [T, T] or [..., 1, T, T], bias, every) -> (outputs, cache)`.
        `bias` is None or `[L, H, T, T]`, added to the attention logits. `every` (1) asks for the outputs of the first
        token and every so many after it; the cache is of all.
      extend: `(params, tokens [Q, D], cache, visible [T]) -> outputs [Q, D]`.
    """

    init: Callable[[jax.Array], Any]
    context: Callable[..., Any]
    extend: Callable[..., jax.Array]


def make_transformer(
    *, width: int, layers: int, heads: int, mlp: int, dtype: str = "float32", remat: bool = False
) -> Transformer:
    """Builds the encoder: pre-norm blocks, GELU, LayerNorm epsilon 1e-6, final LayerNorm, no position code.

    Raises:
      ValueError: if `heads` does not divide `width`.
    """
    if width % heads:
        raise ValueError(f"Transformer width {width} is not divisible by {heads} heads.")
    module = _Encoder(width, layers, heads, mlp, jnp.dtype(dtype), remat)

    def init(key):
        return module.init(key, jnp.zeros((1, width)), jnp.ones((1, 1), bool), None, 1)["params"]

    def context(params, tokens, visible, bias=None, every=1):
        return module.apply({"params": params}, tokens, visible, bias, every)

    def extend(params, tokens, cache, visible):
        return module.apply({"params": params}, tokens, cache, visible, method="extend")

    return Transformer(init, context, extend)


def attention(q, k, v, visible, bias=None, drop=lambda weights: weights):
    """`q, k, v [..., T, H, d]`; `visible`, `bias` broadcastable to `[..., H, T, T]` -> `[..., T, H, d]`.

    `drop` is applied to the weights of attention.
    """
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    logits = logits.astype(jnp.promote_types(q.dtype, jnp.float32))
    if bias is not None:
        logits = logits + _to_rank(bias, logits.ndim)
    logits = jnp.where(_to_rank(visible, logits.ndim), logits, _MASKED)
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(q.dtype))
    return jnp.einsum("...hqk,...khd->...qhd", weights, v)


def attention_to_context_and_self(q, k, v, context_k, context_v, visible):
    """Every row sees the context and itself: `q, k, v [Q, H, d]`, context `[T, H, d]`, `visible [T]`."""
    scale = jnp.sqrt(q.shape[-1]).astype(q.dtype)
    logits = jnp.einsum("qhd,khd->hqk", q, context_k) / scale  # [H, Q, T]
    own = jnp.einsum("qhd,qhd->hq", q, k)[..., None] / scale  # [H, Q, 1]
    logits = jnp.concatenate([jnp.where(visible[None, None, :], logits, _MASKED), own], axis=-1)
    weights = jax.nn.softmax(logits.astype(jnp.promote_types(q.dtype, jnp.float32)), axis=-1).astype(q.dtype)
    mixed = jnp.einsum("hqk,khd->qhd", weights[..., :-1], context_v)
    return mixed + jnp.einsum("hq,qhd->qhd", weights[..., -1], v)


def _to_rank(x, rank):
    """Puts axes of size 1 in front until there are `rank` of them."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


class _QueryKeyValue(nn.Module):
    """Three projections whose kernels lie side by side, as in torch's `nn.MultiheadAttention`."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, every=1):
        """Queries of every so many rows, keys and values of all: `[..., T, D]` -> each `[..., T, H, d]`.

        The kernels are taken apart rather than the result: they are small, and so is what their gradients need.
        """
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, 3 * width)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * width,)).astype(self.dtype)

        def project(number, x):
            part = slice(number * width, (number + 1) * width)
            return _apart(x @ kernel[:, part] + _to_rank(bias[part], x.ndim), self.heads)

        return project(0, x[..., ::every, :]), project(1, x), project(2, x)


def _apart(x, heads):
    """`[..., D]` -> `[..., H, d]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class _Block(nn.Module):
    """One pre-norm block. Initialised as torch's `nn.MultiheadAttention` and torchvision's `MLPBlock`."""

    width: int
    heads: int
    mlp: int
    dtype: Any

    def setup(self):
        xavier = nn.initializers.xavier_uniform()
        like_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        small = nn.initializers.normal(1e-6)
        dense = lambda n, **kw: nn.Dense(n, dtype=self.dtype, **kw)
        self.norm_1 = LayerNorm(1e-6, self.dtype)
        self.qkv = _QueryKeyValue(self.heads, self.dtype)
        self.out = dense(self.width, kernel_init=like_linear)
        self.norm_2 = LayerNorm(1e-6, self.dtype)
        self.mlp_in = dense(self.mlp, kernel_init=xavier, bias_init=small)
        self.mlp_out = dense(self.width, kernel_init=xavier, bias_init=small)

    def _finish(self, x, mixed):
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.mlp_out(gelu(self.mlp_in(self.norm_2(x))))

    def __call__(self, x, visible, bias, every):
        q, k, v = self.qkv(self.norm_1(x), every)
        return self._finish(x[..., ::every, :], attention(q, k, v, visible, bias)), (k, v)

    def extend(self, x, cache, visible):
        q, k, v = self.qkv(self.norm_1(x))
        return self._finish(x, attention_to_context_and_self(q, k, v, cache[0], cache[1], visible))


class _Encoder(nn.Module):
    width: int
    layers: int
    heads: int
    mlp: int
    dtype: Any
    remat: bool

    def setup(self):
        block = nn.remat(_Block, static_argnums=(4,)) if self.remat else _Block
        self.blocks = [block(self.width, self.heads, self.mlp, self.dtype) for _ in range(self.layers)]
        self.norm = LayerNorm(1e-6, self.dtype)

    def __call__(self, x, visible, bias, every):
        x, cache = x.astype(self.dtype), []
        for i, block in enumerate(self.blocks):
            biased = None if bias is None else bias[i]
            if every == 1 or i + 1 < self.layers:
                x, keys_values = block(x, visible, biased, 1)
            else:  # of the last block only these rows are asked for
                seen = visible if visible.shape[-2] == 1 else visible[..., ::every, :]
                biased = None if biased is None else biased[..., ::every, :]
                x, keys_values = block(x, seen, biased, every)
            cache.append(keys_values)
        return self.norm(x), tuple(cache)

    def extend(self, x, cache, visible):
        x = x.astype(self.dtype)
        for block, keys_values in zip(self.blocks, cache, strict=True):
            x = block.extend(x, keys_values, visible)
        return self.norm(x)
