# SPDX-License-Identifier: Apache-2.0
"""Prompts of linear functions, drawn in NumPy, for the tests of the baselines."""

from __future__ import annotations

import jax
import numpy as np

from metaicl.episode import Episode, Examples, TaskSpec, limit_shots
from metaicl.learners import answer, make_learner

KEY = jax.random.key(0)


def spec_of(d: int) -> TaskSpec:
    return TaskSpec("regress", (d,), "float32", 1)


def linear_prompts(rng, count: int, d: int, points: int, queries: int = 1, noise=0.0, nonzeros=None):
    """`count` episodes of y = w.x + noise with w, x ~ N(0, I), all but `nonzeros` of w zeroed; and the `w`."""
    x, w = rng.normal(size=(count, points + queries, d)), rng.normal(size=(count, d))
    if nonzeros is not None:
        w = w * (rng.random((count, d)).argsort(1) < nonzeros)
    y = np.einsum("bnd,bd->bn", x, w) + noise * rng.normal(size=x.shape[:2])
    return prompts(x, y, points), w


def prompts(x, y, points: int) -> Episode:
    """Episodes from `x [B, n, d]`, `y [B, n]`: the first `points` are the support."""
    real = np.result_type(float if jax.config.jax_enable_x64 else np.float32)
    x, y = x.astype(real), y.astype(real)[..., None]
    part = lambda rows: Examples(x[:, rows], y[:, rows], np.ones(y[:, rows, 0].shape, real))
    return Episode(part(slice(points)), part(slice(points, None)))


def rows(e: Episode, b: int):
    """Support `x`, `y` of episode b in float64, for an oracle."""
    return np.asarray(e.support.x[b], np.float64), np.asarray(e.support.y[b, :, 0], np.float64)


def answers_of(kind: str, e: Episode, **settings):
    """`(shots) -> answers [B, Q]` of a learner to the queries, with as many of the examples as `shots`."""
    spec = spec_of(e.support.x.shape[-1])
    learner = make_learner(kind, spec, **settings)
    meta = learner.init(KEY)

    @jax.jit
    def run(episodes, shots):
        def one(e):
            return answer(spec, learner, meta, e.replace(support=limit_shots(e.support, shots)), KEY)[:, 0]

        return jax.vmap(one)(episodes)

    return lambda shots: np.asarray(run(e, np.int32(shots)))


def squared_errors(found, e: Episode):
    """`[B]`: squared error of answers `[B, Q]`, averaged over the queries."""
    return np.mean((found - e.query.y[..., 0]) ** 2, axis=1)


def within(values, expected: float, errors: float = 4.0) -> bool:
    """Whether the mean of independent values is `expected`, up to so many standard errors."""
    return abs(np.mean(values) - expected) < errors * np.std(values) / np.sqrt(len(values))
