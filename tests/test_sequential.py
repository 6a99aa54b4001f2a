# SPDX-License-Identifier: Apache-2.0
"""Training in stages from config to report: what each stage trains on, what is measured after it, and errors."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tiny import ROOT, cache, load_config, no_album, tiny_sequence, write_album  # noqa: F401 (fixtures)

from metaicl import report, sharding
from metaicl.configuration import ConfigError, named, overridden
from metaicl.experiment import chosen_runs, make_run, sequential
from metaicl.experiment.runs import execute

SETS = ("flowers", "leaves", "tissues")  # in the order of the config: tissues, flowers, leaves


def tiny_run(folder, cache, argument="order=domain,bounds=none", overrides=None, only=None):  # noqa: F811
    config = tiny_sequence(argument, cache, overrides)
    (name, own), *_ = chosen_runs(config, only).items()
    return make_run(name, own, folder / name, sharding.make_mesh(jax.devices()[:1]))


def stage_names(run) -> list[str]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(line["stage"] for line in lines))


def validated(meta, number) -> dict[str, float]:
    del meta, number
    return {"score": 0.0}


def stages_of(run, results=()) -> list:
    """All stages of a run, each leaving what `results` says of it."""
    plan = sequential.make_plan(run, 12, validated)
    history: list[dict] = []
    found = []
    while (stage := plan.next_stage(history)) is not None:
        found.append(stage)
        sets = [name for name in SETS if name in stage.name] or list(SETS)
        extra = results[len(history)] if results else 0.0
        history.append(
            {"stage": stage.name, "steps": stage.steps, "result": {"sets": sets, "scores": [extra]}}
        )
        sequential.write_row(run, len(history), sequential._initial(run), sets)
    return found


def seen_by(run, stage, count: int = 30) -> set[str]:
    """The data sets that a stage's episodes hold images of."""
    rows = np.concatenate([stage.source.indices(i)["support_rows"].reshape(-1) for i in range(count)])
    x = np.asarray(run.replicas[0].problem.train(0).consts["x"])
    images = {p.name: {image.tobytes() for image in np.asarray(p.x)} for p in run.replicas[0].problem.pools}
    seen = {x[row].tobytes() for row in rows}
    assert seen <= set().union(*images.values()), "an image that is not for training"
    return {name for name, own in images.items() if own & seen}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):  # noqa: F811
    """A run of two seeds that trained flowers and leaves (plants), and tissues (cells), in the order of domains."""
    run = tiny_run(tmp_path_factory.mktemp("finished"), cache, "order=domain,bounds=none,seeds=2")
    execute(run)
    return run


# What is left behind


def test_every_stage_leaves_a_row(finished):
    assert stage_names(finished) == ["1 tissues", "2 flowers", "3 leaves"]
    rows = [sequential.load_row(finished.folder, k) for k in range(4)]
    assert all(row["correct"].shape == (2, 3, 5) and row["correct"].dtype == np.uint8 for row in rows)
    about = json.loads((finished.folder / "stages.json").read_text())
    assert about["stages"] == 3 and about["order"] == "domain" and about["learner"] == "prototypes"
    assert about["datasets"] == ["tissues", "flowers", "leaves"]
    assert about["domains"] == ["cells", "plants", "plants"] and about["queries"] == [6, 6, 6]
    np.testing.assert_array_equal([row["adds"] for row in rows], [[0] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert max(row["correct"].max() for row in rows) <= 6


def test_the_last_row_is_what_the_records_say(finished):
    last = sequential.load_row(finished.folder, 3)["correct"] / 6
    first = sequential.load_row(finished.folder, 0)["correct"] / 6
    lines = [json.loads(line) for line in (finished.folder / "records.jsonl").read_text().splitlines()]
    assert {line["learner"] for line in lines} == {"prototypes", "prototypes untrained"}
    for line in lines:
        replica = finished.replica_names.index(line["replica"])
        dataset = [held.dataset for held in finished.replicas[0].problem.test].index(line["dataset"])
        row = last if line["trained"] else first
        assert line["split_by"] == "images" and line["step"] == (12 if line["trained"] else 0)
        np.testing.assert_allclose(line["values"]["accuracy"][:5], row[replica, dataset], atol=1e-4)


def test_rows_are_measured_with_what_the_stage_ended_with(finished, tmp_path, cache):  # noqa: F811
    """The same run, stopped after its second stage, holds the parameters of the third row."""
    short = tiny_run(tmp_path, cache, "order=domain,bounds=none,seeds=2")
    whole = sequential.make_plan

    def two_stages(*arguments):
        plan = whole(*arguments)
        return plan._replace(
            next_stage=lambda history: plan.next_stage(history) if len(history) < 2 else None
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sequential, "make_plan", two_stages)
        execute(short)
    for k in range(3):
        ours, theirs = (sequential.load_row(run.folder, k)["correct"] for run in (short, finished))
        np.testing.assert_array_equal(ours, theirs)
    lines = [json.loads(line) for line in (short.folder / "records.jsonl").read_text().splitlines()]
    told = {
        (line["replica"], line["dataset"]): line["values"]["accuracy"] for line in lines if line["trained"]
    }
    for r, replica in enumerate(("seed=0", "seed=1")):
        for d, dataset in enumerate(("tissues", "flowers", "leaves")):
            np.testing.assert_allclose(told[replica, dataset][:5], ours[r, d] / 6, atol=1e-4)


def test_the_report_is_made_from_the_rows(finished):
    root = finished.folder.parent
    said = report.write_report(root)
    assert "training in stages, test images" in said and "prototypes untrained" in said
    assert {"stages", "transfer_domain"} <= {path.stem for path in (root / "figures").iterdir()}
    matrix = json.loads((root / "results.json").read_text())["matrices"][finished.name]["accuracy"]
    rows = [sequential.load_row(finished.folder, k)["correct"].mean(axis=(0, 2)) / 6 for k in range(4)]
    np.testing.assert_allclose(matrix, rows, rtol=1e-5)


def test_no_image_is_in_training_and_test(finished):
    problem = finished.replicas[0].problem
    digests = {p.name: set(p.digests.tolist()) for p in problem.pools}
    x = np.asarray(problem.train(0).consts["x"])
    trained = {image.tobytes() for p in problem.pools for image in np.asarray(p.x)}
    assert len(digests) == 3 and all(len(p.classes) == 5 for p in problem.pools)
    for held in problem.test:
        for i in range(20):
            rows = held.source.indices(i)
            for row in [*rows["support_rows"], *rows["query_rows"]]:
                assert x[row].tobytes() not in trained


# What the stages are


def test_without_replay_a_stage_sees_its_own_data_set_alone(tmp_path, cache):  # noqa: F811
    run = tiny_run(tmp_path, cache)
    stages = stages_of(run)
    assert [seen_by(run, stage) for stage in stages] == [{"tissues"}, {"flowers"}, {"leaves"}]
    assert [stage.steps for stage in stages] == [4, 4, 4]
    assert not any(stage.reset_optimizer for stage in stages)


def test_replay_and_joint_training(tmp_path, cache):  # noqa: F811
    argument = "order=domain,bounds=replay+joint,reset"
    run = tiny_run(tmp_path, cache, argument, only="order=domain,replay")
    stages = stages_of(run)
    assert [len(seen_by(run, stage)) for stage in stages] == [1, 2, 3]
    assert seen_by(run, stages[1]) == {"tissues", "flowers"} and stages[1].reset_optimizer
    run = tiny_run(tmp_path, cache, argument, only="joint")
    (stage,) = stages_of(run)
    assert (stage.name, stage.steps, seen_by(run, stage)) == ("1 all", 12, set(SETS))


def test_stages_of_the_same_data_set_hold_other_episodes(tmp_path, cache):  # noqa: F811
    run = tiny_run(tmp_path, cache)
    first, again = (sequential._source(run, number, ["leaves"]).indices(0) for number in (1, 2))
    assert (first["support_rows"] != again["support_rows"]).any()


def test_a_proportional_budget_follows_the_images(tmp_path, cache):  # noqa: F811
    run = tiny_run(tmp_path, cache, "order=domain,bounds=none,budget=proportional")
    pools = run.replicas[0].problem.pools
    few = pools[1].select(np.flatnonzero(pools[1].rows % 2))
    problem = run.replicas[0].problem._replace(pools=[pools[0], few, pools[2]])
    (replica,) = run.replicas
    run = type(run)(run.name, run.config, run.folder, run.mesh, (replica._replace(problem=problem),))
    steps = [stage.steps for stage in stages_of(run)]
    assert sum(steps) == 12 and steps[1] < steps[0] == steps[2]


def test_a_bandit_goes_where_validation_gains(tmp_path, cache):  # noqa: F811
    """And its stages are a function of the history: a second reading of it chooses the same."""
    overrides = {"sequence.stages": 30, "sequence.rate": 0.5, "train.steps": 60}
    argument = "order=adaptive,bounds=none"
    run = tiny_run(tmp_path, cache, argument, overrides)
    scores = {"tissues": 0.0, "flowers": 0.3, "leaves": -0.1}
    plan = sequential.make_plan(run, 60, validated)
    history, total = [], 0.0
    while (stage := plan.next_stage(history)) is not None:
        name = stage.name.split()[1]
        total += scores[name]
        history.append({"stage": stage.name, "result": {"sets": [name], "scores": [total]}})
        sequential.write_row(run, len(history), sequential._initial(run), [name])
        assert stage.steps == 2
    chosen = [done["result"]["sets"][0] for done in history]
    assert len(chosen) == 30 and chosen[10:].count("flowers") > 10
    again = sequential.make_plan(run, 60, validated)
    assert [again.next_stage(history[:k]).name for k in range(30)] == [done["stage"] for done in history]


@pytest.mark.slow
def test_an_adaptive_run_goes_through(tmp_path, cache):  # noqa: F811
    run = tiny_run(tmp_path, cache, "order=adaptive,bounds=none,seeds=2", {"sequence.stages": 4})
    execute(run)
    names = stage_names(run)
    assert len(names) == 4 and {name.split()[1] for name in names} <= set(SETS)
    assert sequential.load_row(run.folder, 4)["adds"].sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["in_context", "maml"])
def test_any_learner_trains_in_stages(learner, tmp_path, cache):  # noqa: F811
    config = tiny_sequence("order=domain,bounds=none", cache)
    small = {"learner": learner, f"learners.{learner}.encoder_settings.filters": (4, 4)}
    config = overridden(config, small)
    with config.unlocked():
        config.runs = named({"main": {}})
    ((name, own),) = chosen_runs(config, None).items()
    run = make_run(name, own, tmp_path / name, sharding.make_mesh(jax.devices()[:1]))
    execute(run)
    assert json.loads((run.folder / "stages.json").read_text())["learner"] == learner


# Errors


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sequence.order": "E2I"}, r"sequence\.order is 'E2I'; there are domain, random, E2H"),
        ({"sequence.order": "E2E", "sequence.start": "tisues"}, r"start='tisues' .*did you mean 'tissues'\?"),
        ({"sequence.budget": "equal"}, "sequence: Unknown budget 'equal'; there are static, proportional"),
        ({"train.steps": 2}, "sequence: 2 steps are too few for 3 stages"),
        ({"train.steps": 0}, r"train\.steps is 0: give training in stages some"),
        ({"train.validate_every": 5, "evaluate.select": "best"}, r"train\.validate_every is 5, which would"),
        ({"sequence.order": "adaptive"}, r"needs images to validate on: give data\.fractions a second part"),
        ({"data.split": "domain", "data.held_out": "cells"}, r"data\.split='images' or 'within'; here 2 are"),
        (
            {"sequence.order": "path", "sequence.distance.inner": "gausian"},
            r"sequence\.distance: inner is 'gausian'; there are gaussian",
        ),
        (
            {"sequence.order": "H2E", "sequence.probe.learner.method": "rigde"},
            r"sequence\.probe\.learner: Unknown method 'rigde'",
        ),
    ],
)
def test_what_cannot_be_trained_in_stages_is_refused_before_training(overrides, message, tmp_path, cache):  # noqa: F811
    config = tiny_sequence("order=domain,bounds=none", cache)
    with config.unlocked():
        config.runs = named({"main": {}})
    config = overridden(config, overrides)
    ((name, own),) = chosen_runs(config, None).items()
    with pytest.raises(ConfigError, match=message):
        make_run(name, own, tmp_path / name, sharding.make_mesh(jax.devices()[:1]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("album", ["embedded", "folder"])
def test_an_unknown_start_is_refused_before_an_album_is_drawn(album, tmp_path, no_album):  # noqa: F811
    place = "embedded" if album == "embedded" else write_album(tmp_path / "album")
    near = {"embedded": ("shrub", "shrubs"), "folder": ("FLV", "FLW")}[album]
    for start, message in (
        (near[0], rf"start='{near[0]}' is no data set; did you mean '{near[1]}'\?"),
        (near[1], "an album is read"),
    ):
        config = load_config(ROOT / "configs" / "sequential.py", f"album={place},order=E2E,start={start}")
        name, own = next(iter(chosen_runs(config, None).items()))
        with pytest.raises((ConfigError, pytest.fail.Exception), match=message):
            make_run(name, own, tmp_path / name, sharding.make_mesh(jax.devices()[:1]))


def test_replicas_that_differ_in_more_than_seeds_are_refused(tmp_path, cache):  # noqa: F811
    config = tiny_sequence("order=domain,bounds=none", cache)
    with config.unlocked():
        config.replicas = named({"one": {"sequence.replay": False}, "two": {"sequence.replay": True}})
    ((name, own),) = chosen_runs(config, None).items()
    with pytest.raises(ConfigError, match="may differ in their seeds only"):
        make_run(name, own, tmp_path / name, sharding.make_mesh(jax.devices()[:1]))


def test_a_lost_row_of_a_finished_stage_is_named(tmp_path, cache):  # noqa: F811
    run = tiny_run(tmp_path, cache)
    stages_of(run)
    sequential.row_path(run.folder, 2).unlink()
    history = [
        {"result": {"sets": ["tissues"], "scores": []}},
        {"result": {"sets": ["leaves"], "scores": []}},
    ]
    plan = sequential.make_plan(run, 12, validated)
    with pytest.raises(ConfigError, match=r"002\.npz is missing or damaged.*delete the folder"):
        plan.next_stage(history)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("order=E2E+easy", "order='easy' is not one of domain, E2H"),
        ("bounds=replays", "bounds='replays' is not one of replay, joint, none"),
        ("learner=protos", r"learner='protos' is not one of in_context, prototypes, maml \(join"),
    ],
)
def test_words_that_the_config_does_not_know(argument, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "configs" / "sequential.py", argument)


def test_runs_of_the_config():
    config = load_config(ROOT / "configs" / "sequential.py", "order=E2H+Switch,learner=in_context+maml")
    names = {"order=E2H", "order=Switch", "order=E2H,replay", "joint"}
    assert set(config.runs) == {f"{n},learner={x}" for x in ("in_context", "maml") for n in names}
    beside = {name for name, own in chosen_runs(config, None).items() if own.baselines}
    assert beside == {"order=E2H,learner=in_context"}
    assert config.train.steps == 30 * 25
