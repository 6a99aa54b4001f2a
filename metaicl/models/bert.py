# SPDX-License-Identifier: Apache-2.0
"""BERT (Devlin et al. 2019, arXiv 1810.04805) and DistilBERT (Sanh et al. 2019): sentences to vectors.

The layers are unrolled, not scanned: every layer then has a path of its own (`layer_3/feed_forward_in/kernel`),
so that an inner loop can adapt the top layers, the layer norms or the adapters by name.

Three additions make few parameters enough to adapt, and all leave the network as it was until they move:
bottleneck `adapters` behind attention and feed-forward (Houlsby et al. 2019), low-rank terms `lora` of query and
value (Hu et al. 2021), and soft `prompts` that every head attends to behind a gate of its own, which starts at
zero (Zhang et al. 2023, LLaMA-Adapter).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.transformer import attention

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}
POOLINGS = ("mean", "cls", "pooler")
_NORMAL = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class BertShape:
    """What decides the shapes of a BERT's tensors, and how they are used.

    Attributes:
      vocabulary: number of token ids; the default suits the hashed words of `data.tokens.HashedWords`.
      width, layers, heads, hidden: D, blocks, attention heads, and units of the feed-forward part.
      positions: the longest sentence, in tokens.
      types: token types (segments), of which the first is used; 0 for a network without them (DistilBERT).
      activation: a key of `ACTIVATIONS`.
      epsilon: of the layer norms.
      padding: the token id that is no token.
    """

    vocabulary: int = 16384
    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    positions: int = 128
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    padding: int = 0

    def __post_init__(self):
        """Refuses what no network could be built for."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Activation {self.activation!r} is unknown; use {', '.join(ACTIVATIONS)}.")
        if self.width % self.heads:
            raise ValueError(f"BERT's width {self.width} is not divisible by {self.heads} heads.")


class Bert(nn.Module):
    """Token ids `int32 [n, T]` to hidden states; see `BertShape` and the module docstring.

    Attributes:
      shape: of the tensors.
      pooler: whether there is the dense layer with tanh on the first token.
      adapters, lora, prompts: width of the bottlenecks, rank, and number of prompts in each layer; 0 for none.
      dtype: of the computation.
      remat: recompute each layer in the backward pass.
    """

    shape: BertShape
    pooler: bool
    adapters: int
    lora: int
    prompts: int
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """`(embeddings, layer 1, ..., layer L)`, each `[n, T, D]`, and the pooler's `[n, D]` or None."""
        shape = self.shape
        visible = (ids != shape.padding)[:, None, None, :]
        x = _Embeddings(shape, self.dtype, name="embeddings")(ids)
        layer = nn.remat(_Layer) if self.remat else _Layer
        states = [x]
        for i in range(shape.layers):
            settings = (shape, self.adapters, self.lora, self.prompts, self.dtype)
            states.append(layer(*settings, name=f"layer_{i}")(states[-1], visible))
        pooled = None
        if self.pooler:
            pooled = nn.tanh(_dense(shape.width, self.dtype, "pooler")(states[-1][:, 0]))
        return tuple(states), pooled


def hidden_states(
    module: Bert, params: Any, ids: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """What `module` gives for token ids `int32 [n, T]` and its parameters; see `Bert.__call__`."""
    found: Any = module.apply({"params": params}, ids)
    return found


def pool_states(states: jax.Array, ids: jax.Array, padding: int, how: str) -> jax.Array:
    """One vector for each sentence: the mean over its real tokens, or its first token (`cls`).

    `states [n, T, D], ids [n, T] -> [n, D]`; a sentence of nothing but padding gives zeros, or its first state.
    """
    if how == "cls":
        return states[:, 0]
    real = (ids != padding).astype(states.dtype)
    total = jnp.einsum("nt,ntd->nd", real, states)
    return total / jnp.maximum(real.sum(axis=1, keepdims=True), 1.0)


def _dense(width: int, dtype: Any, name: str, start=_NORMAL) -> nn.Dense:
    return nn.Dense(width, kernel_init=start, dtype=dtype, name=name)


def _norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses digits that an epsilon of 1e-12 does not hide.
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class _Embeddings(nn.Module):
    shape: BertShape
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        shape = self.shape
        table = lambda rows, name: nn.Embed(
            rows, shape.width, embedding_init=_NORMAL, dtype=self.dtype, name=name
        )
        places = table(shape.positions, "position")(jnp.arange(ids.shape[1]))
        x = table(shape.vocabulary, "word")(ids) + places[None]
        if shape.types:
            x = x + table(shape.types, "type")(jnp.zeros((1, 1), jnp.int32))
        return _norm(shape.epsilon, self.dtype, "norm")(x)


class _Layer(nn.Module):
    """One post-norm block."""

    shape: BertShape
    adapters: int
    lora: int
    prompts: int
    dtype: Any

    @nn.compact
    def __call__(self, x, visible):
        shape = self.shape
        mixed = self._adapted(self._attention(x, visible), "attention_adapter")
        x = _norm(shape.epsilon, self.dtype, "attention_norm")(x + mixed)
        inner = ACTIVATIONS[shape.activation](_dense(shape.hidden, self.dtype, "feed_forward_in")(x))
        out = self._adapted(_dense(shape.width, self.dtype, "feed_forward_out")(inner), "output_adapter")
        return _norm(shape.epsilon, self.dtype, "output_norm")(x + out)

    def _attention(self, x, visible):
        shape = self.shape
        projections = {name: _dense(shape.width, self.dtype, name) for name in ("query", "key", "value")}
        apart = lambda y: y.reshape(*y.shape[:-1], shape.heads, shape.width // shape.heads)
        q, k, v = (apart(project(x) + self._low_rank(x, name)) for name, project in projections.items())
        mixed = attention(q, k, v, visible)
        if self.prompts:
            size = (self.prompts, shape.width)
            prompts = self.param("prompts_vectors", nn.initializers.normal(0.5), size).astype(self.dtype)
            gate = jnp.tanh(self.param("prompts_gate", nn.initializers.zeros, (shape.heads,)))
            keys, values = (apart(projections[name](prompts))[None] for name in ("key", "value"))
            beside = attention(q, keys, values, jnp.ones((1, 1), bool))
            mixed = mixed + gate.astype(self.dtype)[None, None, :, None] * beside
        return _dense(shape.width, self.dtype, "attention_out")(mixed.reshape(x.shape))

    def _low_rank(self, x, name):
        if not self.lora or name == "key":
            return jnp.zeros((), x.dtype)
        down = self.param(f"lora_{name}_down", _NORMAL, (x.shape[-1], self.lora))
        up = self.param(f"lora_{name}_up", nn.initializers.zeros, (self.lora, x.shape[-1]))
        return x @ down.astype(x.dtype) @ up.astype(x.dtype)

    def _adapted(self, x, name):
        if not self.adapters:
            return x
        inner = nn.gelu(_dense(self.adapters, self.dtype, f"{name}_down")(x))
        return x + _dense(self.shape.width, self.dtype, f"{name}_up", nn.initializers.zeros)(inner)
