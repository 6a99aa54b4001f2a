# SPDX-License-Identifier: Apache-2.0
"""Model-agnostic meta-learning (Finn et al. 2017) and what its inner loop's settings make of it.

`order="first"` is FOMAML, `adapted="head"` ANIL (Raghu et al. 2020), `adapted="-head"` BOIL (Oh et al. 2021).
"""

from __future__ import annotations

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, episodic_meta_grad
from metaicl.learners.classifier import make_classifier
from metaicl.learners.inner import Order, inner_loop


def maml(
    spec: TaskSpec,
    *,
    encoder: str = "mlp",
    encoder_settings: dict | None = None,
    inner_steps: int = 5,
    inner_lr: float = 0.01,
    inner_optimizer: str = "sgd",
    inner_settings: dict | None = None,
    order: Order = "second",
    adapted: str = "all",
    remat: bool = False,
    dtype: str = "float32",
) -> Learner:
    """Builds the learner; see `inner.inner_loop` for the settings of the inner loop.

    The same constructor with other settings, given the same `Meta`, adapts differently at test time.
    """
    network = make_classifier(spec, encoder, encoder_settings, dtype)
    inner = inner_loop(
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        order=order,
        adapted=adapted,
        remat=remat,
    )

    def init(key):
        return Meta(network.init(key))

    def adapt(meta, support, key):
        return inner.run(network.support_loss, meta.params, support, key)[0]

    def predict(meta, fast, x, mask):
        del meta
        return network.apply(fast, x, mask)

    grad = episodic_meta_grad(spec, adapt, predict)
    return Learner(init, adapt, predict, grad, independent=network.independent)
