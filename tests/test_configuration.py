# SPDX-License-Identifier: Apache-2.0
"""Configs: the grammar of their argument, overrides, differences, and errors that name the nearest key."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import (
    ConfigError,
    as_json,
    differences,
    leaves,
    named,
    overridden,
    parse_argument,
)

DEFAULTS = dict(album="embedded", seeds=1, rate=0.5, deep=True, anything=None)


def parsed(text, **settings) -> dict:
    return parse_argument(text, DEFAULTS, **settings).to_dict()


@pytest.mark.parametrize("text", [None, "", ","])
def test_nothing_gives_the_defaults(text):
    assert parsed(text) == DEFAULTS | {"quick": False, "full": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quick", {"quick": True}),
        ("full,quick", {"quick": True, "full": True}),
        ("seeds=5", {"seeds": 5}),
        ("seeds=-5,quick", {"seeds": -5, "quick": True}),
        ("rate=2", {"rate": 2.0}),
        ("rate=1e-3", {"rate": 1e-3}),
        ("deep=false", {"deep": False}),
        ("deep=True", {"deep": True}),
        ("quick=true", {"quick": True}),
        ("album=C:/data/a:b", {"album": "C:/data/a:b"}),
        ("album=/data/x=y/album.v1", {"album": "/data/x=y/album.v1"}),
        ("album=12", {"album": "12"}),
        ("album=true", {"album": "true"}),
        ("album=", {"album": ""}),
        ("album=land cover+glyphs", {"album": "land cover+glyphs"}),
        ("anything=3", {"anything": 3}),
        ("anything=3.5", {"anything": 3.5}),
        ("anything=none", {"anything": None}),
        ("anything=text", {"anything": "text"}),
        ("seeds=1,seeds=2", {"seeds": 2}),
    ],
)
def test_grammar(text, expected):
    result = parsed(text)
    assert result == DEFAULTS | {"quick": False, "full": False} | expected
    for key, value in expected.items():
        assert type(result[key]) is type(value)


def test_a_bare_word_is_a_flag_or_the_positional_key():
    assert parsed("mine,quick", positional="album")["album"] == "mine"
    assert parsed("tune", flags=("tune",)) == DEFAULTS | {"tune": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quik", ["Unknown word 'quik'", "did you mean 'quick'?", "album=..."]),
        ("seeds", ["Unknown word 'seeds'", "did you mean 'seeds=...'?"]),
        ("zzz", ["Unknown word 'zzz'. Known: quick, full, album=..."]),
        ("albun=x", ["Unknown key 'albun'", "did you mean 'album'?", "Known: album, seeds, rate"]),
        ("seeds=two", ["seeds='two'", "int"]),
        ("seeds=0.5", ["seeds='0.5'", "int"]),
        ("seeds=true", ["seeds='true'", "int"]),
        ("rate=fast", ["rate='fast'", "float"]),
        ("rate=true", ["rate='true'", "float"]),
        ("deep=1", ["deep='1'", "bool"]),
        ("quick=1", ["quick='1'", "bool"]),
        ("seeds=", ["seeds=''", "int"]),
    ],
)
def test_errors_name_the_key_and_the_nearest(text, words):
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def config() -> ConfigDict:
    config = ConfigDict({"data": {"held_out": "", "sizes": (1, 2)}, "train": {"steps": 3}, "runs": {}})
    config.lock()
    return config


def test_overrides_are_dotted_or_nested_and_leave_the_original_alone(config):
    for overrides in ({"data.held_out": "plants"}, {"data": {"held_out": "plants"}}):
        result = overridden(config, overrides)
        assert result.data.held_out == "plants" and config.data.held_out == ""
        assert result.data.sizes == (1, 2) and result.train.steps == 3
    assert overridden(config, ConfigDict({"train": {"steps": 5}})).train.steps == 5
    assert overridden(config, {}) == config


@pytest.mark.parametrize(
    ("key", "near"),
    [("data.heldout", "data.held_out"), ("trian.steps", "train.steps"), ("train.steps.x", "train.steps")],
)
def test_an_override_of_an_unknown_key_names_the_nearest(key, near, config):
    with pytest.raises(ConfigError, match=rf"^Unknown config key '{key}'; did you mean '{near}'\? Known: "):
        overridden(config, {key: 1})


def test_of_many_known_keys_the_nearest_are_shown(config):
    with config.unlocked():
        config.learners = {f"learner_{i}": {"rate": 0.1} for i in range(100)}
    with pytest.raises(ConfigError, match=r"^Unknown config key 'learners.learner_7.rat'") as error:
        overridden(config, {"learners.learner_7.rat": 1})
    assert "Nearest of 104: learners.learner_7.rate, " in str(error.value)
    assert str(error.value).count("learner_") < 45


def test_what_is_empty_may_be_filled_with_anything(config):
    with config.unlocked():
        config.replicas, config.data.classes = {}, {}
    filled = {"replicas": {"seed=1": {"seed": 1}}, "data.classes": {"a": {"kind": "line", "of": ("b", "c")}}}
    result = overridden(config, filled)
    assert result.replicas.to_dict() == filled["replicas"]
    assert result.data.classes.to_dict() == filled["data.classes"]
    assert not config.replicas and not config.data.classes
    assert overridden(result, {"replicas.seed=1.seed": 2}).replicas["seed=1"].seed == 2
    with pytest.raises(ConfigError, match=r"Unknown config key 'data\.classes\.a\.kin'; did you mean"):
        overridden(result, {"data.classes.a.kin": "sinusoid"})  # no longer empty
    with pytest.raises(ConfigError, match=r"Unknown config key .replica\.x"):
        overridden(config, {"replica.x": 1})


def test_an_override_of_another_type_is_refused(config):
    with pytest.raises(ConfigError, match=r"train\.steps='many' is not of the type int"):
        overridden(config, {"train.steps": "many"})


def test_named_runs_hold_overrides_in_any_name(config):
    runs = named({"held_out=a b": {"data.held_out": "a b", "train.steps": 9}, "same": {}})
    assert runs.to_dict() == {
        "held_out=a b": {"data": {"held_out": "a b"}, "train": {"steps": 9}},
        "same": {},
    }
    result = overridden(config, runs["held_out=a b"])
    assert (result.data.held_out, result.train.steps) == ("a b", 9)
    assert overridden(config, runs["same"]) == config
    assert dict(leaves(runs)) == {
        "held_out=a b.data.held_out": "a b",
        "held_out=a b.train.steps": 9,
        "same": ConfigDict(),
    }


def test_json_form_survives_json(config):
    plain = as_json(config)
    assert plain == {"data": {"held_out": "", "sizes": [1, 2]}, "train": {"steps": 3}, "runs": {}}
    assert json.loads(json.dumps(plain)) == plain == as_json(plain)
    assert as_json((1, (2,))) == [1, [2]]
    assert differences(plain, as_json(config)) == []


def test_differences_name_every_key_and_both_values(config):
    new = as_json(overridden(config, {"train.steps": 4, "data.sizes": (1,)}))
    new["seed"] = 1
    del new["runs"]
    assert differences(as_json(config), new) == [
        "data.sizes: [1, 2] -> [1]",
        "runs: {} -> '(absent)'",
        "train.steps: 3 -> 4",
        "seed: '(absent)' -> 1",
    ]


def test_defaults_are_replaced_by_what_is_given_and_refuse_what_there_is_not():
    assert defaults.evaluation(episodes=5)["episodes"] == 5
    assert defaults.evaluation() == defaults.evaluation(episodes=600)
    assert defaults.classification(ways=5, shots=3)["shots"] == 3
    assert defaults.training(steps=2)["checkpoint_every"] == 1
    assert dict(defaults.seeds(1)) == {} and list(defaults.seeds(2)) == ["seed=0", "seed=1"]
    with pytest.raises(
        ConfigError, match=r"defaults.training has no setting 'learning_rat'; did you mean 'learning_rate'"
    ):
        defaults.training(steps=1, learning_rat=0.1)
