# SPDX-License-Identifier: Apache-2.0
"""Mixtures of function classes from a config to records: test sets, labels of replicas, compared answers."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tiny import ROOT, command_line, flags_of, load_config

from metaicl import sharding
from metaicl.configuration import ConfigError, as_json, named, overridden
from metaicl.episode import TaskSpec
from metaicl.experiment import chosen_runs, make_problem, make_run
from metaicl.experiment.comparing import comparisons
from metaicl.experiment.functions import told
from metaicl.experiment.recording import placed
from metaicl.learners import make_learner

CONFIG = ROOT / "configs" / "functions.py"
FIGURES = ("1", "2", "3", "4", "5", "6", "nonlinear", "garg", "coverage", "size", "diversity", "learn")
TINY = {
    "train.steps": 2,
    "train.batch": 8,
    "data.curriculum.batch": 8,
    "train.warmup": 0,
    "train.checkpoint_every": 2,
    "train.validate_every": 2,
    "evaluate.batch": 8,
    "evaluate.episodes": 12,
    "evaluate.validation_episodes": 8,
    "evaluate.shot_curve_episodes": 8,
    "learners.causal.width": 8,
    "learners.causal.layers": 1,
    "learners.causal.mlp": 16,
}


def as_it_is(tree):
    """Places nothing."""
    return tree


def problem(overrides, argument="figure=1,quick"):
    """The problem of the first run of the config, with overrides."""
    own = next(iter(chosen_runs(load_config(CONFIG, argument), None).values()))
    return make_problem(overridden(own, overrides), as_it_is)


@pytest.mark.parametrize("size", ["", "quick", "full", "learner=in_context"])
@pytest.mark.parametrize("figure", FIGURES)
def test_every_run_of_every_figure_has_its_problem(figure, size):
    """Replicas share one program and, but for pools of functions, one list of test sets; its scales are variances."""
    for name, own in chosen_runs(load_config(CONFIG, f"figure={figure},{size}"), None).items():
        problems = [make_problem(overridden(own, o), as_it_is) for o in own.replicas.values()]
        assert len({id(p.train(0).build) for p in problems}) == 1
        assert len({id(p.test) for p in problems}) == (len(problems) if figure == "diversity" else 1)
        labels = [replica.label for replica in own.replicas.values()]
        assert len(set(labels)) == (1 if figure == "diversity" else len(labels)), name
        scales = {held.dataset: held.scale for held in problems[0].test if not held.setting}
        d = problems[0].spec.x_shape[0]
        assert scales.get("dense", d) == pytest.approx(d, rel=1e-6)
        assert all(0 < scale < np.inf for scale in scales.values())
        # A later position than any that a figure asks for.
        assert own.task.shots + max(own.task.queries, own.task.test_queries == 1) <= 101


def test_figures_share_their_runs():
    runs = {f: load_config(CONFIG, f"figure={f}").runs.to_dict() for f in FIGURES}
    assert runs["1"] == runs["3"] and runs["4"] == runs["5"] == runs["6"]
    assert runs["1"]["dense_sparse"] == runs["2"]["dense_sparse"] and len(runs["2"]) == 2


def test_scale_of_test_sets_follows_their_settings():
    sets = problem({"data.dimensions": 5}, "garg").test
    scales = {held.dataset: held.scale for held in sets}
    assert scales["x times 2"] == scales["y times 2"] == pytest.approx(4 * 5)
    assert scales["x times 0.333"] == pytest.approx(5 / 9) and scales["sparse"] == pytest.approx(3)
    for name in ("orthants", "orthogonal", "repeated", "subspace", "skewed", "noise"):
        assert scales[name] == pytest.approx(5)
    (orthogonal,) = [held for held in sets if held.dataset == "orthogonal"]
    batch = {"index": np.arange(2, dtype=np.int32)}
    shapes = jax.eval_shape(orthogonal.source.build, orthogonal.source.consts, batch, jax.random.key(0))[0]
    assert orthogonal.shots == 3 and shapes.support.x.shape == (2, 3, 5)  # the d - 1 of the config's own d
    sweep = {h.value: h.scale for h in problem({}, "figure=3").test if h.setting == "nonzeros"}
    assert sweep == pytest.approx({1: 1, 2: 2, 3: 3, 4: 4})
    shares = {h.value: h.scale for h in problem({}, "figure=5").test if h.setting == "share"}
    assert shares == pytest.approx({s: 0.5 * ((1 - s) ** 2 + s**2) for s in shares}, rel=1e-5)


def entry(**settings):
    return {"data.test": ({"name": "a", "of": "dense"} | settings,)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.weights.dense": -0.5}, "weight of function class 'dense' is -0.5"),
        ({"data.weights.dense": 0.7}, "sum to 1.2, not to 1"),
        ({"data.classes.sparse.nonzeros": 9}, "9 non-zeros in 3 dimensions"),
        ({"data.classes.dense.kind": "dense_linar"}, "'dense_linar'; did you mean 'dense_linear'"),
        (entry(of="dens"), "'a' is of the function class 'dens'; did you mean 'dense'"),
        (entry(off="dense"), "entry with 'off'; did you mean 'of'"),
        ({"data.test": ({"name": "a"},)}, "entry without 'of'"),
        (entry(shots=7), r"shows 7 points of 6 \(task.shots\)"),
        (entry(of="mixture", settings={"scale": (2, 2)}), "whole mixture, which takes no settings"),
        (entry(settings={"pol": 3}), "no setting 'pol'; did you mean 'pool'"),
        (entry(inputs={"shift": "orthogonal"}), "orthogonal to 6 points in 3 dimensions"),
        (entry(inputs={"shft": "skewed"}), "data.inputs has 'shft'; did you mean 'shift'"),
        ({"data.test": ({"name": "a", "of": "dense"},) * 2}, "data.test names 'a' twice"),
        ({"data.fewest": 20}, "fewest points of a context are 20"),
    ],
)
def test_what_does_not_fit_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        problem(overrides)


@pytest.mark.parametrize(
    ("argument", "message"), [("figure=7", "figure='7'; there are 1, 2"), ("learner=maml", "learner='maml'")]
)
def test_unknown_arguments_are_named(argument, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIG, argument)


def tiny_run(folder, overrides=None):
    (own,) = chosen_runs(load_config(CONFIG, "figure=1,quick"), None).values()
    mesh = sharding.make_mesh(jax.devices()[:1])
    return make_run("main", overridden(own, TINY | (overrides or {})), folder, mesh)


def test_a_curriculum_counts_in_the_batches_of_training(tmp_path):
    with pytest.raises(ConfigError, match=r"curriculum\.batch is 64 and train\.batch 8"):
        tiny_run(tmp_path, {"data.curriculum.batch": 64})


def test_the_finite_prior_is_told_the_pool_of_its_replica():
    """Two points without noise tell one of sixteen functions; one replica's functions are unknown to the other's."""
    config = load_config(CONFIG, "figure=diversity,quick")
    (own,) = chosen_runs(overridden(config, {"evaluate.episodes": 8}), None).values()
    few = {k: overridden(own, r) for k, r in own.replicas.items() if r["data.classes.pooled.pool"] <= 64}
    errors = {}
    for name, replica in few.items():
        quiet = overridden(replica, {"data.classes.pooled.noise": 1e-3})
        (held,) = [h for h in make_problem(quiet, as_it_is).test if h.dataset == "pooled"]
        batch = {"index": np.arange(8, dtype=np.int32)}
        episodes, _ = jax.jit(held.source.build)(held.source.consts, batch, jax.random.key(0))
        for of, other in few.items():
            settings = told(as_json(other.learners.finite_prior), TaskSpec("regress", (3,), "float32", 1))
            settings["components"]["pooled"] |= dict(scale=1.0, noise=0.01)
            del settings["kind"]
            learner = make_learner("bayes_mixture", TaskSpec("regress", (3,), "float32", 1), **settings)
            meta = learner.init(jax.random.key(0))
            state = jax.vmap(lambda s: learner.adapt(meta, s, jax.random.key(0)))(
                jax.tree.map(lambda a: a[:, :2], episodes.support)
            )
            answers = jax.vmap(lambda s, q: learner.predict(meta, s, q.x, q.mask))(state, episodes.query)
            errors[name, of] = float(np.mean((answers - episodes.query.y) ** 2))
    assert len(errors) == 4
    assert all((error < 1e-2) == (name == of) for (name, of), error in errors.items()), errors


def test_replicas_train_as_one_program(tmp_path):
    (own,) = chosen_runs(load_config(CONFIG, "figure=1,quick"), None).values()
    own = overridden(own, TINY | {"evaluate.compare": ()})
    with own.unlocked():
        own.replicas = named({"deep": {"learners.causal.layers": 2}})
    with pytest.raises(ConfigError, match=r"sets learners\.causal to something of its own.*make it a run"):
        make_run("main", own, tmp_path, sharding.make_mesh(jax.devices()[:1]))


def test_a_model_with_a_label_is_a_row_and_a_point():
    """Coverage: a baseline that all share is a point at every share, under its own name."""
    config = load_config(CONFIG, "figure=coverage,quick")
    own = chosen_runs(config, None)["coverage_of_frequencies"]
    replicas = [overridden(own, r) for r in own.replicas.values()]
    line = {"dataset": "sine", "evaluation": "main", "values": {}}
    found = placed([line | {"learner": "coverage 0.2"}], "causal", replicas[3:4])
    assert found == [
        line | {"learner": "coverage 0.2"},
        line | dict(learner="causal", evaluation="sweep", setting="coverage", value=0.2),
    ]
    shared = placed([line | {"learner": "nearest_3"}], "nearest_3", replicas)
    assert [r.get("value") for r in shared] == [None, 0.0, 0.01, 0.05, 0.2, 0.5]
    assert {r["learner"] for r in shared} == {"nearest_3"}


def test_unknown_labels_to_compare_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate.compare names 'mix'; the replicas of run 'main' are"):
        tiny_run(tmp_path, {"evaluate.compare": (("mix", "dense only"),)})


@pytest.mark.slow
def test_compared_answers_are_those_of_the_learner(tmp_path):
    """The distance of two untrained models on the first prompts, from `adapt` and `predict` one by one."""
    run = tiny_run(tmp_path, {"data.test": ({"name": "a", "of": "dense", "shots": 4},)})
    learner = run.learner("causal")
    chosen = [(0, jax.jit(learner.init)(jax.random.key(n))) for n in range(3)]
    lines = comparisons(run, chosen)
    assert [line["learner"] for line in lines] == ["mixture 0.5 to dense only", "mixture 0.5 to sparse only"]
    by_label = {r.config.label: meta for r, (_, meta) in zip(run.replicas, chosen, strict=True)}
    (held,) = run.replicas[0].problem.test
    batch = {"index": np.arange(12, dtype=np.int32)}
    episodes, _ = jax.jit(held.source.build)(held.source.consts, batch, jax.random.key(0))

    @jax.jit
    def answer(meta, i):
        support, query = jax.tree.map(lambda a: a[i], (episodes.support, episodes.query))
        state = learner.adapt(meta, jax.tree.map(lambda a: a[:4], support), jax.random.key(0))
        return learner.predict(meta, state, query.x, query.mask)[0, 0]

    for line, other in zip(lines, ("dense only", "sparse only"), strict=True):
        assert (line["evaluation"], line["shots"], len(line["values"]["distance"])) == ("distance", 4, 12)
        for i in (0, 7, 11):
            apart = float(answer(by_label["mixture 0.5"], i) - answer(by_label[other], i)) ** 2 / 3
            assert line["values"]["distance"][i] == pytest.approx(apart, rel=1e-3, abs=1e-9)


@pytest.mark.slow
def test_from_config_to_report(tmp_path, capsys):
    """Replicas become learners of their own, a baseline is measured once, errors are squared errors over scales."""
    assert command_line(f"--config={CONFIG}:figure=3,quick", *flags_of(TINY), f"--workdir={tmp_path}") == 0
    lines = [
        json.loads(line) for line in (tmp_path / "dense_sparse" / "records.jsonl").read_text().splitlines()
    ]
    models = {"dense only", "mixture 0.5", "sparse only"}
    baselines = {"averaging", "bayes", "lasso", "least_squares", "nearest_3"}
    assert {r["learner"] for r in lines if r["evaluation"] != "distance"} == models | baselines
    keys = [tuple(r.get(k) for k in ("learner", "dataset", "evaluation", "shots", "value")) for r in lines]
    assert len(keys) == len(set(keys))
    scales = {"dense": 3, "sparse": 1}
    for r in lines:
        if r["evaluation"] != "distance":
            scale = r["value"] if r["evaluation"] == "sweep" else scales[r["dataset"]]
            np.testing.assert_allclose(np.array(r["values"]["error"]) * scale, r["values"]["mse"], rtol=2e-4)
    assert {r["value"] for r in lines if r["evaluation"] == "sweep"} == {1, 2, 3}
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"shots", "settings", "distances", "training"} <= drawn
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {r["value"] for r in rows if r["metric"] == "distance" and r.get("setting")} == {1, 2, 3}


@pytest.mark.slow
def test_fits_of_curves_are_drawn(tmp_path, capsys):
    assert command_line(f"--config={CONFIG}:figure=4,quick", *flags_of(TINY), f"--workdir={tmp_path}") == 0
    fits = json.loads((tmp_path / "line_sine" / "fits.json").read_text())
    models = {"line only", "sine only", "mixture 0.5"}
    assert {(f["learner"], f["dataset"], f["episode"]) for f in fits} == {
        (name, dataset, i)
        for name in models | {"bayes", "nearest_3", "straight_line"}
        for dataset in ("line", "sine", "combination")
        for i in range(3)
    }
    assert all(len(f["x"]) == 64 and len(f["support_x"]) == 10 for f in fits)
    assert (tmp_path / "figures" / "curves.png").exists()
