# SPDX-License-Identifier: Apache-2.0
"""Difficulty of data sets: what is trained and measured, and what the report says of it."""

from __future__ import annotations

import json

import jax
import pytest
from scipy.stats import spearmanr
from tiny import ROOT, cache, command_line, flags_of, load_config, write_album  # noqa: F401 (a fixture)

from metaicl import report, sharding
from metaicl.configuration import ConfigError, overridden
from metaicl.experiment import chosen_runs, make_any
from metaicl.experiment.measuring import measure
from metaicl.experiment.ordering import probe_accuracies
from metaicl.experiment.problems import album_pools
from metaicl.report import difficulty

CONFIG = ROOT / "configs" / "difficulty.py"
SETS = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
ACCURACY = dict(zip(SETS, (0.9, 0.3, 0.5, 0.7, 0.6), strict=True))
EASE = dict(zip(SETS, (0.95, 0.2, 0.6, 0.5, 0.4), strict=True))
CLASSES = dict(zip(SETS, (2, 5, 10, 5, 4), strict=True))
TINY = {
    "data.embedded.classes": 4,
    "data.embedded.images_per_class": 10,
    "data.image_size": 16,
    "task.queries": 8,
    "task.test_queries": 8,
    "evaluate.episodes": 2,
    "measure.probe.classes": 3,
}


def write_lines(folder, lines) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "difficulty"
    head = dict(split="train", evaluation="ease", learner="ridge_probe")
    write_lines(
        root / "ease",
        [head | dict(dataset=n, domain=SETS[n], values=dict(accuracy=[EASE[n]])) for n in SETS],
    )
    for name in SETS:
        lines = [
            dict(learner="network", replica=f"seed={s}", seed=s, trained=True, step=9, dataset=name)
            | dict(domain=SETS[name], split="test", evaluation="main", classes=CLASSES[name], shots=0)
            | dict(ways=CLASSES[name], values=dict(accuracy=[ACCURACY[name] + d for d in (-0.1, 0.1)]))
            for s in (0, 1)
        ]
        write_lines(root / f"dataset={name}", lines)
    return root


def test_the_table_goes_from_hard_to_easy(root):
    found = difficulty.load_difficulty(report.load_records(root))
    assert found.datasets == ["b", "c", "e", "d", "a"] and found.seeds == 2
    assert [round(v, 6) for v in difficulty.above_chance(found)[:2]] == [0.125, round(4 / 9, 6)]
    rho, p = difficulty.agreement(found)
    assert rho.mean == pytest.approx(spearmanr(list(ACCURACY.values()), list(EASE.values())).statistic)
    assert rho.low <= rho.mean <= rho.high and 0 < p <= 1
    table = difficulty.difficulty_table(found)
    rows = {name: [cell.text for cell in cells] for name, cells in table.rows}
    assert rows["b · x"][:2] == ["1", "5"] and rows["b · x"][2].startswith("30.0 ±")
    assert rows["b · x"][3:] == ["12.5", "20.0", "1"] and rows["a · x"][-1] == "5"
    assert any("+0.70" in note for note in table.notes)


def test_everything_is_in_the_report(root):
    said = report.write_report(root)
    assert "difficulty of data sets" in said and "ridge probe" not in said.split("difficulty of")[0]
    assert (root / "figures" / "difficulty.png").exists()
    rows = json.loads((root / "results.json").read_text())["rows"]
    hard = {r["dataset"]: r["mean"] for r in rows if r["metric"] == "difficulty"}
    assert hard == {name: pytest.approx(1 - ACCURACY[name]) for name in SETS}
    (row,) = [r for r in rows if r["metric"] == "spearman_accuracy_and_ease"]
    assert row["mean"] == pytest.approx(0.7) and row["low"] <= 0.7 <= row["high"]


def test_few_data_sets_have_a_table_but_no_correlation(root):
    for name in ("a", "b"):
        (root / f"dataset={name}" / "records.jsonl").unlink()
    found = difficulty.load_difficulty(report.load_records(root))
    assert len(found.datasets) == 3 and difficulty.agreement(found) is None
    assert "Rank correlation" not in report.write_report(root)


def made(config, name, folder):
    mesh = sharding.make_mesh(jax.devices()[:1])
    return make_any(name, chosen_runs(config, name)[name], folder / name, mesh)


def test_ease_is_the_accuracy_that_orders_go_by(cache, tmp_path):  # noqa: F811
    config = overridden(load_config(CONFIG, f"datasets=gears+leaves,cache={cache}"), TINY)
    run = made(config, "ease", tmp_path)
    measure(run)
    lines = [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]
    pools = album_pools(config.data)
    expected = probe_accuracies(pools, config.measure.probe.to_dict())
    assert [line["dataset"] for line in lines] == [pool.name for pool in pools]
    assert [line["values"]["accuracy"][0] for line in lines] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("argument", "learner", "encoder"),
    [
        ("", "network", "conv"),
        ("recipe=probe", "probe", "identity"),
        ("backbone=squeezenet,weights=w", "probe", "identity"),
        ("backbone=squeezenet,weights=w,recipe=finetune", "fine_tuned", "squeezenet"),
    ],
)
def test_recipes(argument, learner, encoder):
    config = load_config(CONFIG, argument)
    assert config.learner == learner and config.learners[learner].encoder == encoder
    frozen = learner == "probe" and "backbone" in argument
    assert config.data.backbone == ("squeezenet" if frozen else "none")
    assert config.data.image_size == (128 if frozen else 64 if encoder == "squeezenet" else 32)
    ease = chosen_runs(config, "ease")["ease"]
    assert ease.data.backbone == ("squeezenet" if "backbone" in argument else "none")
    assert len(config.runs) == 31 and config.runs["dataset=gears"].data.datasets == ("gears",)


def test_what_has_no_difficulty_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="recipe='tune' is not one of probe, finetune"):
        load_config(CONFIG, "recipe=tune")
    with pytest.raises(FileNotFoundError, match="There is no album at"):
        load_config(CONFIG, f"album={tmp_path / 'nowhere'}")
    album = write_album(tmp_path / "album", names=("BRD", "FLW"), classes=3)
    single = write_album(tmp_path / "single", names=("APL",), classes=1)
    (single / "APL").rename(album / "APL")
    config = overridden(load_config(CONFIG, f"album={album}"), {"data.image_size": 16})
    for name in ("dataset=APL", "ease"):
        with pytest.raises(ConfigError, match=r"APL has one class.*leave it out"):
            made(config, name, tmp_path)


@pytest.mark.slow
def test_the_whole_comparison(cache, tmp_path, capsys):  # noqa: F811
    argument = f"datasets=gears+leaves+flowers+tissues,recipe=probe,steps=3,cache={cache}"
    assert command_line(f"--config={CONFIG}:{argument}", *flags_of(TINY), f"--workdir={tmp_path}") == 0
    said = capsys.readouterr().out
    assert "difficulty of data sets" in said and "Rank correlation of accuracy and probe" in said
    found = difficulty.load_difficulty(report.load_records(tmp_path))
    assert sorted(found.datasets) == ["flowers", "gears", "leaves", "tissues"] and (found.classes == 4).all()
