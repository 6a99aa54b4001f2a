# SPDX-License-Identifier: Apache-2.0
"""What probes say of weights: against closed forms, and in the metrics and records of a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl.analysis.probes import gradient_agreement, solution_distance
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.learners.classifier import make_classifier

LINE = TaskSpec("regress", (6,), "float64", 2)


@pytest.fixture
def linear(x64):
    """A linear network, its weights, and an episode whose last support item and last query are padding."""
    network = make_classifier(LINE, "identity", {}, "float64")
    rng = np.random.default_rng(0)

    def examples(n):
        x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 2))
        return Examples(jnp.asarray(x), jnp.asarray(y), jnp.asarray([1.0] * (n - 1) + [0.0]))

    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), network.init(jax.random.key(0)))
    return network, params, Episode(examples(5), examples(4))


def least_squares_gradient(params, examples):
    """Of the mean over real items of the squared error: for the kernel and the bias, as one vector."""
    real = np.asarray(examples.mask) > 0
    x = np.concatenate([np.asarray(examples.x)[real], np.ones((real.sum(), 1))], axis=1)
    w = np.concatenate([np.asarray(params["head"]["kernel"]), np.asarray(params["head"]["bias"])[None]])
    return (2 / real.sum() * x.T @ (x @ w - np.asarray(examples.y)[real])).ravel()


def test_agreement_is_the_product_of_the_gradients(linear):
    network, params, episode = linear
    found = gradient_agreement(LINE, network)(params, episode)
    a, b = (least_squares_gradient(params, part) for part in (episode.support, episode.query))
    np.testing.assert_allclose(found["gradient_product"], a @ b, rtol=1e-10)
    np.testing.assert_allclose(
        found["gradient_cosine"], a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-10
    )


def test_a_minibatch_agrees_with_itself_and_a_vanishing_gradient_with_nothing(linear):
    network, params, episode = linear
    probe = gradient_agreement(LINE, network)
    same = probe(params, Episode(episode.support, episode.support))
    np.testing.assert_allclose(same["gradient_cosine"], 1.0, rtol=1e-12)
    empty = episode.query.replace(mask=jnp.zeros_like(episode.query.mask))
    assert probe(params, Episode(episode.support, empty))["gradient_cosine"] == 0.0


def test_distance_of_a_linear_network_is_that_of_least_squares(linear):
    network, params, episode = linear
    found = solution_distance(LINE, network, tolerance=1e-18)(params, episode)
    real = np.asarray(episode.support.mask) > 0
    x = np.concatenate([np.asarray(episode.support.x)[real], np.ones((4, 1))], axis=1)
    w = np.concatenate([np.asarray(params["head"]["kernel"]), np.asarray(params["head"]["bias"])[None]])
    move = np.linalg.pinv(x) @ (np.asarray(episode.support.y)[real] - x @ w)  # the shortest that solves it
    assert found["unsolved"] == 0
    np.testing.assert_allclose(found["distance"], np.linalg.norm(move), rtol=1e-7)


def test_a_solution_is_at_distance_zero(linear):
    network, params, episode = linear
    answers = network.apply(params, episode.support.x, episode.support.mask)
    solved = Episode(episode.support.replace(y=answers), episode.query)
    assert solution_distance(LINE, network)(params, solved)["distance"] == 0.0


def test_what_is_not_solved_says_so(linear):
    network, params, episode = linear
    assert solution_distance(LINE, network, iterations=1)(params, episode)["unsolved"] == 1.0


@pytest.mark.slow
def test_sine_curves_are_solved_by_a_network_of_two_layers():
    from metaicl.data.functions import sinusoids

    spec = TaskSpec("regress", (1,), "float32", 1)
    network = make_classifier(spec, "mlp", {"hidden": (64, 64), "activation": "tanh"}, "float32")
    source = sinusoids(seed=0, points=10, queries=1)
    episodes, _ = source.build(source.consts, {"index": np.arange(16)}, jax.random.key(0))
    probe = solution_distance(spec, network, tolerance=0.01)
    found = jax.jit(jax.vmap(probe, in_axes=(None, 0)))(network.init(jax.random.key(0)), episodes)
    assert not np.any(found["unsolved"])
    assert np.all(found["distance"] > 0) and np.all(np.isfinite(found["distance"]))


def test_classes_have_no_solutions_to_be_far_from():
    with pytest.raises(ValueError, match="regression only"):
        solution_distance(synthetic.VECTORS, make_classifier(synthetic.VECTORS, "identity", {}, "float32"))
