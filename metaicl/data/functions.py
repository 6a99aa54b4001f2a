# SPDX-License-Identifier: Apache-2.0
"""Function classes, sampled on the device inside the jitted step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import Episode, Examples, Source


def linear_functions(
    *, seed: int, dimensions: int, points: int, queries: int = 1, noise: float = 0.0
) -> Source:
    """Dense linear functions (Garg et al. 2022): w, x ~ N(0, I_d), y = w.x + noise.

    Args:
      seed: function i depends on (seed, i) alone.
      dimensions: d.
      points: support points.
      queries: query points.
      noise: standard deviation of the noise on support and query.
    """
    build = _linear_build(dimensions, points, queries)
    consts = {"seed": np.uint32(seed), "noise": np.float32(noise)}
    return Source(lambda i: {"index": np.asarray(i, np.int32)}, consts, build)


@functools.lru_cache
def _linear_build(dimensions: int, points: int, queries: int):
    total = points + queries

    def one(consts, index):
        key = jax.random.fold_in(jax.random.key(consts["seed"]), index)
        w_key, x_key, noise_key = jax.random.split(key, 3)
        w = jax.random.normal(w_key, (dimensions,))
        x = jax.random.normal(x_key, (total, dimensions))
        y = x @ w + consts["noise"] * jax.random.normal(noise_key, (total,))
        both = Examples(x, y[:, None], jnp.ones(total))
        part = lambda rows: jax.tree.map(lambda a: a[rows], both)
        return Episode(part(slice(points)), part(slice(points, total)))

    def build(consts, batch, key):
        del key
        return jax.vmap(one, in_axes=(None, 0))(consts, batch["index"]), {"index": batch["index"]}

    return build
