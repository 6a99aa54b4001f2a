# SPDX-License-Identifier: Apache-2.0
"""Least squares, averaging and ridge: against NumPy, and their published errors by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from function_prompts import KEY, answers_of, linear_prompts, rows, spec_of, squared_errors, within

from metaicl.learners import make_learner

D = 20


def test_least_squares_is_numpys_minimum_norm_solution(rng):
    e, _ = linear_prompts(rng, 8, D, 30, queries=5, noise=0.3)
    run = answers_of("least_squares", e)
    for k in (0, 1, 7, 20, 21, 30):
        found = run(k)
        for b in range(8):
            x, y = (a[:k] for a in rows(e, b))
            expected = e.query.x[b] @ np.linalg.lstsq(x, y)[0] if k else np.zeros(5)
            np.testing.assert_allclose(found[b], expected, rtol=2e-3, atol=2e-3)


def test_least_squares_with_intercept(rng):
    e, _ = linear_prompts(rng, 8, 3, 10, queries=4, noise=0.3)
    e = e.replace(support=e.support.replace(y=e.support.y + 5))
    found = answers_of("least_squares", e, intercept=True)(7)
    for b in range(8):
        x, y = (a[:7] for a in rows(e, b))
        design = lambda x: np.concatenate([x, np.ones((len(x), 1))], 1)
        weights = np.linalg.lstsq(design(x), y)[0]
        np.testing.assert_allclose(found[b], design(e.query.x[b]) @ weights, rtol=1e-4, atol=1e-4)


def test_cutoff_drops_weak_directions(rng):
    """Of two directions, one a thousandth of the other, a cutoff of a hundredth keeps one."""
    e, _ = linear_prompts(rng, 8, 2, 6)
    x = np.stack([e.support.x[..., 0], 1e-3 * e.support.x[..., 1]], -1)
    e = e.replace(support=e.support.replace(x=x))
    found = answers_of("least_squares", e, cutoff=1e-2)(6)
    for b in range(8):
        x, y = rows(e, b)
        expected = e.query.x[b] @ np.linalg.pinv(x, rcond=1e-2) @ y
        np.testing.assert_allclose(found[b], expected, rtol=1e-3, atol=1e-3)


def test_published_error_of_least_squares(rng, x64):
    """1 - k/d below d and 0 from d on, in expectation, for noiseless Gaussian data."""
    e, _ = linear_prompts(rng, 800, D, 24)
    run = answers_of("least_squares", e)
    for k in (0, 5, 10, 15, 19):
        assert within(squared_errors(run(k), e) / D, 1 - k / D), k
    for k in (20, 21, 24):
        assert np.max(squared_errors(run(k), e)) < 1e-12


def test_published_error_of_averaging(rng):
    """(d + 1)/k in expectation."""
    e, _ = linear_prompts(rng, 2000, D, 40)
    run = answers_of("averaging", e)
    for k in (5, 20, 40):
        assert within(squared_errors(run(k), e) / D, (D + 1) / k), k
    assert np.all(run(0) == 0)


def test_averaging_by_hand(rng):
    e, _ = linear_prompts(rng, 8, 4, 9, queries=3)
    found = answers_of("averaging", e)(6)
    for b in range(8):
        x, y = (a[:6] for a in rows(e, b))
        np.testing.assert_allclose(found[b], e.query.x[b] @ (y[:, None] * x).mean(0), rtol=1e-4, atol=1e-5)


def test_ridge_at_the_variance_of_the_noise_is_the_posterior_mean(rng):
    """w ~ N(0, I), y = w.x + N(0, s^2): the posterior mean is (X'X + s^2 I)^-1 X'y (Bishop 2006, equation 3.53)."""
    e, _ = linear_prompts(rng, 8, 8, 20, queries=3, noise=0.5)
    run = answers_of("closed_form", e, method="ridge", penalty=0.5**2, intercept=False)
    for k in (0, 3, 8, 20):
        found = run(k)
        for b in range(8):
            x, y = (a[:k] for a in rows(e, b))
            covariance = np.linalg.inv(np.eye(8) + x.T @ x / 0.25)
            np.testing.assert_allclose(found[b], e.query.x[b] @ (covariance @ x.T @ y / 0.25), atol=1e-4)


def test_no_baseline_answers_anything_without_examples(rng):
    e, _ = linear_prompts(rng, 8, 5, 10)
    for kind, settings in (
        ("least_squares", {"intercept": True}),
        ("lasso", {}),
        ("closed_form", {"method": "knn", "neighbours": 3}),
        ("greedy_tree", {}),
        ("scratch", {"inner_steps": 2}),
    ):
        run = answers_of(kind, e, **settings)
        assert np.all(run(0) == 0) and np.any(run(10) != 0), kind


@pytest.mark.parametrize("kind", ["least_squares", "averaging", "lasso", "greedy_tree", "scratch"])
def test_classification_is_refused(kind):
    spec = spec_of(4).__class__("classify", (4,), "float32", 3)
    with pytest.raises(ValueError, match=f"{kind} regresses"):
        make_learner(kind, spec)


def test_negative_cutoff_is_refused():
    with pytest.raises(ValueError, match="cutoff is -1"):
        make_learner("least_squares", spec_of(4), cutoff=-1.0).init(KEY)
