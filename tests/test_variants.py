# SPDX-License-Identifier: Apache-2.0
"""Variants of training and test sets of an album: merged, one big set, parts of it, noise, ways, weights of a run."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from synthetic import episode
from tiny import ROOT, cache, load_config, mesh, tiny_config  # noqa: F401 (a fixture)

from metaicl.configuration import ConfigError, overridden
from metaicl.data.pooling import MERGED
from metaicl.episode import TaskSpec
from metaicl.experiment import chosen_runs, make_any, make_problem
from metaicl.experiment.runs import execute
from metaicl.learners import make_learner

FOUR = {"data.datasets": ("tissues", "flowers", "gears", "flanges")}


def problem_of(cache, **overrides):  # noqa: F811
    config = tiny_config("held_out=cells,learner=prototypes", cache, FOUR | overrides)
    ((_, own),) = chosen_runs(config, None).items()
    return make_problem(own, lambda tree: tree)


def rows_of(source, episodes):
    batches = [source.indices(i) for i in range(episodes)]
    return [np.concatenate([b["support_rows"], b["query_rows"]]) for b in batches], batches


def test_merged_training_mixes_the_classes_of_data_sets(cache):  # noqa: F811
    apart, merged = problem_of(cache, **{"data.validation": "plants"}), None
    merged = problem_of(cache, **{"data.validation": "plants", "data.merge": True})
    assert [pool.name for pool in merged.pools] == [MERGED]
    assert sorted(c for pool in apart.pools for c in pool.classes) == sorted(merged.pools[0].classes)
    x = np.asarray(merged.train(0).consts["x"])
    images = {x[row].tobytes(): pool.name for pool in apart.pools for row in store_rows(apart, pool)}
    mixed = 0
    for rows in rows_of(merged.train(0), 12)[0]:
        names = {images[x[row].tobytes()] for row in rows}
        mixed += len(names) > 1
    assert mixed > 6
    assert all(len({images[x[r].tobytes()] for r in rows}) == 1 for rows in rows_of(apart.train(0), 6)[0])
    assert [h.dataset for h in merged.test] == [h.dataset for h in apart.test] == ["tissues"]


def store_rows(problem, pool):
    """Rows of a pool in the array of all, told by its items."""
    x = np.asarray(problem.train(0).consts["x"])
    wanted = {np.asarray(item).tobytes() for item in pool.x}
    return [row for row in range(len(x)) if x[row].tobytes() in wanted]


def test_one_big_set_is_trained_on_and_all_others_are_tested(cache):  # noqa: F811
    big = {"data.split": "one_set", "data.held_out": "", "data.train_on": ("gears", "flanges")}
    problem = problem_of(cache, **big)
    assert sorted(h.dataset for h in problem.test) == ["flowers", "tissues"]
    assert [h.dataset for h in problem.validation] == [MERGED] and [p.name for p in problem.pools] == [MERGED]
    (held,) = problem.validation
    assert held.classes == 5 and len(problem.pools[0].classes) == 5  # ten classes, halved: a task takes three
    with pytest.raises(ConfigError, match="there have to be some of both"):
        problem_of(cache, **(big | {"data.train_on": ()}))
    with pytest.raises(ConfigError, match="Did you mean 'gears'"):
        problem_of(cache, **(big | {"data.train_on": ("gaers",)}))


def test_parts_of_the_training_classes_and_images(cache):  # noqa: F811
    keep = {"data.keep.classes": 0.6, "data.keep.items_of_class": 4}
    whole, part = problem_of(cache), problem_of(cache, **keep)
    for a, b in zip(whole.pools, part.pools, strict=True):
        assert len(a.classes) == 5 and len(b.classes) == 3 and set(b.counts) == {4}
        assert set(b.digests) < set(a.digests)
    assert [h.classes for h in part.test] == [h.classes for h in whole.test]


def test_wrong_labels_of_the_test_are_points_of_a_curve(cache):  # noqa: F811
    problem = problem_of(cache, **{"evaluate.label_noise": (0.0, 0.5)})
    main, clean, noisy = problem.test
    assert (noisy.setting, noisy.value, clean.value) == ("wrong support labels (%)", 50.0, 0.0)
    wrong = []
    for i in range(40):
        one, other, same = (held.source.indices(i) for held in (main, noisy, clean))
        assert all(np.array_equal(one[key], same[key]) for key in one)
        right = dict(zip(one["support_rows"], one["support_y"], strict=True))
        assert sorted(right) == sorted(other["support_rows"])
        np.testing.assert_array_equal(one["query_y"], other["query_y"])
        wrong += [right[row] != y for row, y in zip(other["support_rows"], other["support_y"], strict=True)]
    assert 0.4 < np.mean(wrong) < 0.6


def test_the_ways_of_the_test_can_differ_from_those_of_training(cache):  # noqa: F811
    problem = problem_of(cache, **{"task.test_ways": 2})
    assert {h.ways for h in (*problem.test, *problem.validation)} == {2} and problem.spec.num_outputs == 3
    assert set(problem.test[0].source.indices(0)["support_y"]) == {0, 1}
    assert set(problem.train(0).indices(0)["support_y"]) == {0, 1, 2}
    assert problem_of(cache, **{"task.test_ways": 5}).spec.num_outputs == 5
    with pytest.raises(ValueError, match="6"):
        problem_of(cache, **{"task.test_ways": 6})


@pytest.mark.slow
def test_one_learner_is_tested_on_more_ways_than_it_trained_with(cache, tmp_path):  # noqa: F811
    changes = FOUR | {"evaluate.ways": (2, 5)}
    config = tiny_config("held_out=cells,learner=in_context", cache, changes)
    ((name, own),) = chosen_runs(config, None).items()
    run = make_any(name, own, tmp_path / name, mesh())
    problem = run.replicas[0].problem
    assert problem.spec.num_outputs == 5
    assert [(h.ways, h.setting, h.value) for h in problem.test] == [
        (3, "", 0),
        (2, "ways", 2),
        (5, "ways", 5),
    ]
    execute(run)
    lines = [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]
    found = {line.get("value"): np.mean(line["values"]["accuracy"]) for line in lines}
    assert set(found) == {None, 2.0, 5.0} and all(np.isfinite(list(found.values())))
    with pytest.raises(ConfigError, match="asks for 9 ways; the largest data set of the test has 5"):
        problem_of(cache, **{"evaluate.ways": (9,)})


def test_weights_of_a_run_are_tested_elsewhere(cache, tmp_path):  # noqa: F811
    config = tiny_config("held_out=cells,learner=prototypes", cache, {"train.steps": 2})
    ((name, own),) = chosen_runs(config, None).items()
    trained = make_any(name, own, tmp_path / f"{name},learner=matching", mesh())  # a comma in the path
    execute(trained)
    ood = ROOT / "configs" / "ood.py"
    given = f"run={trained.folder},cache={cache}"
    with pytest.raises(ConfigError, match="trained or chose its weights on flowers, gears: leave them out"):
        load_config(ood, f"{given},datasets=flowers+gears+flanges")
    small = {
        "task.ways": 3,
        "task.shots": 2,
        "task.test_queries": 3,
        "evaluate.episodes": 6,
        "evaluate.batch": 3,
    }
    elsewhere = overridden(load_config(ood, f"{given},datasets=flanges+tissues"), small)
    elsewhere.evaluate.shot_curve = ()
    elsewhere.baselines = ("centroid",)
    ((_, own),) = chosen_runs(elsewhere, None).items()
    run = make_any("test", own, tmp_path / "elsewhere", mesh())
    execute(run)
    lines = [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]
    assert {(r["learner"], r["dataset"], r["trained"]) for r in lines} == {
        (learner, dataset, learner == "prototypes")
        for learner in ("prototypes", "centroid")
        for dataset in ("flanges", "tissues")
    }
    # As initialised it answers otherwise.
    fresh = make_any("fresh", overridden(own, {"start": ""}), tmp_path / "fresh", mesh())
    execute(fresh)
    nll = lambda folder: json.loads((folder / "records.jsonl").read_text().splitlines()[0])["values"]["nll"]
    assert nll(run.folder) != nll(fresh.folder)
    for argument, words in (
        ("run=/not/there", "is no folder of a run"),
        (f"run={trained.folder},replica=seed=1", "has no replica 'seed=1'"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(ood, argument)
    with pytest.raises(ConfigError, match=r"set train\.steps to 0"):
        make_any(
            "wrong",
            overridden(own, {"train.steps": 3, "learners.prototypes.train.steps": 3}),
            tmp_path,
            mesh(),
        )


def test_starting_from_features_is_a_classifier_by_cosines(rng):
    spec = TaskSpec("classify", (6,), "float32", 3)
    size = dict(labels="relation", readout="matching", image_width=8, layers=2, heads=2, mlp=16)
    learner = make_learner("in_context", spec, start="features", **size)
    one = episode(np.random.default_rng(0), spec, 6, 4)
    meta = jax.jit(learner.init)(jax.random.key(0))
    state = learner.adapt(meta, one.support, jax.random.key(1))
    found = learner.predict(meta, state, one.query.x, one.query.mask)
    # By hand: cosines of the centred features times ten, softmax over the support, summed within classes. Eight
    # dimensions hold six, so that the first map keeps all angles; the last layer norm takes the mean out.
    image, query = (np.asarray(meta.params[k]["kernel"]) for k in ("image",)), None
    (image,) = image
    query = np.asarray(meta.params["readout"]["query"]["kernel"])

    def code(x):
        y = np.asarray(x) @ image
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = y @ query
        return y / np.linalg.norm(y, axis=-1, keepdims=True)

    similarity = 10 * code(one.query.x) @ code(one.support.x).T
    real = np.asarray(one.support.mask) > 0
    y = np.asarray(one.support.y)
    scores = np.stack([np.exp(similarity)[:, real & (y == c)].sum(1) for c in range(3)], 1)
    np.testing.assert_allclose(jax.nn.softmax(found), scores / scores.sum(1, keepdims=True), atol=1e-4)
    for wrong in (dict(start="zero"), dict(start="features", readout="linear", labels="simplex")):
        with pytest.raises(ValueError, match="start is"):
            make_learner("in_context", spec, **(size | wrong))


def test_causal_attention_depends_on_the_order_of_the_support():
    spec = TaskSpec("classify", (6,), "float32", 3)
    one = episode(np.random.default_rng(0), spec, 6, 4)
    turned = jax.tree.map(lambda a: a[::-1], one.support)
    size = dict(labels="relation", readout="matching", image_width=8, layers=2, heads=2, mlp=16)
    for attention, depends in (("packed", False), ("causal", True)):
        learner = make_learner("in_context", spec, attention=attention, **size)
        meta = jax.jit(learner.init)(jax.random.key(0))
        outputs = [
            np.asarray(
                learner.predict(meta, learner.adapt(meta, s, jax.random.key(1)), one.query.x, one.query.mask)
            )
            for s in (one.support, turned)
        ]
        assert (np.abs(outputs[0] - outputs[1]).max() > 1e-4) == depends
        # The first item of a causal context is the same whatever follows it.
        parts = [jax.tree.map(lambda a: a[:n], one.support) for n in (2, 6)]
        first = [np.asarray(learner.adapt(meta, s, jax.random.key(1))["outputs"])[0] for s in parts]
        assert (np.abs(first[0] - first[1]).max() < 1e-5) == depends


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluate.label_noise": (0.1, 1.5)}, "give shares between 0 and 1"),
        ({"evaluate.ways": (1, 3)}, "give 2 or more"),
        ({"data.split": "supervised", "evaluate.ways": (3,)}, "of N-way K-shot episodes"),
        ({"evaluate.lengths": (3,)}, "these items have no lengths"),
        ({"data.split": "thirds"}, "use 'domain', 'within', 'images', 'one_set'"),
    ],
)
def test_points_that_there_cannot_be_are_refused(cache, changes, words):  # noqa: F811
    with pytest.raises(ConfigError, match=words):
        problem_of(cache, **changes)
