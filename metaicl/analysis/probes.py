# SPDX-License-Identifier: Apache-2.0
"""What the weights of a network look like to a task it has not adapted to yet: measured, not trained on.

A probe is a pure function `(params, episode) -> {metric: scalar}` of one episode, meant to be `vmap`ped. Masked items
take no part.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaicl.episode import Array, Episode, PyTree, TaskSpec
from metaicl.learners.classifier import Classifier

Probe = Callable[[PyTree, Episode], dict[str, Array]]

_DAMPING = 1e-2  # at first, of the mean squared length of the gradients of the outputs


def gradient_agreement(spec: TaskSpec, network: Classifier) -> Probe:
    """Whether a step on one minibatch of a task helps another: the support's gradient against the queries'.

    `gradient_product` is their inner product, which Reptile and first-order MAML raise (Nichol et al. 2018, section
    5.1), and `gradient_cosine` that of their directions, which does not grow with the gradients' lengths; 0 where one
    of them vanishes.
    """
    del spec

    def probe(params, episode):
        gradient = lambda batch: ravel_pytree(
            jax.grad(network.support_loss)(params, batch, None, episode.support)
        )[0]
        a, b = gradient(episode.support), gradient(episode.query)
        product, lengths = jnp.vdot(a, b), jnp.linalg.norm(a) * jnp.linalg.norm(b)
        cosine = jnp.where(lengths > 0, product / jnp.where(lengths > 0, lengths, 1.0), 0.0)
        return {"gradient_cosine": cosine, "gradient_product": product}

    return probe


def solution_distance(
    spec: TaskSpec, network: Classifier, *, tolerance: float = 1e-3, iterations: int = 200
) -> Probe:
    """How far the weights are from a task's solutions (Nichol et al. 2018, section 5.2): `distance`.

    The solutions of a task, the weights that answer its support with a mean squared error of `tolerance` at most,
    are a region around a manifold, where the network has more weights than the support has numbers. Levenberg-
    Marquardt steps, each the shortest that solves the linearised and damped problem, lead there. The distance from
    start to end is an upper bound of that to the nearest solution, and equal to it, up to the tolerance, where the
    network is linear in its weights. `unsolved` is 1 where the steps did not suffice, 0 elsewhere.

    Raises:
      ValueError: for classification, whose solutions lie at infinity.
    """
    if spec.kind != "regress":
        raise ValueError("The distance to a task's solutions is defined for regression only.")

    def probe(params, episode):
        support = episode.support
        start, restore = ravel_pytree(params)
        keep = jnp.repeat(support.mask, spec.num_outputs)

        def misfits(flat):
            outputs = network.apply(restore(flat), support.x, support.mask)
            return keep * (outputs - support.y).ravel()  # [S N]

        error = lambda flat: jnp.sum(misfits(flat) ** 2) / jnp.maximum(jnp.sum(keep), 1.0)

        def unsolved(state):
            return (state[2] > tolerance) & (state[3] < iterations)

        def move(state):
            flat, damping, before, count = state
            jacobian = jax.jacrev(misfits)(flat)  # [S N, P]
            gram = jacobian @ jacobian.T
            damped = gram + jnp.diag(damping * jnp.mean(jnp.diag(gram)) + (1.0 - keep))
            there = flat - jacobian.T @ jnp.linalg.solve(damped, misfits(flat))
            after = error(there)
            better = after < before  # also false for what is not a number
            flat = jnp.where(better, there, flat)
            return flat, damping * jnp.where(better, 0.3, 4.0), jnp.where(better, after, before), count + 1

        begin = (start, jnp.asarray(_DAMPING, start.dtype), error(start), jnp.int32(0))
        solution, _, left, _ = jax.lax.while_loop(unsolved, move, begin)
        return {
            "distance": jnp.linalg.norm(solution - start),
            "unsolved": (left > tolerance).astype(start.dtype),
        }

    return probe


PROBES = {"gradient_agreement": gradient_agreement, "solution_distance": solution_distance}
