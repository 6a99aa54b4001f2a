# SPDX-License-Identifier: Apache-2.0
"""Entropic optimal transport of many problems of one shape, by ott."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry.epsilon_scheduler import Epsilon
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.acceleration import Momentum
from ott.solvers.linear.sinkhorn import Sinkhorn

_CHECK_EVERY = 10  # iterations
_START, _DECAY = 1024.0, 0.9  # in log space the regularisation falls from this many times its value

Problem = tuple[jax.Array, jax.Array, jax.Array]
MakeProblem = Callable[[Any, jax.Array, int], Problem]
"""`(consts, int32 [2] pair, p) -> cost [n, m], weights [n], weights [m]`; zero weights are padding."""


class Solution(NamedTuple):
    """Of N problems, each an array `[N]`.

    Attributes:
      value: `<P, C> + epsilon KL(P | a b)` at the optimal plan P, in units of the cost.
      error: sum of absolute deviations of the plan's marginals, of total mass 1.
      iterations: until then.
      converged: whether `error` is below the threshold and all is finite.
    """

    value: np.ndarray
    error: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray


class Way(NamedTuple):
    """How a problem is solved: for every value there is one compiled program.

    Attributes:
      max_iterations: at most.
      stable: all in log space, where the regularisation falls slowly; else by products with the kernel, several times
        faster, which fails where the kernel underflows.
      own: both sides are the same set, so the problem is symmetric.
    """

    max_iterations: int
    stable: bool = False
    own: bool = False


@jax.tree_util.register_pytree_node_class
class _Kernel(Geometry):
    """A geometry whose kernel is formed once; ott's own raises it to a power at every product."""

    def apply_kernel(self, vec, eps=None, axis=0):
        """The product of the kernel, or of its transpose for axis 0, with a vector."""
        return self._kernel_matrix @ vec if axis == 1 else vec @ self._kernel_matrix


def _transport(cost, a, b, epsilon, threshold, way: Way) -> tuple[jax.Array, ...]:
    """One problem: value, error, iterations, converged."""
    f, g = _shift(cost, a, b, way.own)
    present = (a[:, None] > 0) & (b[None, :] > 0)
    reduced = jnp.where(present, cost - f[:, None] - g[None, :], 0.0)
    solver = Sinkhorn(
        lse_mode=way.stable,
        threshold=threshold,
        inner_iterations=_CHECK_EVERY,
        max_iterations=way.max_iterations,
        # The average of two steps converges fast from a set to itself, where taking turns hardly moves.
        parallel_dual_updates=way.own,
        momentum=Momentum(value=0.5) if way.own else None,  # type: ignore[call-arg]
        use_danskin=False,
    )
    if way.stable:
        geometry = Geometry(reduced, epsilon=Epsilon(epsilon, init=_START, decay=_DECAY))
    else:
        kernel = jnp.where(present, jnp.exp(-reduced / epsilon), 0.0)
        geometry = _Kernel(kernel_matrix=kernel, epsilon=epsilon)
    with jax.numpy_rank_promotion("allow"):  # which ott relies on
        found: Any = solver(LinearProblem(geometry, a=a, b=b))
    value = found.reg_ot_cost + jnp.sum(a * f) + jnp.sum(b * g)
    done = jnp.sum(found.errors != -1)
    error = found.errors[jnp.maximum(done - 1, 0)]
    ok = jnp.isfinite(value) & jnp.isfinite(error) & (error < threshold)
    if not way.stable:
        # What underflowed in the kernel was forbidden; it is not missed if the plan has no mass there.
        plan = jnp.exp((found.f[:, None] + found.g[None, :] - reduced) / epsilon)
        mass = jnp.sum(jnp.where(present, plan, 0.0))
        ok &= jnp.abs(mass - 1) < threshold + 1e4 * jnp.finfo(cost.dtype).eps
    return value, error, done * _CHECK_EVERY, ok


def _shift(cost, a, b, own: bool) -> tuple[jax.Array, jax.Array]:
    """`f [n]` and `g [m]`, 0 for padding, so that `cost - f - g` is an equivalent cost that is 0 or near it somewhere
    in every row and column: no row of the kernel vanishes at the start.
    """
    rows = jnp.where(a > 0, jnp.min(cost, axis=1, where=b[None, :] > 0, initial=jnp.inf), 0.0)
    if own:  # must stay symmetric
        return rows / 2, rows / 2
    left = jnp.min(cost - rows[:, None], axis=0, where=a[:, None] > 0, initial=jnp.inf)
    return rows, jnp.where(b > 0, left, 0.0)


@functools.partial(jax.jit, static_argnames=("problem", "p", "way"))
def _solve(problem: MakeProblem, consts, pairs, epsilon, threshold, *, p, way: Way):
    def one(pair):
        return _transport(*problem(consts, pair, p), epsilon, threshold, way)

    # Side by side only where several are asked for: a loop over one would turn products into slower, batched ones.
    return jax.lax.map(one, pairs, batch_size=len(pairs) if len(pairs) > 1 else None)


@functools.partial(jax.jit, static_argnames=("problem", "p"))
def _mean_cost(problem: MakeProblem, consts, pairs, *, p):
    def one(pair):
        cost, a, b = problem(consts, pair, p)
        return a @ cost @ b

    return jax.lax.map(one, pairs)


def mean_cost(problem: MakeProblem, consts: Any, pairs: np.ndarray, p: int) -> np.ndarray:
    """The mean cost of every problem, `float64 [N]`."""
    return np.asarray(_mean_cost(problem, consts, jnp.asarray(pairs), p=p), np.float64)


def solve(
    problem: MakeProblem,
    consts: Any,
    pairs: np.ndarray,
    *,
    p: int,
    same: bool,
    epsilon: float,
    threshold: float,
    max_iterations: int,
    at_once: int,
    tick: Callable[[int], None] = lambda count: None,
) -> Solution:
    """Solves the problem of every pair, at first by the kernel and, those that fail, once more in log space.

    A pair of equal numbers is a set and itself, if `same` says that both count the same sets.

    Args:
      problem: a function of a module, since there is one compiled program for each.
      consts: what it needs, arrays.
      pairs: `int [N, 2]`, what it is asked for.
      p: power of the distances.
      same: whether both numbers of a pair count the same sets.
      epsilon: entropic regularisation, in units of the cost.
      threshold, max_iterations: of the solver.
      at_once: number of problems side by side.
      tick: called with the number of problems that were just done.
    """
    own = pairs[:, 0] == pairs[:, 1] if same else np.zeros(len(pairs), bool)
    found = [np.zeros(len(pairs), dtype) for dtype in (np.float64, np.float64, np.int64, bool)]
    for way in (
        Way(max_iterations, stable, symmetric) for stable in (False, True) for symmetric in (False, True)
    ):
        left = np.flatnonzero(~found[3] & (own == way.own))
        for start in range(0, len(left), at_once):
            rows = left[start : start + at_once]
            chunk = np.resize(
                pairs[rows], (min(at_once, len(left)), 2)
            )  # the last one is filled by repetition
            solved = _solve(problem, consts, jnp.asarray(chunk), epsilon, threshold, p=p, way=way)
            for column, values in zip(found, solved, strict=True):
                column[rows] = np.asarray(values)[: len(rows)]
            if not way.stable:
                tick(len(rows))
    return Solution(*found)


def side_by_side(largest: int) -> int:
    """How many problems of `largest` entries to solve at once: as many as fit well; large ones singly on a CPU."""
    budget = 2**21 if jax.default_backend() == "cpu" else 2**27
    return max(1, min(256, budget // largest))
