# SPDX-License-Identifier: Apache-2.0
"""Meta-learning with implicit gradients (Rajeswaran et al. 2019, arXiv 1909.04630).

The task's weights are w* = argmin_w L(w) + lambda/2 |w - theta|^2. By the implicit function theorem

    dw*/dtheta = (I + H(w*) / lambda)^-1,

whatever path led to w*: the inner loop keeps no graph, and the meta-gradient is one linear system, solved by
conjugate gradients with Hessian-vector products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, batched_meta_grad
from metaicl.learners.classifier import BatchNorm, make_classifier
from metaicl.learners.inner import inner_loop


def implicit_maml(
    spec: TaskSpec,
    *,
    encoder: str = "mlp",
    encoder_settings: dict | None = None,
    inner_steps: int = 16,
    inner_lr: float = 0.1,
    inner_optimizer: str = "sgd",
    inner_settings: dict | None = None,
    proximal: float = 2.0,
    solver_steps: int = 5,
    batch_norm: BatchNorm = "transductive",
    dtype: str = "float32",
) -> Learner:
    """Builds the learner; everything adapts.

    Args:
      spec: classify or regress.
      encoder, encoder_settings, batch_norm, dtype: the network, see `classifier.make_classifier`.
      inner_steps, inner_lr, inner_optimizer, inner_settings: how the proximal problem is solved.
      proximal: lambda.
      solver_steps: conjugate gradient steps of the meta-gradient.

    Raises:
      ValueError: for settings that are unknown or out of range.
    """
    if proximal <= 0 or solver_steps < 1:
        raise ValueError(
            f"proximal={proximal:g}, solver_steps={solver_steps}: both must be positive for an implicit gradient."
        )
    network = make_classifier(spec, encoder, encoder_settings, dtype, batch_norm)
    if network.dropout:
        raise ValueError("implicit_maml does not train with dropout: leave it at 0.")
    inner = inner_loop(
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        order="first",
    )
    solution = proximal_solution(network.support_loss, inner, proximal, solver_steps)

    def adapt(meta, support, key):
        return network.state(solution(meta.params, support, key)[0], support)

    def predict(meta, state, x, mask):
        del meta
        return network.answer(state, x, mask)

    def episode_loss(params, carry, episode, key, step):
        del carry, step
        weights, failed = solution(params, episode.support, key)
        state = network.state(weights, episode.support)
        outputs = network.answer(state, episode.query.x, episode.query.mask)
        values = losses.metrics(spec, losses.mask_absent(spec, outputs, episode.support), episode.query)
        return values["loss"], values | {"failed_step": failed}

    return Learner(
        lambda key: Meta(network.init(key)),
        adapt,
        predict,
        batched_meta_grad(episode_loss),
        independent=network.independent,
        failure=inner.failure,
    )


def proximal_solution(loss, inner, proximal: float, solver_steps: int):
    """`(params, support, key) -> (w*, failed step)`, with the implicit derivative with respect to `params`.

    The support is a constant of the derivative.
    """

    def proximal_loss(params, batch, key, shown, anchor):
        gap = jax.tree.map(lambda w, a: jnp.sum((w - a) ** 2), params, anchor)
        return loss(params, batch, key, shown) + 0.5 * proximal * sum(jax.tree.leaves(gap))

    @jax.custom_vjp
    def solution(params, support, key):
        objective = lambda w, batch, k, shown: proximal_loss(w, batch, k, shown, params)
        result = inner.run(objective, params, support, key)
        return result.params, result.failed

    def forward(params, support, key):
        result = solution(params, support, key)
        return result, (result[0], support, key)

    def backward(residuals, cotangents):
        weights, support, key = residuals
        gradient = jax.grad(lambda w: loss(w, support, key, support))

        def matrix(v):  # I + H / lambda
            curved = jax.jvp(gradient, (weights,), (v,))[1]
            return jax.tree.map(lambda a, h: a + h / proximal, v, curved)

        solved, _ = jax.scipy.sparse.linalg.cg(matrix, cotangents[0], tol=0.0, maxiter=solver_steps)
        return solved, None, None

    solution.defvjp(forward, backward)
    return solution
