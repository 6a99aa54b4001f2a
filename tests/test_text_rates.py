# SPDX-License-Identifier: Apache-2.0
"""Learned inner rates of a text encoder: their meta-gradient, and that training moves them."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
import synthetic
from test_gradients import central_difference, direction, dot
from text_data import tiny_episodes

from metaicl.episode import TaskSpec
from metaicl.learners import Meta, make_learner

SPEC = TaskSpec("classify", (5,), "int32", 3)
SHAPE = dict(vocabulary=20, width=8, layers=1, heads=2, hidden=8, positions=8)
KEY = jax.random.key(0)


def make(**settings):
    network = dict(encoder="bert", encoder_settings=dict(shape=SHAPE))
    return make_learner("maml", SPEC, rates="layer", inner_steps=2, inner_lr=0.3, **network, **settings)


@pytest.mark.slow
def test_meta_gradient_of_the_rates_of_a_text_encoder_is_the_derivative(x64):
    """The rates alone move; every array has one for each step, and each has a part in the derivative."""
    learner = make(dtype="float64")
    params = synthetic.to_float64(jax.jit(learner.init)(KEY)).params
    batch = synthetic.to_float64(tiny_episodes())
    run = jax.jit(lambda rates: learner.meta_grad(Meta(params | {"rates": rates}), batch, KEY, 0))
    grads = run(params["rates"])[0]["rates"]
    assert all(leaf.shape == (2,) for leaf in jax.tree.leaves(grads))
    way = direction(params["rates"])
    expected = central_difference(lambda rates: run(rates)[2]["loss"], params["rates"], way, 1e-4)
    assert float(dot(grads, way)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_training_moves_every_rate_and_lowers_the_loss():
    learner, batch = make(order="first"), tiny_episodes()
    meta = start = jax.jit(learner.init)(KEY)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(meta, state):
        grads, _, values = learner.meta_grad(meta, batch, KEY, 0)
        updates, state = optimizer.update(grads, state)
        return Meta(optax.apply_updates(meta.params, updates)), state, values["loss"]

    state, seen, path = optimizer.init(meta.params), [], [start.params["rates"]]
    for _ in range(10):
        meta, state, loss = step(meta, state)
        seen.append(float(loss))
        path.append(meta.params["rates"])
    farthest = lambda first, *later: (
        np.abs(np.stack(later) - np.stack([first])).max(axis=0).min()
    )  # some come back
    moved = jax.tree.map(farthest, *path)
    # A key's bias changes no weight of attention: it has no gradient, and its rate nothing to learn from.
    still = [jax.tree_util.keystr(name) for name, far in jax.tree.leaves_with_path(moved) if far < 1e-3]
    assert all("['key']['bias']" in name for name in still), still
    assert np.mean(seen[-2:]) < np.mean(seen[:2])
