# SPDX-License-Identifier: Apache-2.0
"""Prototypical networks (Snell et al. 2017): the nearest class mean in a learned space."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, episodic_meta_grad
from metaicl.models.encoders import make_encoder


def class_means(features, y, mask, num_outputs: int):
    """Means of the real rows of every class: `[S, D] -> [N, D]`; zero for a class without rows."""
    member = jax.nn.one_hot(y, num_outputs).T * mask[None, :]  # [N, S]
    return (member / jnp.maximum(member.sum(1, keepdims=True), 1.0)).astype(features.dtype) @ features


def prototype_head(features, y, mask, num_outputs: int) -> dict:
    """The linear head whose softmax is that of minus the squared distances to the class means.

    `[S, D] -> {"kernel": [D, N], "bias": [N]}`: w_k = 2 c_k, b_k = -|c_k|^2 (Triantafillou et al. 2020, section 3,
    after Snell et al. 2017), in at least 32 bits. A class without rows has zeros: its logit is to be masked.
    """
    means = class_means(features, y, mask, num_outputs)
    means = means.astype(jnp.promote_types(means.dtype, jnp.float32))
    return {"kernel": 2.0 * means.T, "bias": -jnp.sum(means * means, axis=-1)}


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
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, noisy=True, **(encoder_settings or {}))

    def means_of(meta, support, key):
        features = net.encode(meta.params["encoder"], support.x, support.mask, key)
        return class_means(features, support.y, support.mask, spec.num_outputs)

    def closeness(meta, means, x, mask, key):
        features = net.encode(meta.params["encoder"], x, mask, key)
        return jnp.exp(meta.params["log_scale"]) * distance_logits(features, means, metric)

    def init(key):
        return Meta({"encoder": net.init(key), "log_scale": jnp.log(jnp.float32(scale))})

    def adapt(meta, support, key):
        del key
        return means_of(meta, support, None)

    def predict(meta, means, x, mask):
        return closeness(meta, means, x, mask, None)

    def noisy_adapt(meta, support, key):
        support_key, query_key = jax.random.split(key)
        return means_of(meta, support, support_key), query_key

    def noisy_predict(meta, state, x, mask):
        means, key = state
        return closeness(meta, means, x, mask, key)

    grad = episodic_meta_grad(spec, noisy_adapt, noisy_predict)
    return Learner(init, adapt, predict, grad, independent=net.independent, relabelling=True)
