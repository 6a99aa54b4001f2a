# SPDX-License-Identifier: Apache-2.0
"""Reptile (Nichol et al. 2018): move the weights towards where plain training on a task takes them."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta
from metaicl.learners.classifier import make_classifier
from metaicl.learners.inner import inner_loop


def reptile(
    spec: TaskSpec,
    *,
    encoder: str = "mlp",
    encoder_settings: dict | None = None,
    inner_steps: int = 5,
    inner_lr: float = 1e-3,
    inner_batch: int | None = 10,
    inner_optimizer: str = "adam",
    inner_settings: dict | None = None,
    moments: Literal["carried", "fresh"] = "carried",
    dtype: str = "float32",
) -> Learner:
    """Builds the learner. The outer step is the outer optimiser's: `sgd` with a rate of 1 falling to 0.

    Args:
      spec: classify or regress.
      encoder, encoder_settings: the network under the linear head.
      inner_steps, inner_lr, inner_batch: minibatch steps per task (None: the whole support each time).
      inner_optimizer, inner_settings: by default Adam with beta1 = 0, as in the released code.
      moments: `carried`: Adam's moments and step counter go on from task to task, and evaluation starts from
        them, as in the released code; tasks of a batch then run one after another. `fresh`: every task starts
        with new moments, and the tasks of a batch run side by side.
      dtype: compute dtype.
    """
    if moments not in ("carried", "fresh"):
        raise ValueError(f"moments is {moments!r}; use 'carried' or 'fresh'.")
    carried = moments == "carried"
    if inner_settings is None and inner_optimizer == "adam":
        inner_settings = {"b1": 0.0}
    network = make_classifier(spec, encoder, encoder_settings, dtype)
    inner = inner_loop(
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        order="first",
        batch_size=inner_batch,
    )

    def init(key):
        params = network.init(key)
        return Meta(params, inner.init_optimizer(params) if carried else ())

    def train_on(params, carry, support, key):
        return inner.run(network.support_loss, params, support, key, carry if carried else None)

    def adapt(meta, support, key):
        return train_on(meta.params, meta.carry, support, key)[0]

    def predict(meta, fast, x, mask):
        del meta
        return network.apply(fast, x, mask)

    def task(params, carry, episode, key):
        fast, carry = train_on(params, carry, episode.support, key)
        outputs = network.apply(fast, episode.query.x, episode.query.mask)
        outputs = losses.mask_absent(spec, outputs, episode.support)
        difference = jax.tree.map(jnp.subtract, params, fast)
        return carry, (difference, losses.metrics(spec, outputs, episode.query))

    def meta_grad(meta, episodes, key, step):
        """The pseudo-gradient `params - mean(adapted)` (Nichol et al. 2018, algorithm 2)."""
        del step
        keys = jax.random.split(key, len(episodes.query.mask))
        if carried:
            body = lambda carry, inputs: task(meta.params, carry, *inputs)
            carry, results = jax.lax.scan(body, meta.carry, (episodes, keys))
        else:
            _, results = jax.vmap(lambda e, k: task(meta.params, (), e, k))(episodes, keys)
            carry = ()
        grads, values = jax.tree.map(lambda a: jnp.mean(a, axis=0), results)
        return grads, carry, values

    # Shuffled minibatches see the support in an order; the whole support at once does not.
    exchangeable = inner_batch is None
    return Learner(
        init, adapt, predict, meta_grad, network.independent, exchangeable=exchangeable, serial=carried
    )
