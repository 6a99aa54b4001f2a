# SPDX-License-Identifier: Apache-2.0
"""A curriculum over dimensions and points, as a pure function of the episode's number."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """How many dimensions and points take part (Garg et al. 2022, appendix A.2; the defaults are theirs).

    Attributes:
      batch: episodes a step, so that episode i belongs to step i // batch.
      every: steps between two rises.
      dimensions: at the start; one more at every rise, up to all.
      points: pairs (x, y) at the start, one query included, so that the context has one less; `more_points` more
        at every rise, up to all.
    """

    batch: int
    every: int = 2000
    dimensions: int = 5
    points: int = 11
    more_points: int = 2

    def __post_init__(self):
        """Refuses numbers below 1."""
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"curriculum.{name} is {value}; it has to be at least 1.")


def taking_part(index, consts, dimensions: int, points: int):
    """`(active [d], real [points])`, 1 for what takes part in episode `index` and 0 for the rest.

    Args:
      index: number of the episode.
      consts: the fields of `Curriculum` as arrays.
      dimensions, points: all there are.
    """
    rises = index // consts["batch"] // consts["every"]
    active = jnp.arange(dimensions) < consts["dimensions"] + rises
    real = jnp.arange(points) < consts["points"] + consts["more_points"] * rises
    return active.astype(jnp.float32), real.astype(jnp.float32)
