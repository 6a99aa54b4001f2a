# SPDX-License-Identifier: Apache-2.0
"""The network that gradient-based learners adapt: an encoder and a linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from metaicl import losses
from metaicl.episode import Array, Examples, TaskSpec
from metaicl.models.linear import init_linear, linear
from metaicl.models.network import make_encoder


class Classifier(NamedTuple):
    """Pure functions over `params = {"encoder": ..., "head": ...}`.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [n, *x_shape], mask [n]) -> [n, N]`.
      support_loss: `(params, examples, key) -> scalar`, absent classes masked.
      independent: rows ignore each other.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array], Array]
    support_loss: Callable[[Any, Examples, Array], Array]
    independent: bool


def make_classifier(spec: TaskSpec, encoder: str, encoder_settings: dict | None, dtype: str) -> Classifier:
    """Builds the network for weights that will carry a task axis; it regresses where the spec says so."""
    settings = encoder_settings or {}
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, task_batched=True, **settings)

    def init(key):
        k = jax.random.split(key)
        return {"encoder": net.init(k[0]), "head": init_linear(k[1], net.width, spec.num_outputs)}

    def apply(params, x, mask):
        return linear(params["head"], net.apply(params["encoder"], x, mask))

    def support_loss(params, examples, key):
        del key
        outputs = losses.mask_absent(spec, apply(params, examples.x, examples.mask), examples)
        return losses.mean_loss(spec, outputs, examples)

    return Classifier(init, apply, support_loss, net.independent)
