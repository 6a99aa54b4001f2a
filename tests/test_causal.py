# SPDX-License-Identifier: Apache-2.0
"""The causal Transformer: one pass over a sequence answers every prefix as that prefix alone would."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from synthetic import POINTS, VECTORS

from metaicl import losses
from metaicl.episode import Episode
from metaicl.learners import make_learner

SIZE = {"width": 16, "layers": 2, "heads": 2, "max_points": 9}
KEY = jax.random.key(0)


@pytest.fixture(
    scope="module",
    params=[pytest.param(VECTORS, marks=pytest.mark.slow), POINTS],
    ids=["classify", "regress"],
)
def case(request):
    learner = make_learner("causal", request.param, **SIZE)
    meta = jax.jit(learner.init)(jax.random.key(1))
    # At initialisation attention is almost flat: larger weights make a leak or a shifted position show.
    meta = meta._replace(params=jax.tree.map(lambda a: 3 * a, meta.params))

    @jax.jit
    def prefix(support, x):
        state = learner.adapt(meta, support, KEY)
        return learner.predict(meta, state, x, jnp.ones(len(x)))

    return request.param, learner, meta, prefix, jax.jit(learner.meta_grad)


def test_one_pass_loss_is_the_mean_over_prefixes(case, rng):
    """Every prefix separately, by `adapt` and `predict`, against the sequence that training reads once."""
    spec, _, meta, prefix, train = case
    e = synthetic.episode(rng, spec, 6, 2)
    sequence = jax.tree.map(lambda *parts: np.concatenate(parts), e.support, e.query)
    errors = []
    for t in range(8):
        # A fixed shape with the future masked; that padding changes nothing is a contract of its own.
        before = sequence.replace(mask=(np.arange(8) < t).astype(np.float32))
        outputs = prefix(before, sequence.x[t : t + 1])
        errors.append(losses.example_losses(spec, outputs, sequence.y[t : t + 1])[0])
    loss = train(meta, synthetic.stacked([e]), KEY, 0)[2]["loss"]
    assert float(loss) == pytest.approx(float(np.mean(errors)), rel=1e-5)


def test_every_point_of_the_pass_is_its_prefix(case, rng):
    """The sums of the pass's losses with and without the point behind t others differ by its own error."""
    spec, _, meta, prefix, train = case
    e = synthetic.episode(rng, spec, 6, 2)
    for t in (0, 3, 6):
        support = e.support.replace(mask=(np.arange(6) < t).astype(np.float32))
        alone = losses.example_losses(spec, prefix(support, e.query.x[:1]), e.query.y[:1])[0]
        sums = []
        for point in (1, 0):
            query = e.query.replace(mask=np.array([point, 0], np.float32))
            loss = train(meta, synthetic.stacked([Episode(support, query)]), KEY, 0)[2]["loss"]
            sums.append(float(loss) * (t + point))
        assert sums[0] - sums[1] == pytest.approx(float(alone), rel=1e-4, abs=1e-5)


def test_prefix_of_its_own_shape(case, rng):
    """Three points alone answer as three points of eight, up to rounding."""
    spec, _, _, prefix, _ = case
    e = synthetic.examples(rng, spec, 8)
    masked = prefix(e.replace(mask=(np.arange(8) < 3).astype(np.float32)), e.x[3:4])
    np.testing.assert_allclose(
        prefix(jax.tree.map(lambda a: a[:3], e), e.x[3:4]), masked, atol=1e-5, rtol=1e-5
    )


def test_too_many_points_are_refused(case, rng):
    spec, learner, meta, _, _ = case
    e = synthetic.episode(rng, spec, 10, 1)
    with pytest.raises(ValueError, match="max_points of at least"):
        learner.adapt(meta, e.support, KEY)
    nine = jax.tree.map(lambda a: a[:9], e.support)  # nine pairs fit, but leave no position for a query
    state = jax.eval_shape(learner.adapt, meta, nine, KEY)
    with pytest.raises(ValueError, match="10 pairs"):
        jax.eval_shape(learner.predict, meta, state, e.query.x, e.query.mask)
    with pytest.raises(ValueError, match="max_points"):
        learner.meta_grad(meta, synthetic.stacked([Episode(nine, e.query)]), KEY, 0)
