# SPDX-License-Identifier: Apache-2.0
"""Classifiers of one's own arrays, their temperature, scores of scope, and the area under the ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from metaicl import calibration, scope
from metaicl.checkpoint import save_weights
from metaicl.episode import TaskSpec
from metaicl.estimator import CHUNK, FewShotClassifier
from metaicl.learners import make_learner

NAMES = np.array(["ant", "bee", "cow"])
SMALL = dict(encoder="mlp", encoder_settings=dict(hidden=(4,)), inner_steps=1)


def items(rng, each=6, far=2.0):
    """Three overlapping clouds."""
    y = np.tile(np.arange(3), each)
    return far * np.eye(5)[y] + rng.normal(size=(3 * each, 5)), NAMES[y]


def test_it_is_scikit_learns_logistic_regression(rng):
    oracle = pytest.importorskip("sklearn.linear_model").LogisticRegression(C=0.5, tol=1e-10)
    (x, y), (queries, _) = items(rng), items(rng, CHUNK // 3 + 2)  # more than a chunk
    few = FewShotClassifier("logistic", {"penalty": 2.0}, folds=0).fit(x, y)
    oracle.fit(x, y)
    assert few.temperature_ == 1.0 and few.classes_.tolist() == oracle.classes_.tolist()
    np.testing.assert_allclose(few.predict_proba(queries), oracle.predict_proba(queries), atol=1e-4)
    assert few.predict(queries).tolist() == oracle.predict(queries).tolist()
    assert few.score(queries, oracle.predict(queries)) == 1.0


def test_held_out_answers_are_those_of_a_classifier_that_never_saw_the_item(rng):
    x, y = items(rng, 3)
    few = FewShotClassifier("ridge", folds=3).fit(x, y)
    fold = calibration.assign_folds(np.searchsorted(NAMES, y), 3)
    assert few.folds_ == 3
    for k in range(3):
        own = FewShotClassifier("ridge", folds=0).fit(x[fold != k], y[fold != k])
        np.testing.assert_allclose(few.held_out_[fold == k], own.decision_function(x[fold == k]), atol=1e-5)


@pytest.mark.parametrize("counts", [(2, 2), (2, 7, 3), (5, 5, 5), (40, 2)])
def test_every_fold_leaves_an_item_of_every_class(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    fold = calibration.assign_folds(y, 5)
    assert fold.max() + 1 == min(5, max(counts)) and set(fold) == set(range(fold.max() + 1))
    assert all(set(y[fold != k]) == set(y) for k in range(5))
    sizes = np.array([[np.sum((fold == k) & (y == c)) for k in range(fold.max() + 1)] for c in set(y)])
    assert np.ptp(sizes, axis=1).max() <= 1
    with pytest.raises(ValueError, match="two items or more"):
        calibration.assign_folds(np.append(y, len(counts)), 5)


def test_the_temperature_is_found_again(rng):
    """Labels drawn from probabilities whose logarithms were multiplied by 3."""
    truth = rng.normal(size=(4000, 4))
    y = np.array([rng.choice(4, p=p) for p in softmax(truth, axis=1)])
    temperature = calibration.fit_temperature(3 * truth, y)
    assert temperature == pytest.approx(3, rel=0.1)
    loss = lambda t: calibration.negative_log_likelihood(3 * truth, y, t)
    assert loss(temperature) < min(loss(0.8 * temperature), loss(1.25 * temperature), loss(1.0))


def test_few_right_answers_do_not_make_it_certain():
    """Ten answers, all right: the rule of succession allows a confidence of about 11 / 12."""
    outputs, y = np.eye(2)[[0, 1] * 5], np.array([0, 1] * 5)
    p = calibration.probabilities(outputs, calibration.fit_temperature(outputs, y))
    np.testing.assert_allclose(p.max(axis=1), 11 / 12 + 1 / 24, atol=1e-3)


def test_the_area_is_scikit_learns(rng):
    oracle = pytest.importorskip("sklearn.metrics").roc_auc_score
    for digits in (6, 1):  # with one digit there are many ties
        scores, inside = np.round(rng.random(50), digits).astype(np.float32), rng.random(50) < 0.7
        mask = (rng.random(50) < 0.8).astype(np.float32)
        real = mask > 0
        expected = oracle(inside[real], scores[real])
        assert float(scope.auroc(scores, inside, mask)) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(scope.auroc(scores, np.ones(50, bool), mask))


def test_scores_and_the_threshold(rng):
    outputs = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 3.0]], np.float32)
    np.testing.assert_allclose(scope.confidence(outputs), [0.5, 1 / (1 + np.exp(-3)), 0.5], rtol=1e-6)
    np.testing.assert_allclose(scope.energy(outputs), np.log(np.exp(outputs).sum(1)), rtol=1e-6)
    scores = rng.permutation(np.arange(20.0))
    assert scope.threshold(scores, 0.95) == 1.0 and scope.threshold(scores, 1.0) == 0.0
    assert all(np.mean(scores >= scope.threshold(scores, share)) >= share for share in (0.9, 0.33, 0.01))
    x, y = items(rng)
    few = FewShotClassifier("centroid").fit(x, y)
    held_out = few.scope_score(few.held_out_)
    assert np.mean(held_out >= few.scope_threshold(0.9)) >= 0.9 > np.mean(held_out > few.scope_threshold(0.9))
    with pytest.raises(ValueError, match="confidence, energy"):
        few.scope_score(few.held_out_, "entropy")


@pytest.mark.parametrize("labels", [[3, 1], [(1, 2), (0, 1)], [("a",), 7], [True, False], [0.5, 0.25]])
def test_labels_may_be_anything(rng, labels):
    x = np.array([[0.0, 1.0], [1.0, 0.0]] * 2) + 0.01 * rng.normal(size=(4, 2))
    few = FewShotClassifier("centroid").fit(x, labels * 2)
    assert list(few.predict(x)) == labels * 2 and len(few.classes_) == 2


def test_trained_weights_answer_fewer_labels_and_refuse_more(rng, tmp_path):
    import jax

    meta = make_learner("maml", TaskSpec("classify", (5,), "float32", 4), **SMALL).init(jax.random.key(3))
    save_weights(tmp_path / "w.safetensors", meta)
    make = lambda **given: FewShotClassifier("maml", SMALL, weights=tmp_path / "w.safetensors", **given)
    x, y = items(rng)
    few = make(ways=4).fit(x, y)
    assert few.predict_proba(x).shape == (18, 3)
    np.testing.assert_allclose(few.predict_proba(x).sum(1), 1.0, rtol=1e-6)
    many = np.arange(18) % 6
    with pytest.raises(ValueError, match="There are 6 labels, and the learner was trained to tell 4 apart"):
        make(ways=4).fit(x, many)
    prototypes = dict(encoder="mlp", encoder_settings=dict(hidden=(4,)))
    meta = make_learner("prototypes", TaskSpec("classify", (5,), "float32", 2), **prototypes).init(
        jax.random.key(3)
    )
    save_weights(tmp_path / "p.safetensors", meta)
    few = FewShotClassifier("prototypes", prototypes, weights=tmp_path / "p.safetensors", ways=2, folds=0)
    assert few.fit(x, many).predict_proba(x).shape == (18, 6)


def test_what_does_not_fit_is_said(rng):
    x, y = items(rng, 2)
    for few, arguments, words in (
        (FewShotClassifier(), (x, y[:-1]), "6 items and 5 labels"),
        (FewShotClassifier(), (x, ["a"] * 6), "The labels are all 'a'"),
        (FewShotClassifier(), (x[0], y), r"The items are float64 \(5,\)"),
        (FewShotClassifier(), (x * np.nan, y), "NaN or infinity"),
        (FewShotClassifier("logistik"), (x, y), "Unknown learner 'logistik'"),
        (FewShotClassifier("centroid", {"metrik": 1}), (x, y), "did you mean 'metric'"),
    ):
        with pytest.raises(ValueError, match=words):
            few.fit(*arguments)
    with pytest.raises(ValueError, match="is not fitted"):
        FewShotClassifier().predict(x)
    lone = FewShotClassifier("centroid").fit(x[:3], y[:3])  # one item of every label
    assert lone.folds_ == 0 and lone.temperature_ == 1.0
    with pytest.raises(ValueError, match="two items or more of every label"):
        lone.scope_threshold()
