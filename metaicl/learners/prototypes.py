# SPDX-License-Identifier: Apache-2.0
"""Prototypical networks (Snell et al. 2017): the nearest class mean in a learned space."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, episodic_meta_grad
from metaicl.models.network import make_encoder


def class_means(features, y, mask, num_outputs: int):
    """Means of the real rows of every class: `[S, D] -> [N, D]`; zero for a class without rows."""
    member = jax.nn.one_hot(y, num_outputs).T * mask[None, :]  # [N, S]
    return (member / jnp.maximum(member.sum(1, keepdims=True), 1.0)).astype(features.dtype) @ features


def distance_logits(queries, means, metric: Literal["euclidean", "cosine"]):
    """Closeness of queries to class means: `[Q, D], [N, D] -> [Q, N]`.

    Minus half the squared distance over the root of the width, or the cosine.
    """
    if metric == "cosine":
        unit = lambda v: v * jax.lax.rsqrt(jnp.sum(v * v, axis=-1, keepdims=True) + 1e-12)
        return unit(queries) @ unit(means).T
    squared = jnp.sum((queries[:, None, :] - means[None, :, :]) ** 2, axis=-1)
    return -0.5 * squared / jnp.sqrt(queries.shape[-1]).astype(queries.dtype)


def prototypes(
    spec: TaskSpec,
    *,
    encoder: str = "conv",
    encoder_settings: dict | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    scale: float = 1.0,
    dtype: str = "float32",
) -> Learner:
    """Builds the learner; `scale` is the initial value of a learned inverse temperature.

    No parameter depends on N: one trained learner answers any number of ways.

    Raises:
      ValueError: for regression, or an unknown metric.
    """
    if spec.kind != "classify":
        raise ValueError("Prototypes are class means: they need TaskSpec.kind='classify'.")
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric is {metric!r}; use 'euclidean' or 'cosine'.")
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, **(encoder_settings or {}))

    def init(key):
        return Meta({"encoder": net.init(key), "log_scale": jnp.log(jnp.float32(scale))})

    def adapt(meta, support, key):
        del key
        features = net.apply(meta.params["encoder"], support.x, support.mask)
        return class_means(features, support.y, support.mask, spec.num_outputs)

    def predict(meta, means, x, mask):
        features = net.apply(meta.params["encoder"], x, mask)
        return jnp.exp(meta.params["log_scale"]) * distance_logits(features, means, metric)

    grad = episodic_meta_grad(spec, adapt, predict)
    return Learner(init, adapt, predict, grad, independent=net.independent, relabelling=True)
