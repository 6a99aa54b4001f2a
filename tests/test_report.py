# SPDX-License-Identifier: Apache-2.0
"""The report says what the records say: numbers computed by hand or known by construction."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from records import save, simple

from metaicl import report
from metaicl.report import reading, statistics, style, tables

DOMAINS = {
    "insects": ["beetles", "bees", "moths"],
    "plants": ["flowers", "leaves", "fungi"],
    "vehicles": ["cars", "aircraft", "boats"],
    "textures": ["fabrics", "stones", "bark"],
    "handwriting": ["omniglot", "digits", "kanji"],
    "microscopy": ["blood", "pollen", "tissue"],
    "small_animals": ["frogs", "spiders", "crabs"],
    "large_animals": ["dogs", "whales", "birds"],
    "remote_sensing": ["fields", "ports", "roofs"],
    "manufacturing": ["screws", "cables", "boards"],
}
LEARNERS = {  # name: (trained, logit above the data set's level, slope over shots, overconfidence)
    "in_context": (True, 0.45, 0.55, 1.0),
    "maml": (True, 0.10, 0.50, 1.25),
    "reptile": (True, -0.20, 0.50, 1.2),
    "prototypes": (False, 0.05, 0.45, 0.8),
    "centroid_euclidean": (False, 0.0, 0.45, 1.6),
    "ridge": (False, -0.05, 0.40, 0.7),
    "ridge_whitened": (False, 0.15, 0.40, 0.75),
    "nearest_neighbour": (False, -0.45, 0.35, 1.0),
}
WAYS, QUERIES = 5, 25


def _record(rng, learner, dataset, domain, seed, level, episodes, shots=5, evaluation="main"):
    """One line of records.jsonl; `level` [episodes] is shared by all learners: pairing is worth it."""
    trained, skill, slope, temper = LEARNERS[learner]
    logit = level + skill + slope * np.log((shots + 0.3) / 5.3) + (rng.normal(0, 0.08) if trained else 0)
    chance = 1 / WAYS
    p = chance + (1 - chance) / (1 + np.exp(-logit)) * (shots > 0)  # without examples: guessing
    correct = rng.binomial(QUERIES, p)
    belief = 1 / (1 + np.exp(-temper * logit - rng.normal(0, 0.6, len(p))))
    confidence = np.minimum(chance + (1 - chance) * belief, 0.999)
    at = (confidence * 10).astype(int)
    bins = {
        "count": np.bincount(at, minlength=10) * QUERIES,
        "confidence": np.bincount(at, weights=confidence, minlength=10) * QUERIES,
        "correct": np.bincount(at, weights=correct, minlength=10),
    }
    return {
        "run": f"held_out={domain}",
        "replica": f"seed={seed}" if trained else "",
        "learner": learner,
        "trained": trained,
        "dataset": dataset,
        "domain": domain,
        "split": "test",
        "split_by": "domains",
        "evaluation": evaluation,
        "ways": WAYS,
        "shots": shots,
        "queries": QUERIES,
        "classes": 6 if dataset in ("blood", "boats") else 20,
        "seed": seed,
        "step": 5000 if trained else 0,
        "episodes": {"seed": 7, "start": 0, "count": episodes},
        "values": {
            "accuracy": (correct / QUERIES).tolist(),
            "nll": np.round(-np.log(p) + rng.gamma(2, 0.05, episodes), 4).tolist(),
        },
        "calibration": {k: v.tolist() for k, v in bins.items()},
    }


def _metrics(rng, seed):
    lines = []
    for step in range(100, 5001, 100):
        loss = 0.75 + 0.9 * np.exp(-step / 900) + rng.normal(0, 0.05)
        lines.append({"step": step, "split": "train", "replica": f"seed={seed}", "loss": loss})
        lines[-1] |= {"accuracy": 1 - loss / 2.2, "learning_rate": 1e-3, "stage": "main"}
        if step % 500 == 0:
            lines.append({"step": step, "split": "validation", "replica": f"seed={seed}", "loss": loss + 0.1})
            lines[-1]["accuracy"] = 1 - (loss + 0.1) / 2.1
    return lines


def write_root(root, episodes=600, seeds=2, domains=tuple(DOMAINS), shots=True, unfinished=True):
    """A plausible leave-one-domain-out experiment with eight learners."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    (root / "command.txt").write_text("metaicl --config=configs/loo.py:full --workdir=loo <&> done\n")
    for domain in domains:
        run = root / f"held_out={domain}"
        run.mkdir()
        config = {
            "name": "loo",
            "seed": 0,
            "data": {"held_out": domain, "shots": 5},
            "learner": {"width": 256},
        }
        (run / "config.json").write_text(json.dumps(config))
        metrics = [line for seed in range(seeds) for line in _metrics(rng, seed)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        records, easy = [], rng.normal(0.8, 0.9)
        for dataset in DOMAINS[domain]:
            level = easy + rng.normal(0, 0.5) + rng.normal(0, 0.5, episodes)
            for learner, (trained, *_) in LEARNERS.items():
                for seed in range(seeds if trained else 1):
                    records.append(_record(rng, learner, dataset, domain, seed, level, episodes))
                    for k in range(11) if shots else ():
                        at = (
                            rng,
                            learner,
                            dataset,
                            domain,
                            seed,
                            level[:100],
                            min(100, episodes),
                            k,
                            "shots",
                        )
                        records.append(_record(*at))
        (run / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if unfinished:
        run = root / "held_out=sounds"
        run.mkdir()
        (run / "config.json").write_text(
            json.dumps({"name": "loo", "seed": 0, "data": {"held_out": "sounds"}})
        )
        (run / "metrics.jsonl").write_text(json.dumps(_metrics(rng, 0)[0]) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("report") / "loo", episodes=60)


@pytest.fixture(scope="module")
def written(root):
    return report.write_report(root)


# Records.


def test_a_baseline_repeated_by_every_run_counts_once_and_variants_get_names():
    values = [0.2, 0.4, 0.9]
    same = [simple(values, run=run) for run in ("one", "two")]
    assert [r["label"] for r in reading.label_learners(same)] == ["a"]
    differ = [simple(values, run="one"), simple([0.1, 0.1, 0.1], run="two")]
    assert [r["label"] for r in reading.label_learners(differ)] == ["a (one)", "a (two)"]
    seeds = [simple(values, replica="seed=0"), simple([0.1, 0.1, 0.1], replica="seed=1")]
    assert [r["label"] for r in reading.label_learners(seeds)] == ["a", "a"]
    mixed = [simple(values, replica="seed=0,mix=0.1"), simple([0.1] * 3, replica="seed=0,mix=0.9")]
    assert [r["label"] for r in reading.label_learners(mixed)] == ["a (mix=0.1)", "a (mix=0.9)"]


def test_settings_make_tables_of_their_own():
    records = [simple([0.1, 0.2], shots=k) for k in (1, 5)]
    assert [g.name for g in reading.headline_groups(records)] == ["5-way_1-shot", "5-way_5-shot"]
    records = [simple([0.1, 0.2]), simple([0.1, 0.2], dataset="e", ways=2)]
    (group,) = reading.headline_groups(records)
    assert group.title == "accuracy, 2 to 5-way 5-shot, test"
    # Chance is averaged as accuracy is: here over two data sets of one domain.
    assert style.chance_level(group.records) == pytest.approx((1 / 5 + 1 / 2) / 2)


def test_the_table_names_how_data_sets_were_split():
    records = [simple([0.1, 0.2], split_by="classes"), simple([0.1, 0.2], dataset="e", split_by="images")]
    assert tables.split_notes(records[:1]) == ["Held out from training by classes."]
    assert tables.split_notes(records) == [
        "Held out from training by classes: d.",
        "Held out from training by images: e.",
    ]


def test_a_table_of_distances_says_what_was_not_solved():
    """The mean over seeds and data sets, as of any other number."""

    def table(*unsolved):
        values = lambda share: {"distance": np.ones(4), "unsolved": np.asarray(share, float)}
        known = [("a", f"d{k}", share) for k, share in enumerate(unsolved)] + [("b", "d0", [0, 0, 0, 0])]
        records = [simple([], name, dataset) | {"values": values(share)} for name, dataset, share in known]
        return report.markdown_table(records, by="learner")

    note = "- unsolved: a 38 % of the episodes; their distances are to where the search gave up."
    assert note in table([0, 1, 1, 0], [0, 0, 0, 1]).splitlines()
    assert "- unsolved: none of the episodes; every distance is to weights that" in table([0, 0, 0, 0])
    assert "unsolved" not in report.markdown_table([simple([1.0, 2.0], metric="distance")], by="learner")


def test_an_interrupted_line_is_forgiven_only_at_the_end(tmp_path):
    save(tmp_path, "r", [simple([0.5, 0.7])])
    path = tmp_path / "r" / "records.jsonl"
    good = path.read_text()
    path.write_text(good + good[:20])
    assert len(report.load_records(tmp_path)) == 1
    path.write_text(good[:20] + "\n" + good)
    with pytest.raises(ValueError, match="line 1"):
        report.load_records(tmp_path)
    path.write_text('{"learner": "a", "dataset": "d"}\n')
    with pytest.raises(ValueError, match="record 1: no values"):
        report.load_records(tmp_path)


def test_a_record_written_again_replaces_the_first(tmp_path):
    save(tmp_path, "r", [simple([0.5, 0.7], step=1), simple([0.9, 0.9], step=2)])
    (record,) = report.load_records(tmp_path)
    assert record["step"] == 2


def test_nothing_to_report_names_the_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
            report.write_report(folder)


# What is written.


def test_results_are_rebuilt_from_the_records(root, written):
    results = json.loads((root / "results.json").read_text())
    assert results["experiment"] == "loo"
    assert results["command"].startswith("metaicl --config")
    rows = {
        tuple(row[k] for k in ("run", "replica", "learner", "dataset", "evaluation", "shots", "metric")): row
        for row in results["rows"]
    }
    count = 0
    for path in root.glob("*/records.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            key = tuple(line[k] for k in ("run", "replica", "learner", "dataset", "evaluation", "shots"))
            accuracy, ece = np.array(line["values"]["accuracy"]), rows[*key, "ece"]
            row = rows[*key, "accuracy"]
            half = 1.96 * accuracy.std(ddof=1) / np.sqrt(len(accuracy))
            assert [row["mean"], row["ci95"]] == pytest.approx([accuracy.mean(), half], rel=1e-5, abs=1e-9)
            same = ("domain", "split", "ways", "seed", "step", "classes")
            assert [row[k] for k in same] == [line[k] for k in same]
            assert row["episodes"] == line["episodes"]["count"]
            bins = line["calibration"]
            gap = np.abs(np.subtract(bins["confidence"], bins["correct"])).sum() / sum(bins["count"])
            assert ece["mean"] == pytest.approx(gap, rel=1e-5)
            assert ece["ci95"] is None
            count += 3
    assert count == len(results["rows"]) == len(rows)
    assert results["rows"] == tables.result_rows(report.load_records(root))


def test_the_terminal_table(root, written):
    lines = written.splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    heads, body = lines[2], lines[4 : 4 + len(LEARNERS)]
    assert heads.split()[0] == "learner"
    assert heads.split()[-5:] == ["mean", "vs", "baseline", "nll", "ece"]
    means = [float(re.search(r"(\d+\.\d) ±", line)[1]) for line in body]
    assert means == sorted(means, reverse=True)
    assert body[0].startswith("in context")
    records = [
        r for r in report.load_records(root) if r["learner"] == "in_context" and r["evaluation"] == "main"
    ]
    mean = 100 * statistics.grand_mean(statistics.cells_of(records, "accuracy"))
    assert means[0] == pytest.approx(mean, abs=0.0501)
    assert "blood (6), boats (6)" in written
    assert "No records yet: held_out=sounds." in written


def test_the_page_needs_nothing_else(root, written):
    page = (root / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"<(link|script|iframe)|@import|url\(", page)
    names = sorted(path.name for path in (root / "figures").iterdir())
    assert names == [f"{n}.png" for n in ("differences", "domains", "reliability", "shots", "training")]
    assert page.count("data:image/png;base64,") == len(names)
    assert "&lt;&amp;&gt; done" in page
    assert "held_out=sounds: no records yet; last logged step 100" in page
    assert all(dataset in page for found in DOMAINS.values() for dataset in found)
    assert not list(root.rglob(".*"))  # no temporary file is left


def test_markdown_tables(root):
    records = report.load_records(root)
    by_dataset = report.markdown_table(records)
    assert by_dataset.splitlines()[0].startswith("| data set | in context |")
    assert by_dataset.count("\n| ") == 1 + 30
    assert report.markdown_table(records, by="learner").count("\n| ") == 1 + len(LEARNERS)
    with pytest.raises(ValueError, match="by must be"):
        report.markdown_table(records, by="domain")


def test_errors_are_better_when_lower(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.gamma(2, 1, 50)
    records = [
        simple(shared * factor, name, f"f{k}", "", trained=trained, metric="mse", ways=1, shots=20)
        for k in range(3)
        for name, trained, factor in (("in_context", True, 0.1), ("zero", False, 1.0), ("ridge", False, 0.4))
    ]
    save(tmp_path, "sine", records)
    text = report.write_report(tmp_path)
    body = text.splitlines()[4:7]
    assert [line.split()[0] for line in body] == ["in", "ridge", "zero"]
    assert "*" in body[0] and "*" not in body[1] + body[2]
    assert f"-{0.3 * shared.mean():.3g} ±" in body[0]  # ours minus ridge
    assert "ece" not in text and "nll" not in text
    assert "chance" not in text
    row = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert row["metric"] == "mse"


def test_unfinished_experiments_still_make_a_page(tmp_path):
    write_root(tmp_path, domains=())
    text = report.write_report(tmp_path)
    assert text == "No records yet: held_out=sounds.\n"
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []
    assert "no records yet" in (tmp_path / "report.html").read_text()


def test_many_columns_are_abbreviated_and_then_left_out():
    assert tables.abbreviate(["small animals", "small plants", "sea"], 5) == ["small", "smal2", "sea"]
    cells = [tables.Cell("84.3")] * 40
    table = tables.Table("t", "learner", [f"domain number {k}" for k in range(40)], [("a", cells)], [], 39)
    shown = tables.text(table)
    assert "do not fit" in shown
    assert max(map(len, shown.splitlines())) <= tables.WIDTH


def test_equal_records_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        report.write_report(write_root(tmp_path / name / "loo", 20, 1, ("plants",), shots=False))
    for file in ("results.json", "report.html"):
        one, two = ((tmp_path / name / "loo" / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_tables_do_not_load_matplotlib_and_nothing_loads_jax():
    code = "import sys, metaicl.report; print([m for m in ('matplotlib', 'jax') if m in sys.modules])"
    repository = pathlib.Path(report.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_learners_of_curves_share_no_colour_while_others_can():
    names = {f"variant {k:02}": True for k in range(len(style.TRAINED))} | {"walk": True, "yield": True}
    plain = style.looks(names)
    assert plain["walk"].color in {plain[name].color for name in names if name != "walk"}
    chosen = style.looks(names, frozenset({"walk", "yield", "variant 07"}))
    assert len({chosen[name].color for name in ("walk", "yield", "variant 07")}) == 3
    assert next(name for name in chosen if chosen[name].color == style.TRAINED[0]) == "variant 07"
