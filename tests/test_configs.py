# SPDX-License-Identifier: Apache-2.0
"""Every config builds its runs, as its docstring shows it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from text_data import tiny_tensors, write_model
from tiny import ROOT, TINY, cache, load_config, mesh, small_split, tiny_config, write_album  # noqa: F401

from metaicl import defaults
from metaicl.configuration import ConfigError, leaves, named, overridden
from metaicl.data import text
from metaicl.experiment import chosen_runs, make_any, make_run, problems
from metaicl.models.squeezenet import expected_shapes


def documented(path: pathlib.Path) -> list[str]:
    """The arguments that the docstring of a config shows, its own name without one included."""
    spec = importlib.util.spec_from_file_location("documented", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = re.findall(rf"--config=configs/{path.name}(?::(\S+))?(?:\s|$)", module.__doc__)
    assert "" in found, f"{path.name} does not say how to run it"
    return found


CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# Those that take a finished run have a test of their own.
ARGUMENTS = [(path, a) for path in CONFIGS for a in documented(path) if not a.startswith("run=")]
SMALL = {
    "data.embedded.classes": 5,
    "data.embedded.images_per_class": 20,
    "data.image_size": 32,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A small album and weights of the right shapes, which its images are embedded with."""
    folder = tmp_path_factory.mktemp("places")
    album = write_album(folder / "album", ("BRD", "FLW", "APL", "INS"), classes=10, images=20, side=32)
    write_album(folder / "large", ("BIG",), classes=10, images=20, side=32, seed=1)
    weights = {name: np.full(shape, 1e-2, np.float32) for name, shape in expected_shapes().items()}
    save_file(weights, folder / "weights.safetensors")
    return album, folder / "weights.safetensors"


def small_sentences(folder: pathlib.Path) -> text.Sentences:
    """Stands for what a reader of sentences returns: 3 domains of 15 labels of 120 sentences."""
    del folder
    rows = [(f"{d} {c} word{i}", f"{d}{c}", d) for d in "abc" for c in range(15) for i in range(120)]
    return text.Sentences("small", *(list(column) for column in zip(*rows, strict=True)))


def write_csv(path: pathlib.Path) -> pathlib.Path:
    """The small sentences as a file."""
    found = small_sentences(path)
    rows = zip(found.texts, found.labels, found.domains, strict=True)
    path.write_text("\n".join(["text,label,domain", *map(",".join, rows)]) + "\n")
    return path


def write_small_encoder(folder: pathlib.Path) -> pathlib.Path:
    """A folder of a BERT that holds the longest sentences of the config, with as many layers as MiniLM."""
    longer = dict(max_position_embeddings=64, num_hidden_layers=6)
    return write_model(folder, tiny_tensors(np.random.default_rng(0), **longer), **longer)


@pytest.mark.parametrize(
    ("path", "argument"), ARGUMENTS, ids=[f"{path.stem}:{argument}" for path, argument in ARGUMENTS]
)
def test_every_config_builds_as_documented(path, argument, places, tmp_path, cache, monkeypatch):  # noqa: F811
    for reader in problems._READERS:
        monkeypatch.setitem(problems._READERS, reader, small_split)
    for reader in text._READERS:
        monkeypatch.setitem(text._READERS, reader, small_sentences)
    album, weights = places
    if path.stem in ("text", "text_claims", "text_domains", "text_table"):
        monkeypatch.setenv("METAICL_DATA", str(tmp_path))
        monkeypatch.delenv("METAICL_TEXT_WEIGHTS", raising=False)
        if "weights=" in argument:
            pytest.importorskip("tokenizers")
            weights = write_small_encoder(album.parent / "encoder")
        argument = argument.replace("dataset=PATH", f"dataset={write_csv(album.parent / 'own.csv')}")
    argument = re.sub("backbone=resnet[0-9]+", "backbone=squeezenet", argument)  # whose weights are small
    argument = argument.replace("album=PATH", f"album={album}").replace("weights=PATH", f"weights={weights}")
    argument = argument.replace("datasets=...", "datasets=BRD+FLW").replace("NAME+NAME", "BRD+APL")
    argument = argument.replace("big=PATH", f"big={album.parent}/large/BIG")
    config = load_config(path, argument or None)
    known = dict(leaves(config))
    embedded = known.get("data.album") == "embedded"
    small = {key: value for key, value in SMALL.items() if key in known} | (
        {"data.cache": str(cache)} if "data.cache" in known else {}
    )
    if embedded and config.data.split in ("domain", "within", "images", "none"):
        small["data.datasets"] = TINY["data.datasets"]
    if embedded and (config.data.split == "within" or path.stem == "ways"):
        small["data.embedded.classes"] = 20
    if path.stem == "ways":
        small["evaluate.ways"] = (3, 10)
    if path.stem == "formulas":
        small["data.classes"] = 20
    if embedded and config.data.split == "images":  # which are shared out over three parts
        small["data.embedded.images_per_class"] = 40
    config = overridden(config, small)
    json.dumps(config.to_dict())
    seen = [id(part) for part in parts(config)]
    assert len(seen) == len(set(seen))  # an override of one part must not reach another
    if "measure" not in config:  # every key that the experiment reads is there
        assert set(config.train) == set(defaults.training(steps=1))
        assert set(config.evaluate) == set(defaults.evaluation())
    runs = chosen_runs(config, None)
    assert len(runs) == max(len(config.runs), 1)
    for number, (name, own) in enumerate(runs.items()):
        if embedded and own.data.held_out not in ("", "cells", "plants", "machines"):
            continue
        if embedded and not set(own.data.train_on) <= set(TINY["data.datasets"]):
            continue
        if number % (1 + len(runs) // 4):  # of many, some
            continue
        assert chosen_runs(config, str(number)) == chosen_runs(config, name) == {name: own}
        run = make_any(name, own, tmp_path / name, mesh())
        assert run.name == name and not run.finished
        if "measure" in own:
            continue
        assert own.learner in own.learners and set(own.baselines) <= set(own.learners)
    assert list(tmp_path.iterdir()) == []


def parts(config: ConfigDict):
    """All parts of a config, itself first."""
    yield config
    for value in config.values():
        if isinstance(value, ConfigDict):
            yield from parts(value)


def test_an_override_of_one_learner_reaches_no_other():
    config = load_config(ROOT / "configs" / "text.py", "weights=none,learner=maml+fomaml")
    with config.unlocked():
        config.learners.maml.test.inner_steps = 3
        config.learners.maml.encoder_settings.dropout = 0.5
    assert config.learners.fomaml.test.inner_steps == config.learners.anil.test.inner_steps == 20
    assert config.learners.fomaml.encoder_settings.dropout == 0.0


def test_some_data_sets_are_held_out_by_their_domains(tmp_path):
    some = load_config(ROOT / "configs" / "loo.py", "backbone=none,datasets=shrubs+flowers+gears")
    assert list(some.runs) == ["held_out=machines", "held_out=plants"]
    album = write_album(tmp_path / "album", ("BRD", "FLW", "APL"), images=2, side=8)
    every = load_config(ROOT / "configs" / "loo.py", f"backbone=none,album={album}")
    some = load_config(ROOT / "configs" / "loo.py", f"backbone=none,album={album},datasets=BRD+APL")
    assert set(some.runs) < set(every.runs) and len(every.runs) > 2


def test_replicas_of_a_config_become_replicas_of_a_run(cache, tmp_path):  # noqa: F811
    config = tiny_config("held_out=cells,learner=prototypes,seeds=3", cache)
    ((name, own),) = chosen_runs(config, None).items()
    run = make_run(name, own, tmp_path, mesh())
    assert run.replica_names == ["seed=0", "seed=1", "seed=2"] and run.seeds == [0, 1, 2]
    assert len({id(r.problem) for r in run.replicas}) == 1


def test_replicas_of_different_shapes_are_refused(cache, tmp_path):  # noqa: F811
    config = tiny_config("held_out=cells,learner=prototypes", cache)
    with config.unlocked():
        config.replicas = named({"two": {"task.ways": 2}, "three": {"task.ways": 3}})
    ((name, own),) = chosen_runs(config, None).items()
    with pytest.raises(ConfigError, match="have tasks of different shapes"):
        make_run(name, own, tmp_path, mesh())


def test_the_table_of_sentences_takes_each_split_as_its_config_does(tmp_path, monkeypatch):
    """Every run of the table is the run of `configs/text.py` with that data set, split and size."""
    monkeypatch.setenv("METAICL_DATA", str(tmp_path))
    monkeypatch.delenv("METAICL_TEXT_WEIGHTS", raising=False)
    one = dataclasses.replace(small_sentences(tmp_path), name="one", domains=["all"] * 5400)
    for name, found in {"clinc150": small_sentences(tmp_path), "banking77": one}.items():
        monkeypatch.setitem(text._READERS, name, lambda folder, found=found: found)
    table = load_config(ROOT / "configs" / "text_table.py", "learner=centroid+anil,size=5w1s+15w5s")
    runs = chosen_runs(table, None)
    assert len(runs) == 2 * 2 * (3 + 1 + 1)
    for split, argument in {
        "clinc150": "dataset=clinc150",
        "clinc150_classes": "dataset=clinc150,split=class",
        "banking77": "dataset=banking77",
    }.items():
        single = load_config(
            ROOT / "configs" / "text.py", f"learner=centroid+anil,ways=15,shots=5,{argument}"
        )
        for name, own in chosen_runs(single, None).items():
            same = runs[f"{split},15w5s,{name}"]
            assert {k: v for k, v in leaves(same) if not k.startswith("runs.")} == {
                k: v for k, v in leaves(own) if not k.startswith("runs.")
            }


def test_claims_of_sentences_differ_in_what_they_are_about(tmp_path, monkeypatch):
    monkeypatch.setenv("METAICL_DATA", str(tmp_path))
    monkeypatch.delenv("METAICL_TEXT_WEIGHTS", raising=False)
    monkeypatch.setitem(text._READERS, "clinc150", small_sentences)
    claims = ROOT / "configs" / "text_claims.py"
    runs = chosen_runs(load_config(claims, "lengths=5+6,held_out=b"), None)
    assert {own.data.held_out for own in runs.values()} == {"b"}
    shares = {name: own for name, own in runs.items() if name.startswith("share,")}
    of = {name: own.evaluate.point.value for name, own in shares.items()}
    assert of["share,adapt=all"] == 100 and all(0 < value < 100 for n, value in of.items() if "all" not in n)
    assert of["share,adapt=head"] < of["share,adapt=norms"] < of["share,adapt=top1"]
    assert shares["share,adapt=lora"].learners.fomaml.encoder_settings.lora == 4
    assert shares["share,adapt=norms"].learners.fomaml.encoder_settings.lora == 0
    parted = [own.task for name, own in runs.items() if name.startswith("ratio,")]
    assert {(t.shots + t.queries, t.test_shots) for t in parted} == {(10, 5)} and len(parted) == 4
    start = runs["convergence,finetune"]
    assert start.learners.finetune.sweep.setting == "inner_steps" and tuple(start.evaluate.lengths) == (5, 6)
    assert (
        not shares["share,adapt=all"].learners.fomaml.sweep["values"]
        and not shares["share,adapt=all"].evaluate.lengths
    )
    assert runs["shots,protonet"].task.test_shots == max(runs["shots,protonet"].evaluate.shot_curve) == 20
    for argument, words in (
        ("claim=speed", "claim='speed' is not one of shots"),
        ("learner=anil", "learner=anil is chosen by claim="),
        ("lengths=8+x", "give rising numbers of tokens"),
        ("lengths=8+5", "give rising numbers of tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(claims, argument)


def test_a_big_set_that_is_none_is_refused_before_an_album_is_read():
    with pytest.raises(
        ConfigError, match="big='nothing' is no folder and no data set of the album: printed_letters, "
    ):
        load_config(ROOT / "configs" / "imagenet.py", "big=nothing")


def test_ways_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="test_ways='many' is no number of ways"):
        load_config(ROOT / "configs" / "ways.py", "test_ways=3+many")
