# SPDX-License-Identifier: Apache-2.0
"""Dropout of a text encoder: part of the exact meta-gradient, absent from every answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from test_gradients import central_difference, direction, dot
from text_data import tiny_episodes, token_ids

from metaicl.episode import TaskSpec
from metaicl.learners import Meta, answer, make_learner
from metaicl.models.encoders import make_encoder

SPEC = TaskSpec("classify", (5,), "int32", 3)
SHAPE = dict(vocabulary=20, width=8, layers=1, heads=2, hidden=8, positions=8)
REPTILE = dict(moments="fresh", inner_batch=None, inner_steps=1, inner_lr=0.1)
KEY = jax.random.key(0)


def make(kind="maml", dropout=0.3, remat=False, **settings):
    network = dict(encoder="bert", encoder_settings=dict(shape=SHAPE, dropout=dropout, remat=remat))
    return make_learner(kind, SPEC, **network, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_meta_gradient_with_dropout_is_the_derivative(remat, x64):
    """At a fixed key the same is dropped in the inner gradient, in its derivative, and when it is computed again."""
    learner = make(remat=remat, inner_steps=2, inner_lr=0.3, head="prototypes", dtype="float64")
    params = synthetic.to_float64(jax.jit(learner.init)(KEY)).params
    batch = synthetic.to_float64(tiny_episodes())
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, KEY, 0))
    way = direction(params)
    expected = central_difference(lambda p: run(p)[2]["loss"], params, way, 1e-5)
    assert float(dot(run(params)[0], way)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_every_inner_step_drops_something_else():
    """At rates of 0 the weights stay, and the derivatives by the rates of two steps differ by what is dropped."""
    slopes = {}
    for dropout in (0.0, 0.3):
        learner = make(dropout=dropout, order="first", inner_steps=2, inner_lr=0.0, rates="layer")
        meta = jax.jit(learner.init)(KEY)
        rates = jax.jit(learner.meta_grad)(meta, tiny_episodes(1), KEY, 0)[0]["rates"]
        slopes[dropout] = np.stack(jax.tree.leaves(rates))
    np.testing.assert_array_equal(slopes[0.0][:, 0], slopes[0.0][:, 1])
    assert np.abs(slopes[0.3][:, 0] - slopes[0.3][:, 1]).max() > 1e-3 * np.abs(slopes[0.3]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("maml", dict(order="first", inner_steps=1)),
        ("reptile", REPTILE),
        ("prototypes", {}),
    ],
)
def test_training_drops_by_its_key_and_answers_drop_nothing(kind, settings):
    plain, noisy = (make(kind, dropout=dropout, **settings) for dropout in (0.0, 0.3))
    batch, other = tiny_episodes(), jax.random.key(1)
    one = jax.tree.map(lambda a: a[0], batch)

    @jax.jit
    def found(meta):
        grads = [[lr.meta_grad(meta, batch, k, 0)[0] for k in (KEY, other)] for lr in (plain, noisy)]
        return grads, [answer(SPEC, lr, meta, one, KEY) for lr in (plain, noisy)]

    ((a, b), (c, d)), (expected, answers) = found(jax.jit(plain.init)(KEY))
    synthetic.leaves_close(a, b, rtol=0, atol=0)
    assert synthetic.distance(c, a) > 1e-3 and synthetic.distance(c, d) > 1e-3
    np.testing.assert_array_equal(answers, expected)


def test_a_key_drops_the_same_each_time():
    net = make_encoder("bert", (5,), noisy=True, shape=SHAPE, dropout=0.3)
    params, ids = jax.jit(net.init)(KEY), token_ids(np.random.default_rng(0), (5, 3), 20)
    noisy = jax.jit(net.noisy)
    vectors = [np.asarray(noisy(params, ids, jnp.ones(2), jax.random.key(i))) for i in (0, 0, 1)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).min() > 0


@pytest.mark.parametrize(
    ("kind", "dropout", "text"),
    [
        ("maml", 1.0, "dropout is 1; it must be"),
        ("implicit_maml", 0.1, "does not train with dropout"),
        ("supervised", 0.1, "does not train with dropout"),
    ],
)
def test_dropout_is_refused_where_it_would_do_nothing(kind, dropout, text):
    with pytest.raises(ValueError, match=text):
        make(kind, dropout=dropout)
