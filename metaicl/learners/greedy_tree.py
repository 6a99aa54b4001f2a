# SPDX-License-Identifier: Apache-2.0
"""Greedy regression trees (CART, Breiman et al. 1984, chapter 8), grown on the device with fixed shapes.

A node is called by the smallest number among its support items, so that S numbers are enough for any depth. A
level is a table `[S]` that says where each node sends an item. Node r is split at the value of item i along
coordinate f for the i and f of the largest gain; all candidates of all nodes of a level are weighed at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner
from metaicl.learners.regression import regressor
from metaicl.models.network import flat

_EQUAL = 1e-5  # gains this close, relatively, are a tie
_OTHERS = jnp.iinfo(jnp.int32).max


class Level(NamedTuple):
    """What one level of the tree does with the items of node r; a node that is not split sends them to itself.

    Attributes:
      feature: `int32 [S]`. threshold: `float32 [S]`; items up to it go left.
      left, right: `int32 [S]` nodes of the next level.
    """

    feature: jax.Array
    threshold: jax.Array
    left: jax.Array
    right: jax.Array


def greedy_tree(spec: TaskSpec, *, depth: int | None = 4, min_leaf: int = 1) -> Learner:
    """Builds the learner: squared error, splits half-way between neighbouring values, leaves answer their mean.

    The tree is scikit-learn's `DecisionTreeRegressor`. Where several splits are equally good, which that one
    decides by chance, it is the lowest coordinate's at the lowest value.

    Args:
      spec: regress.
      depth: splits between root and leaf, at most (Garg et al. 2022: 4); None grows until every leaf is pure.
      min_leaf: examples that a leaf must have.

    Raises:
      ValueError: for classification, a negative depth or empty leaves.
    """
    if depth is not None and depth < 0:
        raise ValueError(f"greedy_tree: depth is {depth}; it must be 0 or more, or None for no limit.")
    if min_leaf < 1:
        raise ValueError(f"greedy_tree: min_leaf is {min_leaf}; it must be 1 or more.")

    def adapt(meta, support, key):
        del meta, key
        x, y, real = jnp.asarray(flat(support.x)), jnp.asarray(support.y), support.mask > 0
        if not len(x):
            return None, 0, y
        root = jnp.argmax(real).astype(jnp.int32)
        grow = lambda node, _: _split(x, y, node, min_leaf)
        levels = len(x) - 1 if depth is None else depth
        node, tree = jax.lax.scan(grow, jnp.where(real, root, _OTHERS), None, length=levels)
        return tree, root, _node_means(y, node)

    def predict(meta, state, x, mask):
        del meta, mask
        tree, root, means = state
        rows = jnp.asarray(flat(x))
        if tree is None:
            return jnp.zeros((len(rows), means.shape[1]), means.dtype)

        def descend(node, level):
            value = jnp.take_along_axis(rows, level.feature[node][:, None], axis=1)[:, 0]
            return jnp.where(value <= level.threshold[node], level.left[node], level.right[node]), None

        node, _ = jax.lax.scan(descend, jnp.full(len(rows), root), tree)
        return means[node]

    return regressor(spec, "greedy_tree", adapt, predict)


def _split(x, y, node, min_leaf: int) -> tuple[jax.Array, Level]:
    """Splits every node of a level that can be: `x [S, D]`, `y [S, N]`, `node int32 [S]` -> nodes, the level."""
    same = (node[:, None] == node[None, :]) & (node != _OTHERS)[:, None]  # [S, S] item, item
    count = jnp.sum(same, axis=1)
    mean = same.astype(y.dtype) @ y / jnp.maximum(count, 1)[:, None]
    below = same[:, :, None] & (x[None, :, :] <= x[:, None, :])  # [S, S, D]: item j left of a split at item i
    left = jnp.sum(below, axis=1)  # [S, D]
    right = count[:, None] - left
    # Centred, the two sides have opposite sums, and the fall of the squared error is one square.
    moment = jnp.einsum("ijd,ijn->idn", below.astype(y.dtype), y[None, :, :] - mean[:, None, :])
    gain = jnp.sum(moment**2, axis=-1) * count[:, None] / jnp.maximum(left * right, 1)
    varies = jnp.any(same[:, :, None] & (y[None, :, :] != y[:, None, :]), axis=(1, 2))
    allowed = (left >= min_leaf) & (right >= min_leaf) & varies[:, None]
    gain = jnp.where(allowed, gain, -1.0)
    item, feature, found = _best_of_nodes(x, gain, same)
    lower, along = (
        x[item, feature],
        x[:, feature].T,
    )  # [S], [S, S]: of every item where the node of i is split
    upper = jnp.min(jnp.where(same & (along > lower[:, None]), along, jnp.inf), axis=1)
    middle = lower / 2 + upper / 2
    # Rounding may put the middle of two neighbours on the upper one.
    threshold = jnp.where(middle < upper, middle, lower)
    goes_left = jnp.take_along_axis(x, feature[:, None], axis=1)[:, 0] <= threshold
    numbers = jnp.arange(len(x), dtype=jnp.int32)
    first = lambda side: jnp.min(jnp.where(same & side[None, :], numbers[None, :], _OTHERS), axis=1)
    lefts, rights = jnp.where(found, first(goes_left), node), jnp.where(found, first(~goes_left), node)
    level = Level(feature.astype(jnp.int32), threshold, lefts, rights)
    return jnp.where(goes_left, lefts, rights), level


def _best_of_nodes(x, gain, same):
    """For the node of every item, its best split: the item and the coordinate that it is at, and if there is one.

    Arguments: `x [S, D]`, `gain [S, D]`, `same bool [S, S]`. Returns `int32 [S]` twice and `bool [S]`.
    """
    best = jnp.max(jnp.where(same, jnp.max(gain, axis=1)[None, :], -1.0), axis=1)
    tied = same[:, :, None] & (
        gain[None, :, :] >= (best - _EQUAL * jnp.abs(best))[:, None, None]
    )  # [S, S, D]
    feature = jnp.argmax(jnp.any(tied, axis=1), axis=1)
    along = jnp.take_along_axis(tied, feature[:, None, None], axis=2)[:, :, 0]  # [S, S]
    item = jnp.argmin(jnp.where(along, x[:, feature].T, jnp.inf), axis=1)
    return item, feature, best >= 0


def _node_means(y, node):
    """Mean label of the items of node r `[S, N]`; 0 for numbers that no node has."""
    member = (node[None, :] == jnp.arange(len(y), dtype=node.dtype)[:, None]).astype(y.dtype)  # [node, item]
    return member @ y / jnp.maximum(jnp.sum(member, axis=1), 1.0)[:, None]
