# SPDX-License-Identifier: Apache-2.0
"""The training loop: the same step in any stack, stages, the best parameters, and failure."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import VECTORS, leaves_close
from training import BATCH, COUNTED, LEARNERS, fit, one_stage, source_of

from metaicl import sharding
from metaicl.checkpoint import Checkpoints
from metaicl.data.pipeline import open_batches
from metaicl.episode import Stage, replicate
from metaicl.learners import make_learner
from metaicl.learners.base import Learner, Meta
from metaicl.train import Hooks, NonFinite, Schedule, listed, train
from metaicl.writer import Writer

# Replicas


def test_a_replica_is_what_it_is_alone(devices):
    """Also its clipping, which a stacked norm would share, and its best step."""
    learner = LEARNERS["prototypes"]
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(0.01))
    seeds, names = [4, 9, 4], ["a", "b", "c"]
    scores = [[0.1, 0.5, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]
    sources = [source_of(1), source_of(2, scale=30.0), source_of(1, scale=0.01)]
    schedule = dict(validate_every=2)

    def judge(numbers):
        seen = {number: iter(scores[r]) for number, r in enumerate(numbers)}
        return lambda meta, number: {"score": next(seen[number])}

    stack = fit(
        learner,
        one_stage(6, replicate(sources)),
        seeds=seeds,
        replicas=names,
        optimizer=optimizer,
        schedule=schedule,
        validate=judge(range(3)),
        devices=devices[:2],
    )
    assert stack.best_step.tolist() == [4, 2, 6]
    for r, source in enumerate(sources):
        alone = fit(
            learner,
            one_stage(6, source),
            seeds=seeds[r : r + 1],
            optimizer=optimizer,
            schedule=schedule,
            validate=judge([r]),
        )
        own = jax.tree.map(lambda a: a[r], (stack.meta, stack.opt_state, stack.best, stack.best_score))
        leaves_close(own, (alone.meta, alone.opt_state, alone.best, alone.best_score), rtol=2e-4, atol=2e-6)
    different = jax.tree.map(lambda a: float(jnp.abs(a[0] - a[2]).max()), stack.meta.params)
    assert max(jax.tree.leaves(different)) > 1e-3


# A learner that only counts


def counter(spoil_at: int | None = None) -> Learner:
    """Its parameter falls by the learning rate in every step; its gradient is no number in step `spoil_at`."""

    def meta_grad(meta, episodes, key, step):
        bad = jnp.equal(step, -1 if spoil_at is None else spoil_at - 1)
        loss = 0.0 * jnp.mean(episodes.support.x) + 1.0
        return {"w": jnp.where(bad, jnp.nan, -1.0)}, meta.carry + 1, {"loss": loss}

    return Learner(lambda key: Meta({"w": jnp.float32(0)}, jnp.int32(0)), None, None, meta_grad)


COUNTER = counter()


def test_the_best_parameters_are_those_of_the_best_validation():
    scores = iter([0.2, 0.9, 0.5, 0.9, 0.1])
    seen = []

    def validate(meta, number):
        seen.append((number, float(meta.params["w"])))
        return {"score": next(scores), "accuracy": 0.5}

    state = fit(
        COUNTER, one_stage(9), optimizer=optax.sgd(1.0), schedule=dict(validate_every=2), validate=validate
    )
    assert seen == [(0, 2.0), (0, 4.0), (0, 6.0), (0, 8.0), (0, 9.0)]  # the last step is judged too
    assert (int(state.best_step), float(state.best_score)) == (8, np.float32(0.9))  # the later of equals
    assert (float(state.best.params["w"]), float(state.meta.params["w"])) == (8.0, 9.0)
    assert (int(state.best.carry), int(state.meta.carry)) == (8, 9)


def test_without_validation_the_last_parameters_are_the_best(tmp_path):
    state = fit(COUNTER, one_stage(5), optimizer=optax.sgd(1.0), schedule=dict(checkpoint_every=2))
    assert (int(state.best_step), float(state.best.params["w"])) == (5, 5.0)
    leaves_close(state.best, state.meta)


def test_one_compilation_serves_all_steps_stages_and_resumed_runs(tmp_path, devices):
    learner, optimizer = counter(), optax.adam(0.1)
    COUNTED.clear()
    stages = [Stage("a", source_of(1), 3), Stage("b", source_of(2, scale=2.0), 4, reset_optimizer=True)]
    options = dict(optimizer=optimizer, folder=tmp_path, devices=devices[:2])
    options["schedule"] = dict(checkpoint_every=2)
    fit(learner, stages[:1], **options)
    assert len(COUNTED) == 1
    fit(learner, stages, **options)
    assert len(COUNTED) == 1


# Stages


def test_stages_follow_one_another_and_leave_their_results():
    histories, opened = [], []
    sources = [source_of(n) for n in range(3)]

    def next_stage(history):
        histories.append(history)
        if len(history) == 3:
            return None
        # The second stage depends on what the first left.
        easy = bool(history) and history[-1]["result"]["w"] == [2.0]
        return Stage("easy" if easy else "hard", sources[len(history)], 3 if easy else 2)

    def batches(source, batch):
        opened.append(source)
        return open_batches(source, batch, threads=0)

    state = train(
        COUNTER,
        next_stage,
        optax.sgd(1.0),
        seeds=[0],
        replicas=None,
        schedule=Schedule(BATCH),
        hooks=Hooks(
            batches, after_stage=lambda stage, metas: {"w": tuple(float(m.params["w"]) for m in metas)}
        ),
        mesh=sharding.make_mesh(jax.devices()[:1]),
        writer=Writer(None, total=None, title=""),
    )
    assert int(state.step) == 7 and opened == sources
    assert histories[-1] == [
        {"stage": "hard", "steps": 2, "result": {"w": [2.0]}},
        {"stage": "easy", "steps": 3, "result": {"w": [5.0]}},
        {"stage": "hard", "steps": 2, "result": {"w": [7.0]}},
    ]
    assert [len(h) for h in histories] == [0, 1, 2, 3]


def test_after_stage_sees_every_replica():
    seen = []
    sources = replicate([source_of(1), source_of(2)])
    fit(
        COUNTER,
        one_stage(2, sources),
        seeds=[0, 1],
        replicas=["a", "b"],
        optimizer=optax.sgd(1.0),
        after_stage=lambda stage, metas: seen.append([float(m.params["w"]) for m in metas]) or {},
    )
    assert seen == [[2.0, 2.0]]


@pytest.mark.parametrize("reset", [False, True])
def test_the_optimizer_starts_anew_where_a_stage_asks_for_it(reset, tmp_path):
    stages = [Stage("a", source_of(1), 3), Stage("b", source_of(2), 4, reset_optimizer=reset)]
    expected = 4 if reset else 7
    optimizer, schedule = optax.adam(0.1), dict(checkpoint_every=2)
    state = fit(COUNTER, stages, optimizer=optimizer, folder=tmp_path / "whole", schedule=schedule)
    assert int(optax.tree.get(state.opt_state, "count")) == expected
    fit(COUNTER, stages[:1], optimizer=optimizer, folder=tmp_path / "parts", schedule=schedule)
    again = fit(COUNTER, stages, optimizer=optimizer, folder=tmp_path / "parts", schedule=schedule)
    leaves_close(again, state, rtol=0)


def test_a_resumed_sequence_of_stages_sees_the_same_history(tmp_path):
    stages = [Stage(name, source_of(n), 3) for n, name in enumerate("ab")]
    results = []
    for folder, counts in (("whole", [2]), ("parts", [1, 2])):
        for count in counts:
            histories = []

            def next_stage(history, count=count, histories=histories):
                histories.append(json.dumps(history))
                return listed(stages[:count])(history)

            fit(
                COUNTER,
                next_stage,
                folder=tmp_path / folder,
                after_stage=lambda stage, metas: {"pair": (stage.name, 1)},
            )
        results.append((histories[-1], (tmp_path / folder / "metrics.jsonl").read_bytes()))
    assert results[0] == results[1]


def test_a_stage_without_steps_is_refused():
    with pytest.raises(ValueError, match="Stage 'main' has 0 steps"):
        fit(COUNTER, one_stage(0))


# The log


def test_the_log_holds_means_over_every_step_once(tmp_path):
    learner = LEARNERS["prototypes"]
    every = fit(learner, one_stage(7), folder=tmp_path / "every", schedule=dict(log_every=1))
    few = fit(learner, one_stage(7), folder=tmp_path / "few", schedule=dict(log_every=3, checkpoint_every=5))
    leaves_close(every.meta, few.meta, rtol=0)
    read = lambda name: [json.loads(t) for t in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in read("every")]
    assert [line["step"] for line in read("every")] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in read("few")] == [3, 5, 6, 7]
    means = [np.mean(losses[:3]), np.mean(losses[3:5]), losses[5], losses[6]]
    np.testing.assert_allclose([line["loss"] for line in read("few")], means, rtol=1e-6)
    assert {line["split"] for line in read("few")} == {"train"}


def test_replicas_and_stages_are_named_in_the_log(tmp_path):
    fit(
        COUNTER,
        one_stage(2, replicate([source_of(1), source_of(2)])),
        seeds=[0, 1],
        replicas=["a", "b"],
        folder=tmp_path,
        schedule=dict(validate_every=2),
        validate=lambda meta, number: {"score": 0.0, "accuracy": float(number)},
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["replica"], line["stage"]) for line in lines] == [
        ("train", "a", "main"),
        ("train", "b", "main"),
        ("validation", "a", "main"),
        ("validation", "b", "main"),
    ]
    assert [line["accuracy"] for line in lines[2:]] == [0.0, 1.0] and "score" not in lines[2]


# Failure


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFinite, match=r"loss is not finite at step 7\. The checkpoint of step 6 is kept\."):
        fit(
            LEARNERS["prototypes"],
            one_stage(20, source_of(1, bad_from=6)),
            folder=tmp_path,
            schedule=dict(log_every=4, checkpoint_every=3),
        )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_step() == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 6]
    assert "NaN" not in "".join(lines)


def test_a_gradient_that_is_no_number_stops_the_run_too():
    text = r"grad_norm is not finite at step 2\. No checkpoint was written before it\. Lower .*train\.clip"
    with pytest.raises(NonFinite, match=text):
        fit(counter(spoil_at=2), one_stage(5), schedule=dict(log_every=100))


def test_a_diverging_inner_loop_is_named_by_step_and_rate():
    settings = dict(encoder="mlp", encoder_settings=dict(hidden=(8,)), inner_steps=9, inner_lr=1e30)
    learner = make_learner("maml", VECTORS, order="first", **settings)
    text = (
        r"not finite at step 1\. .*The inner loop of task 0 of the batch diverged at its step \d of 9, with the "
        r"rate 1e\+30: lower inner_lr\."
    )
    with pytest.raises(NonFinite, match=text):
        fit(learner, one_stage(2, source_of(1, scale=1e10)))


def test_the_replica_that_failed_is_named():
    sources = replicate([source_of(1), source_of(2, bad_from=3)])
    with pytest.raises(NonFinite, match=r"loss is not finite at step 4 of replica 'second'"):
        fit(LEARNERS["prototypes"], one_stage(6, sources), seeds=[0, 1], replicas=["first", "second"])
