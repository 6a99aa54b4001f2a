# SPDX-License-Identifier: Apache-2.0
"""The leading terms of meta-gradients (Nichol et al. 2018, section 5.1), measured.

With k minibatches of one task, their gradients g_i and Hessians H_i at the initial weights, and inner step a, every
method moves along

    c_grad AvgGrad - a c_inner AvgGradInner + O(a^2),   AvgGrad = E[g_i],  AvgGradInner = E[H_i g_j], i != j,

where the expectation is over tasks and the order of the minibatches. The theory's coefficients (c_grad, c_inner):
MAML (1, 2 (k - 1)), first-order MAML (1, k - 1), Reptile (k, k (k - 1) / 2).

Two choices make the measurement exact up to O(a^2) instead of noisy. The mean over the k rotations of the
minibatches and their reversals holds every ordered pair equally often, as the mean over all k! orders does. And
moving with the steps a and -a parts the move into an even part, c_grad AvgGrad + O(a^2), and an odd one,
-a c_inner AvgGradInner + O(a^3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import Examples, PyTree
from metaicl.learners.inner import Loss, Order, inner_loop

METHODS: dict[str, Callable[[int], tuple[float, float]]] = {
    "maml": lambda k: (1.0, 2.0 * (k - 1)),
    "fomaml": lambda k: (1.0, k - 1.0),
    "reptile": lambda k: (float(k), 0.5 * k * (k - 1)),
}


def orders(k: int) -> np.ndarray:
    """The rotations of 0 .. k-1 and their reversals: `int [2 k, k]`."""
    rotations = (np.arange(k)[:, None] + np.arange(k)) % k
    return np.concatenate([rotations, rotations[:, ::-1]])


def coefficients(
    loss: Loss, params: PyTree, tasks: Examples, method: str, k: int, *, inner_lr: float
) -> dict[str, float]:
    """Measures the coefficients of one method at given weights.

    Args:
      loss: `(params, batch, key, shown) -> scalar`, see `inner.InnerLoop`; smooth, for a relu has no second
        derivative to speak of. Calls with the same loss share their compiled programs.
      params: the initial weights. Reptile's move is a difference of weights: it needs every digit of 64 bits.
      tasks: `[B, k m, ...]`: k minibatches of m items of each of B tasks.
      method: a key of `METHODS`.
      k: number of minibatches, at least 2. MAML adapts to k - 1 of them and takes its loss on the last.
      inner_lr: a. The error is of order a^2.

    Returns:
      `grad` and `inner`, the measured c_grad and c_inner; `grad_rest` and `inner_rest`, the share of the even and the
      odd part that is not along AvgGrad and AvgGradInner, which tends to 0 with a.

    Raises:
      ValueError: for an unknown method, or minibatches that do not come out even.
    """
    items = tasks.mask.shape[1]
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}.")
    if k < 2 or items % k:
        raise ValueError(f"{items} items do not make {k} minibatches; k is at least 2 and divides them.")
    rows = np.arange(items).reshape(k, -1)
    there, back = (
        _mean_move(loss, method, k, rate)(params, tasks, rows[orders(k)]) for rate in (inner_lr, -inner_lr)
    )
    even = jax.tree.map(lambda a, b: (a + b) / 2, there, back)
    odd = jax.tree.map(lambda a, b: (b - a) / (2 * inner_lr), there, back)
    average, inner = _averages(loss, k)(params, tasks, rows)
    grad, grad_rest = _along(even, average)
    inner_share, inner_rest = _along(odd, inner)
    return {"grad": grad, "inner": inner_share, "grad_rest": grad_rest, "inner_rest": inner_rest}


@functools.lru_cache
def _mean_move(loss, method: str, k: int, rate: float):
    """`(params, tasks, rows [2 k, k, m]) -> move`, the mean over tasks and orders, in units of gradients."""
    steps = k if method == "reptile" else k - 1
    order: Order = "second_reverse" if method == "maml" else "first"
    inner = inner_loop(steps=steps, learning_rate=rate, order=order)

    def move(params, examples, rows):
        shown = examples.replace(x=None)

        def last_loss(params):
            adapted = inner.run(loss, params, examples, jax.random.key(0), rows=rows[:steps]).params
            return loss(adapted, jax.tree.map(lambda a: a[rows[-1]], examples), None, shown)

        if method != "reptile":
            return jax.grad(last_loss)(params)
        adapted = inner.run(loss, params, examples, jax.random.key(0), rows=rows).params
        return jax.tree.map(lambda a, b: (a - b) / rate, params, adapted)

    per_task = jax.vmap(move, in_axes=(None, None, 0))
    return jax.jit(_mean_over_tasks(per_task))


@functools.lru_cache
def _averages(loss, k: int):
    """`(params, tasks, rows [k, m]) -> (AvgGrad, AvgGradInner)`, by Hessian-vector products."""

    def one(params, examples, rows):
        gradient = lambda i: (
            lambda w: jax.grad(loss)(
                w, jax.tree.map(lambda a: a[rows[i]], examples), None, examples.replace(x=None)
            )
        )
        grads = [gradient(i)(params) for i in range(k)]
        total = jax.tree.map(lambda *g: sum(g), *grads)
        # For each i, H_i applied to the sum of the others' gradients.
        others = [jax.tree.map(jnp.subtract, total, g) for g in grads]
        curved = [jax.jvp(gradient(i), (params,), (others[i],))[1] for i in range(k)]
        average = jax.tree.map(lambda a: a / k, total)
        return average, jax.tree.map(lambda *h: sum(h) / (k * (k - 1)), *curved)

    def mean(params, tasks, rows):
        each = jax.vmap(one, in_axes=(None, 0, None))(params, tasks, rows)
        return jax.tree.map(lambda a: jnp.mean(a, axis=0), each)

    return jax.jit(mean)


def _mean_over_tasks(per_task):
    def mean(params, tasks, rows):
        each = jax.vmap(per_task, in_axes=(None, 0, None))(params, tasks, rows)  # [B, orders, ...]
        return jax.tree.map(lambda a: jnp.mean(a, axis=(0, 1)), each)

    return mean


def _along(vector: PyTree, direction: PyTree) -> tuple[float, float]:
    """The coefficient of a vector along a direction, and the share of its length that is not along it."""
    dot = lambda a, b: float(
        sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    )
    share = dot(vector, direction) / dot(direction, direction)
    rest = jax.tree.map(lambda v, d: v - share * d, vector, direction)
    return share, (dot(rest, rest) / dot(vector, vector)) ** 0.5
