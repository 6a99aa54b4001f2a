# SPDX-License-Identifier: Apache-2.0
"""Regression without training: what the baselines of in-context function learning have in common.

They see one support set and answer; nothing is learned across tasks. Garg et al. 2022 (arXiv 2208.01066, section
3) compare the causal Transformer with such learners; at 0 examples every one of theirs answers 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, no_meta_grad
from metaicl.models.network import flat

Fit = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def regressor(spec: TaskSpec, name: str, adapt, predict, init=None) -> Learner:
    """A learner without parameters whose `adapt` and `predict` regress.

    Args:
      spec: regress.
      name: of the learner, for the message.
      adapt, predict, init: see `Learner`; without `init`, `Meta` is empty.

    Raises:
      ValueError: for classification.
    """
    if spec.kind != "regress":
        raise ValueError(
            f"{name} regresses: it needs TaskSpec.kind='regress', or use closed_form for classes."
        )
    init = init or (lambda key: Meta({}))
    return Learner(init, adapt, predict, no_meta_grad(spec, adapt, predict))


def linear_regressor(spec: TaskSpec, name: str, fit: Fit, intercept: bool) -> Learner:
    """A learner that answers `x . w`, or with an intercept `(x - mean) . w + mean of y`.

    Args:
      spec, name: see `regressor`.
      fit: `(x [S, D], y [S, N], mask [S]) -> w [D, N]`; padding comes in as rows of zeros, and centred where there
        is an intercept.
      intercept: centre x and y by the means of the support.
    """

    def adapt(meta, support, key):
        del meta, key
        x, mask = flat(support.x), support.mask
        total = jnp.maximum(jnp.sum(mask), 1.0) if intercept else jnp.inf
        x_mean, y_mean = (mask @ x) / total, (mask @ support.y) / total
        centred = lambda a, mean: (a - mean[None, :]) * mask[:, None]
        return fit(centred(x, x_mean), centred(support.y, y_mean), mask), x_mean, y_mean

    def predict(meta, state, x, mask):
        del meta, mask
        weights, x_mean, y_mean = state
        return (flat(x) - x_mean[None, :]) @ weights + y_mean[None, :]

    return regressor(spec, name, adapt, predict)
