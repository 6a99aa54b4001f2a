# SPDX-License-Identifier: Apache-2.0
"""Training on several devices: the same steps as on one, and what they cannot share."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import VECTORS, leaves_close
from training import BATCH, LEARNERS, counting_build, fit, one_stage, source_of

from metaicl.learners import make_learner
from metaicl.learners.base import Meta


def pmapped(learner, meta, optimizer, source, steps, devices):
    """The same training written with `jax.pmap`: every device takes its episodes, gradients are averaged."""
    opt_state = optimizer.init(meta.params)

    def step(meta, opt_state, batch):
        episodes, _ = counting_build(source.consts, batch, None)
        grads, carry, _ = learner.meta_grad(meta, episodes, jax.random.key(0), jnp.int32(0))
        updates, opt_state = optimizer.update(jax.lax.pmean(grads, "i"), opt_state, meta.params)
        return Meta(optax.apply_updates(meta.params, updates), carry), opt_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run = jax.pmap(step, "i", in_axes=(None, None, 0), out_axes=None, devices=devices)
        for t in range(steps):
            rows = [source.indices(t * BATCH + i) for i in range(BATCH)]
            batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            split = {name: a.reshape(len(devices), -1, *a.shape[1:]) for name, a in batch.items()}
            meta, opt_state = run(*jax.device_get((meta, opt_state)), split)
    return meta


@pytest.mark.parametrize(
    "kind",
    [
        "prototypes",
        pytest.param("in_context", marks=pytest.mark.slow),
        pytest.param("maml", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_and_pmap_take_the_same_steps(kind, devices):
    learner, source, steps = LEARNERS[kind], source_of(3), 3
    alone, spread = (
        fit(learner, one_stage(steps, source), devices=part, seeds=[5]) for part in (devices[:1], devices)
    )
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(spread.meta)} == {len(devices)}
    start = jax.jit(learner.init)(jax.random.split(jax.random.key(5))[0])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), alone.meta.params, start.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    leaves_close(alone.meta, spread.meta, rtol=1e-4, atol=1e-6)
    again = pmapped(learner, start, optax.sgd(0.1), source, steps, devices)
    leaves_close(alone.meta, again, rtol=1e-4, atol=1e-6)


def test_a_batch_that_the_devices_cannot_share_is_refused(devices):
    with pytest.raises(ValueError, match=r"8 episodes cannot be spread over 3 devices: set train\.batch to"):
        fit(LEARNERS["prototypes"], one_stage(1), devices=devices[:3])


def test_a_serial_learner_is_refused_on_several_devices(devices):
    settings = dict(encoder="mlp", encoder_settings=dict(hidden=(4,)), inner_steps=2, inner_batch=4)
    carried = make_learner("reptile", VECTORS, **settings)
    with pytest.raises(ValueError, match=r"cannot be spread over 2 devices: .*moments='fresh'"):
        fit(carried, one_stage(1), devices=devices[:2])
    fit(make_learner("reptile", VECTORS, moments="fresh", **settings), one_stage(1), devices=devices[:2])
