# SPDX-License-Identifier: Apache-2.0
"""The in-context Transformer: its cache, its two kinds of attention, and PyTorch's layers as oracle."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from synthetic import VECTORS

from metaicl.episode import Episode, TaskSpec
from metaicl.learners import Meta, answer, make_learner
from metaicl.learners.in_context import simplex
from metaicl.models.transformer import make_transformer

SIZE = {"image_width": 12, "label_width": 4, "layers": 2, "heads": 2, "mlp": 24}
KEY = jax.random.key(0)


def enlarged(params):
    """Weights away from their initialisation, where attention is almost flat, with biases that count."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(5)
    return treedef.unflatten([2 * a + 0.1 * jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in leaves])


@pytest.fixture(scope="module")
def learners():
    """Joint and packed attention over the same parameters."""
    both = {a: make_learner("in_context", VECTORS, attention=a, **SIZE) for a in ("joint", "packed")}
    params = enlarged(jax.jit(both["joint"].init)(KEY).params)
    return both, Meta(params)


@pytest.fixture(scope="module")
def run(learners):
    """`(attention, meta, episode) -> [Q, N]`, compiled once per kind of attention."""
    compiled = {name: jax.jit(_outputs(learner)) for name, learner in learners[0].items()}
    return lambda name, meta, e: np.asarray(compiled[name](meta, e))


def _outputs(learner):
    return lambda meta, e: learner.predict(meta, learner.adapt(meta, e.support, KEY), e.query.x, e.query.mask)


@pytest.fixture(scope="module")
def episode() -> Episode:
    return synthetic.episode(np.random.default_rng(0), VECTORS, 6, 4)


def test_cached_equals_one_pass_with_a_mask(rng):
    """Context and queries in one list, the queries seeing the real context and themselves."""
    transformer = make_transformer(width=16, layers=3, heads=4, mlp=32)
    params = enlarged(jax.jit(transformer.init)(KEY))
    context, queries = (jnp.asarray(rng.normal(size=(n, 16)), jnp.float32) for n in (5, 3))

    @jax.jit
    def cached(visible):
        out, cache = transformer.context(params, context, visible[:5, :5])
        return jnp.concatenate([out, transformer.extend(params, queries, cache, visible[5, :5])])

    @jax.jit
    def one_pass(visible):
        return transformer.context(params, jnp.concatenate([context, queries]), visible)[0]

    for mask in ([1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]):
        real = np.array([*mask, 0, 0, 0], bool)
        visible = real[None, :] | np.eye(8, dtype=bool)
        np.testing.assert_allclose(cached(visible), one_pass(visible), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "remat"), [(2, True), (7, False)])
def test_the_rows_asked_for_are_those_of_the_whole(rng, x64, every, remat):
    """Values, cache and gradients, with a bias, where the last block leaves the other rows out."""
    transformer = make_transformer(width=8, layers=2, heads=2, mlp=16, dtype="float64", remat=remat)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), enlarged(transformer.init(KEY)))
    tokens, bias = jnp.asarray(rng.normal(size=(3, 7, 8))), jnp.asarray(rng.normal(size=(2, 2, 7, 7)))
    visible = jnp.tril(jnp.ones((7, 7), bool))

    def some(params):
        outputs, cache = transformer.context(params, tokens, visible, bias, every)
        return jnp.sum(outputs**3), (outputs, cache)

    def whole(params):
        outputs, cache = transformer.context(params, tokens, visible, bias)
        return jnp.sum(outputs[:, ::every] ** 3), (outputs[:, ::every], cache)

    found, expected = (jax.jit(jax.value_and_grad(f, has_aux=True))(params) for f in (some, whole))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-10)


def test_joint_and_packed_are_different_functions(run, learners, episode):
    _, meta = learners
    assert np.max(np.abs(run("joint", meta, episode) - run("packed", meta, episode))) > 1e-2


def test_joint_and_packed_agree_without_support(run, learners, episode):
    """With nothing to look at, both read the query alone."""
    _, meta = learners
    e = episode.replace(support=episode.support.replace(mask=np.zeros(6, np.float32)))
    np.testing.assert_allclose(run("joint", meta, e), run("packed", meta, e), atol=1e-5, rtol=1e-5)


class TorchEncoder:
    """GEOM's encoder out of PyTorch's own layers."""

    def __init__(self, torch, params, width, heads, mlp):
        self.blocks = []
        for i in range(2):
            p = params[f"blocks_{i}"]
            attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
            # Kernels are [in, out] here; torch has [out, in], query, key and value stacked along the first.
            load(attention.in_proj_weight, p["qkv"]["kernel"].T)
            load(attention.in_proj_bias, p["qkv"]["bias"])
            load_linear(attention.out_proj, p["out"])
            norms = [load_norm(torch.nn.LayerNorm(width, eps=1e-6), p[f"norm_{k}"]) for k in (1, 2)]
            inner = load_linear(torch.nn.Linear(width, mlp), p["mlp_in"])
            outer = load_linear(torch.nn.Linear(mlp, width), p["mlp_out"])
            self.blocks.append((attention, *norms, torch.nn.Sequential(inner, torch.nn.GELU(), outer)))
        self.norm = load_norm(torch.nn.LayerNorm(width, eps=1e-6), params["norm"])

    def __call__(self, x):
        for attention, norm_1, norm_2, feed in self.blocks:
            h = norm_1(x)
            x = x + attention(h, h, h, need_weights=False)[0]
            x = x + feed(norm_2(x))
        return self.norm(x)


def load(target, source):
    target.data.copy_(target.new_tensor(np.array(source)))


def load_linear(layer, p):
    load(layer.weight, p["kernel"].T)
    load(layer.bias, p["bias"])
    return layer


def load_norm(layer, p):
    load(layer.weight, p["scale"])
    load(layer.bias, p["bias"])
    return layer


def test_joint_equals_pytorch(run, learners, episode):
    """One sequence per query: its token with the "unknown" slot in front of the labelled support."""
    torch = pytest.importorskip("torch")
    _, meta = learners
    p = jax.tree.map(np.asarray, meta.params)
    image = lambda x: x @ p["image"]["kernel"] + p["image"]["bias"]
    labels = p["label"]["scale"] * p["label"]["table"][episode.support.y]
    support = np.concatenate([image(episode.support.x), labels], axis=1)
    unknown = np.tile(p["label"]["unknown"], (4, 1))
    query = np.concatenate([image(episode.query.x), unknown], axis=1)
    sequences = np.stack([np.concatenate([q[None], support]) for q in query])
    with torch.no_grad():
        read = TorchEncoder(torch, p["transformer"], 16, 2, 24)(torch.tensor(sequences))[:, 0].numpy()
    expected = read @ p["readout"]["kernel"]
    np.testing.assert_allclose(run("joint", meta, episode), expected, atol=1e-5, rtol=1e-5)


def test_unknown_slot_stands_for_the_missing_label(run, learners, episode):
    _, meta = learners
    label = meta.params["label"] | {"unknown": meta.params["label"]["unknown"] + 1.0}
    other = Meta(meta.params | {"label": label})
    for name in ("joint", "packed"):
        assert np.max(np.abs(run(name, meta, episode) - run(name, other, episode))) > 1e-2


def test_geom_has_the_published_number_of_parameters():
    learner = make_learner("geom", TaskSpec("classify", (2048,), "float32", 5))
    shapes = jax.eval_shape(learner.init, KEY)
    assert sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes.params)) == 283_323_649
    assert shapes.carry == ()


@pytest.mark.parametrize("labels", ["relation", pytest.param("simplex", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", ["packed", pytest.param("joint", marks=pytest.mark.slow)])
def test_matching_parameters_answer_any_number_of_ways(labels, attention, rng):
    settings = SIZE | {"labels": labels, "readout": "matching", "attention": attention, "label_width": 24}
    settings["layers"] = 1
    five, twenty = (dataclasses.replace(VECTORS, num_outputs=n) for n in (5, 20))
    trained = make_learner("in_context", five, **settings)
    meta = jax.jit(trained.init)(KEY)
    wider = make_learner("in_context", twenty, **settings)
    assert jax.eval_shape(wider.init, KEY) == jax.eval_shape(trained.init, KEY)
    e = synthetic.episode(rng, five, 10, 4)
    run = jax.jit(lambda e: answer(twenty, wider, meta, e, KEY))
    p = np.exp(run(e))  # matching answers are logarithms of the attention that a class gets
    assert p.shape == (4, 20)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(p[:, 5:], 0.0)
    if labels == "relation":  # no slot is named: the same answers with fifteen more slots
        narrow = jax.jit(lambda e: answer(five, trained, meta, e, KEY))(e)
        np.testing.assert_allclose(p[:, :5], np.exp(narrow), atol=1e-5)


@pytest.mark.parametrize("n, width", [(2, 2), (5, 5), (5, 64), (20, 24)])
def test_simplex_codes(n, width):
    codes = simplex(n, width).astype(np.float64)
    expected = np.where(np.eye(n) > 0, 1.0, -1.0 / (n - 1))
    np.testing.assert_allclose(codes @ codes.T, expected, atol=1e-6)
    assert codes.shape == (n, width)
    np.testing.assert_array_equal(simplex(n, width), simplex(n, width))


def test_relation_sees_who_belongs_together(rng, episode):
    settings = SIZE | {"labels": "relation", "readout": "matching", "layers": 1}
    learner = make_learner("in_context", VECTORS, **settings)
    meta = jax.jit(learner.init)(KEY)
    run = jax.jit(lambda meta: answer(VECTORS, learner, meta, episode, KEY))
    biased = Meta(meta.params | {"relation": jnp.asarray(rng.normal(size=(2, 1, 2)), jnp.float32)})
    assert np.max(np.abs(run(meta) - run(biased))) > 1e-3
