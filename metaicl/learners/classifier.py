# SPDX-License-Identifier: Apache-2.0
"""The network that gradient-based learners adapt: an encoder and a linear head, and how it meets the queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Array, Examples, TaskSpec
from metaicl.learners.prototypes import prototype_head
from metaicl.models.encoders import make_encoder
from metaicl.models.linear import init_linear, linear

BatchNorm = Literal["transductive", "non_transductive", "support_only"]
Head = Literal["learned", "prototypes"]


class Classifier(NamedTuple):
    """Pure functions over `params = {"encoder": ..., "head": ...}`.

    Attributes:
      init: `(key) -> params`; without a head where the head comes from the support.
      start: `(params, support, key=None) -> params` with a head: what adaptation starts from.
      apply: `(params, x [n, *x_shape], mask [n], key=None) -> [n, N]`; batch norm uses the real rows of x. Here and
        below a key is that of the encoder's dropout, if it has any; without one nothing is dropped.
      support_loss: `(params, batch, key, shown) -> scalar`; classes that `shown`, the whole support, does not have
        are masked: a minibatch without a class still learns that it is not that class. Nothing is dropped.
      training_loss: the same with dropout, by the key.
      state: `(params, support) -> state`: what answering needs of the adapted weights and the support.
      answer: `(state, x [Q, *x_shape], mask [Q], key=None) -> [Q, N]`, in the mode of batch norm that was asked for.
      independent: whether `answer` treats each query alone.
      dropout: whether the encoder has any.
    """

    init: Callable[[Array], Any]
    start: Callable[..., Any]
    apply: Callable[..., Array]
    support_loss: Callable[[Any, Examples, Array, Examples], Array]
    training_loss: Callable[[Any, Examples, Array, Examples], Array]
    state: Callable[[Any, Examples], Any]
    answer: Callable[..., Array]
    independent: bool
    dropout: bool


def make_classifier(
    spec: TaskSpec,
    encoder: str,
    encoder_settings: dict | None,
    dtype: str,
    batch_norm: BatchNorm = "transductive",
    head: Head = "learned",
) -> Classifier:
    """Builds the network for weights that will carry a task axis; it regresses where the spec says so.

    Args:
      spec, encoder, encoder_settings, dtype: see `models.encoders.make_encoder`.
      batch_norm: whose statistics normalise a query, where the encoder has batch norm. `transductive`: those of
        all queries of the episode (as in MAML's released code). `non_transductive`: those of the support and
        this query alone (as in Reptile's released code). `support_only`: those of the support.
      head: `learned`, or `prototypes`: computed from the support's class means, see `prototypes.prototype_head`.

    Raises:
      ValueError: for an unknown mode, encoder or setting, or a head of class means without classes.
    """
    if batch_norm not in ("transductive", "non_transductive", "support_only"):
        raise ValueError(
            f"batch_norm is {batch_norm!r}; use 'transductive', 'non_transductive' or 'support_only'."
        )
    if head not in ("learned", "prototypes"):
        raise ValueError(f"head is {head!r}; use 'learned' or 'prototypes'.")
    if head == "prototypes" and spec.kind != "classify":
        raise ValueError("A head of prototypes is class means: it needs TaskSpec.kind='classify'.")
    settings = dict(encoder_settings or {}, task_batched=True, noisy=True)
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, **settings)
    transductive = net.independent or batch_norm == "transductive"

    def init(key):
        k = jax.random.split(key)
        learned = {"head": init_linear(k[1], net.width, spec.num_outputs)} if head == "learned" else {}
        return {"encoder": net.init(k[0])} | learned

    def start(params, support, key=None):
        if head == "learned":
            return params
        features = net.encode(params["encoder"], support.x, support.mask, key)
        return params | {"head": prototype_head(features, support.y, support.mask, spec.num_outputs)}

    def apply(params, x, mask, key=None):
        return linear(params["head"], net.encode(params["encoder"], x, mask, key))

    def training_loss(params, batch, key, shown):
        outputs = losses.mask_absent(spec, apply(params, batch.x, batch.mask, key), shown)
        return losses.mean_loss(spec, outputs, batch)

    def support_loss(params, batch, key, shown):
        del key
        return training_loss(params, batch, None, shown)

    def state(params, support):
        return (params, ()) if transductive else (params, (support.x, support.mask))

    def answer(state, x, mask, key=None):
        params, context = state
        if transductive:
            return apply(params, x, mask, key)
        support_x, support_mask = context
        beside = lambda x, mask: apply(
            params, jnp.concatenate([support_x, x]), jnp.concatenate([support_mask, mask]), key
        )[len(support_x) :]
        if batch_norm == "support_only":  # rows of mask 0 take no part in the statistics
            return beside(x, jnp.zeros_like(mask))
        return jax.vmap(lambda one, real: beside(one[None], real[None])[0])(x, mask)

    independent = net.independent or batch_norm != "transductive"
    dropout = net.noisy is not None
    return Classifier(init, start, apply, support_loss, training_loss, state, answer, independent, dropout)
