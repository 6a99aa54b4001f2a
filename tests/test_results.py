# SPDX-License-Identifier: Apache-2.0
"""Committed results can be rebuilt: tables from records, and records from the committed weights."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import REAL_DATA, needs_real

from metaicl import report
from metaicl.checkpoint import load_weights
from metaicl.evaluate import evaluate
from metaicl.experiment.problems import make_problem
from metaicl.learners import make_learner

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = sorted(p.parent for p in (ROOT / "results").glob("*/results.json"))


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda p: p.name)
def test_tables_are_made_from_the_committed_records(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("figures", "*.html", "results.json", "*.md"))
    table = report.write_report(copy)
    rebuilt, committed = (json.loads((p / "results.json").read_text())["rows"] for p in (copy, folder))
    assert len(committed) > 100 and rebuilt == committed
    assert table.strip() == (folder / "table.txt").read_text().strip()


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda p: p.name)
def test_results_say_nothing_of_the_machine(folder):
    for path in folder.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".txt", ".md", ".html"}:
            text = path.read_text()
            assert not re.search(r"/(work|root|home|tmp)/|shared/data", text), path


def test_there_are_results_and_the_readme_shows_them():
    assert [p.name for p in EXPERIMENTS] == ["loo_real"]
    means = report.markdown_table(report.load_records(ROOT / "results" / "loo_real"), by="learner")
    assert means.splitlines()[2] in (ROOT / "README.md").read_text()


@needs_real
def test_committed_weights_answer_as_recorded(tmp_path, monkeypatch):
    """The float16 weights give the recorded accuracies of the first episodes, up to a rare flipped answer."""
    monkeypatch.setenv("METAICL_DATA", str(REAL_DATA))
    weights = sorted((ROOT / "results" / "loo_real").rglob("weights-float16.safetensors"))
    assert weights
    for path in weights:
        config = ConfigDict(json.loads((path.parent / "config.json").read_text()))
        records = [json.loads(line) for line in (path.parent / "records.jsonl").read_text().splitlines()]
        # Episodes of a data set do not depend on the others: a few of them make a problem and embed quickly.
        some = {r["dataset"] for r in records} | {"FL5_Mini", "NEU_Mini", "RSS_Mini"}
        config.data.datasets = tuple(sorted(some))
        config.data.cache = str(tmp_path)
        problem = make_problem(config, jax.device_put)
        entry = config.learners[config.learner].to_dict()
        settings = {k: v for k, v in entry.items() if k not in ("kind", "train", "test")}
        learner = make_learner(entry["kind"], problem.spec, **settings)
        meta = load_weights(path, jax.eval_shape(learner.init, jax.random.key(0)))
        for held in problem.test:
            [record] = [r for r in records if r["dataset"] == held.dataset and r["evaluation"] == "main"]
            count = 20
            values = evaluate(problem.spec, learner, meta, held.source, range(count), batch=20)["values"]
            recorded = np.asarray(record["values"]["accuracy"][:count])
            assert np.mean(np.abs(values["accuracy"] - recorded)) < 0.02
            np.testing.assert_allclose(
                values["loss"].mean(), np.mean(record["values"]["nll"][:count]), rtol=0.05
            )
