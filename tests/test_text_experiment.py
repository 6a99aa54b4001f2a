# SPDX-License-Identifier: Apache-2.0
"""Runs on sentences: from a csv file to records, every learner, with and without weights, and what is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from text_data import tiny_tensors, write_model
from tiny import ROOT, load_config

from metaicl import sharding
from metaicl.configuration import ConfigError, overridden
from metaicl.data.sampler import gather
from metaicl.experiment import chosen_runs, make_any, make_problem, texts
from metaicl.experiment.runs import execute
from metaicl.features import cache, states
from metaicl.models.bert_encoder import lower_bert
from metaicl.models.encoders import make_encoder

TEXT = ROOT / "configs" / "text.py"
FAST = {
    "train.steps": 2,
    "train.warmup": 0,
    "train.batch": 2,
    "train.checkpoint_every": 2,
    "train.validate_every": 2,
    "train.log_every": 1,
    "evaluate.episodes": 3,
    "evaluate.batch": 3,
    "evaluate.validation_episodes": 2,
    "task.queries": 1,
    "task.test_queries": 1,
    "data.buckets": (8, 16),
}


def write_sentences(path, domains=("bank", "home", "travel"), labels=3, each=6):
    rows = ["text,label,domain"]
    for d in domains:
        for c in range(labels):
            rows += [f"{d}{c} word{i} {'more words ' * (i % 3)},{d}{c},{d}" for i in range(each)]
    path.write_text("\n".join(rows) + "\n")
    return path


def config_of(path, argument, tmp_path, **overrides):
    config = load_config(
        TEXT, f"dataset={path},ways=2,shots=1,cache={tmp_path / 'cache'},weights=none,{argument}"
    )
    return overridden(config, FAST | overrides)


def tiny_encoder(config):
    """With the smallest encoder there is, whatever learner."""
    small = dict(width=8, layers=1, heads=2, hidden=8, positions=64)
    changes = {f"data.shape.{key}": value for key, value in small.items()} | {"data.vocabulary": 64}
    for name, entry in config.learners.items():
        if entry.encoder == "bert":
            keys = small | {"vocabulary": 64}
            changes |= {f"learners.{name}.encoder_settings.shape.{key}": value for key, value in keys.items()}
    return overridden(config, changes)


def done(config, folder):
    ((name, own),) = chosen_runs(config, None).items()
    run = make_any(name, own, folder / name, sharding.make_mesh(jax.devices()[:1]))
    execute(run)
    return [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("learner", [pytest.param("fomaml", marks=pytest.mark.slow), "prototypes"])
def test_a_csv_becomes_records(tmp_path, learner):
    path = write_sentences(tmp_path / "own.csv")
    config = tiny_encoder(config_of(path, f"learner={learner},held_out=home", tmp_path))
    lines = done(config, tmp_path)
    main = [line for line in lines if line["evaluation"] == "main"]
    assert [line["dataset"] for line in main] == ["own_home"] and main[0]["domain"] == "home"
    assert len(main[0]["values"]["accuracy"]) == 3
    if learner == "prototypes":
        assert sorted(p.name.split("-bert-")[0] for p in (tmp_path / "cache" / "features").iterdir()) == [
            "own_bank",
            "own_home",
            "own_travel",
        ]


def test_every_choice_builds_a_run(tmp_path):
    """`make_any` traces each learner on the shapes of its data; nothing is compiled."""
    path = write_sentences(tmp_path / "own.csv")
    everyone = "maml+fomaml+reptile+anil+finetune+protonet+in_context+logistic+centroid"
    arguments = [f"learner={everyone},adapt=adapters"]
    arguments += ["learner=fomaml,adapt=top2", "learner=anil,rates=layer"]
    for argument in arguments:
        config = config_of(path, f"{argument},held_out=bank", tmp_path)
        config = config if "top2" in argument else tiny_encoder(config)  # which has one layer
        for name, own in chosen_runs(config, None).items():
            run = make_any(name, own, tmp_path / "never", sharding.make_mesh(jax.devices()[:1]))
            assert run.config.data.held_out == "bank"


def test_runs_are_of_domains_or_of_classes(tmp_path):
    path = write_sentences(tmp_path / "own.csv")
    named = lambda argument, at=path: list(config_of(at, argument, tmp_path).runs)
    assert named("learner=anil") == [f"held_out={d},learner=anil" for d in ("bank", "home", "travel")]
    assert named("learner=anil,quick") == ["held_out=bank,learner=anil"]
    assert named("learner=anil+logistic,split=class") == ["learner=anil", "learner=logistic"]
    config = config_of(path, "split=class", tmp_path)
    assert (config.data.by, config.data.split, config.data.min_classes) == ("all", "within", 6)
    two = write_sentences(tmp_path / "two.csv", domains=("a", "b"))
    assert named("", two) == ["learner=fomaml"]
    assert named("split=domain", two) == ["held_out=a,learner=fomaml", "held_out=b,learner=fomaml"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("learner=mamal", "learner='mamal' is not one of anil, centroid"),
        ("adapt=some", "adapt='some' is not one of all, head"),
        ("adapt=top3", "the encoder has 2 layers"),
        ("split=half", "split='half' is not one of domain, class"),
        ("split=class,held_out=bank", "there is no domain to hold out"),
        ("held_out=bnak", "Did you mean 'bank'"),
        ("weights=./not/there", "no folder"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tmp_path, argument, words):
    path = write_sentences(tmp_path / "own.csv")
    with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=words):
        config = config_of(path, argument, tmp_path)
        texts.stored_text(json.dumps(texts.reading(config.data)), lambda tree: tree)


def test_each_part_needs_what_its_own_episodes_take(tmp_path):
    """Six sentences a label: enough for training with 4 + 2, and for validation and test with 1 + 5."""
    path = write_sentences(tmp_path / "own.csv", each=6)
    sizes = {"task.shots": 4, "task.queries": 2, "task.test_shots": 1, "task.test_queries": 5}
    (own,) = chosen_runs(tiny_encoder(config_of(path, "held_out=home", tmp_path, **sizes)), None).values()
    problem = make_problem(own, lambda tree: tree)
    assert [(held.shots, held.queries) for held in (*problem.validation, *problem.test)] == [(1, 10)] * 2
    for key, many in {"task.queries": 3, "task.validation_shots": 2, "task.test_queries": 6}.items():
        with pytest.raises(ValueError, match=r"\b7\b"):
            make_problem(overridden(own, {key: many}), lambda tree: tree)


def test_settings_of_sentences_that_do_not_fit_are_named(tmp_path, rng):
    pytest.importorskip("tokenizers")
    path = write_sentences(tmp_path / "own.csv")
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    config = config_of(path, "", tmp_path)

    def stored(**changes):
        own = overridden(config, {f"data.{key}": value for key, value in changes.items()})
        return texts.stored_text(json.dumps(texts.reading(own.data)), lambda tree: tree)

    with pytest.raises(ConfigError, match=r"data\.by is 'class'"):
        stored(by="class")
    with pytest.raises(ConfigError, match=r"data\.backbone is 'squeezenet'"):
        stored(backbone="squeezenet")
    with pytest.raises(ConfigError, match=r"data\.longest is 64; the encoder has 24 positions"):
        stored(weights=str(folder))
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(words[:-1]) + "\n")
    with pytest.raises(ValueError, match="has 39 tokens, and the weights are of 40"):
        stored(weights=str(folder), longest=24)


def test_cached_vectors_are_those_of_the_encoder_with_its_weights(tmp_path, rng, monkeypatch):
    pytest.importorskip("tokenizers")
    path = write_sentences(tmp_path / "own.csv", domains=("bank", "home"), labels=2, each=4)
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    data = overridden(
        config_of(path, "", tmp_path).data,
        dict(weights=str(folder), longest=24, backbone="bert", buckets=(6, 24), by="domain"),
    )
    stored = lambda own: texts.stored_text(json.dumps(texts.reading(own)), lambda tree: tree)
    pools, store = stored(data)
    ids, _ = stored(overridden(data, dict(backbone="none")))
    net = make_encoder("bert", (24,), weights=str(folder))
    params = net.init(jax.random.key(0))
    for vectors, tokens in zip(pools, ids, strict=True):
        lengths = (tokens.x != 0).sum(1)
        assert (
            lengths.min() <= 6 < lengths[:4].max()
        )  # both widths occur, and not in the order of the sentences
        assert vectors.x.shape == (8, 16) and vectors.x.dtype == np.float32 and vectors.phashes is None
        np.testing.assert_allclose(
            vectors.x, jax.jit(net.apply)(params, tokens.x, np.ones(8)), atol=1e-5, rtol=1e-5
        )
    assert store.buckets is None
    texts.stored_text.cache_clear()
    monkeypatch.setattr(cache, "_embed", lambda *a: pytest.fail("embedded again"))
    again, _ = stored(data)
    np.testing.assert_array_equal(again[0].x, pools[0].x)


@pytest.mark.slow
def test_cached_states_of_frozen_layers_give_the_answers_of_the_whole_encoder(tmp_path, rng, monkeypatch):
    pytest.importorskip("tokenizers")
    path = write_sentences(tmp_path / "own.csv", domains=("bank", "home"), labels=2, each=8)
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    whole = config_of(path, f"learner=finetune,weights={folder},longest=24,adapt=top1", tmp_path)
    frozen = config_of(path, f"learner=finetune,weights={folder},longest=24,frozen=1", tmp_path)
    records = {}
    for name, config in {"whole": whole, "frozen": frozen}.items():
        small = {
            "learners.finetune.inner_steps": 3,
            "learners.finetune.inner_lr": 0.1,
            "data.buckets": (6, 24),
        }
        records[name] = done(overridden(config, small), tmp_path / name)[0]["values"]
    np.testing.assert_allclose(records["frozen"]["nll"], records["whole"]["nll"], rtol=1e-4)
    assert records["frozen"]["accuracy"] == records["whole"]["accuracy"]
    texts.stored_text.cache_clear()
    monkeypatch.setattr(states, "_states", lambda *a: pytest.fail("computed again"))
    done(overridden(frozen, small), tmp_path / "again")


def test_the_table_of_states_holds_every_token_once(tmp_path, rng):
    pytest.importorskip("tokenizers")
    path = write_sentences(tmp_path / "own.csv", domains=("bank", "home"), labels=2, each=4)
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    changes = dict(weights=str(folder), longest=24, buckets=(6, 24), by="domain")
    data = overridden(config_of(path, "", tmp_path).data, changes)
    stored = lambda **own: texts.stored_text(
        json.dumps(texts.reading(overridden(data, own))), lambda tree: tree
    )
    ids, _ = stored()
    _, store = stored(backbone="bert", frozen_layers=1)
    net = lower_bert(1, weights=str(folder))
    params = net.init(jax.random.key(0))
    expected = np.concatenate([jax.jit(net.apply)(params, pool.x, np.ones(len(pool))) for pool in ids])
    assert store.item == ((24, 16), "float32") and store.buckets is not None
    np.testing.assert_allclose(store.consts["table"][store.consts["x"]], expected, atol=1e-5)
    real = sum(int((pool.x != 0).sum()) for pool in ids)
    assert store.consts["table"].shape == (real + 1, 16)
    batch = {f"{part}_rows": np.arange(8).reshape(2, 4) for part in ("support", "query")}
    batch |= {f"{part}_{name}": np.ones((2, 4)) for part in ("support", "query") for name in ("y", "mask")}
    batch |= dict(dataset=np.zeros(2), classes=np.zeros((2, 1)), columns=np.zeros((2, 6), bool))
    narrow, _ = gather(store.consts, batch, None)
    np.testing.assert_allclose(narrow.support.x, expected[:8, :6].reshape(2, 4, 6, 16), atol=1e-5)


def test_frozen_layers_that_do_not_fit_are_named(tmp_path, rng):
    path = write_sentences(tmp_path / "own.csv")
    folder = write_model(tmp_path / "model", tiny_tensors(rng))
    with pytest.raises(ConfigError, match=r"frozen=1: without weights"):
        config_of(path, "frozen=1", tmp_path)
    with pytest.raises(ConfigError, match="the encoder has 2 layers, 1 of them frozen"):
        config_of(path, f"weights={folder},frozen=1,adapt=top2", tmp_path)
    data = config_of(path, "", tmp_path).data
    with pytest.raises(ConfigError, match=r"data\.frozen_layers is 1 and data\.backbone is 'none'"):
        texts.checked_tokenizer(overridden(data, dict(frozen_layers=1)))


def test_bands_of_lengths_are_test_sets_of_their_sentences(tmp_path):
    path = write_sentences(tmp_path / "own.csv", each=9)  # of 4, 6 and 8 tokens with start and end
    sizes = {"task.queries": 1, "task.test_queries": 2, "evaluate.lengths": (5, 7)}
    (own,) = chosen_runs(tiny_encoder(config_of(path, "held_out=home", tmp_path, **sizes)), None).values()
    whole, *bands = make_problem(own, lambda tree: tree).test
    assert [(held.setting, held.value) for held in bands] == [("tokens", 5.0), ("tokens", 7.0)]
    for held, tokens in zip(bands, (4, 6), strict=True):
        for i in range(5):
            rows = np.concatenate([held.source.indices(i)[f"{part}_rows"] for part in ("support", "query")])
            assert set(np.sum(np.asarray(held.source.consts["x"])[rows] != 0, axis=1)) == {tokens}
    rows = np.concatenate([whole.source.indices(i)["query_rows"] for i in range(20)])
    assert len(set(np.sum(np.asarray(whole.source.consts["x"])[rows] != 0, axis=1))) == 3
    with pytest.raises(
        ConfigError, match=r"too few sentences of own_home have 8 to 9 tokens|have 1 to 3 tokens"
    ):
        make_problem(overridden(own, {"evaluate.lengths": (3, 9)}), lambda tree: tree)
