# SPDX-License-Identifier: Apache-2.0
"""Reptile (Nichol et al. 2018): move the weights towards where plain training on a task takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Examples, TaskSpec
from metaicl.learners.base import Learner, Meta, summary
from metaicl.learners.classifier import BatchNorm, Classifier, make_classifier
from metaicl.learners.inner import InnerLoop, Sampling, inner_loop


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
    inner_sampling: Sampling = "cycling",
    adapted: str = "all",
    moments: Literal["carried", "fresh"] = "carried",
    direction: Literal["all", "last"] = "all",
    tail: Literal["shared", "separate"] = "shared",
    batch_norm: BatchNorm = "transductive",
    dtype: str = "float32",
) -> Learner:
    """Builds the learner. The outer step is the outer optimiser's: `sgd` with a rate of 1 falling to 0.

    Args:
      spec: classify or regress.
      encoder, encoder_settings, batch_norm, dtype: the network, see `classifier.make_classifier`.
      inner_steps, inner_lr, inner_batch, inner_sampling, adapted: minibatch steps per task, see `inner.inner_loop`;
        what does not adapt is not trained either.
      inner_optimizer, inner_settings: by default Adam with beta1 = 0, as in the released code.
      moments: `carried`: Adam's moments and step counter go on from task to task, and evaluation starts from
        them, as in the released code; tasks of a batch then run one after another. `fresh`: every task starts
        with new moments, and the tasks of a batch run side by side.
      direction: `all`: the weights move along the sum of the inner steps (Reptile). `last`: along the last
        one alone, which is first-order MAML as the Reptile paper compares it (section 6).
      tail: where the last minibatch comes from: `shared`, from the support like the others; `separate`, the
        queries of the training episode, which no earlier step has seen (there must be `inner_batch` of them).

    Raises:
      ValueError: for settings that are unknown or do not fit together.
    """
    _check_choices(moments, direction, tail, inner_batch, inner_steps)
    carried = moments == "carried"
    if inner_settings is None and inner_optimizer == "adam":
        inner_settings = {"b1": 0.0}
    network = make_classifier(spec, encoder, encoder_settings, dtype, batch_norm)
    inner = inner_loop(
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        order="first",
        batch_size=inner_batch,
        sampling=inner_sampling,
        adapted=adapted,
    )
    task = _task(spec, network, inner, direction, inner_batch if tail == "separate" else None)

    def init(key):
        params = network.init(key)
        return Meta(params, inner.init_optimizer(params) if carried else ())

    def adapt(meta, support, key):
        result = inner.run(network.support_loss, meta.params, support, key, opt_state=meta.carry or None)
        return network.state(result.params, support)

    def predict(meta, state, x, mask):
        del meta
        return network.answer(state, x, mask)

    # Shuffled minibatches see the support in an order; the whole support at once does not.
    exchangeable = inner_batch is None
    return Learner(
        init,
        adapt,
        predict,
        _meta_grad(task, carried),
        network.independent,
        exchangeable,
        serial=carried,
        failure=inner.failure,
    )


def _meta_grad(task: Callable, carried: bool) -> Callable:
    def meta_grad(meta, episodes, key, step):
        """The pseudo-gradient `params - mean(adapted)` (Nichol et al. 2018, algorithm 2)."""
        del step
        keys = jax.random.split(key, len(episodes.query.mask))
        if carried:
            body = lambda carry, inputs: task(meta.params, carry, *inputs)
            carry, (differences, values) = jax.lax.scan(body, meta.carry, (episodes, keys))
        else:
            carry = ()
            _, (differences, values) = jax.vmap(lambda e, k: task(meta.params, None, e, k))(episodes, keys)
        return jax.tree.map(lambda a: jnp.mean(a, axis=0), differences), carry, summary(values)

    return meta_grad


def _check_choices(moments, direction, tail, inner_batch, inner_steps) -> None:
    for name, value, known in (
        ("moments", moments, ("carried", "fresh")),
        ("direction", direction, ("all", "last")),
        ("tail", tail, ("shared", "separate")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; use {known[0]!r} or {known[1]!r}.")
    if tail == "separate" and not inner_batch:
        raise ValueError("A separate tail is one more minibatch: give inner_batch.")
    if inner_steps < 1 and (direction, tail) != ("all", "shared"):
        raise ValueError(f"There is no last step among {inner_steps}: give inner_steps of 1 or more.")


def _task(spec, network: Classifier, inner: InnerLoop, direction: str, tail: int | None):
    """`(params, opt_state, episode, key) -> (opt_state, (pseudo-gradient, metrics))` of one task."""

    def task(params, opt_state, episode, key):
        examples, rows = episode.support, None
        if tail is not None:
            examples, rows = _with_tail(inner, episode, tail, key)
        visit = (lambda weights: weights) if direction == "last" else None
        result = inner.run(
            network.training_loss, params, examples, key, opt_state=opt_state, rows=rows, visit=visit
        )
        before = params
        if visit is not None:
            path = jax.tree.map(
                lambda start, after: jnp.concatenate([start[None], after]), params, result.visits
            )
            before = jax.tree.map(lambda a: a[-2], path)
        difference = jax.tree.map(jnp.subtract, before, result.params)
        values = _query_metrics(spec, network, result.params, episode)
        values["failed_step"] = result.failed
        return None if opt_state is None else result.opt_state, (difference, values)

    return task


def _query_metrics(spec, network: Classifier, weights, episode) -> dict[str, jax.Array]:
    """How the adapted weights answer the queries; nothing where an episode has none, for none are needed."""
    query = episode.query
    if not query.mask.shape[0]:
        return {}
    outputs = network.answer(network.state(weights, episode.support), query.x, query.mask)
    return losses.metrics(spec, losses.mask_absent(spec, outputs, episode.support), query)


def _with_tail(inner, episode, inner_batch, key) -> tuple[Examples, jax.Array]:
    """Support and queries in one set, and the rows of the minibatches: the queries are the last."""
    size, extra = episode.support.mask.shape[0], episode.query.mask.shape[0]
    if extra != inner_batch:
        raise ValueError(
            f"A separate tail of {inner_batch} items needs as many training queries; an episode has {extra}. "
            "Set task.queries to inner_batch / ways."
        )
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), episode.support, episode.query)
    rows = inner.minibatches(jax.random.split(key)[0], episode.support.mask)
    return both, rows.at[-1].set(size + jnp.arange(extra))
