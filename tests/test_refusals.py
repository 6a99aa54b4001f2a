# SPDX-License-Identifier: Apache-2.0
"""What learners refuse, and what they say of it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import synthetic
from synthetic import ATTENTION, BATCH, IMAGES, MLP, POINTS, SEQUENCE, VECTORS

from metaicl.learners import make_learner

REFUSED = [
    ("prototypes", POINTS, {}, "class means"),
    ("prototypes", VECTORS, {"metric": "manhattan"}, "metric is 'manhattan'"),
    ("prototypes", VECTORS, {"encoder": "conv"}, "needs images"),
    ("closed_form", POINTS, {"method": "centroid"}, "needs classes"),
    ("closed_form", POINTS, {"method": "logistic"}, "needs classes"),
    ("closed_form", POINTS, {"method": "ridge", "whiten": True}, "whiten=True needs classes"),
    ("closed_form", VECTORS, {"method": "lasso"}, "Unknown method 'lasso'"),
    ("closed_form", VECTORS, {"metric": "manhattan"}, "metric is 'manhattan'"),
    ("in_context", POINTS, ATTENTION | {"readout": "matching"}, "Regression has no classes"),
    ("in_context", POINTS, ATTENTION | {"labels": "simplex"}, "Regression has no classes"),
    ("in_context", POINTS, ATTENTION | {"labels": "relation", "readout": "matching"}, "Regression"),
    ("in_context", VECTORS, ATTENTION | {"labels": "relation"}, "readout='matching'"),
    ("in_context", VECTORS, ATTENTION | {"labels": "simplex", "label_width": 2}, "does not fit 2"),
    ("in_context", VECTORS, ATTENTION | {"fusion": "sum", "label_width": 4}, "equal widths"),
    ("in_context", VECTORS, ATTENTION | {"attention": "linear"}, "attention is 'linear'"),
    ("in_context", VECTORS, ATTENTION | {"fusion": "product"}, "fusion is 'product'"),
    ("in_context", VECTORS, ATTENTION | {"heads": 3}, "not divisible by 3"),
    ("geom", POINTS, {"readout": "matching"}, "Regression has no classes"),
    ("causal", IMAGES, SEQUENCE | BATCH, "encodes every item alone"),
    ("causal", VECTORS, SEQUENCE | {"heads": 3}, "not divisible by 3"),
    ("maml", VECTORS, {"order": "third"}, "Inner order is 'third'"),
    ("maml", VECTORS, {"rates": "learned"}, "Inner rates is 'learned'"),
    ("maml", VECTORS, {"inner_batch": 2, "inner_sampling": "random"}, "Inner sampling is 'random'"),
    ("maml", VECTORS, {"batch_norm": "running"}, "batch_norm is 'running'"),
    ("maml", VECTORS, {"head": "means"}, "head is 'means'"),
    ("maml", POINTS, {"head": "prototypes"}, "class means"),
    ("maml", VECTORS, {"inner_steps": -1}, "0 or more"),
    ("maml", VECTORS, {"inner_optimizer": "adam"}, "eps_root"),
    ("maml", VECTORS, {"inner_optimizer": "lion"}, "Unknown inner optimizer 'lion'"),
    ("maml", VECTORS, {"encoder": "vit"}, "Unknown encoder 'vit'"),
    ("maml", VECTORS, {"encoder": "mlp", "encoder_settings": {"depth": 3}}, "depth"),
    ("maml", VECTORS, {"encoder": "mlp", "encoder_settings": {"hidden": ()}}, "needs a hidden layer"),
    ("maml", IMAGES, {"encoder": "conv", "encoder_settings": {"norm": "layer"}}, "norm is 'layer'"),
    ("reptile", VECTORS, {"moments": "kept"}, "moments is 'kept'"),
    ("reptile", VECTORS, {"direction": "first"}, "direction is 'first'"),
    ("reptile", VECTORS, {"tail": "own"}, "tail is 'own'"),
    ("reptile", VECTORS, {"tail": "separate", "inner_batch": None}, "give inner_batch"),
    ("supervised", VECTORS, {"encoder": "conv"}, "needs images"),
]


@pytest.mark.parametrize("kind, spec, settings, message", REFUSED)
def test_constructors_refuse(kind, spec, settings, message):
    with pytest.raises(ValueError, match=message):
        make_learner(kind, spec, **settings)


@pytest.mark.parametrize("adapted", ["tail", "head+tail", "encoder/layer_7", "adapters"])
def test_a_subtree_that_matches_nothing_lists_the_paths(adapted):
    learner = make_learner("maml", VECTORS, adapted=adapted, **MLP)
    with pytest.raises(
        ValueError, match=r"matches nothing.*encoder/layer_0/bias, encoder/layer_0/kernel, head/bias"
    ):
        learner.init(jax.random.key(0))


def test_an_inner_batch_larger_than_the_support_is_refused():
    learner = make_learner("reptile", VECTORS, inner_batch=7, **MLP)
    support = synthetic.examples(np.random.default_rng(0), VECTORS, 6)
    with pytest.raises(ValueError, match="inner batch of 7 is larger than the support of 6"):
        learner.adapt(learner.init(jax.random.key(0)), support, jax.random.key(0))


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("mamml", {}, "did you mean 'maml'"),
        ("maml", {"inner_step": 3}, "did you mean 'inner_steps'"),
        ("prototypes", {"penalty": 3}, "has no setting 'penalty'"),
    ],
)
def test_unknown_names_name_the_nearest(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        make_learner(kind, VECTORS, **settings)


def test_task_spec_refuses():
    with pytest.raises(ValueError, match="classify"):
        dataclasses.replace(VECTORS, kind="rank")
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(VECTORS, num_outputs=0)
