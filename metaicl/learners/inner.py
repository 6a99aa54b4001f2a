# SPDX-License-Identifier: Apache-2.0
"""The inner loop: gradient steps on one support set, differentiable to the order that is asked for.

MAML (Finn et al. 2017), its first-order form, ANIL (Raghu et al. 2020), BOIL (Oh et al. 2021), Meta-SGD (Li et
al. 2017), the learned rates of MAML++ (Antoniou et al. 2019) and Reptile (Nichol et al. 2018) are settings of
this file, not copies of it.

Second order, exactly and without keeping the graph of every inner gradient: the gradient of the inner loss
carries its own derivative rule. With g(w, z) the gradient with respect to the adapted weights w, and z every
other floating argument (frozen weights, the support itself), the vector-Jacobian product of g with v is

    (dg/dw)' v = H_ww v,   (dg/dz)' v = H_zw v,

and by the symmetry of the Hessian both are one Jacobian-vector product of the full gradient (over w *and* z)
in the direction (v, 0): forward over reverse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaicl.episode import Array, Examples, PyTree
from metaicl.learners.subtree import joined, split

Order = Literal["second", "first", "second_reverse"]
Rates = Literal["fixed", "parameter", "layer"]
Sampling = Literal["cycling", "replacement"]
Loss = Callable[[PyTree, Examples, Array, Examples], Array]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
}


class Adapted(NamedTuple):
    """What the inner loop leaves.

    Attributes:
      params: all weights, the adapted ones moved.
      opt_state: of the inner optimiser.
      failed: `int32`, the number (from 1) of the first step whose weights were not finite; 0 for none.
      visits: what `visit` gave after every step, stacked; None without it.
    """

    params: PyTree
    opt_state: PyTree
    failed: Array
    visits: PyTree = None


class InnerLoop(NamedTuple):
    """`steps` of an optimiser on a support set.

    Attributes:
      init_optimizer: `(params) -> optimiser state` of the adapted subtree.
      init_rates: `(params) -> rates` to be learned beside the weights; `{}` where they are fixed.
      minibatches: `(key, mask [S]) -> int32 [steps, batch_size]` rows, or None where every step sees all items.
      run: `(loss, params, examples, key, *, rates={}, opt_state=None, rows=None, visit=None) -> Adapted`. The
        loss, called as `loss(params, batch, key, shown)` with the items of one step and, in `shown` (whose x is
        None), the labels of them all, may depend on its arguments alone: it may not close over traced
        values. `rows` replaces `minibatches`; `visit` is called as `visit(params)` after every step.
      failure: what to say of a diverged loop, with `{task}` and `{step}` to fill in.
    """

    init_optimizer: Callable[[PyTree], PyTree]
    init_rates: Callable[[PyTree], PyTree]
    minibatches: Callable[[Array, Array], Array | None]
    run: Callable[..., Adapted]
    failure: str


def inner_loop(
    *,
    steps: int,
    learning_rate: float,
    optimizer: str = "sgd",
    optimizer_settings: dict | None = None,
    order: Order = "second",
    adapted: str = "all",
    rates: Rates = "fixed",
    batch_size: int | None = None,
    sampling: Sampling = "cycling",
    remat: bool = False,
) -> InnerLoop:
    """Builds the inner loop.

    Args:
      steps: number of updates; 0 returns the weights as they are.
      learning_rate, optimizer, optimizer_settings: the inner optimiser, a key of `OPTIMIZERS`.
      order: `second` (forward over reverse), `first` (the inner gradient counts as a constant), or
        `second_reverse` (reverse over reverse: the same value, more memory; for derivatives of third order).
      adapted: which weights move, see `subtree.split`: `all`, `head` (ANIL), `body` (BOIL), `adapters`, paths.
      rates: `fixed`; or learned from `learning_rate` on: `parameter`, one per weight (Meta-SGD), or `layer`,
        one per array and step (MAML++; steps beyond those trained use the last).
      batch_size: support items per update; None takes all of them each time.
      sampling: `cycling` over the reshuffled support, or `replacement`: a fresh random subset each time.
      remat: recompute each inner step in the backward pass.

    Raises:
      ValueError: for settings that are unknown or do not fit together.
    """
    _check_choices(order, rates, sampling)
    if steps < 0:
        raise ValueError(f"Inner steps is {steps}; it must be 0 or more.")
    learned, by_step = rates != "fixed", rates == "layer"
    unit = 1.0 if learned else learning_rate
    update_rule = _make_optimizer(optimizer, unit, optimizer_settings or {}, order)
    minibatches = functools.partial(_minibatches, batch_size, sampling, steps)

    def init_optimizer(params):
        return update_rule.init(split(params, adapted)[0])

    def init_rates(params):
        fast = split(params, adapted)[0]  # also where nothing is learned: refuses a subtree that is not there
        shape = lambda a: (max(steps, 1),) if by_step else a.shape
        return jax.tree.map(lambda a: jnp.full(shape(a), learning_rate, a.dtype), fast) if learned else {}

    def run(loss, params, examples, key, *, rates=None, opt_state=None, rows=None, visit=None) -> Adapted:
        if learned and not rates:
            raise ValueError("This inner loop has learned rates: hand over those of `init_rates`.")
        fast, frozen = split(params, adapted)
        opt_state = update_rule.init(fast) if opt_state is None else opt_state
        gradient = _gradient(lambda w, rest: loss(joined(w, rest[0]), *rest[1:]), order)
        rows_key, steps_key = jax.random.split(key)
        rows = minibatches(rows_key, examples.mask) if rows is None else rows
        shown = examples.replace(x=None)

        def step(carry, inputs):
            (fast, opt_state, failed), (number, rows, step_key) = carry, inputs
            batch = examples if rows is None else jax.tree.map(lambda a: a[rows], examples)
            grads = gradient(fast, (frozen, batch, step_key, shown))
            updates, opt_state = update_rule.update(grads, opt_state, fast)
            if learned:
                updates = jax.tree.map(jnp.multiply, updates, _rates_of_step(rates, number, by_step))
            fast = optax.apply_updates(fast, updates)
            failed = jnp.where((failed == 0) & ~_all_finite(fast), number + 1, failed)
            return (fast, opt_state, failed), None if visit is None else visit(joined(fast, frozen))

        xs = (jnp.arange(steps, dtype=jnp.int32), rows, jax.random.split(steps_key, steps))
        body = jax.checkpoint(step) if remat else step
        carry = (fast, opt_state, jnp.int32(0))
        (fast, opt_state, failed), visits = jax.lax.scan(body, carry, xs, length=steps)
        return Adapted(joined(fast, frozen), opt_state, failed, visits)

    failure = (
        f"The inner loop of task {{task}} of the batch diverged at its step {{step}} of {steps}, with "
        f"{'learned rates that began at' if learned else 'the rate'} {learning_rate:g}: lower inner_lr"
    )
    return InnerLoop(init_optimizer, init_rates, minibatches, run, failure)


def _check_choices(order, rates, sampling) -> None:
    for name, value, known in (
        ("order", order, ("second", "first", "second_reverse")),
        ("rates", rates, ("fixed", "parameter", "layer")),
        ("sampling", sampling, ("cycling", "replacement")),
    ):
        if value not in known:
            raise ValueError(f"Inner {name} is {value!r}; use {', '.join(map(repr, known))}.")


def _minibatches(batch_size, sampling, steps, key: Array, mask: Array) -> Array | None:
    if batch_size is None or not mask.shape[0]:
        return None
    if batch_size > mask.shape[0]:
        raise ValueError(
            f"The inner batch of {batch_size} is larger than the support of {mask.shape[0]} items: lower "
            f"inner_batch to at most {mask.shape[0]}, or give more shots."
        )
    draw = cycling_rows if sampling == "cycling" else replacement_rows
    return draw(key, mask, batch_size, steps)


def _rates_of_step(rates: PyTree, step: Array, by_step: bool) -> PyTree:
    return jax.tree.map(lambda a: a[jnp.minimum(step, len(a) - 1)], rates) if by_step else rates


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def cycling_rows(key: Array, mask: Array, batch_size: int, steps: int) -> Array:
    """Rows of minibatches that cycle over the reshuffled real items of a set: `int32 [steps, batch_size]`.

    As in Reptile's released code, a minibatch may straddle passes. Padding takes no place in it: a set with
    and without padding gives the same minibatches of the same items.
    """
    real = mask > 0
    position = jnp.arange(steps * batch_size)
    count = jnp.maximum(jnp.sum(real), 1)
    # Noise belongs to an item's number among the real ones: row r does not depend on how many rows there are.
    number = jnp.maximum(jnp.cumsum(real) - 1, 0)
    noise = jax.random.uniform(key, (mask.shape[0], len(position)))[number]  # [S, passes at most]
    order = jnp.argsort(jnp.where(real[:, None], noise, jnp.inf), axis=0)
    return order[position % count, position // count].reshape(steps, batch_size)


def replacement_rows(key: Array, mask: Array, batch_size: int, steps: int) -> Array:
    """Rows of minibatches that are random subsets, each drawn anew: `int32 [steps, batch_size]`.

    No item is twice in a minibatch unless the set is smaller; padding takes no place, as in `cycling_rows`.
    """
    real = mask > 0
    number = jnp.maximum(jnp.cumsum(real) - 1, 0)
    noise = jax.random.uniform(key, (mask.shape[0], steps))[number]
    order = jnp.argsort(jnp.where(real[:, None], noise, jnp.inf), axis=0)
    return order[jnp.arange(batch_size) % jnp.maximum(jnp.sum(real), 1)].T


def _make_optimizer(name, learning_rate, settings, order):
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown inner optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
    if name in ("adam", "adamw") and order != "first" and not settings.get("eps_root"):
        raise ValueError(
            "Adam in a second-order inner loop needs inner_settings={'eps_root': 1e-8} or so: the square "
            "root has an infinite derivative at a zero gradient, which makes the meta-gradient NaN."
        )
    return OPTIMIZERS[name](learning_rate, **settings)


def _gradient(loss: Callable[[PyTree, PyTree], Array], order: Order) -> Callable:
    if order == "first":
        return lambda w, rest: jax.lax.stop_gradient(jax.grad(loss)(w, rest))
    return jax.grad(loss) if order == "second_reverse" else symmetric_gradient(loss)


def symmetric_gradient(loss: Callable[[PyTree, PyTree], Array]) -> Callable[[PyTree, PyTree], PyTree]:
    """`(w, rest) -> d loss / d w`, whose own derivative is taken forward over reverse.

    `rest` may mix floating and other leaves (labels, keys); every floating leaf gets its derivative. The rule
    itself cannot be differentiated forward again: use reverse over reverse for third derivatives.
    """

    def gradient(w, rest):
        floats, others, merge = _part_floats(rest)

        @jax.custom_vjp
        def rule(w, floats, others):
            return jax.grad(loss)(w, merge(floats, others))

        def forward(w, floats, others):
            return rule(w, floats, others), (w, floats, others)

        def backward(residuals, v):
            w, floats, others = residuals
            full = jax.grad(lambda w, f: loss(w, merge(f, others)), argnums=(0, 1))
            # `floats` are constants here, not variables with a zero tangent: zeros would be multiplied out.
            _, (w_bar, floats_bar) = jax.jvp(lambda w: full(w, floats), (w,), (v,))
            return w_bar, floats_bar, None

        rule.defvjp(forward, backward)
        return rule(w, floats, others)

    return gradient


def _part_floats(tree: PyTree) -> tuple[list, list, Callable[[list, list], Any]]:
    """Parts the leaves into floating and other ones, with the function that puts them together again."""
    leaves, treedef = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def merge(floats, others):
        f, o = iter(floats), iter(others)
        return jax.tree.unflatten(treedef, [next(f) if is_float else next(o) for is_float in floating])

    floats = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if is_float]
    others = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if not is_float]
    return floats, others, merge
