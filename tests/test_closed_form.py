# SPDX-License-Identifier: Apache-2.0
"""Closed-form learners against scikit-learn and NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl import losses
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.learners import Meta, answer, make_learner
from metaicl.learners.closed_form import whitening

SPEC = TaskSpec("classify", (8,), "float32", 4)
TARGETS = TaskSpec("regress", (8,), "float32", 2)
PADDING = (0, 3, 3, 9, 20)
KEY = jax.random.key(0)


def sklearn(part):
    """The oracle, where it is installed."""
    return pytest.importorskip(f"sklearn.{part}")


def clusters(rng, spec=SPEC, support=20, query=30, spread=1.0) -> Episode:
    """Overlapping Gaussian classes."""
    centres = spread * rng.normal(size=(spec.num_outputs, 8))

    def part(n):
        y = (np.arange(n) % spec.num_outputs).astype(np.int32)
        return Examples((centres[y] + rng.normal(size=(n, 8))).astype(np.float32), y, np.ones(n, np.float32))

    return Episode(part(support), part(query))


def with_padding(rng, spec, e: Episode) -> Episode:
    return e.replace(support=synthetic.padded(rng, spec, e.support, PADDING))


def run(spec, e: Episode, **settings):
    learner = make_learner("closed_form", spec, **settings)
    meta = learner.init(KEY)
    return np.asarray(jax.jit(lambda e: answer(spec, learner, meta, e, KEY))(e))


def probabilities(outputs):
    return np.asarray(jax.nn.softmax(outputs))


@pytest.mark.parametrize("pad", [False, True])
def test_centroid_is_nearest_centroid(rng, pad):
    e = clusters(rng)
    expected = sklearn("neighbors").NearestCentroid().fit(e.support.x, e.support.y).predict(e.query.x)
    outputs = run(SPEC, with_padding(rng, SPEC, e) if pad else e, method="centroid")
    np.testing.assert_array_equal(outputs.argmax(1), expected)


def test_cosine_centroid(rng):
    e = clusters(rng)
    means = np.stack([e.support.x[e.support.y == c].mean(0) for c in range(4)])
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    outputs = run(SPEC, e, method="centroid", metric="cosine", temperature=0.25)
    np.testing.assert_allclose(outputs, unit(e.query.x) @ unit(means).T / 0.25, atol=1e-5)


@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("pad", [False, True])
def test_knn_counts_votes_as_sklearn(rng, neighbours, pad):
    e = clusters(rng)
    reference = (
        sklearn("neighbors").KNeighborsClassifier(neighbours, algorithm="brute").fit(e.support.x, e.support.y)
    )
    outputs = run(SPEC, with_padding(rng, SPEC, e) if pad else e, method="knn", neighbours=neighbours)
    # One vote is shared by all classes, and the answer is the logarithm of the shares.
    shares = (neighbours * reference.predict_proba(e.query.x) + 1 / 4) / (neighbours + 1)
    np.testing.assert_allclose(np.exp(outputs), shares, rtol=1e-5)


def test_knn_with_fewer_items_than_neighbours_counts_all(rng):
    e = clusters(rng, support=5)
    shares = (np.array([2, 1, 1, 1]) + 1 / 4) / (5 + 1)
    for support in (e.support, with_padding(rng, SPEC, clusters(rng, support=20)).support):
        support = support.replace(mask=support.mask * (np.cumsum(support.mask) <= 5))
        outputs = run(SPEC, e.replace(support=support), method="knn", neighbours=9)
        np.testing.assert_allclose(np.exp(outputs), np.tile(shares, (30, 1)), rtol=1e-5)


def test_knn_regresses_as_sklearn(rng):
    e = synthetic.episode(rng, TARGETS, 12, 9)
    reference = sklearn("neighbors").KNeighborsRegressor(3, algorithm="brute").fit(e.support.x, e.support.y)
    outputs = run(TARGETS, with_padding_regress(rng, e), method="knn", neighbours=3)
    np.testing.assert_allclose(outputs, reference.predict(e.query.x), rtol=1e-5, atol=1e-5)


def with_padding_regress(rng, e):
    return e.replace(support=synthetic.padded(rng, TARGETS, e.support, (0, 4, 12)))


@pytest.mark.parametrize("penalty", [0.1, 8.0])
@pytest.mark.parametrize("pad", [False, True])
def test_ridge_is_sklearn_ridge(rng, penalty, pad):
    e = synthetic.episode(rng, TARGETS, 12, 9)
    reference = sklearn("linear_model").Ridge(alpha=penalty).fit(e.support.x, e.support.y)
    e = with_padding_regress(rng, e) if pad else e
    np.testing.assert_allclose(
        run(TARGETS, e, method="ridge", penalty=penalty), reference.predict(e.query.x), rtol=1e-4, atol=1e-4
    )


def test_ridge_classifies_on_one_hot_labels(rng):
    e = clusters(rng)
    reference = sklearn("linear_model").Ridge(alpha=2.0).fit(e.support.x, np.eye(4)[e.support.y])
    outputs = run(SPEC, e, method="ridge", penalty=2.0, temperature=0.5)
    np.testing.assert_allclose(outputs, reference.predict(e.query.x) / 0.5, rtol=1e-4, atol=1e-4)


def test_ridge_with_a_tiny_penalty_is_least_squares(rng, x64):
    """Both where the support outnumbers the features and where it does not (the minimum-norm solution)."""
    for support in (30, 6):
        e = synthetic.to_float64(synthetic.episode(rng, TARGETS, support, 9))
        x, y = np.asarray(e.support.x), np.asarray(e.support.y)
        weights = np.linalg.lstsq(x - x.mean(0), y - y.mean(0))[0]
        expected = (np.asarray(e.query.x) - x.mean(0)) @ weights + y.mean(0)
        spec = TaskSpec("regress", (8,), "float64", 2)
        learner = make_learner("closed_form", spec, method="ridge", penalty=1e-9)
        meta = learner.init(KEY)
        state = learner.adapt(meta, e.support, KEY)
        np.testing.assert_allclose(
            learner.predict(meta, state, e.query.x, e.query.mask), expected, rtol=1e-4, atol=1e-5
        )


def sklearn_logistic(e, penalty):
    reference = sklearn("linear_model").LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    x, y = (np.asarray(a)[np.asarray(e.support.mask) > 0] for a in (e.support.x, e.support.y))
    return reference.fit(x.astype(np.float64), y).predict_proba(np.asarray(e.query.x, np.float64))


@pytest.mark.parametrize("support", [8, 24, 40])
@pytest.mark.parametrize("penalty", [0.05, 1.0])
def test_logistic_is_sklearn_logistic(rng, support, penalty):
    e = clusters(rng, support=support)
    outputs = run(SPEC, e, method="logistic", penalty=penalty)
    np.testing.assert_allclose(probabilities(outputs), sklearn_logistic(e, penalty), atol=1e-4)


@pytest.mark.parametrize("penalty", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("ways, items, width", [(4, 8, 5), (4, 40, 5), (20, 100, 512)])
def test_logistic_with_any_penalty_and_many_ways(rng, ways, items, width, penalty):
    """Its Newton steps never form a matrix, of 2,000 x 2,000 numbers in 20-way 5-shot, and lose nothing by it."""
    spec = TaskSpec("classify", (width,), "float32", ways)
    e = synthetic.episode(rng, spec, items, 2 * ways)
    outputs = run(spec, e, method="logistic", penalty=penalty)
    np.testing.assert_allclose(probabilities(outputs), sklearn_logistic(e, penalty), atol=1e-3)


def test_logistic_with_padding(rng):
    e = clusters(rng)
    outputs = run(SPEC, with_padding(rng, SPEC, e), method="logistic")
    np.testing.assert_allclose(probabilities(outputs), sklearn_logistic(e, 1.0), atol=1e-4)


def test_logistic_with_fewer_classes_than_ways(rng):
    e = clusters(rng)
    e = e.replace(support=e.support.replace(mask=e.support.mask * (e.support.y != 2)))
    expected = np.insert(sklearn_logistic(e, 1.0), 2, 0.0, axis=1)
    np.testing.assert_allclose(probabilities(run(SPEC, e, method="logistic")), expected, atol=1e-4)


def test_logistic_in_wide_features(rng):
    """More features than items, as frozen features are: the solution lives in the span of the support."""
    spec = TaskSpec("classify", (64,), "float32", 4)
    e = synthetic.episode(rng, spec, 20, 15)
    np.testing.assert_allclose(
        probabilities(run(spec, e, method="logistic")), sklearn_logistic(e, 1.0), atol=1e-4
    )


def test_logistic_with_nearly_dependent_items(rng):
    """All but a 1e-4 share of the variance on one line: the Gram matrix is singular up to rounding."""
    spec = TaskSpec("classify", (512,), "float32", 4)
    e = synthetic.episode(rng, spec, 24, 12)
    x = np.array(e.support.x)
    position = np.asarray(e.support.y, np.float32)[:, None]
    x = np.float32(30.0) * position * x[:1] + np.float32(1e-4) * x  # all but on one line
    e = e.replace(support=e.support.replace(x=x))
    found = probabilities(run(spec, e, method="logistic"))
    np.testing.assert_allclose(found, sklearn_logistic(e, 1.0), atol=1e-3)


def scatter(examples):
    """Within-class scatter and its degrees of freedom, class by class in NumPy."""
    total, degrees = np.zeros((8, 8)), 0
    for c in range(4):
        rows = examples[0][examples[1] == c].astype(np.float64)
        total += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        degrees += len(rows) - 1
    return total, degrees


@pytest.fixture(scope="module")
def whitened():
    """A whitening learner after 3 steps of 2 episodes, with what NumPy makes of the same episodes."""
    rng = np.random.default_rng(3)
    stretch = rng.normal(size=(8, 8)).astype(np.float32)
    learner = make_learner("closed_form", SPEC, whiten=True, shrinkage=0.0)
    meta, total, degrees, deviations = learner.init(KEY), 0.0, 0, []
    step = jax.jit(learner.meta_grad)
    for _ in range(3):
        plain = [clusters(rng) for _ in range(2)]
        plain = [jax.tree.map(lambda a: a @ stretch if a.shape[1:] == (8,) else a, e) for e in plain]
        for e in plain:
            x, y = np.concatenate([e.support.x, e.query.x]), np.concatenate([e.support.y, e.query.y])
            one, free = scatter((x, y))
            total, degrees = total + one, degrees + free
            deviations += [x[y == c] - x[y == c].mean(0) for c in range(4)]
        _, carry, _ = step(meta, synthetic.stacked([with_padding(rng, SPEC, e) for e in plain]), KEY, 0)
        meta = Meta({}, carry)
    return learner, meta, total, degrees, np.concatenate(deviations)


def test_whitening_accumulates_over_episodes_and_steps(whitened):
    _, meta, total, degrees, _ = whitened
    assert float(meta.carry["degrees"]) == degrees
    np.testing.assert_allclose(meta.carry["scatter"], total, rtol=1e-4, atol=1e-3 * np.abs(total).max())


def test_whitened_training_data_has_the_identity_as_covariance(whitened):
    _, meta, total, degrees, deviations = whitened
    white = np.asarray(whitening(meta.carry["scatter"], meta.carry["degrees"], 0.0)) @ deviations.T
    covariance = white @ white.T / degrees
    scale = np.trace(total / degrees) / 8  # the covariance is whitened up to its mean variance
    np.testing.assert_allclose(covariance, scale * np.eye(8), atol=1e-3 * scale)


def test_whitened_centroids_are_mahalanobis(whitened, rng):
    learner, meta, total, degrees, _ = whitened
    e = clusters(rng)
    means = np.stack([e.support.x[e.support.y == c].mean(0) for c in range(4)]).astype(np.float64)
    difference = e.query.x[:, None].astype(np.float64) - means[None]
    precision = np.linalg.inv(total / degrees)
    expected = np.einsum("qni,ij,qnj->qn", difference, precision, difference).argmin(1)
    outputs = answer(SPEC, learner, meta, e, KEY)
    np.testing.assert_array_equal(np.asarray(outputs).argmax(1), expected)


def test_whitening_without_data_is_no_whitening(rng):
    e = clusters(rng)
    np.testing.assert_allclose(run(SPEC, e, whiten=True), run(SPEC, e), atol=1e-5)


def test_meta_grad_reports_the_metrics_of_the_batch(rng):
    learner = make_learner("closed_form", SPEC)
    meta, batch = learner.init(KEY), [clusters(rng), clusters(rng)]
    _, _, values = learner.meta_grad(meta, synthetic.stacked(batch), KEY, 0)
    each = [losses.metrics(SPEC, answer(SPEC, learner, meta, e, KEY), e.query) for e in batch]
    for name in ("loss", "accuracy"):
        assert float(values[name]) == pytest.approx(float(jnp.mean(jnp.stack([v[name] for v in each]))))
