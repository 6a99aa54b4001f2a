# SPDX-License-Identifier: Apache-2.0
"""The causal in-context Transformer of Garg et al. 2022 (arXiv 2208.01066): x1, y1, x2, y2, ...

The answer is read at every x token, so that one pass trains on every prefix of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Examples, TaskSpec
from metaicl.learners.base import Learner, Meta, batched_meta_grad
from metaicl.models.encoders import make_encoder
from metaicl.models.linear import init_linear, linear
from metaicl.models.network import Network
from metaicl.models.transformer import Transformer, make_transformer


def causal(
    spec: TaskSpec,
    *,
    encoder: str = "identity",
    encoder_settings: dict | None = None,
    width: int = 64,
    layers: int = 3,
    heads: int = 2,
    mlp: int | None = None,
    max_points: int = 101,
    dtype: str = "float32",
    remat: bool = False,
) -> Learner:
    """Builds the learner; the defaults are the paper's "tiny" shape.

    A y token is y (one-hot for classification), an x token the encoded x; each kind has its read-in.

    Args:
      spec: classify or regress.
      encoder, encoder_settings: encoder of x.
      width, layers, heads, mlp: shape of the Transformer; mlp is 4 x width if None.
      max_points: number of (x, y) pairs that positions exist for.
      dtype: compute dtype.
      remat: recompute blocks in the backward pass.

    Raises:
      ValueError: for an encoder whose rows depend on each other: a prefix would see what follows it.
    """
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, **(encoder_settings or {}))
    if not net.independent:
        raise ValueError("The causal learner needs an encoder that encodes every item alone (no batch norm).")
    shape = dict(width=width, layers=layers, heads=heads, mlp=mlp or 4 * width)
    model = _sequence(spec, net, make_transformer(**shape, dtype=dtype, remat=remat), width, max_points)

    def adapt(meta, support, key):
        del key
        _, cache, real = model.context(meta.params, support)
        return {"cache": cache, "real": real, "pairs": jnp.sum(support.mask).astype(jnp.int32)}

    def predict(meta, state, x, mask):
        return model.extend(meta.params, state, x, mask)

    def episode_loss(params, carry, episode, key, step):
        """Loss at every prefix of support and query, one behind the other (equation 2 of the paper)."""
        del carry, key, step
        sequence = jax.tree.map(lambda *parts: jnp.concatenate(parts), episode.support, episode.query)
        outputs, _, _ = model.context(params, sequence)
        values = losses.metrics(spec, outputs, sequence)
        return values["loss"], values

    init = lambda key: Meta(model.init(key))
    return Learner(init, adapt, predict, batched_meta_grad(episode_loss), exchangeable=False)


class _Sequence(NamedTuple):
    """A Transformer over x1, y1, x2, y2, ...

    Attributes:
      init: `(key) -> params`.
      context: `(params, examples) -> (answers at the x tokens [S, N], cache, which of the 2S tokens are real)`.
      extend: `(params, state, x [Q, ...], mask [Q]) -> answers [Q, N]`, each as if its x came next.
    """

    init: Callable
    context: Callable
    extend: Callable


def _sequence(
    spec: TaskSpec, net: Network, transformer: Transformer, width: int, max_points: int
) -> _Sequence:
    def init(key):
        k = jax.random.split(key, 6)
        return {
            "encoder": net.init(k[0]),
            "x": init_linear(k[1], net.width, width),
            "y": init_linear(k[2], spec.num_outputs, width),
            "positions": 0.02 * jax.random.normal(k[3], (2 * max_points, width)),
            "transformer": transformer.init(k[4]),
            "readout": init_linear(k[5], width, spec.num_outputs),
        }

    def x_tokens(params, x, mask, pair):
        tokens = linear(params["x"], net.apply(params["encoder"], x, mask))
        return tokens + params["positions"][2 * pair].astype(tokens.dtype)

    def context(params, examples: Examples):
        pair = _pair_positions(examples.mask, max_points)
        y = examples.y if spec.kind == "regress" else jax.nn.one_hot(examples.y, spec.num_outputs)
        x = x_tokens(params, examples.x, examples.mask, pair)
        y = linear(params["y"], y.astype(x.dtype)) + params["positions"][2 * pair + 1].astype(x.dtype)
        tokens = jnp.stack([x, y], axis=1).reshape(2 * len(x), width)  # x1, y1, x2, y2, ...
        real = jnp.repeat(examples.mask > 0, 2)
        visible = jnp.tril(real[None, :] | jnp.eye(len(real), dtype=bool))
        outputs, cache = transformer.context(params["transformer"], tokens, visible, every=2)
        return linear(params["readout"], outputs), cache, real

    def extend(params, state, x, mask):
        _check_points(state["real"].shape[0] // 2 + 1, max_points)
        pair = jnp.broadcast_to(state["pairs"], (len(x),))
        tokens = x_tokens(params, x, mask, pair)
        outputs = transformer.extend(params["transformer"], tokens, state["cache"], state["real"])
        return linear(params["readout"], outputs)

    return _Sequence(init, context, extend)


def _pair_positions(mask, max_points):
    """Index of every pair among the real ones, so that padding moves no position: `int [S]`."""
    _check_points(mask.shape[0], max_points)
    return jnp.maximum(jnp.cumsum(mask).astype(jnp.int32) - 1, 0)


def _check_points(points, max_points):
    if points > max_points:
        raise ValueError(f"A sequence of {points} pairs needs max_points of at least that, not {max_points}.")
