# SPDX-License-Identifier: Apache-2.0
"""BERT as an encoder of sentences: whole, or its upper layers on what its frozen lower ones gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metaicl.models.bert import (
    POOLINGS,
    Bert,
    BertShape,
    hidden_states,
    padded_states,
    pool_states,
    real_tokens,
)
from metaicl.models.bert_weights import pretrained, read_config, weights_folder
from metaicl.models.network import Network, Normalization, normalized


def bert(
    x_shape,
    *,
    dtype,
    task_batched,
    weights: str = "",
    shape: dict | None = None,
    pool: str = "mean",
    normalize: Normalization = "none",
    adapters: int = 0,
    lora: int = 0,
    prompts: int = 0,
    fresh_layers: int = 0,
    frozen_layers: int = 0,
    remat: bool = False,
    dropout: float = 0.0,
) -> Network:
    """A BERT of sentences, pretrained or not; see `bert.Bert` for the architecture.

    Input: token ids `int32 [n, T]`. Padding has an id of its own, so that the attention mask follows from the ids
    and an item stays one array of one dtype. T may be anything up to the positions: no parameter depends on it.
    With `frozen_layers`, what `lower_bert` gives for the ids, `float [n, T, D]`.

    Args:
      x_shape, dtype, task_batched: see `make_encoder`.
      weights: folder or hub name of a Hugging Face model, which then gives the shape; empty for random weights.
      shape: of a network without weights: keyword arguments of `bert.BertShape`.
      pool: the `mean` over the real tokens, the first token (`cls`), or the latter through the `pooler`.
      normalize: of the pooled vector, see `identity`.
      adapters, lora, prompts: width, rank and number a layer of what is added; 0 for none.
      fresh_layers: so many layers from the top start at random all the same.
      frozen_layers: so many layers from the bottom, and the embeddings, are no part of the encoder: their output is
        computed beforehand, once.
      remat: recompute each layer in the backward pass.
      dropout: the share that is dropped in training, see `bert.Bert`; 0.1 in BERT's own.

    Raises:
      ValueError, FileNotFoundError: for settings or weights that do not fit.
    """
    del task_batched
    if pool not in POOLINGS:
        raise ValueError(f"Encoder 'bert': pool is {pool!r}; use one of {', '.join(POOLINGS)}.")
    folder, size = _size(weights, shape, x_shape, frozen_layers)
    if not 0 <= fresh_layers <= size.layers - frozen_layers:
        raise ValueError(
            f"Encoder 'bert': fresh_layers is {fresh_layers}; there are {size.layers} layers, {frozen_layers} of them "
            "frozen."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"Encoder 'bert': dropout is {dropout:g}; it must be at least 0 and below 1.")
    added = (adapters, lora, prompts)
    module = Bert(size, pool == "pooler", *added, jnp.dtype(dtype), remat, dropout, below=frozen_layers)
    fresh = tuple(f"layer_{i}" for i in range(size.layers - fresh_layers, size.layers))

    def noisy(params, x, mask, key):
        del mask
        states, pooled = hidden_states(module, params, x, key)
        if pooled is None:
            pooled = pool_states(states[-1], real_tokens(x, size.padding), pool)
        return normalized(pooled, normalize)

    apply = lambda params, x, mask: noisy(params, x, mask, None)
    return Network(_init(module, folder, fresh), apply, size.width, noisy=noisy if dropout else None)


def lower_bert(layers: int, *, weights: str = "", shape: dict | None = None) -> Network:
    """The embeddings and the lowest `layers` layers of a BERT: token ids `[n, T]` to their states `[n, T, D]`.

    What an encoder `bert` with so many `frozen_layers` takes. Arguments and errors as those of `bert`.
    """
    folder, size = _size(weights, shape, (1,), 0)
    if not 0 < layers < size.layers:
        raise ValueError(
            f"{layers} frozen layers: of this network's {size.layers}, give 1 to {size.layers - 1}."
        )
    module = Bert(size, False, 0, 0, 0, jnp.float32, False, above=size.layers - layers)

    def apply(params, x, mask):
        del mask
        return padded_states(hidden_states(module, params, x)[0][-1], real_tokens(x, size.padding))

    return Network(_init(module, folder, ()), apply, size.width)


def _size(weights: str, shape: dict | None, x_shape: Sequence[int], frozen: int):
    """The folder of the weights, if any, and the shape of the network, which items of `x_shape` have to fit."""
    if weights and shape:
        raise ValueError("Encoder 'bert': the weights give the shape; leave `shape` or `weights` away.")
    folder = weights_folder(weights) if weights else None
    size = read_config(folder)[1] if folder else BertShape(**(shape or {}))
    if not 0 <= frozen < size.layers:
        raise ValueError(f"Encoder 'bert': frozen_layers is {frozen}; give 0 to {size.layers - 1}.")
    if not frozen and len(x_shape) != 1:
        raise ValueError(f"Encoder 'bert' needs token ids [T]; items have shape {tuple(x_shape)}.")
    if frozen and (len(x_shape) != 2 or x_shape[1] != size.width):
        raise ValueError(
            f"Encoder 'bert' with frozen layers needs their states [T, {size.width}]; items have shape "
            f"{tuple(x_shape)}."
        )
    if x_shape[0] > size.positions:
        raise ValueError(f"Sentences of {x_shape[0]} tokens exceed BERT's {size.positions} positions.")
    return folder, size


def _init(module: Bert, folder, fresh: tuple[str, ...]) -> Callable[[jax.Array], Any]:
    item = jnp.zeros((1, 1, module.shape.width)) if module.below else jnp.zeros((1, 1), jnp.int32)

    def init(key):
        params = module.init(key, item)["params"]
        return pretrained(params, folder, fresh) if folder else params

    return init
