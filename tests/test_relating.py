# SPDX-License-Identifier: Apache-2.0
"""Training on some data sets, and measuring data sets: from config to records."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tiny import ALBUM, ROOT, TASK, cache, command_line, flags_of, load_config  # noqa: F401 (a fixture)

from metaicl import sharding
from metaicl.configuration import ConfigError, overridden
from metaicl.distances import Settings, pairwise
from metaicl.experiment import chosen_runs, make_any, problems
from metaicl.experiment.distances import vectors
from metaicl.experiment.measuring import measure
from metaicl.experiment.problems import make_problem
from metaicl.report import relations
from metaicl.report.reading import load_records

SETS = ("flowers", "gears", "leaves", "tissues")
CONFIG = ROOT / "configs" / "distances.py"
TINY = {
    **{key: value for key, value in ALBUM.items() if key != "data.datasets"},
    "data.embedded.images_per_class": 20,
    **TASK,
    "task.test_queries": 2,
    "train.log_every": 2,
    "evaluate.batch": 4,
    "learners.prototypes.encoder_settings.filters": (4, 4),
}


def tiny_distances(cache, argument="seeds=2", overrides=None):  # noqa: F811
    argument = f"datasets={'+'.join(SETS)},learner=prototypes,steps=2,episodes=4,cache={cache},{argument}"
    return overridden(load_config(CONFIG, argument), TINY | (overrides or {}))


def made(config, name, folder):
    return make_any(
        name, chosen_runs(config, name)[name], folder / name, sharding.make_mesh(jax.devices()[:1])
    )


def test_some_data_sets_are_trained_on_and_all_are_tested(cache):  # noqa: F811
    config = tiny_distances(cache)
    whole = make_problem(config, jax.device_put)
    some = make_problem(overridden(config, {"data.train_on": ("leaves", "gears")}), jax.device_put)
    assert [pool.name for pool in some.pools] == ["gears", "leaves"]
    assert all(any(pool is other for other in whole.pools) for pool in some.pools)  # not copied
    assert [held.dataset for held in some.test] == [held.dataset for held in whole.test] == list(SETS)
    for i in range(5):
        ours, theirs = some.train(7).indices(i), whole.train(7, ("gears", "leaves")).indices(i)
        np.testing.assert_array_equal(ours["support_rows"], theirs["support_rows"])
        for ours, theirs in zip(some.test, whole.test, strict=True):
            np.testing.assert_array_equal(
                ours.source.indices(i)["query_rows"], theirs.source.indices(i)["query_rows"]
            )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.train_on": ("leafs",)}, r"train_on has 'leafs'.* Did you mean 'leaves'\? There are: flowers"),
        ({"data.train_on": ("gears",), "data.split": "domain"}, r"train_on.*data\.split='domain' chooses"),
    ],
)
def test_data_sets_that_cannot_be_trained_on_are_refused_before_the_album_is_read(
    overrides,
    message,
    cache,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(problems, "_stored_album", lambda *_: pytest.fail("read"))
    with pytest.raises(ConfigError, match=message):
        make_problem(overridden(tiny_distances(cache), overrides), jax.device_put)


def test_distances_are_those_of_training_images(cache, tmp_path):  # noqa: F811
    cheap = {"measure.distance.samples": 30, "measure.distance.inner": "means"}
    config = tiny_distances(cache, overrides=cheap)
    run = made(config, "distances", tmp_path / "out")
    assert "learners" not in run.config and "train" not in run.config
    pools = make_problem(run.config, sharding.placer(run.mesh)).pools
    assert all((pool.counts == 12).all() for pool in pools)  # 0.6 of 20
    expected = pairwise([vectors(pool) for pool in pools], Settings(inner="means", samples=30, root=True))
    found = lines_of(run)
    assert len(found) == 6 and {line["evaluation"] for line in found} == {"distance"}
    for line in found:
        i, j = expected.names.index(line["dataset"]), expected.names.index(line["value"])
        assert line["values"]["distance"] == [pytest.approx(expected.values[i, j], rel=1e-4)]
        assert line["converged"] and line["domain"] == expected.domains[i] and line["split"] == "train"


def lines_of(run) -> list[dict]:
    measure(run)
    return [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]


def test_a_measurement_is_finished_wherever_its_album_is_kept(cache, tmp_path, capsys):  # noqa: F811
    argument = f"datasets={'+'.join(SETS)},learner=prototypes"
    small = flags_of(
        {k: v for k, v in TINY.items() if k.startswith(("data", "task"))}
        | {"measure.distance.inner": "means", "measure.distance.samples": 30}
    )
    for place in (cache, tmp_path / "elsewhere"):
        where = [f"--config={CONFIG}:{argument},cache={place}", *small, f"--workdir={tmp_path / 'out'}"]
        assert command_line(*where, "--run=distances") == 0
    assert "distances: finished before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"measure.distance.inner": "gauss"}, "measure.distance: inner is 'gauss'; there are gaussian"),
        ({"data.train_on": ("gears",)}, "There are 1 data sets to measure distances between"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_refused(overrides, message, cache, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        made(tiny_distances(cache, overrides=overrides), "distances", tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("datasets=gears+leaves", r"2 data sets \(gears, leaves\) have no ranks: give 4 or more"),
        ("learner=ridge", "learner='ridge' is not one of in_context"),
        ("album=/nowhere", "There is no album at /nowhere"),
    ],
)
def test_studies_that_say_nothing_are_refused(argument, message):
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        load_config(CONFIG, argument)


@pytest.mark.slow
def test_the_whole_study(cache, tmp_path, capsys):  # noqa: F811
    argument = f"datasets={'+'.join(SETS)},learner=prototypes,steps=2,episodes=4,cache={cache},seeds=2"
    small = flags_of(TINY | {"measure.distance.inner": "means", "measure.distance.samples": 30})
    assert command_line(f"--config={CONFIG}:{argument}", *small, f"--workdir={tmp_path}") == 0
    said = capsys.readouterr()
    assert "[11/11]" in said.err and "distance and transfer" in said.out and "2 seeds" in said.out
    records = load_records(tmp_path)
    study = relations.load_study(records)
    assert study is not None and sorted(study.datasets) == list(SETS) and study.seeds == 2
    assert np.isfinite(study.without).all() and np.isfinite(study.joint).all()
    (line,) = [
        r for r in records if (r["run"], r["dataset"], r["replica"]) == ("without=gears", "gears", "seed=1")
    ]
    assert line["evaluation"] == "transfer" and line["train_on"] == ["flowers", "leaves", "tissues"]
    for k, name in enumerate(study.datasets):
        found = [
            r["values"]["accuracy"].mean()
            for r in records
            if r["run"] == "source=leaves" and r["dataset"] == name
        ]
        assert study.single[study.datasets.index("leaves"), k] == pytest.approx(np.mean(found))
