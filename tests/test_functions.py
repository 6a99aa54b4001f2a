# SPDX-License-Identifier: Apache-2.0
"""Functions sampled on the device are what their papers say."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from metaicl.data.functions import sinusoids


def drawn(count=400, **settings):
    source = sinusoids(seed=3, **({"points": 10, "queries": 50} | settings))
    rows = [source.indices(i) for i in range(count)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return jax.tree.map(np.asarray, jax.jit(source.build)(source.consts, batch, jax.random.key(0))[0])


@pytest.mark.parametrize("settings", [{}, {"grid": 50, "phase": (0.0, 2 * np.pi)}], ids=["maml", "reptile"])
def test_every_episode_is_one_sine_curve(settings):
    """Amplitude and phase recovered from the support by least squares explain the queries."""
    e = drawn(**settings)
    fitted = []
    for x, y, qx, qy in zip(e.support.x, e.support.y, e.query.x, e.query.y, strict=True):
        basis = lambda x: np.stack([np.sin(x[:, 0]), np.cos(x[:, 0])], 1)
        coefficients = np.linalg.lstsq(basis(x), y[:, 0], rcond=None)[0]
        np.testing.assert_allclose(basis(qx) @ coefficients, qy[:, 0], atol=2e-3)
        fitted.append(coefficients)
    a, b = np.hypot(*np.transpose(fitted)), np.arctan2(-np.transpose(fitted)[1], np.transpose(fitted)[0])
    b = b % (2 * np.pi)
    assert 0.1 - 1e-3 < a.min() < 0.3 and 4.8 < a.max() < 5 + 1e-3
    top = 2 * np.pi if settings else np.pi
    assert b.min() < 0.1 and top - 0.1 < b.max() < top + 1e-3
    assert abs(b.mean() - top / 2) < 0.1 * top


def test_grid_is_whole_or_drawn_from():
    e = drawn(50, grid=50)
    grid = np.linspace(-5, 5, 50, dtype=np.float32)
    np.testing.assert_allclose(e.query.x[..., 0], np.tile(grid, (50, 1)), atol=1e-6)
    gaps = np.abs(e.support.x[..., 0][..., None] - grid).min(-1)
    assert gaps.max() < 1e-5
    assert any(len(np.unique(x)) < 10 for x in e.support.x[..., 0])  # with replacement


def test_points_are_uniform_without_a_grid():
    x = drawn(400).support.x
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5 and abs(x.mean()) < 0.15


def test_function_depends_on_seed_and_number_alone():
    source = sinusoids(seed=3, points=4, queries=2)
    other = sinusoids(seed=4, points=4, queries=2)
    build = jax.jit(source.build)
    take = lambda s, i: build(s.consts, {"index": np.asarray([i], np.int32)}, jax.random.key(9))[0].support.y
    together = build(source.consts, {"index": np.asarray([5, 6], np.int32)}, jax.random.key(1))[0].support.y
    np.testing.assert_array_equal(take(source, 6)[0], together[1])
    assert np.abs(take(source, 6) - take(other, 6)).max() > 0.01
    assert source.build is other.build


def test_ranges_must_rise():
    with pytest.raises(ValueError, match=r"phase is \(1, 1\)"):
        sinusoids(seed=0, points=1, queries=1, phase=(1.0, 1.0))
