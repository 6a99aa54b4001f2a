# SPDX-License-Identifier: Apache-2.0
"""The inner loop: gradient steps on one support set, differentiable to the order that is asked for.

MAML (Finn et al. 2017), its first-order form, ANIL (Raghu et al. 2020), BOIL and Reptile (Nichol et al.
2018) are settings of this file, not copies of it.

Second order, exactly and without keeping the graph of every inner gradient: the gradient of the inner loss
carries its own derivative rule. With g(w, z) the gradient with respect to the adapted weights w, and z every
other floating argument (frozen weights, the support itself), the vector-Jacobian product of g with v is

    (dg/dw)' v = H_ww v,   (dg/dz)' v = H_zw v,

and by the symmetry of the Hessian both are one Jacobian-vector product of the full gradient (over w *and* z)
in the direction (v, 0): forward over reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaicl.episode import Array, Examples, PyTree

Order = Literal["second", "first", "second_reverse"]
Loss = Callable[[PyTree, Examples, Array], Array]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": optax.sgd, "adam": optax.adam}


class InnerLoop(NamedTuple):
    """`steps` of `optimizer` on a support set.

    Attributes:
      init_optimizer: `(params) -> optimiser state` of the adapted subtree.
      run: `(loss, params, support, key, opt_state=None) -> (params, opt_state)`. The loss, called as
        `loss(params, examples, key)`, may depend on its arguments alone: it may not close over traced values.
    """

    init_optimizer: Callable[[PyTree], PyTree]
    run: Callable[..., tuple[PyTree, PyTree]]


def inner_loop(
    *,
    steps: int,
    learning_rate: float,
    optimizer: str = "sgd",
    optimizer_settings: dict | None = None,
    order: Order = "second",
    adapted: str = "all",
    batch_size: int | None = None,
    remat: bool = False,
) -> InnerLoop:
    """Builds the inner loop.

    Args:
      steps: number of updates; 0 returns the weights as they are.
      learning_rate, optimizer, optimizer_settings: the inner optimiser, a key of `OPTIMIZERS`.
      order: `second` (forward over reverse), `first` (the inner gradient counts as a constant), or
        `second_reverse` (reverse over reverse: the same value, more memory; for derivatives of third order).
      adapted: `all`, or the name of a top-level subtree of the parameters (`head` is ANIL), or its negation
        (`-head` is BOIL).
      batch_size: support items per update, cycling over a reshuffled support; None takes all of it each time.
      remat: recompute each inner step in the backward pass.

    Raises:
      ValueError: for settings that are unknown or do not fit together.
    """
    if order not in ("second", "first", "second_reverse"):
        raise ValueError(f"Inner order is {order!r}; use 'second', 'first' or 'second_reverse'.")
    if steps < 0:
        raise ValueError(f"Inner steps is {steps}; it must be 0 or more.")
    update_rule = _make_optimizer(optimizer, learning_rate, optimizer_settings or {}, order)

    def init_optimizer(params):
        return update_rule.init(split(params, adapted)[0])

    def run(loss, params, support, key, opt_state=None):
        fast, frozen = split(params, adapted)
        opt_state = update_rule.init(fast) if opt_state is None else opt_state
        gradient = _gradient(lambda w, rest: loss(w | rest[0], rest[1], rest[2]), order)

        def step(carry, inputs):
            fast, opt_state = carry
            rows, step_key = inputs
            batch = support if rows is None else jax.tree.map(lambda a: a[rows], support)
            grads = gradient(fast, (frozen, batch, step_key))
            updates, opt_state = update_rule.update(grads, opt_state, fast)
            return (optax.apply_updates(fast, updates), opt_state), None

        rows_key, steps_key = jax.random.split(key)
        rows = None
        if batch_size is not None and support.mask.shape[0]:
            rows = cycling_rows(rows_key, support.mask, batch_size, steps)
        xs = (rows, jax.random.split(steps_key, steps))
        body = jax.checkpoint(step) if remat else step
        (fast, opt_state), _ = jax.lax.scan(body, (fast, opt_state), xs, length=steps)
        return fast | frozen, opt_state

    return InnerLoop(init_optimizer, run)


def split(params: dict[str, PyTree], adapted: str) -> tuple[dict, dict]:
    """Parts the parameters by top-level name into (adapted, frozen).

    Raises:
      ValueError: if nothing is adapted, listing the names there are.
    """
    name = adapted.removeprefix("-")
    if adapted != "all" and name not in params:
        raise ValueError(
            f"adapted={adapted!r} matches nothing; the subtrees are {', '.join(params)}, or 'all'."
        )
    chosen = {k: adapted == "all" or (k == name) != adapted.startswith("-") for k in params}
    fast = {k: v for k, v in params.items() if chosen[k]}
    return fast, {k: v for k, v in params.items() if not chosen[k]}


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


def _make_optimizer(name, learning_rate, settings, order):
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown inner optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
    if name == "adam" and order != "first" and not settings.get("eps_root"):
        raise ValueError(
            "Adam in a second-order inner loop needs optimizer_settings={'eps_root': 1e-8} or so: the square "
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
            still = jax.tree.map(jnp.zeros_like, floats)
            _, (w_bar, floats_bar) = jax.jvp(full, (w, floats), (v, still))
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
