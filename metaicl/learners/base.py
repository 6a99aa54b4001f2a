# SPDX-License-Identifier: Apache-2.0
"""What a learner is: four pure functions and what they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Array, Episode, Examples, PyTree, TaskSpec


class Meta(NamedTuple):
    """What training moves.

    Attributes:
      params: differentiated and handed to the optimiser.
      carry: checkpointed but never differentiated (Adam moments that Reptile carries across tasks, running
        whitening statistics); `()` for most learners.
    """

    params: PyTree
    carry: PyTree = ()


class Learner(NamedTuple):
    """A method of learning from a support set. Constructors take a `TaskSpec` and plain keyword arguments.

    Attributes:
      init: `(key) -> Meta`; `Meta({}, ())` where there is nothing to learn.
      adapt: `(meta, support, key) -> state`: one support set (no batch axis) becomes a task state.
      predict: `(meta, state, x [Q, *x_shape], mask [Q]) -> [Q, N]`: raw answers for the queries.
      meta_grad: `(meta, episodes with leading B, key, step) -> (grads like params, carry, metrics)`.
      independent: each query's answer ignores the other queries.
      exchangeable: the answers ignore the order of the support set.
      serial: `meta_grad` carries state from one episode of the batch to the next, so that a batch cannot be
        spread over devices.
      relabelling: answers to permuted labels are permuted answers (no output slot differs from another).
      failure: what to say when `meta_grad`'s metrics hold a `failed_step` above 0, with `{task}` and `{step}` to
        fill in from `failed_task` and `failed_step`; empty for learners that report no such thing.
    """

    init: Callable[[Array], Meta]
    adapt: Callable[[Meta, Examples, Array], Any]
    predict: Callable[[Meta, Any, Array, Array], Array]
    meta_grad: Callable[[Meta, Episode, Array, Array], tuple[PyTree, PyTree, dict[str, Array]]]
    independent: bool = True
    exchangeable: bool = True
    serial: bool = False
    relabelling: bool = False
    failure: str = ""


def answer(spec: TaskSpec, learner: Learner, meta: Meta, episode: Episode, key: Array) -> Array:
    """Adapts to the support set and answers the queries, absent classes masked: `[Q, N]`."""
    return _answer(spec, learner.adapt, learner.predict, meta, episode, key)


def _answer(spec, adapt, predict, meta, episode, key):
    state = adapt(meta, episode.support, key)
    outputs = predict(meta, state, episode.query.x, episode.query.mask)
    return losses.mask_absent(spec, outputs, episode.support)


def episodic_meta_grad(spec: TaskSpec, adapt, predict) -> Callable:
    """The default `meta_grad`: autodiff of the mean query loss over the batch."""

    def episode_loss(params, carry, episode, key, step):
        del step
        outputs = _answer(spec, adapt, predict, Meta(params, carry), episode, key)
        values = losses.metrics(spec, outputs, episode.query)
        return values["loss"], values

    return batched_meta_grad(episode_loss)


def batched_meta_grad(episode_loss: Callable, tasks_at_once: int | None = None) -> Callable:
    """Autodiff of the batch mean of `episode_loss(params, carry, episode, key, step) -> (loss, metrics)`.

    The gradient is taken once, of the mean, not once per episode: a large network's gradient never gets a
    batch axis.

    Args:
      episode_loss: of one episode.
      tasks_at_once: the batch is taken in groups of so many tasks, whose gradients are added up: the memory of
        a group instead of that of the batch, and the same gradient. None: the whole batch at once.

    Raises:
      ValueError: while tracing, if the batch does not consist of whole groups.
    """

    def group_grad(meta, episodes, keys, step):
        def group_loss(params):
            loss, values = jax.vmap(episode_loss, in_axes=(None, None, 0, 0, None))(
                params, meta.carry, episodes, keys, step
            )
            return jnp.mean(loss), values

        return jax.grad(group_loss, has_aux=True)(meta.params)

    def meta_grad(meta, episodes, key, step):
        tasks = episodes.query.mask.shape[0]
        keys = jax.random.split(key, tasks)
        size = tasks if tasks_at_once is None else tasks_at_once
        if size < 1 or tasks % size:
            raise ValueError(f"tasks_at_once is {size}; it has to divide the batch of {tasks} tasks.")
        if size == tasks:
            grads, values = group_grad(meta, episodes, keys, step)
            return grads, meta.carry, summary(values)
        groups = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (episodes, keys))

        def add(total, group):
            grads, values = group_grad(meta, group[0], group[1], step)
            return jax.tree.map(jnp.add, total, grads), values

        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, meta.params), groups)
        values = jax.tree.map(lambda a: a.reshape(tasks, *a.shape[2:]), values)
        return jax.tree.map(lambda a: a * (size / tasks), total), meta.carry, summary(values)

    return meta_grad


def summary(values: dict[str, Array]) -> dict[str, Array]:
    """Metrics of a batch from those of its episodes, `[B]` each: means, and the first task that failed.

    `failed_step [B]`, where there is one, becomes `failed_task` and `failed_step`: the number in the batch of the
    first task whose inner loop diverged, and at which of its steps; 0 and 0 if none did.
    """
    values = dict(values)
    failed = values.pop("failed_step", None)
    means = jax.tree.map(jnp.mean, values)
    if failed is None:
        return means
    task = jnp.argmax(failed > 0)
    return means | {"failed_task": task, "failed_step": failed[task]}


def no_meta_grad(spec: TaskSpec, adapt, predict) -> Callable:
    """`meta_grad` of a learner without parameters: no gradient, but the metrics of the batch."""

    def meta_grad(meta, episodes, key, step):
        del step
        keys = jax.random.split(key, episodes.query.mask.shape[0])

        def one(episode, k):
            return losses.metrics(spec, _answer(spec, adapt, predict, meta, episode, k), episode.query)

        values = jax.vmap(one)(episodes, keys)
        return jax.tree.map(jnp.zeros_like, meta.params), meta.carry, jax.tree.map(jnp.mean, values)

    return meta_grad
