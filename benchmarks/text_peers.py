# SPDX-License-Identifier: Apache-2.0
"""BERT in PyTorch as a function of its weights, for the MAML of `maml_peers`.

Weights are a flat dictionary of tensors under our paths (`encoder/layer_0/query/kernel`), kernels as we keep them,
`[in, out]`: `to_torch` and `to_jax` are then no more than renaming.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.maml_peers import Forward, Tasks, Tensors
from metaicl.models.bert import BertShape


def to_torch(params: dict[str, Any]) -> Tensors:
    """Our weights as tensors."""
    flat = flatten_dict(params, sep="/")
    return {name: torch.from_numpy(np.array(value)) for name, value in flat.items()}


def to_jax(weights: Tensors) -> dict[str, Any]:
    """The inverse of `to_torch`, as NumPy arrays."""
    return unflatten_dict({name: w.detach().numpy() for name, w in weights.items()}, sep="/")


def tasks_to_torch(episodes) -> Tasks:
    """Our batch of episodes of token ids `int32 [B, n, T]`."""
    whole = lambda a: torch.from_numpy(np.array(a)).long()
    support, query = episodes.support, episodes.query
    return Tasks(whole(support.x), whole(support.y), whole(query.x), whole(query.y))


def classifier(shape: BertShape, attention: str, second: bool) -> Forward:
    """`(weights, ids [n, T]) -> [n, N]`: BERT, the mean over real tokens, and the head.

    Args:
      shape: of the network; its activation is the exact GELU.
      attention: `by_hand`, its two products and the softmax, or `fused`, PyTorch's own function.
      second: whether the result is differentiated twice, which of the fused kernels only the one called "math" can.
    """
    if attention not in ("by_hand", "fused") or shape.activation != "gelu":
        raise ValueError(f"There is no {attention!r} attention or activation {shape.activation!r} here.")
    mix = _by_hand if attention == "by_hand" else functools.partial(_fused, second)

    def forward(weights, ids):
        real = ids != shape.padding
        x = _embedded(weights, ids, shape)
        for i in range(shape.layers):
            x = _layer(weights, f"encoder/layer_{i}", x, real, shape, mix)
        kept = real.to(x.dtype)[..., None]
        vectors = (x * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        return _dense(weights, "head", vectors)

    return forward


def _dense(weights, name, x):
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def _norm(weights, name, x, shape):
    scale, bias = weights[f"{name}/scale"], weights[f"{name}/bias"]
    return F.layer_norm(x, (shape.width,), scale, bias, shape.epsilon)


def _embedded(weights, ids, shape):
    table = lambda name: weights[f"encoder/embeddings/{name}/embedding"]
    x = F.embedding(ids, table("word")) + table("position")[: ids.shape[1]] + table("type")[0]
    return _norm(weights, "encoder/embeddings/norm", x, shape)


def _layer(weights, name, x, real, shape, mix):
    dense = lambda part, x: _dense(weights, f"{name}/{part}", x)
    norm = lambda part, x: _norm(weights, f"{name}/{part}", x, shape)
    apart = lambda x: x.unflatten(-1, (shape.heads, shape.width // shape.heads)).transpose(1, 2)
    mixed = mix(*(apart(dense(part, x)) for part in ("query", "key", "value")), real[:, None, None, :])
    x = norm("attention_norm", x + dense("attention_out", mixed.transpose(1, 2).flatten(2)))
    inner = F.gelu(dense("feed_forward_in", x))
    return norm("output_norm", x + dense("feed_forward_out", inner))


def _by_hand(q, k, v, visible):
    logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return logits.masked_fill(~visible, torch.finfo(q.dtype).min).softmax(-1) @ v


def _fused(second, q, k, v, visible):
    if not second:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
