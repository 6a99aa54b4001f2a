# SPDX-License-Identifier: Apache-2.0
"""A network trained on one support set alone, from random weights: what learning to learn is to be better than."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner
from metaicl.learners.classifier import make_classifier
from metaicl.learners.inner import Sampling, inner_loop
from metaicl.learners.regression import regressor


def scratch(
    spec: TaskSpec,
    *,
    encoder: str = "mlp",
    encoder_settings: dict | None = None,
    inner_steps: int = 100,
    inner_lr: float = 5e-3,
    inner_optimizer: str = "adam",
    inner_settings: dict | None = None,
    inner_batch: int | None = None,
    inner_sampling: Sampling = "cycling",
    dtype: str = "float32",
) -> Learner:
    """Builds the learner; the defaults are the two-layer network of Garg et al. 2022: 100 steps of Adam at 5e-3.

    Every episode starts from weights of its own. (`maml` without outer steps starts all from the same.) Without
    examples the answer is 0.

    Args:
      spec: regress.
      encoder, encoder_settings, dtype: the network, see `classifier.make_classifier`; its hidden layer is 100
        wide unless given.
      inner_steps, inner_lr, inner_optimizer, inner_settings, inner_batch, inner_sampling: see `inner.inner_loop`.
        The paper's batch of 100 is all of its support, as None is.

    Raises:
      ValueError: for classification, and for settings that are unknown or do not fit together.
    """
    if encoder == "mlp":
        encoder_settings = {"hidden": (100,)} | (encoder_settings or {})
    network = make_classifier(spec, encoder, encoder_settings, dtype)
    if network.dropout:
        raise ValueError("scratch does not train with dropout: leave it at 0.")
    inner = inner_loop(
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        order="first",
        batch_size=inner_batch,
        sampling=inner_sampling,
    )

    def adapt(meta, support, key):
        del meta
        weights_key, loop_key = jax.random.split(key)
        weights = inner.run(network.support_loss, network.init(weights_key), support, loop_key).params
        return network.state(weights, support), jnp.any(support.mask > 0)

    def predict(meta, state, x, mask):
        del meta
        trained, seen = state
        return jnp.where(seen, network.answer(trained, x, mask), 0.0)

    learner = regressor(spec, "scratch", adapt, predict)
    return learner._replace(independent=network.independent, exchangeable=inner_batch is None)
