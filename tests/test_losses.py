# SPDX-License-Identifier: Apache-2.0
"""Losses and metrics against values worked out by hand or in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaicl import losses
from metaicl.episode import Examples, TaskSpec, limit_shots

THREE = TaskSpec("classify", (1,), "float32", 3)
TWO = TaskSpec("regress", (1,), "float32", 2)


def labelled(y, mask):
    return Examples(np.zeros((len(y), 1), np.float32), np.asarray(y), np.asarray(mask, np.float32))


def test_cross_entropy_by_hand():
    outputs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    got = losses.example_losses(THREE, outputs, jnp.array([0, 1]))
    np.testing.assert_allclose(got, [np.log(2), np.log(5)], rtol=1e-6)


def test_cross_entropy_ignores_a_common_shift_and_survives_large_outputs():
    outputs = jnp.array([[1000.0, 999.0, -1000.0]])
    got = losses.example_losses(THREE, outputs, jnp.array([1]))
    np.testing.assert_allclose(got, [1 + np.log1p(np.exp(-1))], rtol=1e-6)


def test_squared_error_sums_over_outputs():
    got = losses.example_losses(TWO, jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))
    np.testing.assert_allclose(got, [5.0])


def test_half_precision_outputs_are_measured_in_single():
    outputs = jnp.array([[0.0, 0.0, 0.0]], jnp.bfloat16)
    got = losses.example_losses(THREE, outputs, jnp.array([0]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [np.log(3)], rtol=1e-6)


def test_masked_mean():
    assert float(losses.masked_mean(jnp.array([1.0, 2.0, 99.0]), jnp.array([1.0, 1.0, 0.0]))) == 1.5
    assert float(losses.masked_mean(jnp.array([1.0, 2.0]), jnp.zeros(2))) == 0.0
    assert float(losses.masked_mean(jnp.zeros(0), jnp.zeros(0))) == 0.0


def test_masked_mean_of_nothing_has_no_gradient():
    np.testing.assert_array_equal(jax.grad(losses.masked_mean)(jnp.ones(2), jnp.zeros(2)), np.zeros(2))


def test_metrics_average_over_real_queries():
    outputs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]))
    values = losses.metrics(THREE, outputs, labelled([0, 1, 2], [1, 1, 0]))
    assert float(values["loss"]) == pytest.approx((np.log(2) + np.log(5)) / 2, rel=1e-6)
    assert float(values["accuracy"]) == 0.5
    assert float(losses.score(THREE, values)) == 0.5


def test_score_of_regression_is_minus_the_error():
    query = Examples(np.zeros((1, 1), np.float32), np.array([[0.0, 4.0]], np.float32), np.ones(1, np.float32))
    values = losses.metrics(TWO, jnp.array([[1.0, 2.0]]), query)
    assert set(values) == {"loss"}
    assert float(losses.score(TWO, values)) == -5.0


@pytest.mark.parametrize(
    "y, mask, expected",
    [
        ([0, 2, 2], [1, 1, 1], [True, False, True]),
        ([0, 2, 1], [1, 1, 0], [True, False, True]),  # a masked item shows no class
        ([0, 1, 2], [0, 0, 0], [True, True, True]),  # nothing shown: everything is possible
    ],
)
def test_present_classes(y, mask, expected):
    np.testing.assert_array_equal(losses.present_classes(labelled(y, mask), 3), expected)


def test_absent_classes_get_no_probability_and_no_gradient():
    support = labelled([0, 2], [1, 1])
    outputs = jnp.array([[0.0, 50.0, np.log(3.0)]])
    p = jax.nn.softmax(losses.mask_absent(THREE, outputs, support))
    np.testing.assert_allclose(p, [[0.25, 0.0, 0.75]], rtol=1e-6)
    query = labelled([0], [1])
    slope = jax.grad(lambda o: losses.mean_loss(THREE, losses.mask_absent(THREE, o, support), query))(outputs)
    np.testing.assert_allclose(slope, [[-0.75, 0.0, 0.75]], rtol=1e-6)


def test_masking_absent_classes_leaves_regression_alone():
    outputs = jnp.array([[1.0, 2.0]])
    support = Examples(np.zeros((1, 1)), np.zeros((1, 2)), np.ones(1))
    assert losses.mask_absent(TWO, outputs, support) is outputs


def test_calibration_bins(rng):
    outputs = 2 * rng.normal(size=(200, 3)).astype(np.float32)
    y, mask = rng.integers(0, 3, 200), (rng.random(200) < 0.8).astype(np.float32)
    got = losses.calibration(THREE, outputs, labelled(y, mask))
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    confidence, correct, kept = p.max(1), 1.0 * (p.argmax(1) == y), mask > 0
    edges = np.linspace(0, 1, losses.CALIBRATION_BINS + 1)
    for name, weights in (("count", None), ("confidence", confidence[kept]), ("correct", correct[kept])):
        expected, _ = np.histogram(confidence[kept], edges, weights=weights)
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert float(got["count"].sum()) == mask.sum()


def test_certainty_falls_into_the_last_bin():
    got = losses.calibration(THREE, jnp.array([[100.0, 0.0, 0.0]]), labelled([1], [1]))
    np.testing.assert_array_equal(got["count"], np.eye(losses.CALIBRATION_BINS)[-1])
    np.testing.assert_array_equal(got["correct"], np.zeros(losses.CALIBRATION_BINS))


def test_calibration_of_regression_is_empty():
    assert losses.calibration(TWO, jnp.zeros((1, 2)), labelled([[0.0, 0.0]], [1])) == {}


@pytest.mark.parametrize(
    "shots, expected",
    [(0, [0, 0, 0, 0, 0]), (1, [1, 0, 1, 0, 0]), (2, [1, 0, 1, 1, 1]), (9, [1, 0, 1, 1, 1])],
)
def test_limit_shots_keeps_the_first_real_items_of_a_class(shots, expected):
    support = labelled([0, 0, 1, 0, 1], [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(limit_shots(support, jnp.int32(shots)).mask, expected)


def test_limit_shots_counts_all_points_of_a_regression():
    support = Examples(np.zeros((4, 1)), np.zeros((4, 2), np.float32), np.array([1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(limit_shots(support, jnp.int32(2)).mask, [1, 0, 1, 0])
