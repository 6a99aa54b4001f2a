# SPDX-License-Identifier: Apache-2.0
"""The report of distance against transfer says what its records say: numbers computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from metaicl import report
from metaicl.report import reading, relations

SETS = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
NAMES = list(SETS)
PLACES = np.array([0.0, 1.0, 3.0, 7.0, 12.0])
DISTANCE = np.abs(PLACES[:, None] - PLACES[None, :])
HARD = np.array([0.0, 0.05, 0.3, 0.1, 0.2])  # targets differ in difficulty
SINGLE = 0.8 - HARD - 0.02 * DISTANCE  # [source, target]
UNTRAINED, JOINT = 0.3 - HARD / 2, 0.85 - HARD
NEAREST = np.where(DISTANCE > 0, DISTANCE, np.inf).min(axis=0)
WITHOUT = JOINT - 0.01 * NEAREST


def record(run, dataset, accuracy, seed, **more) -> dict:
    """100 right or wrong answers, so that the mean of both seeds is the accuracy."""
    values = (np.arange(100) < round(100 * accuracy) + (-1) ** seed).astype(float).tolist()
    head = dict(run=run, replica=f"seed={seed}", seed=seed, learner="in_context", dataset=dataset)
    head |= dict(domain=SETS[dataset], split="test", evaluation="main", trained=True, step=9, ways=5, shots=5)
    return head | dict(values={"accuracy": values}, episodes=dict(seed=1000, start=0)) | more


def write_run(root, name, accuracies, **more) -> None:
    lines = [record(name, d, a, s, **more) for d, a in zip(NAMES, accuracies, strict=True) for s in (0, 1)]
    write_lines(root / name, lines)


def write_lines(folder, lines) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_experiment(root, without=True, measured=True) -> None:
    if measured:
        pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
        write_lines(
            root / "distances",
            [
                dict(run="distances", learner="otdd", dataset=NAMES[i], domain=SETS[NAMES[i]], split="train")
                | dict(evaluation="distance", setting="to", value=NAMES[j], values=dict(distance=[DISTANCE[i, j]]))
                for i, j in pairs
            ],
        )  # fmt: skip
    write_run(root, "untrained", UNTRAINED, trained=False, step=0)
    write_run(root, "all", JOINT)
    for k, name in enumerate(NAMES):
        write_run(root, f"source={name}", SINGLE[k], evaluation="transfer", train_on=[name])
        others = [other for other in NAMES if other != name]
        if without:
            left_out = np.where(np.arange(5) == k, WITHOUT, JOINT)
            write_run(root, f"without={name}", left_out, evaluation="transfer", train_on=others)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("relations") / "distances"
    write_experiment(root)
    return root


def study_of(root) -> relations.Study:
    study = relations.load_study(report.load_records(root))
    assert study is not None
    return study


def test_a_study_holds_what_was_measured(root):
    study = study_of(root)
    assert study.datasets == NAMES and study.domains == list(SETS.values()) and study.seeds == 2
    np.testing.assert_allclose(study.distance, DISTANCE)
    for found, expected in (
        (study.single, SINGLE),
        (study.untrained, UNTRAINED),
        (study.without, WITHOUT),
        (study.joint, JOINT),
    ):
        np.testing.assert_allclose(found, expected, atol=0.0051)  # of 100 answers
    assert study.across.sum() == 20 - 4 and study.others.sum() == 20


def test_findings_are_rank_correlations(root):
    study = study_of(root)
    found = {f.key: f for f in relations.findings(study)}
    rho = {key: f.rho.mean for key, f in found.items()}
    off = ~np.eye(5, dtype=bool)
    spearman = lambda x, y: pytest.approx(spearmanr(x, y).statistic)
    assert rho["within_targets"] == pytest.approx(-1) and found["within_targets"].p < 0.05
    assert rho["within_targets_across_domains"] == pytest.approx(-1)
    assert rho["accuracy_over_pairs"] == spearman(study.distance[off], study.single[off])
    gain = study.single - study.untrained
    assert rho["gain_over_pairs"] == spearman(study.distance[off], gain[off])
    assert rho["left_out_cost_smallest_distance"] == spearman(NEAREST, study.joint - study.without)
    assert rho["left_out_cost_mean_distance"] == spearman(DISTANCE.sum(0), study.joint - study.without)
    assert rho["left_out_accuracy_smallest_distance"] == spearman(NEAREST, study.without)
    assert rho["left_out_gain_mean_distance"] == spearman(DISTANCE.sum(0), study.without - study.untrained)
    assert {f.expected for key, f in found.items() if "cost" in key} == {"+"}
    assert all(f.rho.low <= f.rho.mean <= f.rho.high for f in found.values())


def test_everything_is_in_the_report(root):
    said = report.write_report(root)
    assert "distance and transfer" in said and "within each target" in said and "-1.00" in said
    assert max(map(len, said.splitlines())) <= 120
    assert (
        "source=a" not in said.split("distance and transfer")[0]
    )  # the comparison of learners is of whole runs
    drawn = {path.stem for path in (root / "figures").iterdir()}
    assert {"distance_transfer", "distance_targets", "distances", "domains"} <= drawn
    results = json.loads((root / "results.json").read_text())
    (row,) = [r for r in results["rows"] if r["metric"] == "spearman_within_targets"]
    assert (
        row["mean"] == pytest.approx(-1) and row["p"] < 0.05 and row["data_sets"] == 5 and row["seeds"] == 2
    )
    by_target = {r["dataset"]: r["mean"] for r in results["rows"] if r["metric"] == "spearman_over_sources"}
    assert by_target == {name: pytest.approx(-1) for name in NAMES}
    pairs = {(r["dataset"], r["value"]): r["mean"] for r in results["rows"] if r["metric"] == "distance"}
    assert len(pairs) == 10 and pairs["a", "e"] == 12
    np.testing.assert_allclose(results["matrices"]["distance"]["otdd"], DISTANCE)
    np.testing.assert_allclose(results["matrices"]["transfer"]["single"], SINGLE, atol=0.0051)
    page = (root / "report.html").read_text()
    assert "Distance and transfer" in page and "Transfer by target" in page


def test_the_table_of_targets_names_nearest_and_best(root):
    table = relations.target_table(study_of(root))
    rows = {
        name: dict(zip(table.columns[:5], (c.text for c in cells), strict=False))
        for name, cells in table.rows
    }
    assert list(rows) == ["a · x", "b · x", "c · y", "d · y", "e · z"]
    assert [row["nearest"] for row in rows.values()] == ["b", "a", "b", "c", "d"]
    assert rows["a · x"]["best"] == "b" and {row["ρ"] for row in rows.values()} == {"-1.00"}


def test_an_unfinished_study_is_told_as_far_as_it_goes(tmp_path):
    write_experiment(tmp_path / "some", without=False)
    found = {f.key for f in relations.findings(study_of(tmp_path / "some"))}
    assert "within_targets" in found and not any(key.startswith("left_out") for key in found)
    assert report.write_report(tmp_path / "some")
    write_experiment(tmp_path / "unmeasured", measured=False)
    assert relations.load_study(report.load_records(tmp_path / "unmeasured")) is None
    assert "distance and transfer" not in report.write_report(tmp_path / "unmeasured")


def test_one_run_alone_has_its_table(tmp_path):
    write_run(tmp_path, "source=a", SINGLE[0], evaluation="transfer", train_on=["a"])
    said = report.write_report(tmp_path)
    assert "in context" in said and reading.headline_groups(report.load_records(tmp_path))
