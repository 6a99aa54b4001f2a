# SPDX-License-Identifier: Apache-2.0
"""Measured coefficients of the meta-gradients' leading terms against theory (Nichol et al. 2018, section 5.1)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaicl.analysis.taylor import METHODS, coefficients, orders
from metaicl.episode import Examples, TaskSpec
from metaicl.learners.classifier import make_classifier

SPEC = TaskSpec("regress", (2,), "float64", 1)
NETWORK = make_classifier(SPEC, "mlp", {"hidden": (6,), "activation": "tanh"}, "float64")


def tasks(items, count=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, items, 2))
    w = rng.normal(size=(count, 2, 1))
    return Examples(jnp.asarray(x), jnp.asarray(np.sin(2 * x @ w)), jnp.ones((count, items)))


def measured(method, k, inner_lr, items=None):
    params = jax.tree.map(lambda a: a.astype("float64"), NETWORK.init(jax.random.key(0)))
    return coefficients(NETWORK.support_loss, params, tasks(items or 4 * k), method, k, inner_lr=inner_lr)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_orders_hold_every_ordered_pair_equally_often(k):
    """At each pair of places that matters: who is last, and who comes before whom."""
    found = orders(k)
    assert found.shape == (2 * k, k)
    before = np.zeros((k, k), int)
    for order in found:
        for i, j in itertools.combinations(range(k), 2):
            before[order[i], order[j]] += 1
    off = before[~np.eye(k, dtype=bool)]
    assert set(off) == {k}
    assert set(np.bincount(found[:, -1])) == {2}


@pytest.mark.parametrize(
    ("method", "k"), [("maml", 2), ("maml", 4), ("fomaml", 4), ("reptile", 2), ("reptile", 4)]
)
def test_coefficients_are_those_of_the_theory(x64, method, k):
    found = measured(method, k, 1e-3)
    grad, inner = METHODS[method](k)
    assert found["grad"] == pytest.approx(grad, rel=1e-3)
    assert found["inner"] == pytest.approx(inner, rel=1e-3)
    assert found["grad_rest"] < 1e-3
    assert found["inner_rest"] < 1e-3


def test_a_large_step_leaves_the_expansion(x64):
    found = measured("maml", 4, 0.5)
    assert abs(found["inner"] / 6 - 1) > 0.05


@pytest.mark.parametrize(
    ("method", "k", "text"), [("anil", 4, "method is 'anil'"), ("maml", 3, "do not make 3 minibatches")]
)
def test_refuses(x64, method, k, text):
    with pytest.raises(ValueError, match=text):
        measured(method, k, 0.1, items=16)
