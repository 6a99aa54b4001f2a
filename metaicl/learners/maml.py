# SPDX-License-Identifier: Apache-2.0
"""Model-agnostic meta-learning (Finn et al. 2017) and what its inner loop's settings make of it.

| method | settings |
| --- | --- |
| FOMAML | `order="first"` |
| ANIL (Raghu et al. 2020) | `adapted="head"` |
| BOIL (Oh et al. 2021) | `adapted="body"` |
| Meta-SGD (Li et al. 2017) | `rates="parameter"` |
| MAML++ (Antoniou et al. 2019) | `rates="layer", multi_step_until=..., first_order_until=...` |
| Proto-MAML (Triantafillou et al. 2020, arXiv 1903.03096) | `head="prototypes"` |
| joint training | `inner_steps=0`, and steps at test time |
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metaicl import losses
from metaicl.episode import Array, Examples, TaskSpec
from metaicl.learners.base import Learner, Meta, batched_meta_grad
from metaicl.learners.classifier import BatchNorm, Classifier, Head, make_classifier
from metaicl.learners.inner import Adapted, InnerLoop, Order, Rates, Sampling, inner_loop

# Keys of dropout are folded in with numbers that the inner loop's own two (`split`) do not have.
QUERY_KEY, HEAD_KEY = 2, 3
FLOOR = 0.03  # of the share that a step before the last has in the multi-step loss


def maml(
    spec: TaskSpec,
    *,
    encoder: str = "mlp",
    encoder_settings: dict | None = None,
    inner_steps: int = 5,
    inner_lr: float = 0.01,
    inner_optimizer: str = "sgd",
    inner_settings: dict | None = None,
    inner_batch: int | None = None,
    inner_sampling: Sampling = "cycling",
    order: Order = "second",
    first_order_until: int = 0,
    adapted: str = "all",
    rates: Rates = "fixed",
    multi_step_until: int = 0,
    head: Head = "learned",
    batch_norm: BatchNorm = "transductive",
    remat: bool = False,
    tasks_at_once: int | None = None,
    dtype: str = "float32",
) -> Learner:
    """Builds the learner.

    The same constructor with other settings, given the same `Meta`, adapts differently at test time.

    Args:
      spec: classify or regress.
      encoder, encoder_settings, batch_norm, dtype: the network, see `classifier.make_classifier`.
      inner_steps, inner_lr, inner_optimizer, inner_settings, inner_batch, inner_sampling, order, adapted, rates,
        remat: see `inner.inner_loop`.
      first_order_until: outer steps of first order before those of `order` (MAML++'s annealing).
      multi_step_until: outer steps over which the loss moves from the mean over the queries' losses after
        every inner step to that after the last (`step_weights`); 0 uses the last alone.
      head: `learned` like all other weights, or `prototypes`: every task's head starts from its support's class
        means (`prototypes.prototype_head`), and no parameter depends on N unless `rates="parameter"`. The
        meta-gradient goes through the means into the encoder. So it does in first order: the inner gradients
        count as constants, the head that they are added to does not.
      tasks_at_once: tasks of a batch whose meta-gradient is taken side by side; None: all of them. One at a time
        takes the memory of one, and is no slower for convolutions on a CPU (`benchmarks/maml.py`).

    Raises:
      ValueError: for settings that are unknown or do not fit together.
    """
    network = make_classifier(spec, encoder, encoder_settings, dtype, batch_norm, head)
    loop = functools.partial(
        inner_loop,
        steps=inner_steps,
        learning_rate=inner_lr,
        optimizer=inner_optimizer,
        optimizer_settings=inner_settings,
        adapted=adapted,
        rates=rates,
        batch_size=inner_batch,
        sampling=inner_sampling,
        remat=remat,
    )
    inner = loop(order=order)
    meta_grad = functools.partial(_meta_grad, spec, network, inner_steps, multi_step_until, tasks_at_once)
    grad = meta_grad(inner)
    if first_order_until:
        cheap = meta_grad(loop(order="first"))
        grad = _annealed(first_order_until, cheap, grad)

    def init(key):
        params = network.init(key)
        learned = inner.init_rates(network.start(params, _nothing(spec)))
        return Meta(params | {"rates": learned} if learned else params)

    def adapt(meta, support, key):
        weights = network.start(_without_rates(meta.params), support)
        result = inner.run(network.support_loss, weights, support, key, rates=meta.params.get("rates"))
        return network.state(result.params, support)

    def predict(meta, state, x, mask):
        del meta
        return network.answer(state, x, mask)

    return Learner(
        init,
        adapt,
        predict,
        grad,
        network.independent,
        exchangeable=inner_batch is None,
        relabelling=head == "prototypes" and rates != "parameter",
        failure=inner.failure,
    )


def _nothing(spec: TaskSpec) -> Examples:
    """A support of no rows, for what depends on shapes alone."""
    return Examples(jnp.zeros((0, *spec.x_shape), spec.x_dtype), jnp.zeros(0, jnp.int32), jnp.zeros(0))


def _without_rates(params):
    return {name: part for name, part in params.items() if name != "rates"}


def _trained(network: Classifier, inner: InnerLoop, params, support, key, visit=None) -> Adapted:
    """Adaptation as `meta_grad` differentiates it: with dropout, by a key of its own for each step."""
    weights = network.start(_without_rates(params), support, jax.random.fold_in(key, HEAD_KEY))
    return inner.run(network.training_loss, weights, support, key, rates=params.get("rates"), visit=visit)


def _meta_grad(
    spec, network: Classifier, steps: int, multi_step_until: int, tasks_at_once: int | None, inner: InnerLoop
):
    """Autodiff of the queries' loss after the last inner step, or with `multi_step_until` after every one."""
    multi_step = multi_step_until > 0 and steps > 1

    def episode_loss(params, carry, episode, key, step):
        del carry

        def query_metrics(weights):
            state, query_key = network.state(weights, episode.support), jax.random.fold_in(key, QUERY_KEY)
            outputs = network.answer(state, episode.query.x, episode.query.mask, query_key)
            return losses.metrics(spec, losses.mask_absent(spec, outputs, episode.support), episode.query)

        visit = query_metrics if multi_step else None
        result = _trained(network, inner, params, episode.support, key, visit)
        failed = {"failed_step": result.failed}
        if not multi_step:
            values = query_metrics(result.params)
            return values["loss"], values | failed
        last = jax.tree.map(lambda a: a[-1], result.visits)
        return step_weights(steps, step, multi_step_until) @ result.visits["loss"], last | failed

    return batched_meta_grad(episode_loss, tasks_at_once)


def _annealed(until: int, early, late):
    """One `meta_grad` for the first outer steps and another from then on."""

    def meta_grad(meta, episodes, key, step):
        return jax.lax.cond(step < until, early, late, meta, episodes, key, step)

    return meta_grad


def step_weights(inner_steps: int, step: Array, until: int) -> Array:
    """Weights of the queries' losses after every inner step: `[inner_steps]`, summing to 1.

    The multi-step loss of MAML++ (Antoniou et al. 2019, section 4, and the released code): all 1/k at first;
    those before the last fall linearly with the outer step to 0.03/k, and the last takes what they lose.
    """
    share = 1.0 / inner_steps
    early = jnp.maximum(share * (1.0 - step / until), FLOOR * share)
    return jnp.full(inner_steps, early).at[-1].set(1.0 - (inner_steps - 1) * early)
