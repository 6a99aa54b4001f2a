# SPDX-License-Identifier: Apache-2.0
"""Sentences of one's own: from a run or a config to a file of answers; out-of-scope detection; what is refused."""

from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest
from test_text_experiment import config_of, done, tiny_encoder, write_sentences
from text_data import tiny_tensors, write_model
from tiny import ROOT

from metaicl import predict, sharding
from metaicl.checkpoint import save_weights
from metaicl.configuration import ConfigError, overridden
from metaicl.data.images import DataWarning
from metaicl.data.text import Sentences, read_queries
from metaicl.episode import TaskSpec, host_batch
from metaicl.evaluate import answers
from metaicl.experiment import chosen_runs, make_any, make_problem, texts
from metaicl.experiment.predicting import read_config
from metaicl.experiment.recording import identity
from metaicl.experiment.runs import constructor_settings
from metaicl.experiment.sentences import classifier_of_config, classifier_of_run
from metaicl.learners import make_learner
from metaicl.report import write_report

CONFIG = ROOT / "configs" / "text.py"
RUN = "held_out=home,learner=fomaml"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a run of FOMAML with two outputs leaves behind, as far as answering needs it."""
    root = tmp_path_factory.mktemp("trained")
    path = write_sentences(root / "own.csv")
    config = tiny_encoder(config_of(path, "learner=fomaml,held_out=home", root))
    ((name, own),) = chosen_runs(config, None).items()
    settings = constructor_settings(own.learners.fomaml.to_dict())
    learner = make_learner("maml", TaskSpec("classify", (16,), "int32", 2), **settings)
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps(identity(own)))
    save_weights(root / name / "weights.safetensors", jax.jit(learner.init)(jax.random.key(5)))
    return root


def write_support(path, labels=2, each=3):
    rows = [f"label{c} word{i} of mine,label{c}" for c in range(labels) for i in range(each)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def write_queries(path, count=5):
    path.write_text("\n".join(["text", *(f"label{i % 2} and {i}" for i in range(count))]) + "\n")
    return path


def command(tmp_path, *given, support=None, query=None, out="answers.csv"):
    support = support or write_support(tmp_path / "support.csv")
    query = query or write_queries(tmp_path / "query.csv")
    files = [f"--support={support}", f"--query={query}", f"--out={tmp_path / out}"]
    return predict.main(["predict", *map(str, given), *files])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_answers_sentences(workdir, tmp_path, capsys):
    assert command(tmp_path, f"--run={workdir / RUN}", "--out_of_scope", "--folds=3") == 0
    told = capsys.readouterr().out
    assert "6 sentences of 2 labels; temperature" in told and "(3 folds" in told and "5 queries" in told
    rows = rows_of(tmp_path / "answers.csv")
    names = ["text", "predicted", "probability", "score", "in_scope", "p(label0)", "p(label1)"]
    assert list(rows[0]) == names and [row["text"] for row in rows] == [
        f"label{i % 2} and {i}" for i in range(5)
    ]
    few = classifier_of_run(workdir / RUN, folds=3)
    support = [f"label{c} word{i} of mine" for c in range(2) for i in range(3)]
    p = few.fit(support, ["label0"] * 3 + ["label1"] * 3).predict_proba([row["text"] for row in rows])
    np.testing.assert_allclose([[float(row[f"p(label{c})"]) for c in range(2)] for row in rows], p, rtol=1e-5)
    assert [row["predicted"] for row in rows] == [f"label{c}" for c in p.argmax(1)]
    threshold = few.scope_threshold()
    assert [row["in_scope"] == "yes" for row in rows] == (p.max(1) >= threshold).tolist()


def test_the_weights_are_those_of_the_run(workdir):
    """With other weights the same classifier answers otherwise."""
    few, fresh = classifier_of_run(workdir / RUN, folds=0), classifier_of_run(workdir / RUN, folds=0)
    fresh.weights = None
    a, b = (own.fit(["one word", "two words"], "ab").decision_function(["one"]) for own in (few, fresh))
    assert few.ways == 2 and not np.allclose(a, b, atol=1e-4)


def test_a_config_answers_without_training(tmp_path, capsys):
    """Known labels give an accuracy, unknown ones are out of scope; the data set of the config is not needed."""
    query = tmp_path / "query.csv"
    query.write_text("text,label\nlabel0 word0 of mine,label0\nsomething else,other\nlabel1 word1,label1\n")
    given = f"--config={CONFIG}:learner=centroid,weights=none,folder=/not/there"
    assert command(tmp_path, given, "--out_of_scope", "--threshold=0", query=query) == 0
    told = capsys.readouterr().out
    assert "Accuracy 100.0 % of 2" in told and "1 queries have labels" in told and "AUROC" in told
    assert [row["label"] for row in rows_of(tmp_path / "answers.csv")] == ["label0", "other", "label1"]
    assert {row["in_scope"] for row in rows_of(tmp_path / "answers.csv")} == {"yes"}


def test_frozen_layers_answer_as_the_whole_encoder_does(tmp_path, rng):
    pytest.importorskip("tokenizers")
    path, folder = write_sentences(tmp_path / "own.csv"), write_model(tmp_path / "model", tiny_tensors(rng))
    texts, labels = ["word1 of mine", "more words", "word2", "words more"], ["a", "b", "a", "b"]
    outputs = []
    for argument in ("adapt=top1", "frozen=1"):
        config = config_of(path, f"learner=finetune,weights={folder},longest=24,{argument}", tmp_path)
        (own,) = chosen_runs(
            overridden(config, {"learners.finetune.inner_steps": 2}), "held_out=bank,learner=finetune"
        ).values()
        few = classifier_of_config(own, folds=0).fit(texts, labels)
        outputs.append(few.decision_function(["word1", "of mine more"]))
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert np.ptp(outputs[0]) > 1e-3


def test_vectors_of_a_pretrained_encoder(tmp_path, rng):
    """The frozen vectors are those of training, and any number of labels is answered."""
    pytest.importorskip("tokenizers")
    path = write_sentences(tmp_path / "own.csv", domains=("bank", "home"), labels=3, each=4)
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    config = config_of(path, "learner=centroid,split=class", tmp_path)
    changes = {"data.weights": str(folder), "data.longest": 24, "data.buckets": (24,)}
    (own,) = chosen_runs(overridden(config, changes), None).values()
    few = classifier_of_config(own, folds=0)
    (pool,), _ = texts.stored_text(json.dumps(texts.reading(own.data)), lambda tree: tree)
    sentences = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    np.testing.assert_allclose(few._items(sentences), pool.x, atol=1e-5)
    assert few.fit(sentences, [f"own{i // 4}" for i in range(24)]).predict_proba(["my card"]).shape == (1, 6)
    with pytest.warns(DataWarning, match="1 of 2 sentences are longer than 24 tokens"):
        few.predict(["my card " * 20, "the weather"])


def test_out_of_scope_queries_are_measured_and_reported(tmp_path, monkeypatch):
    others = [f"nothing of that {i}" for i in range(12)]
    monkeypatch.setattr(
        texts, "read_out_of_scope", lambda *a: Sentences("others", others, ["oos"] * 12, ["-"] * 12)
    )
    path = write_sentences(tmp_path / "own.csv")
    config = tiny_encoder(config_of(path, "learner=protonet,held_out=home,out_of_scope=4", tmp_path))
    config = overridden(config, {"train.steps": 0})
    lines = done(config, tmp_path)
    (line,) = [line for line in lines if line["evaluation"] == "out_of_scope"]
    assert set(line["values"]) == {"auroc_confidence", "auroc_energy"}
    ((name, own),) = chosen_runs(config, None).items()
    run = make_any(name, own, tmp_path / "again", sharding.make_mesh(jax.devices()[:1]))
    (held,) = run.replicas[0].problem.test
    batch, plain = host_batch(held.with_outsiders, range(3)), host_batch(held.source, range(3))
    for key in ("rows", "y", "mask"):
        np.testing.assert_array_equal(batch[f"query_{key}"][:, :2], plain[f"query_{key}"])
        np.testing.assert_array_equal(batch[f"support_{key}"], plain[f"support_{key}"])
    learner = run.learner("protonet", {})
    episodes, outputs = answers(
        run.replicas[0].problem.spec, learner, learner.init(jax.random.key(0)), held.with_outsiders, range(3)
    )
    assert (np.asarray(episodes.query.y)[:, 2:] == -1).all() and episodes.query.y.shape == (3, 6)
    energy = np.log(np.exp(outputs).sum(-1))
    wins = [np.mean(e[:2, None] > e[None, 2:]) for e in energy]
    np.testing.assert_allclose(line["values"]["auroc_energy"], wins, atol=1e-4)
    table = write_report(tmp_path)
    assert "out-of-scope detection, AUROC, 2-way 1-shot" in table
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {r["metric"] for r in rows if r["evaluation"] == "out_of_scope"} == set(line["values"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(out="answers.txt"), "has to be the path of a .csv file"),
        (dict(out="support.csv"), "is one of the files that are read"),
        (dict(support="text,kind\nhello,a\n"), "support.csv, line 2: there is no column 'label'"),
        (dict(support="text,label\n ,a\n"), "support.csv, line 2: an empty sentence"),
        (dict(support="text,label\nhello,a\nyou,a\n"), "support.csv has the one label 'a'"),
        (dict(support="text,label\nhello,a\nyou,b\nthere,a\n"), "label 'b' has one sentence"),
        (dict(support="text,label\na,a\nb,b\nc,c\naa,a\nbb,b\ncc,c\n"), "trained to tell 2 apart"),
        (dict(query="words\nhello\n"), "query.csv, line 2: there is no column 'text'"),
        (dict(query="text\n"), "query.csv holds no sentence"),
        (dict(query=b"text\n\xe9t\xe9\n"), "query.csv cannot be read"),
        (dict(run="nowhere"), "nowhere is no folder of a run"),
        (dict(run=""), f"It holds the runs {RUN}"),
    ],
)
def test_bad_input_is_named(workdir, tmp_path, capsys, change, words):
    write_support(tmp_path / "support.csv")
    write_queries(tmp_path / "query.csv")
    for name in ("support", "query"):
        if name in change:
            content = change[name]
            (tmp_path / f"{name}.csv").write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    given = [f"--run={workdir / change.get('run', RUN)}", "--out_of_scope"]
    files = dict(support=tmp_path / "support.csv", query=tmp_path / "query.csv")
    assert command(tmp_path, *given, **files, out=change.get("out", "answers.csv")) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "answers.csv").exists()


def test_runs_and_configs_that_cannot_answer_are_named(workdir, tmp_path, capsys):
    def told(*given, **files):
        assert command(tmp_path, *given, **files) == 1
        return capsys.readouterr().err

    config = json.loads((workdir / RUN / "config.json").read_text())
    for name, content in (("unfinished", config), ("images", config | {"data": {"kind": "album"}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    assert "has no weights.safetensors: its run has not finished" in told(f"--run={tmp_path / 'unfinished'}")
    assert "is of album data, not of sentences" in told(f"--run={tmp_path / 'images'}")
    assert "has no replica 'seed=1'" in told(f"--run={workdir / RUN}", "--replica=seed=1")
    assert "choose another --out" in told(f"--run={workdir / RUN}", out="../../../../../dev/null/a/x.csv")
    assert "one of them" in told() and "need --out_of_scope" in told("--run=x", "--score=energy")
    assert "There is no config file" in told(f"--config={tmp_path / 'no.py'}:learner=logistic")
    assert "is no config of sentences" in told(f"--config={ROOT / 'configs' / 'loo.py'}")
    several = f"--config={CONFIG}:learner=centroid+logistic,weights=none"
    assert "names several learners" in told(several)


def test_out_of_scope_queries_that_there_are_not_are_refused(tmp_path):
    path = write_sentences(tmp_path / "own.csv")
    ((_, own),) = chosen_runs(config_of(path, "held_out=home,out_of_scope=4", tmp_path), None).items()
    with pytest.raises(ValueError, match="has no out-of-scope sentences"):
        make_problem(own, lambda tree: tree)
    with own.unlocked():
        own.data.kind = "album"
    with pytest.raises(ConfigError, match=r"evaluate\.out_of_scope is of sentences"):
        make_problem(own, lambda tree: tree)


def test_a_config_that_takes_no_data_of_its_own(tmp_path):
    config = read_config(
        f"{CONFIG}:learner=finetune,weights=none,adapt=head", str(write_support(tmp_path / "s.csv"))
    )
    assert config.learner == "finetune" and config.learners.finetune.adapted == "head"


def test_queries_keep_their_order_and_repetitions(tmp_path):
    lines = [{"text": "b"}, {"text": "a"}, {"text": "b"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_queries(tmp_path / "q.jsonl") == (["b", "a", "b"], None)
    (tmp_path / "q.tsv").write_text("intent\tutterance\nx\tb\ny\ta\n")
    assert read_queries(tmp_path / "q.tsv") == (["b", "a"], ["x", "y"])
