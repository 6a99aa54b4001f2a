# SPDX-License-Identifier: Apache-2.0
"""The sine curves of MAML and Reptile, sampled on the device inside the jitted step."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import Episode, Examples, Source


def sinusoids(
    *,
    seed: int,
    points: int,
    queries: int,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    interval: tuple[float, float] = (-5.0, 5.0),
    grid: int = 0,
) -> Source:
    """Sine curves y = a sin(x - b), the regression of Finn et al. 2017 (section 5.1) and Nichol et al. 2018.

    Args:
      seed: function i depends on (seed, i) alone.
      points, queries: support and query points.
      amplitude, phase: ranges of a and b, uniform. MAML takes b from [0, pi], Reptile from [0, 2 pi].
      interval: range of x, uniform.
      grid: where above 0, x comes from this many evenly spaced points of the interval instead, as in Reptile's
        released demonstration: all of them for a part that asks for as many, else drawn with replacement.

    Raises:
      ValueError: for a range that does not rise.
    """
    for name, (low, high) in (("amplitude", amplitude), ("phase", phase), ("interval", interval)):
        if not low < high:
            raise ValueError(f"{name} is ({low:g}, {high:g}); the first must be below the second.")
    build = _sinusoid_build(points, queries, grid)
    ranges = {"amplitude": amplitude, "phase": phase, "interval": interval}
    consts = {name: np.asarray(value, np.float32) for name, value in ranges.items()}
    return Source(lambda i: {"index": np.asarray(i, np.int32)}, consts | {"seed": np.uint32(seed)}, build)


@functools.lru_cache
def _sinusoid_build(points: int, queries: int, grid: int):
    def one(consts, index):
        key = jax.random.fold_in(jax.random.key(consts["seed"]), index)
        keys = jax.random.split(key, 4)
        uniform = lambda k, name, shape=(): jax.random.uniform(
            k, shape, minval=consts[name][0], maxval=consts[name][1]
        )
        a, b = uniform(keys[0], "amplitude"), uniform(keys[1], "phase")
        spaced = jnp.linspace(consts["interval"][0], consts["interval"][1], max(grid, 1))

        def examples(k, count):
            if count == grid:
                x = spaced
            elif grid:
                x = jax.random.choice(k, spaced, (count,))
            else:
                x = uniform(k, "interval", (count,))
            return Examples(x[:, None], a * jnp.sin(x - b)[:, None], jnp.ones(count))

        return Episode(examples(keys[2], points), examples(keys[3], queries))

    return _from_index(one)


def _from_index(one):
    """The `build` of functions that are sampled by their number: `one(consts, index) -> Episode`."""

    def build(consts, batch, key):
        del key
        return jax.vmap(one, in_axes=(None, 0))(consts, batch["index"]), {"index": batch["index"]}

    return build
