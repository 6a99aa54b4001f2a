# SPDX-License-Identifier: Apache-2.0
"""Training on several devices: the same steps as on one, and which of them share a batch."""

from __future__ import annotations

import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import VECTORS, leaves_close
from training import BATCH, LEARNERS, counting_build, fit, one_stage, source_of

from metaicl import sharding
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


@pytest.mark.parametrize(("batch", "used"), [(1, 1), (4, 4), (6, 6), (8, 8), (9, 3), (16, 8)])
def test_as_many_devices_train_as_can_share_the_batch(batch, used, devices, capsys):
    sharding._note.cache_clear()
    whole = sharding.make_mesh(devices)
    part = sharding.fitting(whole, batch)
    assert list(part.devices.flat) == devices[:used]
    assert sharding.fitting(whole, batch) == part and (part == whole) == (used == 8)
    said = capsys.readouterr().err
    note = f"note: A batch of {batch} episodes cannot be spread over 8 devices: {used} of them will train."
    assert said.splitlines() == (
        [] if used == 8 else [f"{note} To use all, set train.batch to a multiple of 8."]
    )


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_a_batch_trains_on_some_devices_as_on_one_and_resumes_to_the_bit(batch, devices, tmp_path):
    """What is handed out, to hooks too, is on all devices, where everything else is."""
    learner, source, seen = LEARNERS["prototypes"], source_of(3), []

    def validate(meta, number):
        seen.append({leaf.sharding.num_devices for leaf in jax.tree.leaves(meta)})
        return {"score": float(len(seen))}

    options = dict(
        batch=batch, schedule=dict(checkpoint_every=2, validate_every=2), optimizer=optax.adam(0.01)
    )
    both = dict(options, devices=devices, validate=validate)
    whole = fit(learner, one_stage(6, source), folder=tmp_path / "whole", **both)
    assert seen == [{8}] * 3
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves((whole.meta, whole.best))} == {8}
    alone = fit(learner, one_stage(6, source), validate=lambda *_: {"score": 0.0}, **options)
    leaves_close(alone.meta, whole.meta, rtol=1e-4, atol=1e-6)

    (tmp_path / "parts").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "4", tmp_path / "parts" / "checkpoints" / "4")
    resumed = fit(learner, one_stage(6, source), folder=tmp_path / "parts", **both)
    assert len(seen) == 4  # it began at step 4
    for ours, theirs in zip(jax.tree.leaves(resumed.meta), jax.tree.leaves(whole.meta), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_serial_learner_trains_on_one_device(devices, capsys):
    sharding._note.cache_clear()
    settings = dict(encoder="mlp", encoder_settings=dict(hidden=(4,)), inner_steps=2, inner_batch=4)
    carried = make_learner("reptile", VECTORS, **settings)
    spread, alone = (
        fit(carried, one_stage(2, source_of(1)), devices=part) for part in (devices, devices[:1])
    )
    for ours, theirs in zip(jax.tree.leaves(spread.meta), jax.tree.leaves(alone.meta), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert (
        "cannot be spread over 8 devices: 1 of them will train. To use all, use its batched mode (for "
        in (capsys.readouterr().err)
    )


def test_several_processes_refuse_what_not_all_devices_can_share(devices, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = sharding.make_mesh(devices[:3])
    with pytest.raises(ValueError, match=r"8 episodes cannot be spread over 3 devices: set train\.batch to"):
        sharding.fitting(mesh, 8)
    with pytest.raises(ValueError, match=r"cannot be spread over 3 devices: .*moments='fresh'"):
        sharding.fitting(mesh, 3, serial=True)
    assert sharding.fitting(mesh, 9) == mesh
