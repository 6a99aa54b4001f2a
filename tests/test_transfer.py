# SPDX-License-Identifier: Apache-2.0
"""Transfer over stages: every number against one computed by hand."""

from __future__ import annotations

import numpy as np

from metaicl.report import transfer

# Three stages, one data set each: a, b, c. a and b are of domain x, c of y.
DOMAINS = ["x", "x", "y"]
R = np.array(
    [
        [0.2, 0.2, 0.3],  # untrained
        [0.8, 0.4, 0.2],  # after a
        [0.5, 0.9, 0.4],  # after b
        [0.6, 0.7, 1.0],  # after c
    ]
)
OWN = np.array([1, 2, 3])
NAN = np.nan


def test_own_stages_are_the_first_that_trained_a_data_set():
    one_by_one = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(transfer.own_stages(one_by_one), [2, 0, 1])
    joint = np.array([[0, 0, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(transfer.own_stages(joint), [1, 1, 1])


def test_a_domain_is_complete_with_its_last_data_set():
    np.testing.assert_array_equal(transfer.domain_stages(OWN, DOMAINS), [2, 2, 3])
    np.testing.assert_array_equal(transfer.domain_stages(np.array([4, 0, 2]), DOMAINS), [0, 0, 2])


def test_backward_transfer_against_the_own_stage():
    # a: 0.6 - 0.8, b: 0.7 - 0.9; c was trained last.
    np.testing.assert_allclose(transfer.backward(R, OWN), [-0.2, -0.2, NAN])
    np.testing.assert_allclose(transfer.domain_mean(transfer.backward(R, OWN), DOMAINS), -0.2)


def test_backward_transfer_since_the_domain_was_complete():
    # x was complete after b: a 0.6 - 0.5, b 0.7 - 0.9.
    found = transfer.backward(R, transfer.domain_stages(OWN, DOMAINS))
    np.testing.assert_allclose(found, [0.1, -0.2, NAN])
    np.testing.assert_allclose(transfer.domain_mean(found, DOMAINS), -0.05)


def test_forward_transfer_against_the_untrained_learner():
    # b: 0.4 - 0.2 before its stage, c: 0.4 - 0.3.
    np.testing.assert_allclose(transfer.forward(R, OWN), [NAN, 0.2, 0.1])
    np.testing.assert_allclose(transfer.learned(R, OWN), [0.6, 0.5, 0.6])


def test_forgetting_from_the_best_stage():
    # a was best after its own stage; b as well; c was trained last.
    np.testing.assert_allclose(transfer.forgetting(R, OWN), [0.2, 0.2, NAN])
    risen = R.copy()
    risen[2, 0] = 0.95  # a later stage may be the best
    risen[3, 1] = 0.99  # or the last, which is forgetting below zero
    np.testing.assert_allclose(transfer.forgetting(risen, OWN), [0.35, -0.09, NAN])


def test_the_mean_over_domains_gives_every_domain_the_same_weight():
    values = np.array([0.1, 0.3, 0.8])
    np.testing.assert_allclose(transfer.domain_mean(values, DOMAINS), 0.5)
    np.testing.assert_allclose(transfer.domain_mean(np.array([0.1, NAN, 0.8]), DOMAINS), 0.45)
    np.testing.assert_allclose(transfer.domain_mean(np.array([NAN, NAN, 0.8]), DOMAINS), 0.8)
    assert np.isnan(transfer.domain_mean(np.full(3, NAN), DOMAINS))


def test_change_since_the_own_stage():
    expected = [[NAN, NAN, NAN], [0.0, NAN, NAN], [-0.3, 0.0, NAN], [-0.2, -0.2, 0.0]]
    np.testing.assert_allclose(transfer.change(R, OWN), expected, atol=1e-12)


def test_data_sets_that_were_never_trained_are_left_out():
    own = np.array([1, 0, 2])
    for quantity in (transfer.backward, transfer.forward, transfer.learned, transfer.forgetting):
        assert np.isnan(quantity(R, own)[1]), quantity.__name__


def test_joint_training_has_no_transfer_from_stage_to_stage():
    own = np.array([1, 1, 1])
    for quantity in (transfer.backward, transfer.forward, transfer.forgetting):
        assert np.isnan(quantity(R[:2], own)).all()
    np.testing.assert_allclose(transfer.learned(R[:2], own), [0.6, 0.2, -0.1])


def test_seeds_and_episodes_are_carried_along(rng):
    """Their mean is the quantity of the means, so an interval may be taken over them."""
    many = R[..., None, None] + rng.normal(size=(4, 3, 2, 5))
    mean = many.mean(axis=(2, 3))
    for quantity in (transfer.backward, transfer.forward, transfer.learned, transfer.forgetting):
        found = quantity(many, OWN)
        assert found.shape == (3, 2, 5)
        np.testing.assert_allclose(found.mean(axis=(1, 2)), quantity(mean, OWN))
    averaged = transfer.domain_mean(transfer.backward(many, OWN), DOMAINS)
    assert averaged.shape == (2, 5) and np.isfinite(averaged).all()
