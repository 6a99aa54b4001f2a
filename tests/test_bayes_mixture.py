# SPDX-License-Identifier: Apache-2.0
"""The Bayes mixture against posteriors by brute force, and against everything it should not be beaten by."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from function_prompts import KEY, answers_of, linear_prompts, prompts, rows, spec_of, squared_errors

from metaicl.episode import TaskSpec
from metaicl.learners import make_learner
from metaicl.learners.bayes_components import linear_gaussian, triangular_factor

D = 6
MIXTURE = {
    "dense": {"kind": "dense_linear", "weight": 0.5},
    "sparse": {"kind": "sparse_linear", "weight": 0.5, "nonzeros": 2},
}


def log_evidence(x, y, scale, noise):
    """log N(y; 0, X diag(scale^2) X' + noise^2 I) without its 2 pi, in the textbook's form."""
    covariance = (x * scale**2) @ x.T + noise**2 * np.eye(len(y))
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1])


def posterior_mean(x, y, scale, noise):
    covariance = (x * scale**2) @ x.T + noise**2 * np.eye(len(y))
    return scale**2 * (x.T @ np.linalg.solve(covariance, y))


def enumerated(x, y, noise):
    """Posterior mean of w under `MIXTURE`, summing over dense and every pair of coordinates."""
    pairs = [np.isin(np.arange(D), pair).astype(float) for pair in itertools.combinations(range(D), 2)]
    members = [(np.ones(D), 0.5)] + [(scale, 0.5 / len(pairs)) for scale in pairs]
    logs = np.array([np.log(weight) + log_evidence(x, y, scale, noise) for scale, weight in members])
    shares = np.exp(logs - logs.max())
    means = np.array([posterior_mean(x, y, scale, noise) for scale, _ in members])
    return shares @ means / shares.sum()


@pytest.mark.parametrize("noise", [0.5, 1e-3])
def test_mixture_is_the_enumerated_posterior(rng, noise):
    e = both_classes(rng, 8, 9, 3, noise)
    run = answers_of("bayes_mixture", e, components=MIXTURE, noise=noise)
    for k in (0, 1, 2, 4, 6, 9):
        found = run(k)
        for b in range(16):
            x, y = (a[:k] for a in rows(e, b))
            np.testing.assert_allclose(found[b], e.query.x[b] @ enumerated(x, y, noise), atol=3e-3)


def both_classes(rng, count, points, queries, noise):
    """`count` dense and as many sparse prompts."""
    drawn = [linear_prompts(rng, count, D, points, queries, noise, s)[0] for s in (None, 2)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)


@pytest.mark.parametrize("noise", [1.0, 1e-3])
@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_evidence_and_mean_in_32_bits(rng, k, noise):
    """Also where the textbook's formulas would have lost all digits: the noise is a thousandth of the labels."""
    x, scale = rng.normal(size=(k, 5)).astype(np.float32), np.array([1, 2, 0.5, 0, 1], np.float32)
    y = (x @ (scale * rng.normal(size=5)) + noise * rng.normal(size=k)).astype(np.float32)
    found, mean = linear_gaussian(x, y, np.ones(k, np.float32), scale, np.float32(noise))
    x, y, scale = (a.astype(np.float64) for a in (x, y, scale))
    assert float(found) == pytest.approx(log_evidence(x, y, scale, noise), rel=1e-4, abs=0.02)
    np.testing.assert_allclose(mean, posterior_mean(x, y, scale, noise), atol=1e-3)


def test_triangular_factor_is_that_of_numpy(rng):
    a = rng.normal(size=(9, 4)).astype(np.float32)
    expected = np.linalg.qr(a.astype(np.float64))[1]
    np.testing.assert_allclose(
        triangular_factor(a), expected * np.sign(np.diag(expected))[:, None], atol=1e-5
    )


def test_one_dense_component_is_ridge(rng):
    e, _ = linear_prompts(rng, 8, D, 10, queries=3, noise=0.3)
    dense = {"dense_linear": {"scale": 2.0}}
    ridge = answers_of("closed_form", e, method="ridge", penalty=0.3**2 / 2**2, intercept=False)
    run = answers_of("bayes_mixture", e, components=dense, noise=0.3)
    for k in (0, 3, 6, 10):
        np.testing.assert_allclose(run(k), ridge(k), atol=1e-4)


def test_importance_sampling_from_the_prior(rng):
    """Half a million functions of each class, weighed by the likelihood of four noisy labels."""
    noise, count = 0.7, 500_000
    e, _ = linear_prompts(rng, 8, 3, 4, queries=2, noise=noise)
    parts = {
        "dense": {"kind": "dense_linear", "weight": 0.3},
        "sparse": {"kind": "sparse_linear", "weight": 0.7, "nonzeros": 1, "scale": 1.5},
    }
    found = answers_of("bayes_mixture", e, components=parts, noise=noise)(4)
    w = rng.normal(size=(2 * count, 3))
    w[count:] *= 1.5 * np.eye(3)[rng.integers(0, 3, count)]
    prior = np.repeat([0.3, 0.7], count)
    for b in range(8):
        x, y = rows(e, b)
        weight = prior * np.exp(-0.5 * np.sum((w @ x.T - y) ** 2, 1) / noise**2)
        expected, error = weighted(weight, w @ e.query.x[b].T)
        assert np.all(np.abs(found[b] - expected) < 5 * error + 1e-4)


def weighted(weight, values):
    """Self-normalised mean of `values [n, Q]` and its standard error."""
    weight = weight / weight.sum()
    mean = weight @ values
    return mean, np.sqrt(weight**2 @ (values - mean) ** 2)


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.5, 0.5)])
def test_curves_are_the_posterior_by_sampling(rng, share):
    """Whole ranges of frequency and phase (and of lines) by sampling, where ours has cells."""
    noise, count = 0.25, 600_000
    x = rng.uniform(-3, 3, (8, 6, 1))
    draw = lambda n: (rng.uniform(0.5, 1.5, n), rng.uniform(0, 2 * np.pi, n), rng.normal(size=n))
    curve = lambda x, omega, phi, b: share[0] * 2 * np.sin(omega * x + phi) + (1 - share[0]) * b * x
    y = np.stack([curve(x[b, :, 0], *(a[0] for a in draw(1))) for b in range(8)])
    e = prompts(x, y + noise * rng.normal(size=y.shape), 4)
    part = {"amplitude": (2.0, 2.0), "frequency": (0.5, 1.5), "slope": 1.0, "share": share}
    found = answers_of(
        "bayes_mixture", e, components={"curve": part | {"cells": (1, 1, 24, 24)}}, noise=noise
    )(4)
    omega, phi, b = (a[:, None] for a in draw(count))
    for i in range(8):
        xs, ys = rows(e, i)
        misfit = np.sum((curve(xs[None, :, 0], omega, phi, b) - ys[None, :]) ** 2, 1)
        expected, error = weighted(
            np.exp(-0.5 * misfit / noise**2), curve(e.query.x[i, None, :, 0], omega, phi, b)
        )
        assert np.all(np.abs(found[i] - expected) < 5 * error + 0.02), i


def test_line_component_is_bayesian_linear_regression(rng):
    x = rng.normal(size=(8, 7, 1))
    y = 2 * x[..., 0] - 1 + 0.3 * rng.normal(size=(8, 7))
    e = prompts(x, y, 5)
    line = {"curve": {"share": (0.0, 0.0), "slope": 1.5, "intercept": 0.5}}
    found = answers_of("bayes_mixture", e, components=line, noise=0.3)(5)
    design = lambda x: np.concatenate([x, np.ones_like(x)], 1)
    for b in range(8):
        x, y = rows(e, b)
        w = posterior_mean(design(x), y, np.array([1.5, 0.5]), 0.3)
        np.testing.assert_allclose(found[b], design(e.query.x[b]) @ w, atol=1e-4)


def test_finite_prior_weighs_its_vectors(rng):
    """More of them than one chunk, and not a whole number of chunks."""
    vectors = rng.normal(size=(2500, 4)).astype(np.float32)
    x = rng.normal(size=(8, 15, 4))
    y = np.einsum("bnd,bd->bn", x, vectors[rng.integers(0, 2500, 8)]) + 0.5 * rng.normal(size=(8, 15))
    e = prompts(x, y, 12)
    run = answers_of("bayes_mixture", e, components={"finite_linear": {"vectors": vectors}}, noise=0.5)
    for k in (0, 2, 12):
        found = run(k)
        for b in range(8):
            x, y = (a[:k] for a in rows(e, b))
            share = np.exp(-0.5 * np.sum((vectors @ x.T - y) ** 2, 1) / 0.25)
            np.testing.assert_allclose(found[b], e.query.x[b] @ (share @ vectors) / share.sum(), atol=1e-3)


def test_finite_prior_has_the_evidence_of_its_vectors(rng):
    """In a mixture with a dense class the evidence counts, and not its shape alone."""
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    x = rng.normal(size=(8, 8, 4))
    e = prompts(x, np.einsum("bnd,bd->bn", x, vectors[:8]) + 0.8 * rng.normal(size=(8, 8)), 5)
    parts = {"finite_linear": {"vectors": vectors, "weight": 0.4}, "dense_linear": {"weight": 0.6}}
    found = answers_of("bayes_mixture", e, components=parts, noise=0.8)(5)
    for b in range(8):
        x, y = rows(e, b)
        finite = np.exp(-0.5 * np.sum((vectors @ x.T - y) ** 2, 1) / 0.64) / 0.8**5
        dense = 0.6 * np.exp(log_evidence(x, y, np.ones(4), 0.8))
        mean = 0.4 / 30 * finite @ vectors + dense * posterior_mean(x, y, np.ones(4), 0.8)
        expected = mean / (0.4 / 30 * finite.sum() + dense)
        np.testing.assert_allclose(found[b], e.query.x[b] @ expected, atol=1e-3)


def test_sparse_functions_are_found_from_one_example_more_than_they_have_weights(rng):
    """Noiseless: s + 1 examples fix the support of s weights, and with it the function, among 1,140 supports."""
    e, _ = linear_prompts(rng, 8, 20, 4, queries=5, nonzeros=3)
    parts = {"sparse_linear": {"nonzeros": 3}}
    found = answers_of("bayes_mixture", e, components=parts, noise=1e-4)(4)
    assert np.median(squared_errors(found, e)) < 1e-4
    dense, _ = linear_prompts(rng, 8, D, D + 1, queries=5)
    found = answers_of("bayes_mixture", dense, components=MIXTURE)(D + 1)
    assert np.max(squared_errors(found, dense)) < 1e-3


def test_components_may_have_their_own_noise(rng):
    """One class in two noises is told by its residuals."""
    e, _ = linear_prompts(rng, 8, 4, 12, noise=0.5)
    parts = {
        "quiet": {"kind": "dense_linear", "noise": 0.01, "weight": 0.5},
        "loud": {"kind": "dense_linear", "noise": 0.5, "weight": 0.5},
    }
    ridge = answers_of("closed_form", e, method="ridge", penalty=0.25, intercept=False)(12)
    np.testing.assert_allclose(answers_of("bayes_mixture", e, components=parts)(12), ridge, atol=1e-3)


def test_every_output_is_a_function_of_its_own(rng):
    spec = TaskSpec("regress", (D,), "float32", 2)
    e, _ = linear_prompts(rng, 8, D, 5, queries=2, noise=0.1)
    learner = make_learner("bayes_mixture", spec, components=MIXTURE, noise=0.1)
    meta, one = learner.init(KEY), jax.tree.map(lambda a: a[0], e)
    other = np.flip(one.support.y, 0)
    both = one.replace(support=one.support.replace(y=np.concatenate([one.support.y, other], 1)))
    state = learner.adapt(meta, both.support, KEY)
    found = np.asarray(learner.predict(meta, state, one.query.x, one.query.mask))
    for i, y in enumerate((one.support.y, other)):
        x = np.asarray(one.support.x, np.float64)
        np.testing.assert_allclose(found[:, i], one.query.x @ enumerated(x, y[:, 0], 0.1), atol=1e-3)


@pytest.mark.slow
def test_nothing_beats_it_on_its_own_prior(rng):
    """Paired over the same prompts: no other learner's error is below, beyond three standard errors."""
    noise = 0.3
    e = both_classes(rng, 400, 12, 4, noise)
    only = lambda name: {"components": {name: MIXTURE[name] | {"weight": 1.0}}, "noise": noise}
    others = {
        "dense specialist": ("bayes_mixture", only("dense")),
        "sparse specialist": ("bayes_mixture", only("sparse")),
        "ridge": ("closed_form", {"method": "ridge", "penalty": noise**2, "intercept": False}),
        "lasso": ("lasso", {"alpha": 0.1}),
        "least squares": ("least_squares", {}),
        "averaging": ("averaging", {}),
        "neighbours": ("closed_form", {"method": "knn", "neighbours": 3}),
    }
    best = answers_of("bayes_mixture", e, components=MIXTURE, noise=noise)
    runs = {name: answers_of(kind, e, **settings) for name, (kind, settings) in others.items()}
    for k in (1, 2, 3, 5, 8, 12):
        error = squared_errors(best(k), e)
        for name, run in runs.items():
            behind = squared_errors(run(k), e) - error
            assert behind.mean() > -3 * behind.std() / np.sqrt(len(behind)), (name, k)
        assert squared_errors(runs["dense specialist"](3), e).mean() > squared_errors(best(3), e).mean()


REFUSED = [
    ({}, {}, "no component"),
    ({"dense_linear": {"weight": -0.5}, "sparse_linear": {"weight": 1.5, "nonzeros": 2}}, {}, "0 or more"),
    ({"dense_linear": {"weight": 0.5}}, {}, "sum to 0.5, not to 1"),
    ({"forest": {}}, {}, "unknown kind 'forest'"),
    ({"dense_linear": {"nonzeros": 3}}, {}, "unexpected keyword argument 'nonzeros'"),
    ({"sparse_linear": {"nonzeros": 7}}, {}, "7 non-zeros of 6 dimensions"),
    ({"dense_linear": {}}, {"noise": 0.0}, "must be above 0"),
    ({"finite_linear": {"vectors": np.zeros((3, 5))}}, {}, r"must be \[M, 6\]"),
    ({"curve": {}}, {}, "function of one number"),
]


@pytest.mark.parametrize("components, settings, message", REFUSED)
def test_constructor_refuses(components, settings, message):
    with pytest.raises(ValueError, match=message):
        make_learner("bayes_mixture", spec_of(D), components=components, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"share": (0.5, 1.5)}, "within"),
        ({"frequency": (2.0, 1.0)}, "frequency is"),
        ({"cells": (1, 1, 1000, 1000)}, "cells are"),
        ({"share": (0.0, 0.0)}, "needs a slope"),
    ],
)
def test_curve_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        make_learner("bayes_mixture", spec_of(1), components={"curve": settings})


def test_too_many_sets_are_refused():
    with pytest.raises(ValueError, match="too many to sum"):
        make_learner("bayes_mixture", spec_of(40), components={"sparse_linear": {"nonzeros": 5}})


def test_empty_support_answers_the_prior_mean():
    """0 for functions around 0, the mean of its vectors for a finite prior."""
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    learner = make_learner("bayes_mixture", spec_of(4), components={"finite_linear": {"vectors": vectors}})
    e, _ = linear_prompts(np.random.default_rng(0), 1, 4, 3)
    one = jax.tree.map(lambda a: a[0], e)
    meta = learner.init(KEY)
    state = learner.adapt(meta, one.support.replace(mask=jnp.zeros(3)), KEY)
    found = learner.predict(meta, state, one.query.x, one.query.mask)
    np.testing.assert_allclose(found[:, 0], one.query.x @ vectors.mean(0), rtol=1e-5)
