# SPDX-License-Identifier: Apache-2.0
"""Experiments from config to report: the loop learns, runs are chosen, skipped, shared."""

from __future__ import annotations

import json
import pathlib
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import (  # noqa: F401 (a fixture)
    LOO,
    ROOT,
    TINY,
    cache,
    command_line,
    flags_of,
    load_config,
    mesh,
    small_split,
    tiny_config,
)

from metaicl import sharding
from metaicl.checkpoint import load_weights
from metaicl.configuration import ConfigError, named, overridden
from metaicl.evaluate import evaluate
from metaicl.experiment import chosen_runs, make_any, make_run, problems, run_experiment
from metaicl.experiment.runs import execute, make_optimizer

RUN = "held_out=cells"


def records_of(run: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def accuracies(run: pathlib.Path, learner: str) -> np.ndarray:
    chosen = [r for r in records_of(run) if r["learner"] == learner and r["evaluation"] == "main"]
    return np.concatenate([r["values"]["accuracy"] for r in chosen])


# From the command line to the report


@pytest.mark.parametrize(
    "learner",
    [
        "prototypes",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("in_context", "maml", "reptile")),
    ],
)
def test_a_command_line_leaves_a_report_behind(learner, tmp_path, cache, capsys):  # noqa: F811
    workdir = tmp_path / "out"
    config = f"--config={LOO}:backbone=none,held_out=cells,learner={learner},cache={cache}"
    own = {"baselines": ("ridge",), "evaluate.shot_curve": (1,), "evaluate.shot_curve_episodes": 3}
    flags = flags_of(TINY | own)
    assert command_line(config, *flags, f"--workdir={workdir}") == 0
    printed = capsys.readouterr()
    assert "ridge" in printed.out and f"[1/1] {RUN}" in printed.err
    for name in (
        "results.json",
        "report.html",
        "command.txt",
        f"{RUN}/config.json",
        f"{RUN}/weights.safetensors",
    ):
        assert (workdir / name).stat().st_size, name
    assert list((workdir / "figures").glob("*.png"))
    results = json.loads((workdir / "results.json").read_text())
    rows = {r["learner"]: r for r in results["rows"] if (r["metric"], r["shots"]) == ("accuracy", 2)}
    assert rows.keys() == {learner, "ridge"}
    assert rows[learner]["dataset"] == "tissues" and rows[learner]["domain"] == "cells"
    np.testing.assert_allclose(rows[learner]["mean"], accuracies(workdir / RUN, learner).mean(), rtol=1e-4)
    told = {(r["learner"], r["evaluation"], r["shots"]): r for r in records_of(workdir / RUN)}
    assert told.keys() == {
        (name, *what) for name in (learner, "ridge") for what in (("main", 2), ("shots", 1))
    }
    assert told[learner, "main", 2]["trained"] and not told["ridge", "main", 2]["trained"]
    counts = {"main": TINY["evaluate.episodes"], "shots": 3}
    assert all(len(r["values"]["accuracy"]) == counts[kind] for (_, kind, _), r in told.items())


def test_training_helps(tmp_path, cache):  # noqa: F811
    """New images of the training classes, which a few filters can learn."""
    overrides = {
        "data.split": "within",
        "data.fractions": (0.5, 0.25, 0.25),
        "data.embedded.images_per_class": 20,
        "train.steps": 80,
        "train.decay": "none",
        "train.learning_rate": 0.01,
        "train.checkpoint_every": 80,
        "train.validate_every": 80,
        "train.log_every": 20,
        "evaluate.episodes": 60,
    }
    config = tiny_config("held_out=cells,learner=prototypes", cache, overrides)
    ((name, own),) = chosen_runs(config, None).items()
    execute(make_run(name, own, tmp_path, mesh()))
    scores = accuracies(tmp_path, "prototypes")
    assert len(scores) == 180
    assert scores.mean() - 5 * scores.std() / len(scores) ** 0.5 > 1 / 3 + 0.1
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line["split"] == "train"]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["supervised", "functions"])
def test_other_kinds_of_problems_go_from_config_to_report(kind, tmp_path, cache, capsys):  # noqa: F811
    overrides = {"train.steps": 3, "train.batch": 2, "train.checkpoint_every": 2, "evaluate.episodes": 4}
    overrides |= {"train.log_every": 1, "evaluate.batch": 2, "train.warmup": 0}
    argument = f"datasets=gears+tissues,cache={cache}"
    if kind == "functions":
        argument = "learn,quick"
        overrides |= {"evaluate.shot_curve": (1, 4), "evaluate.shot_curve_episodes": 4}
        overrides |= {"train.validate_every": 3, "evaluate.validation_episodes": 4}
        overrides |= {"data.curriculum.batch": 2}
    else:
        overrides |= {key: value for key, value in TINY.items() if "embedded" in key or "image_size" in key}
    config = f"--config={ROOT}/configs/{kind}.py:{argument}"
    assert command_line(config, *flags_of(overrides), f"--workdir={tmp_path}") == 0
    (records,) = tmp_path.glob("*/records.jsonl")
    first = json.loads(records.read_text().splitlines()[0])
    assert first["trained"] and first["step"] == 3
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_sinusoids_end_in_a_sweep_and_fits(tmp_path, capsys):
    """Every learner of one family, far too short: records over the gradient steps, drawn fits, a table."""
    overrides = {f"learners.{name}.train.steps": 2 for name in ("maml", "reptile")}
    overrides |= {"evaluate.episodes": 4, "evaluate.batch": 2, "evaluate.fits": 1, "train.batch": 2}
    overrides |= {f"learners.{name}.sweep.values": (0, 2) for name in ("maml", "reptile")}
    config = f"--config={ROOT}/configs/sinusoid.py:reptile,learner=maml+reptile"
    assert command_line(config, *flags_of(overrides), f"--workdir={tmp_path}") == 0
    for name in ("maml", "reptile"):
        lines = records_of(tmp_path / f"family=reptile,learner={name}")
        assert [(r["evaluation"], r.get("value")) for r in lines] == [
            ("main", None),
            ("sweep", 0),
            ("sweep", 2),
        ]
        assert [r["setting"] for r in lines[1:]] == ["inner_steps"] * 2
        fits = json.loads((tmp_path / f"family=reptile,learner={name}" / "fits.json").read_text())
        assert [(f["value"], len(f["x"]), len(f["support_x"])) for f in fits] == [(0, 50, 10), (2, 50, 10)]
        assert fits[0]["truth"] == fits[1]["truth"] and fits[0]["fit"] != fits[1]["fit"]
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"sweep", "fits_reptile_family"} <= drawn
    assert "reptile" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(r["setting"], r["value"]) for r in rows if r["evaluation"] == "sweep"} == {
        ("inner_steps", 0),
        ("inner_steps", 2),
    }


@pytest.mark.slow
def test_a_measurement_goes_from_config_to_report(tmp_path, capsys):
    """Taylor coefficients of one method, on a small network: measured beside theory, and a second call skips it."""
    overrides = {"measure.seeds": 1, "measure.tasks": 2, "measure.batch": 3, "measure.minibatches": (2,)}
    flags = [f"--config={ROOT}/configs/taylor.py", *flags_of(overrides), "--run=method=reptile"]
    assert command_line(*flags, f"--workdir={tmp_path}") == 0
    lines = records_of(tmp_path / "method=reptile")
    errors = [r["values"]["relative error"] for r in lines if r["evaluation"] == "main"]
    assert len(errors) == 2 and max(map(max, errors)) < 0.02
    measured = {(r["dataset"], r["learner"]): r["values"]["coefficient"] for r in lines if "value" in r}
    assert measured["AvgGradInner", "reptile in theory"] == [1.0]
    assert measured["AvgGrad", "reptile"] == pytest.approx([2.0], rel=0.02)
    assert (tmp_path / "figures" / "sweep.png").exists()
    capsys.readouterr()
    assert command_line(*flags, f"--workdir={tmp_path}") == 0
    assert "finished before" in capsys.readouterr().err
    changed = [*flags, "--config.measure.batch=4", f"--workdir={tmp_path}"]
    assert command_line(*changed) == 1
    assert "holds a run of another config (measure.batch: 3 -> 4)" in capsys.readouterr().err


@pytest.mark.slow
def test_probes_are_followed_in_training_and_recorded(tmp_path, capsys):
    """The distance to the solutions: in the metrics of validation, in the records, in a table of its own."""
    overrides = {
        "learners.fomaml.train.steps": 4,
        "learners.fomaml.train.validate_every": 2,
        "train.batch": 2,
    }
    overrides |= {"evaluate.episodes": 3, "evaluate.batch": 2, "evaluate.validation_episodes": 2}
    flags = [f"--config={ROOT}/configs/solution_manifolds.py:quick", "--run=fomaml", *flags_of(overrides)]
    assert command_line(*flags, f"--workdir={tmp_path}") == 0
    metrics = [json.loads(line) for line in (tmp_path / "fomaml" / "metrics.jsonl").read_text().splitlines()]
    followed = [line["distance"] for line in metrics if line["split"] == "validation"]
    assert len(followed) == 2 and min(followed) > 0
    found = {r["learner"]: r["values"] for r in records_of(tmp_path / "fomaml") if r.get("probe")}
    assert set(found) == {"fomaml", "untrained"}
    assert all(len(v["distance"]) == len(v["unsolved"]) == 3 for v in found.values())
    assert found["fomaml"]["distance"] != found["untrained"]["distance"]
    assert "distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ({"solution_distanse": {}}, r"evaluate\.probes has 'solution_distanse'; there are"),
        ({"solution_distance": {"tol": 1}}, r"evaluate\.probes\.solution_distance: .*'tol'"),
    ],
)
def test_probes_that_do_not_fit_are_refused_before_training(probes, message, tmp_path):
    config = load_config(ROOT / "configs" / "solution_manifolds.py", "quick")
    with config.unlocked():
        config.evaluate.probes = probes
    name, own = next(iter(chosen_runs(config, None).items()))
    with pytest.raises(ConfigError, match=message):
        make_any(name, own, tmp_path / name, mesh())


@pytest.mark.slow
@pytest.mark.parametrize(("select", "step"), [("best", 2), ("last", 4)])
def test_the_best_or_the_last_parameters_are_tested(select, step, tmp_path, monkeypatch):
    scores = iter([1.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr("metaicl.experiment.runs._validate", lambda *_: {"score": next(scores)})
    overrides = {
        "learners.fomaml.train.steps": 4,
        "learners.fomaml.train.validate_every": 2,
        "train.batch": 8,
    }
    overrides |= {"learners.fomaml.train.batch": 8, "evaluate.episodes": 2, "evaluate.batch": 2}
    overrides |= {"evaluate.select": select}
    config = overridden(load_config(ROOT / "configs" / "solution_manifolds.py", "quick"), overrides)
    run_experiment(config, tmp_path, only="fomaml")
    assert {r["step"] for r in records_of(tmp_path / "fomaml") if r["learner"] == "fomaml"} == {step}


def test_what_is_tested_is_the_best_or_the_last(tmp_path):
    config = overridden(load_config(ROOT / "configs" / "sinusoid.py", "quick"), {"evaluate.select": "first"})
    name, own = next(iter(chosen_runs(config, None).items()))
    with pytest.raises(ConfigError, match=r"evaluate\.select is 'first'; use 'best'"):
        make_any(name, own, tmp_path / name, mesh())


@pytest.mark.slow
def test_a_run_may_be_a_point_of_a_curve(tmp_path, monkeypatch):
    """A setting of training: a row of the table for every value, and a panel of the curve."""
    monkeypatch.setitem(problems._READERS, "omniglot", small_split)
    name = "shared, cycling"
    overrides = {"train.steps": 1, "train.batch": 8, "evaluate.episodes": 2, "evaluate.batch": 2}
    overrides |= {f"learners.{name}.encoder_settings.filters": (4, 4)}
    config = overridden(load_config(ROOT / "configs" / "tails.py", "panel=batch"), overrides)
    for value in (5, 25):
        run_experiment(config, tmp_path, only=f"batch={value},{name}")
    lines = [r for folder in tmp_path.glob("batch=*") for r in records_of(folder)]
    base = "omniglot_reptile_split"
    assert sorted((r["dataset"], r["evaluation"], r.get("value")) for r in lines) == [
        (base, "sweep", 5.0),
        (base, "sweep", 25.0),
        (f"{base}, inner batch 25", "main", None),
        (f"{base}, inner batch 5", "main", None),
    ]
    assert (tmp_path / "figures" / "sweep.png").exists()


def test_an_unknown_measurement_is_refused(tmp_path):
    config = load_config(ROOT / "configs" / "taylor.py", "quick")
    config = overridden(config, {"measure.kind": "tailor"})
    name, own = next(iter(chosen_runs(config, None).items()))
    with pytest.raises(ConfigError, match=r"measure\.kind is 'tailor'; there are taylor"):
        make_any(name, own, tmp_path / name, mesh())
    for wrong, message in (
        ({"measure.method": "mamml"}, "measure.method is 'mamml'; there are maml"),
        ({"measure.minibatches": (1, 2)}, r"measure.minibatches is \(1, 2\); each takes at least 2"),
    ):
        known = overridden(own, {"measure.kind": "taylor"})
        with pytest.raises(ConfigError, match=message):
            make_any(name, overridden(known, wrong), tmp_path / name, mesh())


@pytest.mark.slow
def test_variants_are_rows_of_the_same_training(tmp_path, monkeypatch, capsys):
    """Both modes of batch norm in the table, from one training."""
    monkeypatch.setitem(problems._READERS, "omniglot", small_split)
    overrides = {"train.steps": 1, "train.batch": 2, "evaluate.episodes": 2, "evaluate.batch": 2}
    overrides |= {"learners.maml.encoder_settings.filters": (4, 4)}
    config = f"--config={ROOT}/configs/omniglot.py:5w1s,learner=maml"
    assert command_line(config, *flags_of(overrides), f"--workdir={tmp_path}") == 0
    lines = records_of(tmp_path / "5w1s,learner=maml")
    assert [r["learner"] for r in lines] == ["maml", "maml non_transductive"]
    assert [r["shots"] for r in lines] == [1, 1]
    assert "maml non transductive" in capsys.readouterr().out


def test_what_does_not_fit_the_episodes_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(problems._READERS, "omniglot", small_split)
    config = load_config(ROOT / "configs" / "omniglot.py", "5w1s,learner=reptile")
    config = overridden(config, {"learners.reptile.inner_batch": 60})
    ((name, own),) = chosen_runs(config, None).items()
    with pytest.raises(
        ConfigError, match=r"'reptile' of the config.* inner batch of 60 is larger than the support"
    ):
        make_run(name, own, tmp_path / name, mesh())


# Choosing and skipping runs


def done_by(*arguments: str, workdir: pathlib.Path) -> list[str]:
    """Names of the runs that a command line does (none of them is done)."""
    with (
        mock.patch("metaicl.experiment.execute") as each,
        mock.patch("metaicl.experiment.write_report", return_value=""),
    ):
        assert command_line(*arguments, f"--workdir={workdir}") == 0
    return [call.args[0].name for call in each.call_args_list]


def test_runs_are_chosen_by_number_and_name(tmp_path, cache):  # noqa: F811
    config = f"--config={LOO}:backbone=none,held_out=plants+cells+machines,learner=prototypes,cache={cache}"
    flags = [config, *flags_of(TINY)]
    names = [f"held_out={domain}" for domain in ("cells", "machines", "plants")]
    assert done_by(*flags, workdir=tmp_path) == names
    assert done_by(*flags, "--run=1", workdir=tmp_path) == names[1:2]
    assert done_by(*flags, "--run=held_out=plants", workdir=tmp_path) == names[2:]


def test_a_run_with_a_number_for_a_name():
    config = tiny_config("learner=prototypes", pathlib.Path("unused"))
    with config.unlocked():
        config.runs = named({"7": {"seed": 7}, "8": {"seed": 8}})
    assert [c.seed for c in chosen_runs(config, "8").values()] == [8]
    assert [c.seed for c in chosen_runs(config, "0").values()] == [7]
    with pytest.raises(ConfigError, match=r"There is no run '9'; the runs are: 0 7, 1 8\."):
        chosen_runs(config, "9")


def test_a_config_without_runs_has_one(cache):  # noqa: F811
    config = tiny_config("learner=prototypes", cache)
    with config.unlocked():
        config.runs = {}
    assert list(chosen_runs(config, None)) == ["main"]


def test_a_run_does_not_depend_on_other_runs_and_learners(cache):  # noqa: F811
    few = chosen_runs(tiny_config("held_out=cells,learner=prototypes", cache), RUN)
    config = tiny_config("held_out=cells+plants,learner=prototypes", cache, {"learners.maml.inner_steps": 9})
    assert chosen_runs(config, RUN) == few
    assert set(few[RUN].learners) == {"prototypes"} and "runs" not in few[RUN]


def test_finished_runs_are_skipped(tmp_path, cache, capsys):  # noqa: F811
    """And what was recorded is reported again, byte for byte."""
    config = tiny_config("held_out=cells,learner=prototypes", cache, {"train.steps": 0})
    one = mesh()
    with mock.patch.object(sharding, "make_mesh", lambda: one):
        table = run_experiment(config, tmp_path)
        before = (tmp_path / RUN / "records.jsonl").read_bytes()
        results = (tmp_path / "results.json").read_bytes()
        capsys.readouterr()
        with mock.patch("metaicl.experiment.execute", side_effect=AssertionError("done again")):
            assert run_experiment(config, tmp_path) == table
    assert f"[1/1] {RUN}: finished before" in capsys.readouterr().err
    assert (tmp_path / RUN / "records.jsonl").read_bytes() == before
    assert (tmp_path / "results.json").read_bytes() == results


# One run


def test_what_is_recorded_is_what_the_weights_answer(tmp_path, cache):  # noqa: F811
    """The best step's, of each replica, and the same whichever batch they are answered in."""
    config = tiny_config("held_out=cells,learner=prototypes,seeds=2", cache)
    ((name, own),) = chosen_runs(config, None).items()
    run = make_run(name, own, tmp_path / name, mesh())
    execute(run)
    records = {r["replica"]: r for r in records_of(tmp_path / name)}
    assert records.keys() == {"seed=0", "seed=1"}
    assert records["seed=0"]["values"] != records["seed=1"]["values"]
    for replica in run.replicas:
        learner = run.learner("prototypes", {})
        template = jax.eval_shape(learner.init, jax.random.key(0))
        meta = load_weights(tmp_path / name / f"weights-{replica.name}.safetensors", template)
        (held,) = replica.problem.test
        found = evaluate(replica.problem.spec, learner, meta, held.source, range(6), batch=5)["values"]
        told = records[replica.name]["values"]
        np.testing.assert_allclose(found["accuracy"], told["accuracy"], atol=1e-4)
        np.testing.assert_allclose(found["loss"], told["nll"], rtol=1e-3)
    first, second = (load_file(path) for path in sorted((tmp_path / name).glob("weights-*.safetensors")))
    assert any(np.abs(first[key] - second[key]).max() > 1e-3 for key in first)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_rises_and_falls_over_the_steps(decay, expected):
    optimizer = make_optimizer("sgd", 1.0, 6, 2, decay, 0.0, 0.0)
    params = {"w": np.float32(0)}
    state, rates = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update({"w": np.float32(-1)}, state, params)
        rates.append(float(updates["w"]))
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    optimizer = make_optimizer("sgd", 1.0, 6, 0, "none", 0.5, 0.0)
    params = {"a": np.float32(0), "b": np.zeros(1, np.float32)}
    updates, _ = optimizer.update(
        {"a": np.float32(-3), "b": np.float32([-4])}, optimizer.init(params), params
    )
    np.testing.assert_allclose([updates["a"], updates["b"][0]], [0.3, 0.4], rtol=1e-6)
