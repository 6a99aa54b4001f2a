# SPDX-License-Identifier: Apache-2.0
"""What every learner promises, whatever it is: the same gauntlet for each, as each declares itself."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from synthetic import ADAM, ATTENTION, BATCH, GROUP, IMAGES, INNER, MLP, POINTS, SEQUENCE, VECTORS

from metaicl.episode import Episode, TaskSpec, limit_shots
from metaicl.learners import LEARNERS, Learner, Meta, answer, make_learner

PRIORS = {
    "dense_linear": {"weight": 0.5},
    "sparse_linear": {"weight": 0.3, "nonzeros": 2},
    "finite_linear": {"weight": 0.2, "vectors": np.eye(5, 12)},
}

# (learner, what is special about the case, settings, tasks)
TABLE = [
    ("averaging", "plain", {}, (POINTS,)),
    ("bayes_mixture", "linear", {"components": PRIORS, "noise": 0.5}, (POINTS,)),
    ("causal", "identity", SEQUENCE, (VECTORS, POINTS)),
    ("causal", "conv", SEQUENCE | GROUP | {"remat": True}, (IMAGES,)),
    ("closed_form", "centroid", {"method": "centroid"}, (VECTORS,)),
    ("closed_form", "cosine", {"method": "centroid", "metric": "cosine", "temperature": 0.1}, (VECTORS,)),
    ("closed_form", "whiten", {"method": "centroid", "whiten": True}, (VECTORS,)),
    ("closed_form", "knn", {"method": "knn", "neighbours": 3}, (VECTORS, POINTS)),
    ("closed_form", "ridge", {"method": "ridge"}, (VECTORS, POINTS)),
    ("closed_form", "logistic", {"method": "logistic"}, (VECTORS,)),
    ("closed_form", "batch_norm", {"method": "ridge"} | BATCH, (IMAGES,)),
    ("geom", "small", {"label_width": 4, "layers": 1, "heads": 2, "mlp": 16}, (VECTORS, POINTS)),
    ("greedy_tree", "shallow", {"depth": 2}, (POINTS,)),
    ("greedy_tree", "whole", {"depth": None, "min_leaf": 2}, (POINTS,)),
    ("implicit_maml", "mlp", {"inner_steps": 3} | MLP, (VECTORS, POINTS)),
    ("in_context", "packed", ATTENTION | {"layers": 2}, (VECTORS, POINTS)),
    ("in_context", "joint", ATTENTION | {"attention": "joint", "fusion": "sum"}, (VECTORS,)),
    ("in_context", "simplex", ATTENTION | {"labels": "simplex", "readout": "matching"}, (VECTORS,)),
    ("in_context", "relation", ATTENTION | {"labels": "relation", "readout": "matching"}, (VECTORS,)),
    (
        "in_context",
        "joint_relation",
        ATTENTION | {"labels": "relation", "readout": "matching", "attention": "joint"},
        (VECTORS,),
    ),
    ("in_context", "batch_norm", ATTENTION | BATCH, (IMAGES,)),
    ("lasso", "intercept", {"alpha": 0.1, "intercept": True}, (POINTS,)),
    ("least_squares", "plain", {}, (POINTS,)),
    ("least_squares", "intercept", {"intercept": True}, (POINTS,)),
    ("maml", "mlp", INNER | MLP, (VECTORS, POINTS)),
    ("maml", "first", INNER | MLP | {"order": "first"}, (VECTORS,)),
    ("maml", "anil", INNER | MLP | {"adapted": "head"}, (VECTORS,)),
    ("maml", "boil", INNER | MLP | {"adapted": "body"}, (VECTORS,)),
    ("maml", "meta_sgd", INNER | MLP | {"rates": "parameter"}, (VECTORS,)),
    (
        "maml",
        "plus",
        INNER | MLP | {"rates": "layer", "multi_step_until": 4, "first_order_until": 2},
        (VECTORS,),
    ),
    ("maml", "proto", INNER | MLP | {"head": "prototypes"}, (VECTORS,)),
    ("maml", "minibatches", INNER | MLP | {"inner_batch": 2, "inner_sampling": "replacement"}, (VECTORS,)),
    ("maml", "non_transductive", INNER | BATCH | {"batch_norm": "non_transductive"}, (IMAGES,)),
    ("maml", "support_only", INNER | BATCH | {"batch_norm": "support_only"}, (IMAGES,)),
    ("maml", "adam_remat", INNER | MLP | ADAM | {"remat": True}, (VECTORS,)),
    ("maml", "conv", INNER | GROUP, (IMAGES,)),
    ("maml", "batch_norm", INNER | BATCH, (IMAGES,)),
    ("prototypes", "conv", GROUP, (IMAGES,)),
    ("prototypes", "cosine", MLP | {"metric": "cosine", "scale": 10.0}, (VECTORS,)),
    ("prototypes", "batch_norm", BATCH, (IMAGES,)),
    ("reptile", "carried", INNER | MLP | {"inner_batch": 2}, (VECTORS, POINTS)),
    ("reptile", "fresh", INNER | MLP | {"inner_batch": 4, "moments": "fresh"}, (VECTORS,)),
    (
        "reptile",
        "last",
        INNER | MLP | {"inner_batch": 2, "moments": "fresh", "direction": "last"},
        (VECTORS,),
    ),
    ("reptile", "whole", INNER | MLP | {"inner_batch": None}, (VECTORS,)),
    ("reptile", "batch_norm", INNER | BATCH | {"inner_batch": 4}, (IMAGES,)),
    ("scratch", "whole", {"inner_steps": 3}, (POINTS,)),
    ("scratch", "minibatches", {"inner_steps": 3, "inner_batch": 2, "inner_lr": 0.1}, (POINTS,)),
    ("supervised", "mlp", MLP, (VECTORS, POINTS)),
    ("supervised", "probe", {"encoder": "identity", "encoder_settings": {"normalize": "unit"}}, (VECTORS,)),
    ("supervised", "batch_norm", BATCH, (IMAGES,)),
]
CASES = [(kind, name, settings, spec) for kind, name, settings, specs in TABLE for spec in specs]
# Every learner has a fast case; these add combinations of settings.
SLOW = {
    "causal-identity-classify",
    "greedy_tree-whole-regress",
    "least_squares-intercept-regress",
    "scratch-minibatches-regress",
    "closed_form-cosine-classify",
    "closed_form-batch_norm-classify",
    "in_context-joint-classify",
    "reptile-carried-regress",
    "supervised-probe-classify",
    "supervised-mlp-regress",
    "causal-conv-classify",
    "geom-small-regress",
    "in_context-packed-classify",
    "in_context-simplex-classify",
    "in_context-joint_relation-classify",
    "in_context-batch_norm-classify",
    "maml-first-classify",
    "implicit_maml-mlp-regress",
    "maml-boil-classify",
    "maml-plus-classify",
    "maml-minibatches-classify",
    "maml-proto-classify",
    "maml-non_transductive-classify",
    "maml-support_only-classify",
    "reptile-last-classify",
    "maml-mlp-regress",
    "closed_form-whiten-classify",
    "maml-adam_remat-classify",
    "maml-conv-classify",
    "prototypes-conv-classify",
    "reptile-fresh-classify",
    "reptile-batch_norm-classify",
    "supervised-batch_norm-classify",
}


def case_id(kind, name, settings, spec):
    return f"{kind}-{name}-{spec.kind}"


def parameter(case):
    name = case_id(*case)
    return pytest.param(case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


SUPPORT_PADDING = (1, 4, 6)  # in the middle and at the end of 6 real items
QUERY_PADDING = (0, 3, 4)
REAL_SUPPORT = np.flatnonzero(np.insert(np.ones(6), SUPPORT_PADDING, 0))
REAL_QUERY = np.flatnonzero(np.insert(np.ones(4), QUERY_PADDING, 0))


class Case(NamedTuple):
    """One learner with its compiled functions, which count how often they are traced."""

    spec: TaskSpec
    learner: Learner
    meta: Meta
    answer: callable
    meta_grad: callable
    traces: dict


def counted(traces, name, function):
    def wrapped(*arguments):
        traces[name] = traces.get(name, 0) + 1
        return function(*arguments)

    return jax.jit(wrapped)


@pytest.fixture(scope="module", params=[parameter(case) for case in CASES])
def case(request) -> Case:
    kind, _, settings, spec = request.param
    learner = make_learner(kind, spec, **settings)
    traces = {}
    run = counted(traces, "answer", lambda meta, e, key: answer(spec, learner, meta, e, key))
    grad = counted(traces, "meta_grad", learner.meta_grad)
    return Case(spec, learner, jax.jit(learner.init)(jax.random.key(1)), run, grad, traces)


def padded_episode(case: Case, seed: int = 0, garbage: int = 0) -> Episode:
    """6 real of 9 support items, 4 real of 7 queries; the real ones depend on `seed` alone."""
    e = synthetic.episode(np.random.default_rng(seed), case.spec)
    g = np.random.default_rng(100 + garbage)
    return Episode(
        synthetic.padded(g, case.spec, e.support, SUPPORT_PADDING),
        synthetic.padded(g, case.spec, e.query, QUERY_PADDING),
    )


def answers(case: Case, episode: Episode) -> np.ndarray:
    return np.asarray(case.answer(case.meta, episode, jax.random.key(2)))


def batch_gradient(case: Case, episodes: list[Episode], meta: Meta | None = None):
    meta = case.meta if meta is None else meta
    return case.meta_grad(meta, synthetic.stacked(episodes), jax.random.key(3), jnp.int32(0))


def moved(a, b) -> float:
    return float(np.max(np.abs(a - b)))


def without_items(episode: Episode) -> Episode:
    return episode.replace(support=episode.support.replace(mask=0 * episode.support.mask))


def test_table_covers_every_learner():
    assert {kind for kind, *_ in TABLE} == set(LEARNERS)


def test_every_learner_has_a_fast_case():
    names = {case_id(*c) for c in CASES}
    assert names > SLOW
    assert {name.split("-")[0] for name in names - SLOW} == set(LEARNERS)


def test_table_shows_every_declaration_both_ways():
    learners = [make_learner(kind, spec, **settings) for kind, _, settings, spec in CASES]
    for declared in ("independent", "exchangeable", "serial", "relabelling"):
        assert {getattr(learner, declared) for learner in learners} == {True, False}, declared


def test_shape_and_dtype(case):
    outputs = answers(case, padded_episode(case))
    assert outputs.shape == (7, case.spec.num_outputs)
    assert outputs.dtype == np.float32
    assert np.all(np.isfinite(outputs))


def test_queries_are_independent_as_declared(case):
    one = padded_episode(case)
    x = one.query.x.copy()
    x[REAL_QUERY[1:]] = synthetic.items(np.random.default_rng(9), case.spec, 3)
    other = one.replace(query=one.query.replace(x=x))
    difference = moved(answers(case, one)[REAL_QUERY[0]], answers(case, other)[REAL_QUERY[0]])
    assert difference < 1e-6 if case.learner.independent else difference > 1e-4


def test_support_order_matters_as_declared(case):
    one = padded_episode(case)
    order = np.random.default_rng(8).permutation(9)
    other = one.replace(support=jax.tree.map(lambda a: a[order], one.support))
    difference = moved(answers(case, one)[REAL_QUERY], answers(case, other)[REAL_QUERY])
    assert difference < 2e-5 if case.learner.exchangeable else difference > 1e-4


def test_relabelling_as_declared(case):
    if case.spec.kind == "regress":
        assert not case.learner.relabelling
        return
    one = padded_episode(case)
    renamed = np.array([2, 0, 1], np.int32)  # class c is now called renamed[c]
    other = one.replace(support=one.support.replace(y=renamed[one.support.y]))
    difference = moved(answers(case, one)[REAL_QUERY], answers(case, other)[REAL_QUERY][:, renamed])
    assert difference < 2e-5 if case.learner.relabelling else difference > 1e-4


def test_padding_changes_nothing(case):
    plain = synthetic.episode(np.random.default_rng(0), case.spec)
    expected = answers(case, plain)
    for garbage in (0, 1):
        outputs = answers(case, padded_episode(case, garbage=garbage))
        np.testing.assert_allclose(outputs[REAL_QUERY], expected, atol=2e-5, rtol=2e-5, equal_nan=False)


def test_padding_moves_no_gradient(case):
    results = [
        batch_gradient(case, [padded_episode(case, 0, garbage), padded_episode(case, 1, garbage)])
        for garbage in (0, 1)
    ]
    synthetic.leaves_close(*results, atol=1e-6, rtol=1e-4)


def test_meta_grad_keeps_structures(case):
    grads, carry, values = batch_gradient(case, [padded_episode(case, 0), padded_episode(case, 1)])
    described = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert described(grads) == described(case.meta.params)
    assert described(carry) == described(case.meta.carry)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((grads, carry, values)))
    assert all(value.shape == () for value in values.values())
    expected = {"loss", "accuracy"} if case.spec.kind == "classify" else {"loss"}
    assert set(values) == (expected | {"failed_task", "failed_step"} if case.learner.failure else expected)


def test_gradient_moves_every_learner_that_has_parameters(case):
    grads, _, _ = batch_gradient(case, [padded_episode(case, 0), padded_episode(case, 1)])
    if jax.tree.leaves(case.meta.params):
        assert max(float(np.max(np.abs(g))) for g in jax.tree.leaves(grads)) > 1e-4


def test_serial_as_declared(case):
    """A serial learner's carry leaves a batch in another state than it entered, and depends on the order."""
    one, two = padded_episode(case, 0), padded_episode(case, 1)
    _, forward, _ = batch_gradient(case, [one, two])
    _, backward, _ = batch_gradient(case, [two, one])
    if case.learner.serial:
        assert synthetic.distance(forward, backward) > 1e-4
    else:
        synthetic.leaves_close(forward, backward, rtol=1e-5, atol=1e-6)


def test_empty_support_is_finite(case):
    empty = without_items(padded_episode(case))
    assert np.all(np.isfinite(answers(case, empty)))
    results = batch_gradient(case, [empty, without_items(padded_episode(case, 1))])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))


def test_support_without_rows_is_the_empty_support(case):
    """A support of shape S = 0 answers as one whose items are all masked."""
    e = padded_episode(case)
    nothing = e.replace(support=jax.tree.map(lambda a: a[:0], e.support))
    outputs = answers(case, nothing)
    np.testing.assert_allclose(
        outputs[REAL_QUERY], answers(case, without_items(e))[REAL_QUERY], atol=1e-5, equal_nan=False
    )


def test_one_program_for_all_episodes_shots_and_masks(case):
    traces = dict(case.traces)
    for seed in range(3):
        e = padded_episode(case, seed, garbage=seed)
        e = e.replace(support=limit_shots(e.support, jnp.int32(seed)))
        batch_gradient(case, [e, e])
        answers(case, e)
    # One trace per shape: the other tests of this learner may have made the first already.
    assert case.traces["meta_grad"] == 1
    assert case.traces["answer"] == max(traces.get("answer", 1), 1)


def test_fewer_ways_answer_only_those(case):
    if case.spec.kind == "regress":
        return
    e = padded_episode(case)
    two_ways = e.replace(support=e.support.replace(mask=e.support.mask * (e.support.y != 1)))
    outputs = answers(case, two_ways)[REAL_QUERY]
    assert np.all(np.isfinite(outputs))
    assert np.all(np.argmax(outputs, axis=1) != 1)
