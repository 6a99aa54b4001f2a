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
from real_data import REAL_DATA, real_marks

from metaicl import report
from metaicl.checkpoint import load_weights
from metaicl.evaluate import evaluate
from metaicl.experiment.problems import make_problem
from metaicl.experiment.runs import NOT_SETTINGS
from metaicl.learners import make_learner
from metaicl.report import summaries
from metaicl.report.distances import write_distance_report
from metaicl.report.reading import load_runs
from metaicl.report.sequences import transfer_table
from metaicl.report.tables import headline_table, markdown

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = sorted({p.parents[1] for p in (ROOT / "results").glob("**/records.jsonl")})
FOLDERS = sorted(p.parent for p in (ROOT / "results").glob("**/results.json"))


# The report of many stages takes its time.
MADE = [pytest.param(p, marks=[pytest.mark.slow] * (p.name == "sequential")) for p in EXPERIMENTS]


@pytest.mark.parametrize("folder", MADE, ids=lambda p: p.name)
def test_tables_are_made_from_the_committed_records_and_shown(folder, tmp_path, monkeypatch):
    made = []  # the numbers behind the tables, which take a while: computed once
    monkeypatch.setattr(report, "summaries", lambda records: made.append(summaries(records)) or made[-1])
    monkeypatch.setattr("metaicl.report.figures.draw_all", lambda *args: [])  # which takes most of the time
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("figures", "*.html", "results.json", "*.md"))
    table = report.write_report(copy)
    rebuilt, committed = (json.loads((p / "results.json").read_text())["rows"] for p in (copy, folder))
    assert len(committed) > 3 and rebuilt == committed
    assert table.strip() == (folder / "table.txt").read_text().strip()
    not_shown = [missing(folder, made[0], single) for single in (True, False)]
    assert [] in not_shown, not_shown[0]


def missing(folder: pathlib.Path, found: list, single: bool) -> list[str]:
    """Lines of the headline table, with or without its single places, that no README has as they are."""
    tables = [markdown(headline_table(group, summary, single=single)) for group, summary in found]
    lines = [line for t in tables for line in t.splitlines() if line.startswith("|") and "---" not in line]
    assert len(lines) > 2
    readmes = shown(folder)
    return [line for line in lines if line not in readmes]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_results_say_nothing_of_the_machine(folder):
    for path in folder.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".txt", ".md", ".html"}:
            text = path.read_text()
            assert not re.search(r"/(work|root|home|tmp)/|shared/data", text), path


def shown(folder: pathlib.Path) -> str:
    """The texts of all README from the folder up to the project's, one of which links to the folder."""
    above = [folder, *folder.parents]
    readmes = [at / "README.md" for at in above[: above.index(ROOT) + 1] if (at / "README.md").exists()]
    assert [p for p in readmes if f"({folder.relative_to(p.parent).as_posix()}/" in p.read_text()]
    return "\n".join(p.read_text() for p in readmes)


def test_links_between_readmes_lead_somewhere():
    readmes = [ROOT / "README.md", *(ROOT / "results").rglob("README.md")]
    links = [(p, link) for p in readmes for link in re.findall(r"\]\(([^)\s]+)\)", p.read_text())]
    assert len(readmes) > 3 and len(links) > 50
    assert [(p, link) for p, link in links if not leads_somewhere(p, link)] == []


def leads_somewhere(readme: pathlib.Path, link: str) -> bool:
    """Whether a link's file is there, with the section that it names."""
    if link.startswith("http"):
        return True
    path, _, section = link.partition("#")
    target = readme.parent / path if path else readme
    if not section:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    return section in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


# Paired differences as the READMEs quote them, over the episodes of these very test sets.
QUOTED = [
    ("text/fresh", "protomaml", "finetune", "5.8", "[5.2, 6.3]"),
    ("text/fresh", "protomaml", "centroid", "6.4", "[5.9, 7.0]"),
    ("text/fresh", "maml", "finetune", "3.9", "[3.3, 4.6]"),
    ("text/fresh", "fomaml", "finetune", "2.9", "[2.3, 3.5]"),
    ("text/fresh", "maml", "fomaml", "1.0", "[0.6, 1.5]"),
    ("text/fresh_5shot", "finetune", "maml", "1.3", "[0.2, 2.5]"),
    ("text/fresh_5shot", "finetune", "fomaml", "1.1", "[-0.1, 2.3]"),
    ("geom/attention_linear", "non causal", "causal", "2.5", "[2.3, 2.8]"),
    ("geom/end_to_end", "end to end", "frozen", "0.7", "[0.5, 0.9]"),
    ("geom/unsupervised", "geom_u", "camelu", "0.6", "[0.5, 0.7]"),
    ("geom/album_sizes_linear", "10 images, all classes", "20 images, half classes", "2.8", "[2.4, 3.2]"),
    ("geom/album_sizes_linear", "20 images, all classes", "40 images, half classes", "2.3", "[1.8, 2.7]"),
]


@pytest.mark.parametrize(("name", "ours", "theirs", "mean", "interval"), QUOTED)
def test_quoted_differences_are_those_of_the_records(name, ours, theirs, mean, interval):
    folder = ROOT / "results" / name
    records = [r for r in report.load_records(folder) if r["evaluation"] == "main" and r["split"] == "test"]
    domains: dict = {}  # domain -> data set -> differences [E], means over seeds
    for key in {(r["domain"], r["dataset"]) for r in records}:
        here = [r for r in records if (r["domain"], r["dataset"]) == key]
        means = [
            np.mean([r["values"]["accuracy"] for r in here if r["learner"] == who], axis=0)
            for who in (ours, theirs)
        ]
        domains.setdefault(key[0], []).append(100 * (means[0] - means[1]))
    share = lambda sets: len(sets) * len(domains)
    found = sum(d.mean() / share(sets) for sets in domains.values() for d in sets)
    variance = sum(d.var(ddof=1) / len(d) / share(sets) ** 2 for sets in domains.values() for d in sets)
    half = 1.96 * variance**0.5
    np.testing.assert_allclose(found, float(mean), atol=0.0501)
    np.testing.assert_allclose([found - half, found + half], json.loads(interval), atol=0.1)
    assert re.search(re.escape(mean) + r" (points )?" + re.escape(interval), " ".join(shown(folder).split()))


STAGED = sorted({path.parents[1] for path in (ROOT / "results").glob("**/stages.json")})


@pytest.mark.parametrize("folder", STAGED, ids=lambda p: p.name)
def test_the_readme_shows_what_stages_changed(folder):
    table = markdown(transfer_table(load_runs(folder))).splitlines()
    assert len(table) > 5 and [line for line in table if line not in shown(folder)] == []


def test_the_distances_are_drawn_from_the_committed_matrix(tmp_path):
    committed = ROOT / "results" / "distances"
    shutil.copy(committed / "results.json", tmp_path)
    table = write_distance_report(tmp_path)
    assert table.strip() == (committed / "table.txt").read_text().strip()
    for name in ("distances", "dendrogram", "map"):
        assert (tmp_path / "figures" / f"{name}.png").exists()
        assert (committed / "figures" / f"{name}.png").exists()
    readme = shown(committed)
    assert [line for line in table.splitlines()[2:] if line.strip() and line.rstrip() not in readme] == []


WEIGHTS = sorted((ROOT / "results").rglob("weights*.safetensors"))


def needs_data(path: pathlib.Path):
    """The test of one file of weights: `real`, unless its episodes are functions."""
    kind = json.loads((path.parent / "config.json").read_text())["data"]["kind"]
    name = f"{path.parent.parent.name}/{path.parent.name}"
    marks = [] if kind in ("sinusoids", "functions") else real_marks()
    return pytest.param(path, id=name, marks=marks + [pytest.mark.slow] * name.startswith("gradient_"))


@pytest.mark.parametrize("path", [needs_data(path) for path in WEIGHTS])
def test_committed_weights_answer_as_recorded(path, tmp_path, monkeypatch):
    """The weights give the recorded numbers of the first episodes (float16: up to a rare flipped answer)."""
    monkeypatch.setenv("METAICL_DATA", str(REAL_DATA))
    config = ConfigDict(json.loads((path.parent / "config.json").read_text()))
    records = [json.loads(line) for line in (path.parent / "records.jsonl").read_text().splitlines()]
    if config.data.kind == "album":
        # Episodes of a data set do not depend on the others: a few of them make a problem and embed quickly.
        some = {r["dataset"] for r in records} | {"FL5_Mini", "NEU_Mini", "RSS_Mini"}
        config.data.datasets = tuple(sorted(some))
        config.data.cache = str(tmp_path)
    problem = make_problem(config, jax.device_put)
    entry = config.learners[config.learner].to_dict()
    settings = {k: v for k, v in entry.items() if k not in NOT_SETTINGS} | entry.get("test", {})
    learner = make_learner(entry["kind"], problem.spec, **settings)
    meta = load_weights(path, jax.eval_shape(learner.init, jax.random.key(0)))
    replica = path.stem.removeprefix("weights").replace("-float16", "").removeprefix("-")
    called = config.get("replicas", {}).get(replica, {}).get("label", "") or config.learner
    for held in (held for held in problem.test if not held.setting):
        wanted = (held.dataset, "main", called, replica)
        [record] = [
            r
            for r in records
            if (r["dataset"], r["evaluation"], r["learner"], r["replica"]) == wanted and "probe" not in r
        ]
        recorded, count = {k: np.asarray(v[:20]) for k, v in record["values"].items()}, 20
        values = evaluate(problem.spec, learner, meta, held.source, range(count), batch=count)["values"]
        if "accuracy" in recorded:
            assert np.mean(np.abs(values["accuracy"] - recorded["accuracy"])) < 0.02
        loss = recorded["nll" if "nll" in recorded else "mse"]
        # Not all: many steps on a rugged loss may amplify the last bit.
        assert np.mean(np.isclose(values["loss"], loss, rtol=0.05, atol=0.02)) >= 0.9
