# SPDX-License-Identifier: Apache-2.0
"""The network that gradient-based learners adapt: an encoder and a linear head, and how it meets the queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Array, Examples, TaskSpec
from metaicl.models.linear import init_linear, linear
from metaicl.models.network import make_encoder

BatchNorm = Literal["transductive", "non_transductive", "support_only"]


class Classifier(NamedTuple):
    """Pure functions over `params = {"encoder": ..., "head": ...}`.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [n, *x_shape], mask [n]) -> [n, N]`; batch norm uses the real rows of x.
      support_loss: `(params, batch, key, shown) -> scalar`; classes that `shown`, the whole support, does not have
        are masked: a minibatch without a class still learns that it is not that class.
      state: `(params, support) -> state`: what answering needs of the adapted weights and the support.
      answer: `(state, x [Q, *x_shape], mask [Q]) -> [Q, N]`, in the mode of batch norm that was asked for.
      independent: whether `answer` treats each query alone.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array], Array]
    support_loss: Callable[[Any, Examples, Array, Examples], Array]
    state: Callable[[Any, Examples], Any]
    answer: Callable[[Any, Array, Array], Array]
    independent: bool


def make_classifier(
    spec: TaskSpec,
    encoder: str,
    encoder_settings: dict | None,
    dtype: str,
    batch_norm: BatchNorm = "transductive",
) -> Classifier:
    """Builds the network for weights that will carry a task axis; it regresses where the spec says so.

    Args:
      spec, encoder, encoder_settings, dtype: see `models.network.make_encoder`.
      batch_norm: whose statistics normalise a query, where the encoder has batch norm. `transductive`: those of
        all queries of the episode (as in MAML's released code). `non_transductive`: those of the support and
        this query alone (as in Reptile's released code). `support_only`: those of the support.

    Raises:
      ValueError: for an unknown mode, encoder or setting.
    """
    if batch_norm not in ("transductive", "non_transductive", "support_only"):
        raise ValueError(
            f"batch_norm is {batch_norm!r}; use 'transductive', 'non_transductive' or 'support_only'."
        )
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, task_batched=True, **(encoder_settings or {}))
    transductive = net.independent or batch_norm == "transductive"

    def init(key):
        k = jax.random.split(key)
        return {"encoder": net.init(k[0]), "head": init_linear(k[1], net.width, spec.num_outputs)}

    def apply(params, x, mask):
        return linear(params["head"], net.apply(params["encoder"], x, mask))

    def support_loss(params, batch, key, shown):
        del key
        outputs = losses.mask_absent(spec, apply(params, batch.x, batch.mask), shown)
        return losses.mean_loss(spec, outputs, batch)

    def state(params, support):
        return (params, ()) if transductive else (params, (support.x, support.mask))

    def answer(state, x, mask):
        params, context = state
        if transductive:
            return apply(params, x, mask)
        support_x, support_mask = context
        beside = lambda x, mask: apply(
            params, jnp.concatenate([support_x, x]), jnp.concatenate([support_mask, mask])
        )[len(support_x) :]
        if batch_norm == "support_only":  # rows of mask 0 take no part in the statistics
            return beside(x, jnp.zeros_like(mask))
        return jax.vmap(lambda one, real: beside(one[None], real[None])[0])(x, mask)

    return Classifier(
        init, apply, support_loss, state, answer, net.independent or batch_norm != "transductive"
    )
