# SPDX-License-Identifier: Apache-2.0
"""Masked losses and metrics: the only definition of error in the project.

All functions take one episode (no batch axis) and are meant to be `vmap`ped. Shapes: outputs `[Q, N]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaicl.episode import Array, Examples, TaskSpec

CALIBRATION_BINS = 10
_ABSENT = -1e9  # finite, so that its gradient is zero and not NaN


def present_classes(support: Examples, num_outputs: int) -> Array:
    """`bool [N]`: the classes that the support set shows; all of them if it shows nothing."""
    shown = jax.nn.one_hot(support.y, num_outputs).T @ support.mask > 0  # [N]
    return shown | ~jnp.any(shown)


def mask_absent(spec: TaskSpec, outputs: Array, support: Examples) -> Array:
    """Makes classes that the support set does not show impossible: `[Q, N] -> [Q, N]`.

    Episodes with fewer ways than N thereby use the program of N ways. Regression passes through.
    """
    if spec.kind == "regress":
        return outputs
    return jnp.where(present_classes(support, spec.num_outputs)[None, :], outputs, _ABSENT)


def example_losses(spec: TaskSpec, outputs: Array, y: Array) -> Array:
    """Cross-entropy in nats (classify) or squared error summed over outputs (regress): `[Q, N] -> [Q]`."""
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if spec.kind == "classify":
        log_p = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]
    return jnp.sum((outputs - y) ** 2, axis=-1)


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of the values that `mask` keeps; 0 where it keeps none."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def mean_loss(spec: TaskSpec, outputs: Array, examples: Examples) -> Array:
    """The loss of one set of answers, averaged over its real items: a scalar."""
    return masked_mean(example_losses(spec, outputs, examples.y), examples.mask)


def metrics(spec: TaskSpec, outputs: Array, query: Examples) -> dict[str, Array]:
    """Metrics of one episode: scalars, averaged over the real queries.

    classify: `loss` (= negative log-likelihood, nats) and `accuracy`. regress: `loss` (= squared error).
    """
    result = {"loss": mean_loss(spec, outputs, query)}
    if spec.kind == "classify":
        correct = (jnp.argmax(outputs, axis=-1) == query.y).astype(jnp.float32)
        result["accuracy"] = masked_mean(correct, query.mask)
    return result


def score(spec: TaskSpec, values: dict[str, Array]) -> Array:
    """What model selection maximises: accuracy (classify) or minus the squared error (regress)."""
    return values["accuracy"] if spec.kind == "classify" else -values["loss"]


def calibration(spec: TaskSpec, outputs: Array, query: Examples) -> dict[str, Array]:
    """Sums for a reliability diagram over equal bins of the confidence in the predicted class.

    Returns:
      `count`, `confidence` and `correct`, each `[CALIBRATION_BINS]`; an empty dict for regression. Sums over
      episodes add up, and the expected calibration error (Guo et al. 2017, equation 3) follows from them.
    """
    if spec.kind == "regress":
        return {}
    p = jax.nn.softmax(outputs.astype(jnp.float32))
    confidence = jnp.max(p, axis=-1)  # [Q]
    correct = (jnp.argmax(p, axis=-1) == query.y).astype(jnp.float32)
    bins = jnp.clip((confidence * CALIBRATION_BINS).astype(jnp.int32), 0, CALIBRATION_BINS - 1)
    member = jax.nn.one_hot(bins, CALIBRATION_BINS).T * query.mask[None, :]  # [bins, Q]
    return {"count": member.sum(1), "confidence": member @ confidence, "correct": member @ correct}
