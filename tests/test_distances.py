# SPDX-License-Identifier: Apache-2.0
"""Distances between data sets against dense linear algebra, POT and what must hold of any distance."""

import dataclasses
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real

from metaicl import distances
from metaicl.data.meta_album import read_album
from metaicl.data.pool import Pool
from metaicl.distances import (
    NotConverged,
    Settings,
    labels,
    matrix,
    otdd,
    pairs,
    pairwise,
    reference,
    transport,
)
from metaicl.features import cache
from metaicl.files import DamagedFile
from metaicl.models import squeezenet

WIDTH = 6
TIGHT = dict(threshold=1e-9, max_iterations=100_000)


def pool(seed: int, counts=(9, 5, 7), name: str = "", shift: float = 0.0, width: int = WIDTH) -> Pool:
    """Classes that are Gaussian clouds of their own places and shapes."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.normal(size=width) + rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / 2
        for n in counts
    ]
    x = np.concatenate(parts) + shift
    name = name or f"pool{seed}"
    digests = np.array([f"{name}{i}" for i in range(len(x))], "S64")
    classes = tuple(f"c{k}" for k in range(len(counts)))
    return Pool(name, "d", classes, np.repeat(np.arange(len(counts), dtype=np.int32), counts), x, digests)


def classes_of(pool: Pool) -> list[np.ndarray]:
    return [pool.x[pool.labels == c] for c in range(len(pool.classes))]


def dense_gaussian(x: np.ndarray, y: np.ndarray, ddof: int = 0) -> float:
    """Squared 2-Wasserstein distance of the Gaussians of two classes, by matrix square roots."""
    a, b = (np.atleast_2d(np.cov(z.T, ddof=ddof)) for z in (x, y))
    root = dense_root(a)
    cross = np.trace(dense_root(root @ b @ root))
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * cross)


def dense_root(a: np.ndarray) -> np.ndarray:
    """The square root of a covariance; eigenvalues that are rounding errors are 0, or their roots would be 1e-8."""
    values, vectors = np.linalg.eigh((a + a.T) / 2)
    values = np.where(values > 1e-13 * values.max(), values, 0.0)
    return (vectors * np.sqrt(values)) @ vectors.T


def powers(x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1)) ** p


def pot_cost(cost: np.ndarray, epsilon: float) -> float:
    """`<P, C> + epsilon KL(P | ab)` at POT's optimal plan of uniform weights."""
    ot = pytest.importorskip("ot")
    a, b = (np.full(n, 1 / n) for n in cost.shape)
    plan = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-9)
    ratio = np.where(plan > 0, plan / (a[:, None] * b[None, :]), 1)
    return float(np.sum(plan * cost) + epsilon * np.sum(plan * np.log(ratio)))


def pot_divergence(between: np.ndarray, within_a: np.ndarray, within_b: np.ndarray, epsilon: float) -> float:
    return pot_cost(between, epsilon) - (pot_cost(within_a, epsilon) + pot_cost(within_b, epsilon)) / 2


def dense_cost(a: Pool, b: Pool, settings: Settings) -> np.ndarray:
    """The ground cost between two sets, from the definitions."""
    p, inner = settings.p, settings.inner

    def w(x, y):
        if inner == "exact":
            parts = (powers(x, y, p), powers(x, x, p), powers(y, y, p))
            return pot_divergence(*parts, settings.inner_regularisation)
        if inner == "gaussian":
            return max(dense_gaussian(x, y, int(settings.unbiased_covariance)), 0) ** (p / 2)
        spread = np.sum((x.std(0) - y.std(0)) ** 2) if inner == "diagonal" else 0.0
        return (np.sum((x.mean(0) - y.mean(0)) ** 2) + spread) ** (p / 2)

    table = np.array([[w(x, y) if x is not y else 0.0 for y in classes_of(b)] for x in classes_of(a)])
    if a is b:
        np.fill_diagonal(table, 0.0)
    between = table[a.labels][:, b.labels]
    return settings.factor * (settings.feature_weight * powers(a.x, b.x, p) + settings.label_weight * between)


@pytest.mark.parametrize("counts", [(4, 2, 3), (9, 5, 7), (30, 2, 8)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_the_gaussian_term_equals_dense_square_roots(x64, counts, unbiased):
    classes = classes_of(pool(0, counts)) + classes_of(pool(1, (3, 12)))
    settings = Settings(unbiased_covariance=unbiased)
    found = labels.label_distances(classes, settings, lambda done, total: None).cost
    for i, x in enumerate(classes):
        for j, y in enumerate(classes):
            expected = dense_gaussian(x, y, int(unbiased)) if i != j else 0.0
            assert abs(found[i, j] - expected) < 1e-8 * max(1.0, expected), (i, j)


def test_the_gaussian_term_in_single_precision_and_over_several_tiles(monkeypatch):
    classes = classes_of(pool(0, (9, 5, 7, 4, 12))) + classes_of(pool(1, (9, 2)))
    whole = labels.label_distances(classes, Settings(), lambda done, total: None).cost
    monkeypatch.setattr(labels, "_TILE", 2)
    ticks = []
    tiled = labels.label_distances(classes, Settings(), lambda *t: ticks.append(t)).cost
    assert np.allclose(tiled, whole, rtol=1e-5, atol=1e-5) and ticks[-1] == (10, 10)
    expected = [[dense_gaussian(x, y) if x is not y else 0.0 for x in classes] for y in classes]
    assert np.allclose(whole, expected, rtol=1e-4, atol=1e-4)


FIXED = dict(relative=False, threshold=1e-8)
CASES = [
    Settings(regularisation=10.0, **FIXED),
    Settings(p=1, regularisation=2.0, **FIXED),
    Settings(inner="diagonal", regularisation=10.0, feature_weight=0.5, label_weight=2.0, **FIXED),
    Settings(inner="means", p=1, regularisation=2.0, **FIXED),
    Settings(inner="exact", regularisation=10.0, inner_regularisation=8.0, **FIXED),
    Settings(inner="exact", p=1, regularisation=2.0, inner_regularisation=1.5, **FIXED),
    reference(regularisation=5.0, threshold=1e-8),
]


@pytest.mark.parametrize("settings", CASES, ids=lambda s: f"{s.inner}-{s.p}-{s.regularisation:g}")
def test_the_divergence_equals_that_of_pot(x64, settings):
    a, b = pool(0), pool(1, (6, 8))
    parts = [dense_cost(x, y, settings) for x, y in ((a, b), (a, a), (b, b))]
    expected = pot_divergence(*parts, settings.regularisation)
    found = otdd(a, b, settings)
    assert found.converged and found.error < settings.threshold
    assert abs(found.value - expected) < 1e-5 * expected


@pytest.mark.parametrize("p", [1, 2])
def test_relative_regularisation_is_a_part_of_the_mean_cost(x64, p):
    pools = [pool(0), pool(1, (4, 30)), pool(2)]
    settings = Settings(p=p, halved=p == 2, feature_weight=0.7, label_weight=1.3, regularisation=0.1)
    found = pairwise(pools, settings)
    epsilon = 0.1 * np.mean(
        [dense_cost(pools[i], pools[j], settings).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    assert np.allclose(found.epsilons, epsilon, rtol=1e-8)
    same = pairwise(pools, dataclasses.replace(settings, regularisation=epsilon, relative=False))
    assert np.allclose(same.values, found.values, rtol=1e-8)


def test_it_tends_to_the_exact_linear_programme(x64):
    ot = pytest.importorskip("ot")
    a, b = pool(0), pool(1)
    exact = ot.emd2(np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), dense_cost(a, b, Settings()))
    errors = [
        abs(otdd(a, b, Settings(regularisation=r, threshold=1e-5, max_iterations=50_000)).value / exact - 1)
        for r in (0.1, 0.02, 0.002)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


@pytest.mark.parametrize("debiased", [True, False])
def test_a_kernel_that_underflows_is_solved_in_log_space(debiased):
    ot = pytest.importorskip("ot")
    a, b = pool(0), pool(1)
    cost = dense_cost(a, b, Settings())
    settings = Settings(regularisation=2e-4, threshold=1e-2, max_iterations=20_000, debiased=debiased)
    found = otdd(a, b, settings)
    exact = ot.emd2(np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), cost)
    assert found.converged and abs(found.value / exact - 1) < 1e-2


def given_cost(cost, pair, p):
    weights = jnp.full(len(cost), 1 / len(cost))
    return cost, weights, weights


def test_what_the_kernel_underflows_to_nothing_is_not_forbidden():
    """A quarter has to go from the first two rows to the last two columns: at 0.55, or by two steps of 0.3 each."""
    cost = jnp.array([[0, 0.3, 0.55, 0.55], [0, 0.3, 0.55, 0.55], [1, 0, 0.3, 0.3], [1, 1, 0, 0]])
    settings = dict(p=2, same=False, epsilon=0.005, threshold=1e-3, max_iterations=5000, at_once=1)
    found = transport.solve(given_cost, cost, np.array([[0, 0]]), **settings)
    assert jnp.exp(-0.55 / 0.005) == 0 and found.converged[0]
    assert abs(found.value[0] - 0.55 / 4) < 0.01  # and not 0.6 / 4


@pytest.mark.parametrize("inner", ["gaussian", "diagonal", "means", "exact"])
def test_a_set_is_at_distance_zero_from_itself(inner):
    a = pool(0)
    scale = otdd(a, pool(1), Settings(inner=inner)).value
    twin = dataclasses.replace(a, name="twin")
    assert abs(otdd(a, twin, Settings(inner=inner)).value) < 1e-5 * scale
    biased = Settings(inner=inner, debiased=False)
    assert otdd(a, twin, biased).value > 0.01 * scale  # what debiasing is for


def test_distances_are_symmetric(x64):
    pools = [pool(0), pool(1, (80, 4)), pool(2, (3, 3))]
    found = pairwise(pools)
    turned = pairwise(pools[::-1])
    assert np.array_equal(found.values, found.values.T) and np.array_equal(np.diag(found.values), np.zeros(3))
    tight = Settings(**TIGHT)
    assert abs(otdd(pools[0], pools[1], tight).value / otdd(pools[1], pools[0], tight).value - 1) < 1e-7
    assert np.allclose(turned.values[::-1, ::-1], found.values, rtol=1e-3)
    assert turned.names == found.names[::-1] and found.domains == ("d",) * 3


@pytest.mark.parametrize("samples", [1000, 12])
@pytest.mark.parametrize("inner", ["gaussian", "exact"])
def test_order_of_items_and_numbers_of_classes_do_not_matter(x64, samples, inner):
    a, b = pool(0), pool(1)
    settings = Settings(inner=inner, samples=samples)
    rng = np.random.default_rng(3)
    rank = np.array([2, 0, 1])  # class c becomes class rank[c]
    order = np.lexsort((rng.random(len(a)), rank[a.labels]))
    other = Pool("other", "d", tuple(a.classes[c] for c in np.argsort(rank)), rank[a.labels][order].astype(np.int32),
                 a.x[order], a.digests[order])  # fmt: skip
    assert abs(otdd(other, b, settings).value / otdd(a, b, settings).value - 1) < 1e-9


def test_a_shift_adds_its_square(x64):
    """The plan's mean displacement is that of the sets, whatever the plan, so that a shift can be split off."""
    a, squares = pool(0), []
    for shift in (0.0, 0.5, 1.0, 2.0):
        moved = dataclasses.replace(pool(0, shift=shift), name="moved")
        found = otdd(a, moved, Settings(label_weight=0.5, regularisation=0.3, **TIGHT))
        squares.append(found.value)
        assert abs(found.value - 1.5 * WIDTH * shift**2) < 1e-6
    for inner in ("diagonal", "means", "exact"):
        grown = [otdd(a, dataclasses.replace(pool(0, shift=s), name="m"), Settings(inner=inner, p=1)).value
                 for s in (0.5, 1.0, 2.0, 4.0)]  # fmt: skip
        assert np.all(np.diff(grown) > 0)


def test_factors_and_roots(x64):
    a, b = pool(0), pool(1)
    plain = Settings(**TIGHT)
    value = otdd(a, b, plain).value
    assert abs(otdd(a, b, dataclasses.replace(plain, halved=True)).value - value / 2) < 1e-8
    assert abs(otdd(a, b, dataclasses.replace(plain, root=True)).value - np.sqrt(value)) < 1e-8
    doubled = dataclasses.replace(plain, feature_weight=2.0, label_weight=2.0)
    assert abs(otdd(a, b, doubled).value - 2 * value) < 1e-8


@pytest.mark.slow
def test_sets_of_many_sizes_in_one_matrix_are_as_they_are_alone(x64):
    pools = [pool(0, (70, 90)), pool(1, (3, 4)), pool(2, (2, 66)), pool(3, (5, 5, 5))]
    settings = Settings(regularisation=10.0, **FIXED)
    found = pairwise(pools, settings)
    for i, j in ((0, 1), (1, 2), (1, 3)):
        assert abs(found.values[i, j] - otdd(pools[i], pools[j], settings).value) < 1e-8
    assert found.converged.all() and found.iterations.min() >= 10 and found.errors.max() < 1e-8


def test_draws_are_in_proportion_and_give_intervals():
    a, b = pool(0, (60, 20, 40)), pool(1)
    rows = matrix.subsample(a, 60, seed=0)
    assert np.all(np.diff(rows) > 0) and np.bincount(a.labels[rows]).tolist() == [30, 10, 20]
    assert not np.array_equal(rows, matrix.subsample(a, 60, seed=1))
    found = pairwise([a, b, pool(2)], Settings(samples=60, seeds=4))
    assert found.each.shape == (4, 3, 3) and np.ptp(found.each[:, 0, 1]) > 0
    spread = found.each[:, 0, 1].std(ddof=1)
    assert found.ci95[0, 1] == pytest.approx(3.182 * spread / 2, rel=1e-3)
    alone = otdd(b, pool(2), Settings(samples=60, seeds=4))
    assert alone.ci95 == 0 and len(alone.each) == 4  # 21 items: every draw is the whole set
    assert np.isnan(otdd(b, pool(2), Settings()).ci95)


def test_finished_matrices_are_kept_by_content(tmp_path, monkeypatch):
    pools = [pool(0), pool(1)]
    seen = []
    first = pairwise(pools, cache_dir=tmp_path, progress=lambda *told: seen.append(told))
    assert seen[-1] == ("data sets", 3, 3) and ("classes", 1, 1) in seen
    compute = pairs._computed
    monkeypatch.setattr(pairs, "_computed", lambda *_: pytest.fail("computed again"))
    again = pairwise([dataclasses.replace(pools[0], name="renamed"), pools[1]], cache_dir=tmp_path)
    assert np.array_equal(again.values, first.values) and again.names == ("renamed", "pool1")
    monkeypatch.setattr(pairs, "_computed", compute)
    x = pools[0].x.copy()
    x[3, 2] += 1
    changed = pairwise([dataclasses.replace(pools[0], x=x), pools[1]], cache_dir=tmp_path)
    other = pairwise(pools, Settings(p=1), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert len({d.values[0, 1] for d in (first, changed, other)}) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(DamagedFile):
        assert np.array_equal(pairwise(pools, cache_dir=tmp_path).values, first.values)


def test_a_solver_that_does_not_converge_is_reported():
    a, b = pool(0), pool(1)
    settings = Settings(regularisation=1e-3, threshold=1e-5, max_iterations=10)
    with pytest.warns(
        NotConverged, match=r"in 10 iterations: \d between sets. The worst, pool\d to pool\d, has"
    ):
        found = otdd(a, b, settings)
    assert not found.converged and found.error > 1e-5
    inner = dataclasses.replace(settings, inner="exact", inner_regularisation=1e-3)
    with pytest.warns(NotConverged) as said:
        assert otdd(a, b, inner).error > 1e-5
    assert any("between classes. The worst" in str(w.message) for w in said)


def broken(pool: Pool, **changes) -> Pool:
    return dataclasses.replace(pool, name="bad", **changes)


def test_pools_that_do_not_fit_are_refused():
    a = pool(0)
    with pytest.raises(ValueError, match=r"bad: class 'c1' has one item.*drop_small_classes"):
        otdd(a, dataclasses.replace(pool(1, (4, 1, 3)), name="bad"))
    x = a.x.copy()
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="bad: row 7 has features that are not finite"):
        otdd(a, broken(a, x=x))
    with pytest.raises(ValueError, match=r"wide has 7 features and pool0 has 6.*one backbone"):
        otdd(a, pool(1, width=7, name="wide"))
    with pytest.raises(ValueError, match=re.escape("bad holds uint8 (21, 4, 4, 3)") + ".*Embed images"):
        otdd(a, broken(a, x=np.zeros((21, 4, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match="1 pools have no distance"):
        pairwise([a])
    flat = broken(a, x=np.ones_like(a.x))
    with pytest.raises(ValueError, match="relative regularisation has no scale"):
        otdd(flat, flat)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(inner="gauss"), "inner is 'gauss'; there are gaussian, diagonal"),
        (dict(p=3), "p is 3"),
        (dict(feature_weight=-1.0), "must not be negative"),
        (dict(feature_weight=0.0, label_weight=0.0), "nor both zero"),
        (dict(regularisation=0.0), "regularisation is 0.0; it must be positive"),
        (dict(halved=True, p=1), "halved is for p=2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


def test_the_public_names():
    assert all(getattr(distances, name) is not None for name in distances.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distance'"):
        distances.distance  # noqa: B018


@pytest.mark.slow
@needs_real
def test_two_halves_of_a_set_are_nearer_to_each_other_than_to_any_other_set(tmp_path):
    params = squeezenet.load_squeezenet(REAL_DATA / "weights" / "squeezenet_imagenet.safetensors")
    album = read_album(REAL_DATA / "album", image_size=128)
    kept = os.environ.get("METAICL_CACHE")
    folder = os.path.join(kept, "features") if kept else tmp_path
    settings = dict(cache_dir=folder, backbone_name="squeezenet")
    embedded = cache.embed_pools(album, squeezenet.squeezenet(), params, **settings)
    halves = [
        half
        for p in embedded
        for half in (p.select(np.arange(0, len(p), 2)), p.select(np.arange(1, len(p), 2)))
    ]
    found = pairwise(halves, Settings(samples=400)).values
    for k in range(0, len(halves), 2):
        others = np.delete(found, [k, k + 1], axis=1)
        assert found[k, k + 1] < others[[k, k + 1]].min(), halves[k].name
