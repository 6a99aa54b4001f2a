# SPDX-License-Identifier: Apache-2.0
"""Regression trees against scikit-learn's, and networks trained on one prompt against PyTorch's."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from function_prompts import KEY, answers_of, linear_prompts, prompts, rows, spec_of, squared_errors

from metaicl.episode import TaskSpec
from metaicl.learners import make_learner


def sklearn_trees(x, y, queries, **settings):
    """Its answers under several seeds, which decide between equally good splits; None where they differ."""
    tree = pytest.importorskip("sklearn.tree").DecisionTreeRegressor
    found = [tree(random_state=seed, **settings).fit(x, y).predict(queries) for seed in range(8)]
    return found[0] if np.ptp(found, axis=0).max() < 1e-6 else None


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_tree_is_sklearns_where_that_is_unique(rng, depth):
    """Two examples are told apart by every coordinate: small nodes have ties."""
    e, _ = linear_prompts(rng, 16, 3, 40, queries=6, noise=0.2)
    run = answers_of("greedy_tree", e, depth=depth)
    for k in (1, 9, 40):
        found, unique = run(k), 0
        for b in range(16):
            x, y = (a[:k] for a in rows(e, b))
            expected = sklearn_trees(x, y, e.query.x[b], max_depth=depth) if depth else np.full(6, y.mean())
            if expected is not None:
                np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-5)
                unique += 1
        assert unique >= 1


@pytest.mark.parametrize("settings", [{"depth": None}, {"depth": None, "min_leaf": 3}, {"depth": 3}])
def test_tree_of_one_coordinate_is_sklearns(rng, settings):
    """One coordinate leaves few ties: whole trees agree."""
    x = rng.normal(size=(8, 60, 1))
    e = prompts(x, np.sin(3 * x[..., 0]) + 0.1 * rng.normal(size=(8, 60)), 40)
    found = answers_of("greedy_tree", e, **settings)(40)
    limits = {"max_depth": settings["depth"], "min_samples_leaf": settings.get("min_leaf", 1)}
    unique = 0
    for b in range(8):
        expected = sklearn_trees(*rows(e, b), e.query.x[b], **limits)
        if expected is not None:
            np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-5)
            unique += 1
    assert unique >= 4


def test_whole_tree_repeats_its_examples(rng):
    e, _ = linear_prompts(rng, 8, 5, 30)
    e = e.replace(query=jax.tree.map(lambda a: a[:, :10], e.support))
    np.testing.assert_allclose(answers_of("greedy_tree", e, depth=None)(30), e.query.y[..., 0], atol=1e-5)


def test_equal_splits_go_to_the_lowest_coordinate():
    """Two examples: every coordinate separates them, and the first decides."""
    x = np.array([[[0.0, 1.0], [1.0, 0.0], [0.1, 0.1], [0.9, 0.9]]] * 8)
    e = prompts(x, np.tile([-1.0, 1.0, 0.0, 0.0], (8, 1)), 2)
    np.testing.assert_array_equal(answers_of("greedy_tree", e)(2), np.tile([-1.0, 1.0], (8, 1)))


def test_outputs_share_the_splits(rng):
    spec = TaskSpec("regress", (2,), "float32", 2)
    tree = pytest.importorskip("sklearn.tree").DecisionTreeRegressor(max_depth=2, random_state=0)
    e, _ = linear_prompts(rng, 1, 2, 30, queries=5)
    one = jax.tree.map(lambda a: a[0], e)
    y = np.concatenate([one.support.y, np.abs(one.support.x[:, :1])], 1)
    learner = make_learner("greedy_tree", spec, depth=2)
    meta = learner.init(KEY)
    state = learner.adapt(meta, one.support.replace(y=y), KEY)
    expected = tree.fit(one.support.x, y).predict(one.query.x)
    np.testing.assert_allclose(
        learner.predict(meta, state, one.query.x, one.query.mask), expected, rtol=1e-4, atol=1e-5
    )


def test_constant_labels_and_equal_items_are_leaves(rng):
    e, _ = linear_prompts(rng, 8, 3, 12)
    flat_labels = e.replace(support=e.support.replace(y=0 * e.support.y + 2))
    assert np.all(answers_of("greedy_tree", flat_labels)(12) == 2)
    one_item = e.replace(support=e.support.replace(x=0 * e.support.x))
    means = e.support.y[..., 0].mean(1, keepdims=True)
    np.testing.assert_allclose(answers_of("greedy_tree", one_item)(12), means, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message", [({"depth": -1}, "depth is -1"), ({"min_leaf": 0}, "min_leaf is 0")]
)
def test_tree_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        make_learner("greedy_tree", spec_of(3), **settings)


def test_network_from_scratch_is_torchs(rng):
    """The same initial weights, 100 steps of Adam at 5e-3 on all examples: the same answers."""
    torch = pytest.importorskip("torch")
    e, _ = linear_prompts(rng, 8, 4, 20, queries=5)
    found = answers_of("scratch", e)(20)
    untrained = make_learner("scratch", spec_of(4), inner_steps=0)
    one = jax.tree.map(lambda a: a[0], e)
    weights = untrained.adapt(untrained.init(KEY), one.support, KEY)[0][0]
    hidden, head = weights["encoder"]["layer_0"], weights["head"]
    tensors = [
        torch.tensor(np.asarray(a), requires_grad=True)
        for a in (hidden["kernel"], hidden["bias"], head["kernel"], head["bias"])
    ]
    assert tensors[0].shape == (4, 100)
    forward = lambda x: torch.relu(x @ tensors[0] + tensors[1]) @ tensors[2] + tensors[3]
    optimizer = torch.optim.Adam(tensors, 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.mean((forward(torch.tensor(one.support.x)) - torch.tensor(one.support.y)) ** 2)
        loss.backward()
        optimizer.step()
    expected = forward(torch.tensor(one.query.x)).detach().numpy()[:, 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)
    assert squared_errors(found, e).mean() < 0.5 * np.mean(e.query.y**2)


def test_every_prompt_has_its_own_initial_network(rng):
    e, _ = linear_prompts(rng, 1, 4, 5)
    one = jax.tree.map(lambda a: a[0], e)
    learner = make_learner("scratch", spec_of(4), inner_steps=1)
    state = lambda seed: learner.adapt(learner.init(KEY), one.support, jax.random.key(seed))[0][0]["head"]
    assert np.abs(state(0)["kernel"] - state(1)["kernel"]).max() > 0.01
