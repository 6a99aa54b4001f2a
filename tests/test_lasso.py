# SPDX-License-Identifier: Apache-2.0
"""The Lasso against scikit-learn, and against its optimality conditions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from function_prompts import KEY, answers_of, linear_prompts, rows, spec_of

from metaicl.learners import make_learner
from metaicl.learners.lasso import descended, lasso_weights, violation

D, POINTS = 20, 40
ALPHAS = (1.0, 0.1, 0.01, 0.001, 0.0001)


def sklearn_weights(x, y, alpha):
    """Its path, which ends in the exact minimum also where its coordinate descent would not converge."""
    path = pytest.importorskip("sklearn.linear_model").lars_path
    alphas, _, weights = path(x, y, method="lasso", alpha_min=alpha)
    return weights[:, -1] if alphas[0] > alpha else np.zeros(x.shape[1])


@jax.jit
@jax.vmap
def weights_of(x, y, k, alpha):
    """Of the first k of the examples."""
    seen = jnp.arange(len(y)) < k
    return lasso_weights(x * seen[:, None], y * seen, alpha * k, k)


def every_prefix(e, b):
    """The prefixes 1 .. 40 of one prompt, as arguments of `weights_of`."""
    tile = lambda a: np.tile(a, (POINTS, *[1] * a.ndim))
    return tile(e.support.x[b]), tile(e.support.y[b, :, 0]), np.arange(1.0, POINTS + 1, dtype=np.float32)


@pytest.fixture(scope="module")
def cases():
    """Dense and sparse, noiseless and noisy prompts."""
    rng = np.random.default_rng(0)
    settings = ({}, {"nonzeros": 3}, {"noise": 0.5}, {"nonzeros": 3, "noise": 0.5})
    return [linear_prompts(rng, 1, D, POINTS, **s)[0] for s in settings]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_prefix_is_sklearns_to_1e_4(cases, alpha):
    for e in cases:
        found = np.asarray(weights_of(*every_prefix(e, 0), np.full(POINTS, alpha, np.float32)))
        x, y = rows(e, 0)
        for k in range(1, POINTS + 1):
            np.testing.assert_allclose(found[k - 1], sklearn_weights(x[:k], y[:k], alpha), atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_optimality_conditions_hold(cases, alpha):
    """In 64 bits: X'(y - Xw) is the penalty times the sign of w, or within the penalty where w is 0."""
    for e in cases:
        found = np.asarray(weights_of(*every_prefix(e, 0), np.full(POINTS, alpha, np.float32)), np.float64)
        x, y = rows(e, 0)
        for k in range(1, POINTS + 1):
            c, w = x[:k].T @ (y[:k] - x[:k] @ found[k - 1]), found[k - 1]
            off = np.where(w != 0, np.abs(c - alpha * k * np.sign(w)), np.maximum(np.abs(c) - alpha * k, 0))
            assert off.max() < 3e-6 * np.abs(x[:k].T @ y[:k]).max()
            assert float(violation(c, w, alpha * k)) == pytest.approx(off.max(), abs=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_coordinate_descent_alone_is_sklearns(cases, alpha):
    """The fallback, from nothing."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    for e, k in zip(cases, (9, 25, 30, 40), strict=True):
        x, y = jnp.asarray(e.support.x[0, :k]), jnp.asarray(e.support.y[0, :k, 0])
        off = lambda w: x.T @ (y - x @ w)
        found = descended(x.T @ x, off, alpha * k, jnp.zeros(D), 1e-4)
        reference = linear_model.Lasso(alpha, fit_intercept=False, tol=1e-10, max_iter=100_000)
        x, y = (a[:k] for a in rows(e, 0))
        np.testing.assert_allclose(found, reference.fit(x, y).coef_, atol=2e-4)


def test_learner_answers_with_these_weights(rng):
    e, _ = linear_prompts(rng, 8, D, POINTS, queries=3, noise=0.1)
    found = answers_of("lasso", e, alpha=0.05)(12)
    for b in range(8):
        x, y = (a[:12] for a in rows(e, b))
        np.testing.assert_allclose(found[b], e.query.x[b] @ sklearn_weights(x, y, 0.05), atol=1e-3)


def test_intercept_is_sklearns(rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    e, _ = linear_prompts(rng, 8, 5, 12, queries=3, noise=0.1)
    e = e.replace(support=e.support.replace(y=e.support.y + 3))
    found = answers_of("lasso", e, alpha=0.1, intercept=True)(12)
    for b in range(8):
        reference = linear_model.Lasso(0.1, tol=1e-10, max_iter=100_000).fit(*rows(e, b))
        np.testing.assert_allclose(found[b], reference.predict(e.query.x[b]), atol=1e-3)


def test_equal_and_empty_columns_keep_the_conditions(rng):
    """The minimum is not unique: any that meets the conditions, and is finite."""
    x = rng.normal(size=(12, 6)).astype(np.float32)
    x[:, 3], x[:, 5] = x[:, 1], 0
    y = (x @ np.array([0, 2, 0, 1, -1, 0]) + 0.1 * rng.normal(size=12)).astype(np.float32)
    w = np.asarray(lasso_weights(x, y, np.float32(0.6), np.float32(12)))
    assert np.all(np.isfinite(w)) and w[5] == 0
    assert float(violation(x.T @ (y - x @ w), w, 0.6)) < 1e-3


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_penalty_must_be_above_0(alpha):
    with pytest.raises(ValueError, match="alpha is"):
        make_learner("lasso", spec_of(4), alpha=alpha).init(KEY)
