# SPDX-License-Identifier: Apache-2.0
"""Function classes, their mixtures and inputs: moments, shares, and what defines each of them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaicl.data.functions import (
    SHIFTS,
    Curriculum,
    Inputs,
    mixture,
    mixture_variance,
    prompts,
    weight_pool,
)
from metaicl.data.functions.curriculum import taking_part
from metaicl.episode import TaskSpec, replicate
from metaicl.evaluate import evaluate
from metaicl.learners import make_learner

DENSE = {"dense": {"kind": "dense_linear"}}
ONE = {"dense": 1.0}
CLASSES = {
    "dense": {"kind": "dense_linear"},
    "sparse": {"kind": "sparse_linear", "nonzeros": 2},
    "noisy": {"kind": "noisy_linear", "noise": 1.5},
    "network": {"kind": "relu_network"},
    "tree": {"kind": "decision_tree"},
    "quadratic": {"kind": "quadratic"},
    "scaled": {"kind": "dense_linear", "scale": (0.5, 3.0)},
    "between": {"kind": "combination", "of": ("dense", "network"), "share": (0.2, 0.9)},
    "sparse_to_tree": {"kind": "combination", "of": ("sparse", "tree"), "share": (0.5, 0.5)},
}
CURVES = {
    "line": {"kind": "line", "slope": 0.3, "intercept": 0.5},
    "sine": {"kind": "sinusoid", "amplitude": (0.5, 2.0), "frequency": (0.5, 3.0)},
    "slow": {"kind": "sinusoid", "frequency": (0.01, 0.01)},
    "between": {"kind": "combination", "of": ("line", "sine"), "share": (0.0, 1.0)},
}


CHUNK = 500  # prompts drawn at once: one shape, one program


def drawn(source, numbers):
    """The prompts of these numbers and their info, as NumPy arrays."""
    build, numbers, parts = jax.jit(source.build), list(numbers), []
    for start in range(0, len(numbers), CHUNK):
        some = numbers[start : start + CHUNK]
        batch = {"index": np.asarray(some + some[-1:] * (CHUNK - len(some)), np.int32)}
        made = build(source.consts, batch, jax.random.key(start))
        parts.append(jax.tree.map(np.asarray, made))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(numbers)], *parts)


def of_class(name, classes=CLASSES, dimensions=5, **settings):
    """Prompts of one class, in the program of all of them."""
    given = {"seed": 1, "points": 8, "queries": 1} | settings
    weights = {other: float(other == name) for other in classes}
    return prompts(dimensions=dimensions, classes=classes, weights=weights, **given)


def changed(name, **settings):
    """The classes, one of them with other settings."""
    return CLASSES | {name: CLASSES[name] | settings}


def check_variance(name, classes, dimensions, inputs, **settings):
    """E[y^2] of 8,000 functions at one query each is the variance, within five standard errors; the mean is 0."""
    source = of_class(name, classes, dimensions, inputs=inputs, **settings)
    y = drawn(source, range(8000))[0].query.y[:, 0, 0].astype(np.float64)
    (component,) = mixture(classes, {name: 1.0}, dimensions, inputs)
    assert abs(np.mean(y**2) - component.variance) < 5 * np.std(y**2) / len(y) ** 0.5
    assert abs(np.mean(y)) < 5 * np.std(y) / len(y) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_mean_square_is_the_variance(name):
    check_variance(name, CLASSES, 5, Inputs())
    check_variance(name, CLASSES, 5, Inputs(scale=2.0))


@pytest.mark.parametrize("name", CURVES)
def test_variance_of_curves(name):
    check_variance(name, CURVES, 1, Inputs("uniform", (-5.0, 5.0)))


POLYNOMIALS = {name: CLASSES[name] for name in ("dense", "quadratic")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "inputs",
    [Inputs("uniform", (-1.0, 2.0)), *(Inputs(shift=shift) for shift in SHIFTS[1:])],
    ids=lambda inputs: f"{inputs.distribution}-{inputs.shift}",
)
def test_variance_on_other_inputs(inputs):
    """Second and fourth moments of the query's coordinates, whatever the shift."""
    for name in POLYNOMIALS:
        check_variance(name, POLYNOMIALS, 5, inputs, points=4)


def test_published_normalisers():
    """Table of the paper's code at d = 20: dense 20, sparse s, network 20, tree 1; quadratic and noisy 20."""
    classes = changed("sparse", nonzeros=3)
    expected = dict(dense=20, sparse=3, network=20, tree=1, quadratic=20, noisy=20)
    for name, value in expected.items():
        (component,) = mixture(classes, {name: 1.0}, 20, Inputs())
        assert component.variance == pytest.approx(value, rel=1e-6)


ROUNDING = 5e-3  # of recovered weights, where a context is almost degenerate


def weights_of(episodes):
    """The weights of linear functions, recovered from a context that determines them: `[B, d]`."""
    return np.stack(
        [
            np.linalg.lstsq(x, y[:, 0], rcond=None)[0]
            for x, y in zip(episodes.support.x, episodes.support.y, strict=True)
        ]
    )


def test_dense_functions_are_linear():
    """The weights that explain a context explain the query, and differ from prompt to prompt."""
    made, info = drawn(of_class("dense"), range(8))
    assert made.support.x.shape == (8, 8, 5) and made.query.y.shape == (8, 1, 1)
    np.testing.assert_array_equal(info["index"], np.arange(8))
    w = weights_of(made)
    np.testing.assert_allclose(np.einsum("bqd,bd->bq", made.query.x, w), made.query.y[..., 0], atol=ROUNDING)
    assert np.ptp(w, axis=0).min() > 0.1


@pytest.mark.parametrize("nonzeros", [1, 3, 5])
def test_sparse_functions_have_exactly_their_nonzeros(nonzeros):
    w = weights_of(drawn(of_class("sparse", changed("sparse", nonzeros=nonzeros)), range(500))[0])
    found = np.abs(w) > ROUNDING
    assert (np.sum(found, axis=1) <= nonzeros).all() and np.mean(np.sum(found, axis=1)) > 0.98 * nonzeros
    share = np.mean(found, axis=0)  # every coordinate takes its turn
    assert np.abs(share - nonzeros / 5).max() < 4.5 * (nonzeros / 5 * (1 - nonzeros / 5) / 500) ** 0.5 + 0.02


def test_nonzeros_lie_among_the_active_dimensions():
    classes = {"sparse": {"kind": "sparse_linear", "nonzeros": 2}}
    early = Curriculum(batch=10, every=100, dimensions=3, points=9)
    episodes, _ = drawn(of_class("sparse", classes, curriculum=early), range(500))
    assert (episodes.support.x[:, :, 3:] == 0).all() and (episodes.query.x[:, :, 3:] == 0).all()
    w = np.stack(
        [
            np.linalg.lstsq(x[:, :3], y[:, 0])[0]
            for x, y in zip(episodes.support.x, episodes.support.y, strict=True)
        ]
    )
    found = np.sum(np.abs(w) > ROUNDING, axis=1)
    assert (found <= 2).all() and found.mean() > 1.95


def test_trees_are_constant_on_orthants_and_have_sixteen_leaves():
    """Only the signs of x matter, and with many points a tree of depth 4 in 5 dimensions shows 2 to 16 values."""
    tree = {"tree": {"kind": "decision_tree"}}
    episodes, _ = drawn(of_class("tree", tree, points=200), range(40))
    counts = []
    for x, y in zip(episodes.support.x, episodes.support.y[..., 0], strict=True):
        code = (x > 0) @ 2 ** np.arange(5)
        assert all(len(np.unique(y[code == c])) == 1 for c in np.unique(code))
        counts.append(len(np.unique(y)))
    assert min(counts) >= 2 and np.mean(counts) > 6 and max(counts) <= 16


def test_a_tree_by_hand():
    """The nodes of the tree that the code draws, walked one by one."""
    from metaicl.data.functions.classes import CLASSES as KINDS

    key, x = jax.random.key(7), np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    y = KINDS["decision_tree"].values(key, jnp.asarray(x), jnp.ones(3), {"depth": 3})
    ask, leaf = jax.random.split(key)
    asked = np.asarray(jax.random.randint(ask, (7,), 0, 3))
    leaves = np.asarray(jax.random.normal(leaf, (8,)))
    for row, value in zip(x, np.asarray(y), strict=True):
        path = []
        for level in range(3):
            before = sum(bit << (level - 1 - n) for n, bit in enumerate(path))
            path.append(int(row[asked[2**level - 1 + before]] > 0))
        assert value == leaves[4 * path[0] + 2 * path[1] + path[2]]


def test_a_sinusoid_is_one_and_its_ranges_hold():
    """Amplitude, frequency and phase recovered by a scan over frequencies explain every query."""
    classes = {"sine": {"kind": "sinusoid", "amplitude": (0.5, 2.0), "frequency": (1.0, 1.5)}}
    inputs = Inputs("uniform", (-5.0, 5.0))
    episodes, _ = drawn(of_class("sine", classes, 1, points=40, inputs=inputs), range(60))
    grid = np.linspace(0.9, 1.6, 701)
    found = []
    for e in zip(episodes.support.x[..., 0], episodes.support.y[..., 0], strict=True):
        basis = lambda w, x=e[0]: np.stack([np.sin(w * x), np.cos(w * x)], 1)
        fits = [np.linalg.lstsq(basis(w), e[1], rcond=None) for w in grid]
        best = int(np.argmin([fit[1][0] for fit in fits]))
        assert fits[best][1][0] < 1e-2
        found.append((grid[best], *fits[best][0]))
    frequency, a, b = np.transpose(found)
    amplitude, phase = np.hypot(a, b), np.arctan2(b, a) % (2 * math.pi)
    assert 0.99 < frequency.min() < 1.1 and 1.4 < frequency.max() < 1.51
    assert 0.49 < amplitude.min() < 0.7 and 1.8 < amplitude.max() < 2.01
    assert phase.min() < 0.6 and phase.max() > 5.6


def test_prompt_depends_on_seed_and_number_alone():
    weights = {"sparse": 0.2, "dense": 0.5, "tree": 0.3}
    make = lambda seed: prompts(seed=seed, dimensions=5, points=8, classes=CLASSES, weights=weights)
    together, info = drawn(make(1), [5, 0, 7])
    alone, one = drawn(make(1), [7])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a[2], b[0])
    assert info["class"][2] == one["class"][0]
    assert np.abs(drawn(make(2), [7])[0].support.x - alone.support.x).max() > 0.1
    assert make(1).build is make(2).build
    assert len(np.unique(together.support.x[:, 0, 0])) == 3


def test_neighbours_are_independent():
    """Correlation of the first point and of the weights between prompt i and i + 1 is that of noise."""
    episodes, _ = drawn(of_class("dense"), range(4000))
    for column in (episodes.support.x[:, 0, 0], weights_of(episodes)[:, 0]):
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 4.5 / 4000**0.5


def test_class_is_drawn_per_prompt_with_the_weights():
    weights = {"sparse": 0.2, "dense": 0.5, "tree": 0.3}
    source = prompts(seed=1, dimensions=5, points=8, classes=CLASSES, weights=weights)
    episodes, info = drawn(source, range(6000))
    counts = np.bincount(info["class"], minlength=3)
    for count, p in zip(counts, weights.values(), strict=True):
        assert abs(count - 6000 * p) < 4.5 * (6000 * p * (1 - p)) ** 0.5
    assert all(set(info["class"][i : i + 60]) == {0, 1, 2} for i in range(0, 6000, 60))  # within a batch
    nonzeros = np.sum(np.abs(weights_of(episodes)) > ROUNDING, axis=1)
    assert (nonzeros[info["class"] == 0] <= 2).all() and (nonzeros[info["class"] == 1] > 2).all()
    components = mixture(CLASSES, weights, 5, Inputs())
    assert mixture_variance(components, weights) == pytest.approx(0.2 * 2 + 0.5 * 5 + 0.3, rel=1e-6)
    y = episodes.query.y[:, 0, 0].astype(np.float64)
    assert abs(np.mean(y**2) - 3.2) < 5 * np.std(y**2) / 6000**0.5


def test_weight_zero_is_never_drawn_and_functions_do_not_depend_on_the_weights():
    def make(weights):
        return drawn(prompts(seed=1, dimensions=5, points=8, classes=CLASSES, weights=weights), range(300))

    episodes, info = make({"sparse": 0.5, "dense": 0.5})
    only, other = make({"sparse": 0.0, "dense": 1.0})
    assert set(other["class"]) == {1}
    dense = info["class"] == 1
    np.testing.assert_array_equal(episodes.support.y[dense], only.support.y[dense])
    np.testing.assert_array_equal(episodes.support.x, only.support.x)


def test_ends_of_a_combination_are_its_classes():
    """Share 0 is f itself; share 1 is g scaled to f's variance, of which half and half has half."""
    classes = CURVES | {
        name: {"kind": "combination", "of": ("line", "sine"), "share": (share, share)}
        for name, share in (("start", 0.0), ("middle", 0.5), ("end", 1.0))
    }
    inputs = Inputs("uniform", (-5.0, 5.0))
    variance = {name: mixture(classes, {name: 1.0}, 1, inputs)[0].variance for name in classes}
    assert variance["start"] == variance["end"] == pytest.approx(variance["line"])
    assert variance["middle"] == pytest.approx(variance["line"] / 2)
    start, _ = drawn(of_class("start", classes, 1, inputs=inputs, points=12), range(50))
    for x, y in zip(start.support.x[..., 0], start.support.y[..., 0], strict=True):
        np.testing.assert_allclose(np.polyval(np.polyfit(x, y, 1), x), y, atol=1e-4)
    end, _ = drawn(of_class("end", classes, 1, inputs=inputs, points=64), range(400))
    largest = np.abs(end.support.y).max() / np.sqrt(variance["line"] / variance["sine"])
    assert 1.8 < largest <= 2.0 + 1e-4  # the amplitude of the sine curves


def of_shift(shift, count=400, **settings):
    source = of_class("dense", POLYNOMIALS, inputs=Inputs(shift=shift), **({"points": 4} | settings))
    return drawn(source, range(count))[0]


def test_orthants():
    e = of_shift("orthants")
    signs = np.sign(e.support.x)
    assert (signs == signs[:, :1]).all() and len(np.unique(signs[:, 0], axis=0)) == 2**5
    assert len(np.unique(np.sign(e.query.x[:, 0]) * signs[:, 0], axis=0)) == 2**5


def test_orthogonal_queries():
    e = of_shift("orthogonal")
    inner = np.einsum("bsd,bqd->bsq", e.support.x, e.query.x)
    assert np.abs(inner).max() < 1e-4
    lengths = np.sum(e.query.x**2, axis=-1)
    assert abs(lengths.mean() - 5) < 0.7 and lengths.std() > 1  # chi-square as ever, not all sqrt(d)


def test_repeated_point():
    e = of_shift("repeated")
    np.testing.assert_array_equal(e.query.x, e.support.x[:, :1])
    np.testing.assert_allclose(e.query.y[:, 0], e.support.y[:, 0], rtol=1e-5, atol=1e-5)


def test_subspace_has_half_the_dimensions():
    e = of_shift("subspace", points=12)
    singular = np.linalg.svd(np.concatenate([e.support.x, e.query.x], axis=1), compute_uv=False)
    assert (singular[:, 1] > 0.1).all() and (singular[:, 2] < 1e-4).all()


def test_skewed_covariance():
    """Squared deviations fall as 1, 1/4, 1/9, ... up to the factor that keeps their sum at d."""
    e = of_shift("skewed", 4, points=2000)
    expected = 1 / np.arange(1, 6) ** 2
    expected *= 5 / expected.sum()
    for x in e.support.x:
        variances = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
        np.testing.assert_allclose(variances, expected, rtol=0.17)


def test_scaled_inputs_and_values():
    plain = drawn(of_class("dense"), range(20))[0]
    small = drawn(of_class("scaled", changed("scaled", scale=(0.5, 0.5))), range(20))[0]
    np.testing.assert_allclose(small.support.y, 0.5 * plain.support.y, rtol=1e-5)
    wide = drawn(of_class("dense", inputs=Inputs(scale=3.0)), range(20))[0]
    np.testing.assert_allclose(wide.support.x, 3 * plain.support.x, rtol=1e-5)
    np.testing.assert_allclose(wide.support.y, 3 * plain.support.y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exponent", [4, 9])
def test_functions_of_a_pool_are_its_members(exponent):
    """Every function is one of the pool's, every one of these is equally likely, and so for any seed."""
    pooled = {"dense": {"kind": "dense_linear", "pool": 2**exponent, "pool_seed": 3}}
    pool = np.asarray(weight_pool(3, 2**exponent, 5))
    assert pool.shape == (2**exponent, 5) and len(np.unique(pool[:, 0])) == 2**exponent
    w = weights_of(drawn(of_class("dense", pooled), range(2000))[0])
    distance = np.linalg.norm(w[:, None] - pool[None], axis=-1)
    assert distance.min(axis=1).max() < 1e-3
    members = np.unique(distance.argmin(axis=1))
    expected = 2**exponent * (1 - (1 - 2.0**-exponent) ** 2000)
    assert abs(len(members) - expected) < 4.5 * (2**exponent * 0.02) ** 0.5 + 1
    other = weights_of(drawn(of_class("dense", pooled, seed=2), range(50))[0])
    assert np.linalg.norm(other[:, None] - pool[None], axis=-1).min(axis=1).max() < 1e-3


@pytest.mark.parametrize(
    ("step", "dimensions", "points"),
    [(0, 5, 11), (1999, 5, 11), (2000, 6, 13), (29_999, 19, 39), (30_000, 20, 41), (400_000, 20, 41)],
)
def test_published_curriculum_at_its_edges(step, dimensions, points):
    consts = dict(batch=64, every=2000, dimensions=5, points=11, more_points=2)
    for index in (64 * step, 64 * step + 63):
        active, real = taking_part(jnp.int32(index), consts, 20, 41)
        assert active.tolist() == [1] * dimensions + [0] * (20 - dimensions)
        assert real.tolist() == [1] * points + [0] * (41 - points)


def test_curriculum_of_a_source():
    curriculum = Curriculum(batch=4, every=2, dimensions=2, points=4, more_points=3)
    source = of_class("dense", DENSE, points=9, curriculum=curriculum)
    e, _ = drawn(source, [0, 7, 8, 15, 16, 23, 24, 1000])
    assert e.support.mask.sum(1).tolist() == [3, 3, 6, 6, 9, 9, 9, 9]
    assert e.query.mask.all()
    assert [(x != 0).any(0).sum() for x in e.support.x] == [2, 2, 3, 3, 4, 4, 5, 5]


def test_contexts_of_varied_length():
    e, _ = drawn(of_class("dense", DENSE, points=6, fewest=2), range(3000))
    counts = np.bincount(e.support.mask.sum(1).astype(int), minlength=7)
    assert counts[:2].tolist() == [0, 0]
    assert np.abs(counts[2:] - 600).max() < 4.5 * (3000 * 0.2 * 0.8) ** 0.5
    assert (np.diff(e.support.mask, axis=1) <= 0).all()  # the first ones are shown
    whole, _ = drawn(of_class("dense", DENSE, points=6), range(3000))
    np.testing.assert_array_equal(e.support.y, whole.support.y)


@pytest.mark.slow
def test_weights_and_seeds_are_replicas_of_one_program():
    make = lambda seed, dense: prompts(
        seed=seed, dimensions=5, points=6, classes=CLASSES, weights={"dense": dense, "tree": 1 - dense}
    )
    sources = [make(seed, dense) for seed in (0, 1) for dense in (0.0, 0.1, 1.0)]
    both = replicate(sources)
    assert both.const_axes["seed"] == 0 and both.const_axes["weights"] == 0
    rows = [both.indices(i) for i in range(CHUNK)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    stacked = jax.jit(jax.vmap(both.build, in_axes=(both.const_axes, 1, None)))(
        both.consts, batch, jax.random.key(0)
    )[0]
    for r, source in enumerate(sources):
        alone = drawn(source, range(CHUNK))[0]
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[r], b, rtol=1e-5, atol=1e-5)


def test_least_squares_has_the_known_error():
    """1 - k/d below d points and 0 from d on, through the evaluator; the penalty is too small to matter."""
    spec = TaskSpec("regress", (5,), "float32", 1)
    ridge = make_learner("closed_form", spec, method="ridge", penalty=1e-5, intercept=False)
    meta, source = ridge.init(jax.random.key(0)), of_class("dense", DENSE)
    for k in range(8):
        found = evaluate(
            spec,
            ridge,
            meta,
            source,
            range(4000),
            batch=800,
            shots=k,
        )["values"]["loss"]
        bound = 5 * found.std() / len(found) ** 0.5 + 1e-3
        assert abs(found.mean() / 5 - max(0, 1 - k / 5)) < bound


def test_orthogonal_queries_leave_least_squares_nothing():
    spec = TaskSpec("regress", (5,), "float32", 1)
    ridge = make_learner("closed_form", spec, method="ridge", penalty=1e-5, intercept=False)
    meta, source = (
        ridge.init(jax.random.key(0)),
        of_class("dense", points=4, inputs=Inputs(shift="orthogonal")),
    )
    error = evaluate(spec, ridge, meta, source, range(4000), batch=800)["values"]["loss"] / 5
    assert abs(error.mean() - 1) < 5 * error.std() / 4000**0.5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"fewest": 0}], ids=str)
def test_both_transformers_learn_on_the_same_prompts(settings):
    spec = TaskSpec("regress", (5,), "float32", 1)
    source = prompts(
        seed=0, dimensions=5, points=6, classes=CLASSES, weights={"dense": 0.5, "sparse": 0.5}, **settings
    )
    episodes, _ = drawn(source, range(8))
    small = dict(layers=1, heads=2)
    for learner in (
        make_learner("causal", spec, width=16, max_points=7, **small),
        make_learner("in_context", spec, attention="packed", image_width=8, label_width=8, mlp=16, **small),
    ):
        meta = jax.jit(learner.init)(jax.random.key(0))
        grads, _, values = jax.jit(learner.meta_grad)(meta, episodes, jax.random.key(1), 0)
        assert np.isfinite(values["loss"])
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0


BAD = [
    ({"weights": {"dense": 1.2, "tree": -0.2}}, r"weight of function class 'tree' is -0.2.*at least 0"),
    ({"weights": {"dense": 0.5, "tree": 0.4}}, r"sum to 0.9, not to 1: dense 0.5, tree 0.4"),
    ({"weights": {"dens": 1.0}}, r"no function class 'dens'; did you mean 'dense'"),
    ({"weights": {}}, "needs the weight of at least one"),
    ({"classes": {"dense": {"kind": "dense_liner"}}}, "'dense_liner'; did you mean 'dense_linear'"),
    ({"classes": {"dense": {"kind": "dense_linear", "noice": 1}}}, r"no setting 'noice'.*There are pool"),
    ({"classes": {"dense": {"kind": "sparse_linear", "nonzeros": 6}}}, "6 non-zeros in 5 dimensions; take 1"),
    ({"classes": {"dense": {"kind": "sparse_linear", "nonzeros": 0}}}, "0 non-zeros"),
    ({"classes": {"dense": {"kind": "line"}}}, "has one variable, not 5: set dimensions=1"),
    ({"classes": {"dense": {"kind": "relu_network", "hidden": 0}}}, "hidden of function class 'dense' is 0"),
    (
        {"classes": {"dense": {"kind": "noisy_linear", "noise": -1.0}}},
        "noise of function class 'dense' is -1",
    ),
    ({"classes": {"dense": {"kind": "dense_linear", "scale": (2, 1)}}}, "scale of function class 'dense'"),
    ({"classes": {"dense": {"kind": "combination", "of": ("dense",)}}}, "is of 1 function classes"),
    (
        {"classes": DENSE | {"c": {"kind": "combination", "of": ("dense", "dens")}}, "weights": {"c": 1.0}},
        "is of 'dens', which is none.*did you mean 'dense'",
    ),
    (
        {
            "classes": DENSE | {"c": {"kind": "combination", "of": ("dense", "dense"), "share": (0, 2)}},
            "weights": {"c": 1.0},
        },
        "share of the combination 'c'",
    ),
    ({"inputs": Inputs(shift="orthogonal")}, r"orthogonal to 6 points in 5 dimensions: show at most 4"),
    ({"fewest": 7}, "fewest points of a context are 7; take 0 to 6"),
    ({"queries": 0}, "0 queries"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_input_is_named(settings, message):
    given = dict(seed=0, dimensions=5, points=6, classes=CLASSES | DENSE, weights=ONE) | settings
    with pytest.raises(ValueError, match=message):
        prompts(**given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": "orthogonl"}, "shift is 'orthogonl'; there are none, orthants"),
        ({"distribution": "normal"}, "there are 'gaussian' and 'uniform'"),
        ({"distribution": "uniform", "shift": "skewed"}, "is one of Gaussian inputs"),
        ({"interval": (1.0, 1.0)}, "first must be below the second"),
        ({"scale": 0.0}, "has to be above 0"),
    ],
)
def test_bad_inputs_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Inputs(**settings)


def test_bad_phase_and_curriculum():
    with pytest.raises(ValueError, match="phase of function class 'sine' has to span whole turns"):
        of_class("sine", {"sine": {"kind": "sinusoid", "phase": (0.0, 3.0)}}, 1)
    with pytest.raises(ValueError, match=r"curriculum\.every is 0"):
        Curriculum(batch=1, every=0)
