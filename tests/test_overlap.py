# SPDX-License-Identifier: Apache-2.0
"""Which classes are ImageNet's, measured of an album and drawn beside accuracies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny import ROOT, load_config, mesh, write_album

from metaicl import report
from metaicl.data.imagenet_classes import class_overlap, imagenet_classes, in_imagenet
from metaicl.experiment import chosen_runs, make_any
from metaicl.experiment.measuring import measure
from metaicl.report import overlap

SHARES = {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.25, "e": 0.0}
GAINS = {"a": 0.08, "b": 0.02, "c": 0.04, "d": -0.02, "e": -0.1}
EPISODES = 40


def test_the_classes_are_those_of_the_challenge():
    found = list(imagenet_classes().items())
    assert len(found) == 1000 and [n for n, _ in found] == sorted(n for n, _ in found)
    # Their places in the order of every published model of 1,000 outputs.
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 388: "giant panda", 999: "toilet tissue"}
    for place, name in known.items():
        assert name in found[place][1]
    assert found[0][0] == "n01440764" and found[999][0] == "n15075141"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("tench", True),
        ("Golden_Retriever", True),
        ("golden retriever n02099601", True),
        ("n02099601", True),
        ("rose", False),
        ("tench n99999999", False),  # the number says which class it is
        ("", False),
    ],
)
def test_a_class_is_known_by_number_or_name(name, known):
    assert in_imagenet(name) is known


def test_overlap_is_a_share():
    assert class_overlap(("tench", "rose", "daisy", "class 7")) == 0.5
    with pytest.raises(ValueError, match="no class"):
        class_overlap(())


def test_overlap_of_an_album_is_measured(tmp_path):
    album = write_album(tmp_path / "album")
    for name, first in (("BRD", "goldfinch"), ("FLW", "daisy")):
        path = album / name / "labels.csv"
        path.write_text(path.read_text().replace(f",{name} 0,", f",{first},"))
    argument = f"album={album},backbone=none,big=BRD+FLW,cache={tmp_path / 'cache'}"
    config = load_config(ROOT / "configs" / "imagenet.py", argument)
    run = make_any("overlap", chosen_runs(config, "overlap")["overlap"], tmp_path / "overlap", mesh())
    measure(run)
    lines = [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]
    assert {line["dataset"]: line["values"]["overlap"] for line in lines} == {
        "APL": [0],
        "BRD": [0.2],
        "FLW": [0.2],
    }


def record(run, learner, dataset, values, trained=True, **more):
    about = dict(run=run, learner=learner, dataset=dataset, domain=f"domain {dataset}", trained=trained)
    return (
        about
        | dict(split="test", evaluation="main", ways=5, shots=5, queries=5, seed=0, step=1)
        | more
        | values
    )


@pytest.fixture
def root(tmp_path):
    """Five data sets; `big` was not tested on the first of them."""
    rng = np.random.default_rng(0)
    lines = {"overlap": [], "geom": [], "big": []}
    for name, share in SHARES.items():
        head = dict(trained=False, split="train", evaluation="overlap", ways=None, shots=None)
        lines["overlap"].append(record("overlap", "names", name, {"values": {"overlap": [share]}}, **head))
        base = 0.6 + 0.05 * rng.standard_normal(EPISODES)
        both = {"geom": base, "big": base + GAINS[name]}
        for run, accuracy in both.items():
            if (run, name) != ("big", "a"):
                values = {"values": {"accuracy": accuracy.tolist()}, "episodes": {"seed": 0, "start": 0}}
                lines[run].append(record(run, run, name, values))
        easy = {"values": {"accuracy": (base + 0.1).tolist()}, "episodes": {"seed": 0, "start": 0}}
        lines["geom"].append(record("geom", "centroid", name, easy, trained=False))
    for run, found in lines.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
        (tmp_path / run / "config.json").write_text(json.dumps({"name": "imagenet", "seed": 0}))
    return tmp_path


def test_accuracies_stand_beside_the_overlap(root):
    found = overlap.load_overlap(report.load_records(root))
    assert found.datasets == ["a", "b", "c", "d", "e"] and found.learners == ["geom", "big", "centroid"]
    assert found.accuracy["big"][0] is None and found.differences[0] is None
    assert [d.mean for d in found.differences[1:]] == pytest.approx([GAINS[n] for n in "bcde"])
    means = [found.accuracy["geom"][k].mean for k in range(1, 5)]
    assert found.relative[1:] == pytest.approx([GAINS[n] / m for n, m in zip("bcde", means, strict=True)])
    rho, p, count = overlap.agreement(found)
    expected = spearmanr([SHARES[n] for n in "bcde"], [GAINS[n] for n in "bcde"]).statistic
    assert rho.mean == pytest.approx(expected) and count == 4 and 0 < p <= 1


def test_table_rows_and_figure(root):
    said = report.write_report(root)
    assert "accuracy beside class overlap" in said and "big less geom, points" in said
    assert (root / "figures" / "overlap.png").exists()
    rows = json.loads((root / "results.json").read_text())["rows"]
    assert {r["dataset"]: r["mean"] for r in rows if r["metric"] == "class_overlap"} == SHARES
    assert "names" not in {r["learner"] for r in rows if r["metric"] == "accuracy"}
    (row,) = [r for r in rows if r["metric"] == "spearman_overlap_and_difference"]
    assert row["dataset"] == "4 data sets" and row["low"] <= row["mean"] <= row["high"]


def test_without_the_measurement_there_is_no_table(root):
    (root / "overlap" / "records.jsonl").unlink()
    assert overlap.load_overlap(report.load_records(root)) is None
