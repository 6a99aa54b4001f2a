# SPDX-License-Identifier: Apache-2.0
"""Plain supervised learning through the same protocol: the support set is empty, or ignored."""

from __future__ import annotations

import jax

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, episodic_meta_grad
from metaicl.models.encoders import make_encoder
from metaicl.models.linear import init_linear, linear


def supervised(
    spec: TaskSpec, *, encoder: str = "conv", encoder_settings: dict | None = None, dtype: str = "float32"
) -> Learner:
    """An encoder and a linear head with one output per class of the data set (or per regressed value).

    `encoder="identity"` makes it a linear probe.
    """
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, **(encoder_settings or {}))

    def init(key):
        k = jax.random.split(key)
        return Meta({"encoder": net.init(k[0]), "head": init_linear(k[1], net.width, spec.num_outputs)})

    def adapt(meta, support, key):
        del meta, support, key
        return ()

    def predict(meta, state, x, mask):
        del state
        return linear(meta.params["head"], net.apply(meta.params["encoder"], x, mask))

    grad = episodic_meta_grad(spec, adapt, predict)
    return Learner(init, adapt, predict, grad, independent=net.independent)
