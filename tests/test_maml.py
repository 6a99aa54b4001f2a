# SPDX-License-Identifier: Apache-2.0
"""What MAML's settings mean: schedules, modes of batch norm, learned rates, and how a diverging loop is named."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from synthetic import IMAGES, VECTORS

from metaicl.episode import TaskSpec
from metaicl.learners import Meta, answer, make_learner
from metaicl.learners.base import summary
from metaicl.learners.classifier import make_classifier
from metaicl.learners.maml import step_weights
from metaicl.learners.subtree import joined, split

MLP = {"encoder": "mlp", "encoder_settings": {"hidden": (8,)}}
BATCH = {"encoder": "conv", "encoder_settings": {"filters": (4,), "pool": "flatten", "norm": "batch"}}
KEY = jax.random.key(0)


def batch(spec, count=2, **sizes):
    rng = np.random.default_rng(0)
    return synthetic.stacked([synthetic.episode(rng, spec, **sizes) for _ in range(count)])


def gradient(learner, meta, episodes, step):
    return jax.jit(learner.meta_grad)(meta, episodes, KEY, jnp.int32(step))[0]


def test_step_weights_go_from_the_mean_to_the_last():
    np.testing.assert_allclose(step_weights(5, 0, 10), [0.2] * 5, rtol=1e-6)
    np.testing.assert_allclose(step_weights(5, 5, 10), [0.1] * 4 + [0.6], rtol=1e-6)
    np.testing.assert_allclose(step_weights(5, 10, 10), [0.006] * 4 + [0.976], rtol=1e-6)
    np.testing.assert_allclose(step_weights(5, 10_000, 10), [0.006] * 4 + [0.976], rtol=1e-6)


def test_order_is_annealed():
    episodes = batch(VECTORS)
    learners = {
        name: make_learner("maml", VECTORS, inner_lr=0.3, **MLP, **settings)
        for name, settings in {
            "annealed": {"first_order_until": 3},
            "first": {"order": "first"},
            "second": {},
        }.items()
    }
    meta = jax.jit(learners["second"].init)(KEY)
    early, late = (gradient(learners["annealed"], meta, episodes, step) for step in (2, 3))
    first, second = (gradient(learners[name], meta, episodes, 0) for name in ("first", "second"))
    synthetic.leaves_close(early, first, rtol=1e-6, atol=1e-8)
    synthetic.leaves_close(late, second, rtol=1e-6, atol=1e-8)
    assert synthetic.distance(first, second) > 0.01


@pytest.mark.parametrize("at_once", [1, 2])
def test_tasks_in_groups_have_the_gradient_of_all_at_once(at_once):
    episodes = batch(IMAGES, count=4)
    together, apart = (
        make_learner("maml", IMAGES, inner_lr=0.3, tasks_at_once=size, **BATCH) for size in (None, at_once)
    )
    meta = jax.jit(together.init)(KEY)
    results = [jax.jit(learner.meta_grad)(meta, episodes, KEY, 0) for learner in (together, apart)]
    synthetic.leaves_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    synthetic.leaves_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-6)


def test_groups_of_tasks_must_divide_the_batch():
    learner = make_learner("maml", VECTORS, tasks_at_once=3, **MLP)
    with pytest.raises(ValueError, match="tasks_at_once is 3; it has to divide the batch of 4"):
        gradient(learner, learner.init(KEY), batch(VECTORS, count=4), 0)


@pytest.mark.parametrize("rates", ["parameter", "layer"])
def test_learned_rates_start_as_the_fixed_rate(rates):
    fixed = make_learner("maml", VECTORS, inner_lr=0.2, **MLP)
    learned = make_learner("maml", VECTORS, inner_lr=0.2, rates=rates, **MLP)
    meta = jax.jit(learned.init)(KEY)
    shapes = {leaf.shape for leaf in jax.tree.leaves(meta.params["rates"])}
    assert shapes == (
        {(5,)} if rates == "layer" else {leaf.shape for leaf in jax.tree.leaves(fixed.init(KEY))}
    )
    episodes = batch(VECTORS)
    with_rates = gradient(learned, meta, episodes, 0)
    assert float(np.abs(jax.tree.leaves(with_rates["rates"])[0]).max()) > 0
    del with_rates["rates"]
    synthetic.leaves_close(with_rates, gradient(fixed, fixed.init(KEY), episodes, 0), rtol=1e-5, atol=1e-7)


def test_rates_of_more_steps_than_trained_are_the_last():
    """Five steps at test with rates for two: the third to fifth use the second's."""
    trained = make_learner("maml", VECTORS, inner_steps=2, inner_lr=0.2, rates="layer", **MLP)
    longer = make_learner("maml", VECTORS, inner_steps=5, inner_lr=0.2, rates="layer", **MLP)
    meta = jax.jit(trained.init)(KEY)
    rates = jax.tree.map(lambda a: a * jnp.array([1.0, 0.5]), meta.params["rates"])
    filled = jax.tree.map(lambda a: jnp.concatenate([a, a[-1:], a[-1:], a[-1:]]), rates)
    support = synthetic.examples(np.random.default_rng(0), VECTORS, 6)
    adapt = jax.jit(longer.adapt)
    got = adapt(Meta(meta.params | {"rates": rates}), support, KEY)
    expected = adapt(Meta(meta.params | {"rates": filled}), support, KEY)
    synthetic.leaves_close(got, expected)


def test_a_head_of_prototypes_without_steps_is_the_prototypes_learner():
    """Its softmax is that of minus the squared distances; a class that the support lacks is out of both."""
    width = MLP["encoder_settings"]["hidden"][0]
    ours = make_learner("maml", VECTORS, inner_steps=0, head="prototypes", **MLP)
    # The learner of prototypes takes half the squared distance over the root of the width.
    theirs = make_learner("prototypes", VECTORS, scale=2 * width**0.5, **MLP)
    meta = jax.jit(theirs.init)(KEY)

    @jax.jit
    def both(e):
        a = answer(VECTORS, ours, Meta({"encoder": meta.params["encoder"]}), e, KEY)
        return jax.nn.softmax(a), jax.nn.softmax(answer(VECTORS, theirs, meta, e, KEY))

    for absent in (None, 1):
        e = synthetic.episode(np.random.default_rng(0), VECTORS, query=9)
        if absent is not None:
            e = e.replace(support=e.support.replace(mask=e.support.mask * (e.support.y != absent)))
        a, b = both(e)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert absent is None or float(jnp.max(a[:, absent])) == 0.0


def test_a_head_of_prototypes_answers_any_number_of_ways():
    """Trained weights and rates of layers hold for other ways; the adapted head has one column for each."""
    settings = dict(inner_steps=2, rates="layer", head="prototypes", **MLP)
    four = dataclasses.replace(VECTORS, num_outputs=4)
    three_ways, four_ways = (make_learner("maml", spec, **settings) for spec in (VECTORS, four))
    meta = jax.eval_shape(three_ways.init, KEY)
    assert jax.eval_shape(four_ways.init, KEY) == meta
    e = synthetic.episode(np.random.default_rng(0), four, support=8)
    assert jax.eval_shape(lambda m, e: answer(four, four_ways, m, e, KEY), meta, e).shape == (4, 4)


def normalised_by(network, params, images, statistics_of):
    """Outputs for `images` when batch norm sees only the rows `statistics_of`."""
    mask = np.zeros(len(images), np.float32)
    mask[statistics_of] = 1
    return network.apply(params, images, mask)


@pytest.mark.slow
def test_modes_of_batch_norm():
    """Each mode against its definition: whose statistics normalise a query."""
    episode = jax.tree.map(lambda a: a[0], batch(IMAGES, 1))
    support, query = episode.support, episode.query
    images = np.concatenate([support.x, query.x])
    outputs = {}
    for mode in ("transductive", "non_transductive", "support_only"):
        network = make_classifier(IMAGES, **BATCH, dtype="float32", batch_norm=mode)
        params = network.init(KEY)
        outputs[mode] = np.asarray(network.answer(network.state(params, support), query.x, query.mask))
        assert network.independent == (mode != "transductive")
    rows, queries = np.arange(len(support.x)), np.arange(len(support.x), len(images))
    by_hand = {
        "transductive": normalised_by(network, params, images, queries)[queries],
        "support_only": normalised_by(network, params, images, rows)[queries],
        "non_transductive": np.stack(
            [normalised_by(network, params, images, [*rows, q])[q] for q in queries]
        ),
    }
    for mode, expected in by_hand.items():
        np.testing.assert_allclose(outputs[mode], expected, atol=1e-5, err_msg=mode)
    assert np.abs(outputs["transductive"] - outputs["support_only"]).max() > 1e-3
    assert np.abs(outputs["non_transductive"] - outputs["support_only"]).max() > 1e-3


def test_without_batch_norm_the_modes_are_one():
    spec, support = VECTORS, synthetic.examples(np.random.default_rng(0), VECTORS, 6)
    answers = []
    for mode in ("transductive", "support_only"):
        network = make_classifier(spec, "mlp", {"hidden": (8,)}, "float32", mode)
        answers.append(network.answer(network.state(network.init(KEY), support), support.x, support.mask))
    np.testing.assert_array_equal(*answers)


def test_a_diverging_inner_loop_is_named():
    """Regression with a rate far too large overflows after some steps; the first one is named, of its task."""
    spec = TaskSpec("regress", (3,), "float32", 1)
    learner = make_learner("maml", spec, inner_steps=40, inner_lr=1.0, **MLP)
    episodes = batch(spec, 3)
    scale = np.array([0.0, 1e4, 1e4], np.float32)[:, None, None]  # the first task has nothing to learn from
    support = episodes.support.replace(x=scale * episodes.support.x, y=scale * episodes.support.y)
    _, _, values = jax.jit(learner.meta_grad)(
        jax.jit(learner.init)(KEY), episodes.replace(support=support), KEY, jnp.int32(0)
    )
    task, step = int(values["failed_task"]), int(values["failed_step"])
    assert task == 1
    assert 1 <= step < 40
    text = learner.failure.format(task=task, step=step)
    assert "task 1 of the batch diverged at its step" in text
    assert "of 40, with the rate 1: lower inner_lr" in text


def test_summary_names_the_first_task_that_failed():
    values = summary({"loss": jnp.arange(4.0), "failed_step": jnp.array([0, 0, 3, 1])})
    assert {k: float(v) for k, v in values.items()} == {"loss": 1.5, "failed_task": 2, "failed_step": 3}
    fine = summary({"loss": jnp.arange(4.0), "failed_step": jnp.zeros(4, jnp.int32)})
    assert int(fine["failed_step"]) == 0


TREE = {"encoder": {"layer_0": {"kernel": 1, "bias": 2}, "adapter_0": 3}, "head": {"kernel": 4}, "rest": {}}


@pytest.mark.parametrize(
    "adapted, chosen",
    [
        ("all", {1, 2, 3, 4}),
        ("head", {4}),
        ("body", {1, 2, 3}),
        ("-encoder", {4}),
        ("adapters", {3}),
        ("head+adapters", {3, 4}),
        ("-head+adapters", {1, 2}),
        ("encoder/layer_0", {1, 2}),
        ("*/bias", {2}),
        ("-*kernel", {2, 3}),
    ],
)
def test_subtrees_by_path(adapted, chosen):
    fast, frozen = split(TREE, adapted)
    assert set(jax.tree.leaves(fast)) == chosen
    assert set(jax.tree.leaves(frozen)) == {1, 2, 3, 4} - chosen
    assert joined(fast, frozen) == TREE
