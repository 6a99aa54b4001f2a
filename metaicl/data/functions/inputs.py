# SPDX-License-Identifier: Apache-2.0
"""Where the points of a prompt lie, and the published ways to move them or the query away from that."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What the paper's code does at test time (Garg et al. 2022, section 5), in its order.
SHIFTS = ("none", "orthants", "orthogonal", "repeated", "subspace", "skewed")


class Moments(NamedTuple):
    """E[x_i^2] and E[x_i^4] of one coordinate, averaged over the coordinates."""

    second: float
    fourth: float


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The distribution of the points.

    Attributes:
      distribution: `gaussian`, N(0, I), or `uniform` in `interval` (every coordinate).
      interval: of `uniform`.
      scale: multiplies every x.
      shift: `none`; `orthants`: the context in one random orthant, the query anywhere; `orthogonal`: the query in
        the complement of what the context spans, of a length as ever; `repeated`: the query is the context's first
        point (published: a random one of those shown; the first is shown in every prefix); `subspace`: all points
        in a random subspace of d // 2 dimensions; `skewed`: a random basis in which deviations fall as 1, 1/2, 1/3,
        ... The last two have E|x|^2 = d as before, and are drawn anew for every prompt.
    """

    distribution: str = "gaussian"
    interval: tuple[float, float] = (-5.0, 5.0)
    scale: float = 1.0
    shift: str = "none"

    def __post_init__(self):
        """Refuses what cannot be drawn."""
        if self.distribution not in ("gaussian", "uniform"):
            raise ValueError(
                f"inputs.distribution is {self.distribution!r}; there are 'gaussian' and 'uniform'."
            )
        if self.shift not in SHIFTS:
            raise ValueError(f"inputs.shift is {self.shift!r}; there are {', '.join(SHIFTS)}.")
        if self.shift != "none" and self.distribution != "gaussian":
            raise ValueError(f"inputs.shift {self.shift!r} is one of Gaussian inputs, not of uniform ones.")
        if not self.interval[0] < self.interval[1]:
            raise ValueError(
                f"inputs.interval is {tuple(self.interval)}; the first must be below the second."
            )
        if self.scale <= 0:
            raise ValueError(f"inputs.scale is {self.scale:g}; it has to be above 0.")

    def moments(self, dimensions: int) -> Moments:
        """Moments of a query's coordinates."""
        if self.distribution == "uniform":
            low, high = self.interval
            second = (high**3 - low**3) / (3 * (high - low))
            fourth = (high**5 - low**5) / (5 * (high - low))
        else:
            # Given the basis, x_i is N(0, v_i), v_i a mean of the variances with Dirichlet(1/2) weights.
            variances = deviations(self.shift, dimensions) ** 2
            second = float(np.mean(variances))
            spread = 2 * np.sum(variances**2) + np.sum(variances) ** 2
            fourth = float(3 * spread / (dimensions * (dimensions + 2)))
        return Moments(second * self.scale**2, fourth * self.scale**4)

    def check(self, dimensions: int, points: int) -> None:
        """Refuses a shift that such prompts cannot have."""
        if self.shift == "orthogonal" and points >= dimensions:
            raise ValueError(
                f"No query is orthogonal to {points} points in {dimensions} dimensions: show at most "
                f"{dimensions - 1} (`shots` of the test set)."
            )
        if self.shift == "subspace" and dimensions < 2:
            raise ValueError("A half-dimensional subspace needs at least 2 dimensions.")
        if self.shift == "repeated" and not points:
            raise ValueError("A query that repeats a point needs a context of at least 1.")


def deviations(shift: str, dimensions: int) -> np.ndarray:
    """Standard deviations `[d]` along the axes of the (random) basis; their squares sum to d."""
    scales = np.ones(dimensions)
    if shift == "subspace":
        scales[dimensions // 2 :] = 0.0
    if shift == "skewed":
        scales = 1.0 / np.arange(1, dimensions + 1)
    return scales * np.sqrt(dimensions / np.sum(scales**2))


def draw_points(key, distribution: str, shift: str, shape: tuple[int, int, int], consts):
    """The points of one prompt.

    Args:
      key: of the prompt.
      distribution, shift: see `Inputs`.
      shape: S points of the context, Q queries, d dimensions.
      consts: arrays `interval` `[2]` and `scale`.

    Returns:
      x `[S + Q, d]`.
    """
    points, queries, dimensions = shape
    x_key, shift_key = jax.random.split(key)
    total = (points + queries, dimensions)
    if distribution == "uniform":
        low, high = consts["interval"]
        return consts["scale"] * (low + (high - low) * jax.random.uniform(x_key, total))
    x = jax.random.normal(x_key, total)
    return consts["scale"] * _shifted(shift, shift_key, x, points)


def _shifted(shift, key, x, points):
    dimensions = x.shape[1]
    if shift == "orthants":
        signs = jax.random.rademacher(key, (dimensions,), x.dtype)
        return x.at[:points].set(jnp.abs(x[:points]) * signs[None, :])
    if shift == "orthogonal":
        basis, _ = jnp.linalg.qr(x[:points].T)  # [d, S], columns orthonormal
        query = x[points:]
        outside = lambda rows: rows - (rows @ basis) @ basis.T
        rest = outside(outside(query))  # twice: little may be left the first time, and be mostly rounding
        length = lambda rows: jnp.linalg.norm(rows, axis=1, keepdims=True)
        return x.at[points:].set(rest * (length(query) / length(rest)))
    if shift == "repeated":
        return x.at[points:].set(x[:1])
    if shift in ("subspace", "skewed"):
        basis, _ = jnp.linalg.qr(jax.random.normal(key, (dimensions, dimensions)))
        scales = jnp.asarray(deviations(shift, dimensions), x.dtype)
        return ((x @ basis) * scales[None, :]) @ basis.T
    return x
