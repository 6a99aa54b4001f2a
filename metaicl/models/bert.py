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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.pointwise import LayerNorm, gelu
from metaicl.models.transformer import attention

ACTIVATIONS = {
    "gelu": gelu,
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


class Kept(NamedTuple):
    """What dropout keeps in one layer.

    Attributes:
      weights: `bool [n, H, T, T]`, of attention.
      mixed, out: `bool [n, T, D]`, of what attention and the feed-forward part add.
    """

    weights: jax.Array
    mixed: jax.Array
    out: jax.Array


class Bert(nn.Module):
    """Token ids `int32 [n, T]` to hidden states; see `BertShape` and the module docstring.

    With `below` the embeddings and so many layers from the bottom are no part of the network: it takes what they give,
    `float [n, T, D]`, where padding is a row of zeros (`padded_states`).

    Attributes:
      shape: of the tensors.
      pooler: whether there is the dense layer with tanh on the first token.
      adapters, lora, prompts: width of the bottlenecks, rank, and number of prompts in each layer; 0 for none.
      dtype: of the computation.
      remat: recompute each layer in the backward pass.
      dropout: the share of the embeddings, of the weights of attention and of what both halves of a layer add that
        is dropped (Devlin et al. 2019, appendix A.2) where a key is given.
      below, above: layers at the bottom (with the embeddings) and at the top that are left away.
    """

    shape: BertShape
    pooler: bool
    adapters: int
    lora: int
    prompts: int
    dtype: Any
    remat: bool
    dropout: float = 0.0
    below: int = 0
    above: int = 0

    @nn.compact
    def __call__(
        self, items: jax.Array, key: jax.Array | None = None
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """`(embeddings, layer 1, ..., layer L)`, each `[n, T, D]`, and the pooler's `[n, D]` or None."""
        shape = self.shape
        visible = real_tokens(items, shape.padding)[:, None, None, :]
        embedded, kept = self._kept(items, key)
        if self.below:
            states = [items.astype(self.dtype)]
        else:
            x = _Embeddings(shape, self.dtype, name="embeddings")(items)
            states = [_dropped(x, embedded, self.dropout)]
        layer = nn.remat(_Layer) if self.remat else _Layer
        for i in range(self.below, shape.layers - self.above):
            settings = (shape, self.adapters, self.lora, self.prompts, self.dtype, self.dropout)
            states.append(layer(*settings, name=f"layer_{i}")(states[-1], visible, kept[i]))
        pooled = None
        if self.pooler:
            pooled = nn.tanh(_dense(shape.width, self.dtype, "pooler")(states[-1][:, 0]))
        return tuple(states), pooled

    def _kept(self, items, key) -> tuple[jax.Array | None, list[Kept | None]]:
        """What is kept of the embeddings and in each layer; Nones without dropout.

        Two draws for all of the layers: XLA takes long to compile each on a CPU.
        """
        shape = self.shape
        if key is None or not self.dropout:
            return None, [None] * shape.layers
        (n, tokens), keys = items.shape[:2], jax.random.split(key)
        draw = lambda k, *size: jax.random.bernoulli(k, jnp.float32(1 - self.dropout), size)
        added = draw(keys[0], 2 * shape.layers + 1, n, tokens, shape.width)
        weights = draw(keys[1], shape.layers, n, shape.heads, tokens, tokens)
        return added[0], [Kept(weights[i], added[2 * i + 1], added[2 * i + 2]) for i in range(shape.layers)]


def hidden_states(
    module: Bert, params: Any, items: jax.Array, key: jax.Array | None = None
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """What `module` gives for token ids `int32 [n, T]` (or states) and its parameters; see `Bert`.

    `key` is of the dropout; without it nothing is dropped. One key always drops the same.
    """
    found: Any = module.apply({"params": params}, items, key)
    return found


def real_tokens(items: jax.Array, padding: int) -> jax.Array:
    """Which of the tokens are no padding, `bool [n, T]`, of ids `[n, T]` or of `padded_states` `[n, T, D]`."""
    return items != padding if items.ndim == 2 else jnp.any(items != 0, axis=-1)


def padded_states(states: jax.Array, real: jax.Array) -> jax.Array:
    """States `[n, T, D]` with zeros for padding: no layer norm gives those, so that they carry their own mask."""
    return jnp.where(real[..., None], states, 0)


def pool_states(states: jax.Array, real: jax.Array, how: str) -> jax.Array:
    """One vector for each sentence: the mean over its real tokens, or its first token (`cls`).

    `states [n, T, D], real bool [n, T] -> [n, D]`; a sentence of nothing but padding gives zeros, or its first state.
    """
    if how == "cls":
        return states[:, 0]
    weights = real.astype(states.dtype)
    total = jnp.einsum("nt,ntd->nd", weights, states)
    return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def _dense(width: int, dtype: Any, name: str, start=_NORMAL) -> nn.Dense:
    return nn.Dense(width, kernel_init=start, dtype=dtype, name=name)


def _dropped(x: jax.Array, kept: jax.Array | None, rate: float) -> jax.Array:
    """What is kept, scaled so that the mean stays."""
    return x if kept is None else jnp.where(kept, x / (1 - rate), 0)


def _norm(epsilon: float, dtype: Any, name: str) -> LayerNorm:
    return LayerNorm(epsilon, dtype, name=name)


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
    dropout: float

    @nn.compact
    def __call__(self, x, visible, kept: Kept | None):
        shape = self.shape
        drop = lambda x, part: _dropped(x, kept and getattr(kept, part), self.dropout)
        mixed = self._attention(x, visible, lambda weights: drop(weights, "weights"))
        mixed = self._adapted(drop(mixed, "mixed"), "attention_adapter")
        x = _norm(shape.epsilon, self.dtype, "attention_norm")(x + mixed)
        inner = ACTIVATIONS[shape.activation](_dense(shape.hidden, self.dtype, "feed_forward_in")(x))
        out = drop(_dense(shape.width, self.dtype, "feed_forward_out")(inner), "out")
        out = self._adapted(out, "output_adapter")
        return _norm(shape.epsilon, self.dtype, "output_norm")(x + out)

    def _attention(self, x, visible, drop):
        shape = self.shape
        projections = {name: _dense(shape.width, self.dtype, name) for name in ("query", "key", "value")}
        apart = lambda y: y.reshape(*y.shape[:-1], shape.heads, shape.width // shape.heads)
        q, k, v = (apart(project(x) + self._low_rank(x, name)) for name, project in projections.items())
        mixed = attention(q, k, v, visible, drop=drop)
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
