# SPDX-License-Identifier: Apache-2.0
"""The Lasso (Tibshirani 1996): least squares whose weights pay for their absolute value.

Solved by homotopy (Osborne et al. 2000; the Lasso form of LARS, Efron et al. 2004, section 3.1): from the penalty
at which every weight is 0 down to the one that is asked for, the solution is piecewise linear, and each piece ends
where a weight joins those that are not 0, or leaves them. A few dozen small matrix-vector products take it to the
exact solution, also where X is close to singular and coordinate descent would need thousands of sweeps.
Coordinate descent (Friedman et al. 2010) still has the last word: it runs wherever rounding has left the optimality
conditions unmet.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner
from metaicl.learners.regression import linear_regressor

TOLERANCE = 3e-6  # of the optimality conditions, as a share of the largest |X'y|
SWEEPS = 10_000  # of coordinate descent, at most
REFINEMENTS = 3  # of the last linear system


def lasso(spec: TaskSpec, *, alpha: float = 0.01, intercept: bool = False) -> Learner:
    """Builds the learner: w minimises (1/2k) |Xw - y|^2 + alpha |w|_1 over k examples, scikit-learn's objective.

    Garg et al. 2022 tried alpha 1, 0.1, 0.01, 0.001 and 0.0001, and plot 0.01.

    Args:
      spec: regress; every output has its own w.
      alpha: the penalty, above 0.
      intercept: centre x and y first.

    Raises:
      ValueError: for classification, or a penalty that is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"lasso: alpha is {alpha:g}; it must be above 0 (least_squares is the Lasso at 0).")

    def fit(x, y, mask):
        examples = jnp.sum(mask)
        penalty, rank = alpha * jnp.maximum(examples, 1.0), examples - intercept
        return jax.vmap(lambda target: lasso_weights(x, target, penalty, rank), 1, 1)(y)

    return linear_regressor(spec, "lasso", fit, intercept)


def lasso_weights(x, y, penalty, rank):
    """Minimises 1/2 |Xw - y|^2 + penalty |w|_1: `x [S, D]`, `y [S]`, scalars -> w `[D]`.

    `rank` bounds that of x, and with it the number of weights that are not 0. Rows of zeros change nothing. Where
    columns are dependent and the minimum is not unique, it is one of them.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    gram, target = x.T @ x, x.T @ y
    # From the residual, which is small, and not from the Gram matrix: twice the digits.
    correlations = lambda weights: x.T @ (y - x @ weights)
    path = _homotopy(gram, target, penalty, rank)
    weights = path.weights
    for _ in range(REFINEMENTS):
        excess = correlations(weights) - penalty * path.signs
        weights = weights + path.inverse @ jnp.where(path.signs != 0, excess, 0.0)
    weights = jnp.where(weights * path.signs > 0, weights, 0.0)
    objective = 0.5 * jnp.sum((y - x @ weights) ** 2) + penalty * jnp.sum(jnp.abs(weights))
    usable = objective <= 0.5 * jnp.sum(y**2)  # and not NaN
    tolerance = TOLERANCE * jnp.max(jnp.abs(target), initial=0.0)
    return descended(gram, correlations, penalty, jnp.where(usable, weights, 0.0), tolerance)


def violation(correlations, weights, penalty):
    """How far `X'(y - Xw)` is from the optimality conditions: `[D]`, `[D]`, a scalar -> a scalar.

    At the minimum it is penalty x sign(w) where w is not 0, and within the penalty where it is.
    """
    off = jnp.where(
        weights != 0,
        jnp.abs(correlations - penalty * jnp.sign(weights)),
        jnp.maximum(jnp.abs(correlations) - penalty, 0.0),
    )
    return jnp.max(off, initial=0.0)


class _Path(NamedTuple):
    """Where the homotopy stands: the solution for penalty `level`.

    Attributes:
      weights: `[D]`. correlations: `X'(y - Xw) [D]`. signs: `[D]`, of the active weights, 0 for the others.
      inverse: `[D, D]` of the active block of the Gram matrix, 0 elsewhere.
      left: `[D]` the sign of a weight that the last event made inactive: it may not come back at once.
      level: penalty. events: how many there were. done: whether the penalty has been reached.
    """

    weights: jax.Array
    correlations: jax.Array
    signs: jax.Array
    inverse: jax.Array
    left: jax.Array
    level: jax.Array
    events: jax.Array
    done: jax.Array


def _homotopy(gram, target, penalty, rank) -> _Path:
    """Follows the solutions from weights of 0 down to `penalty`; stops short after 10 D events."""
    zeros, level = jnp.zeros_like(target), jnp.max(jnp.abs(target), initial=0.0)
    start = _Path(zeros, target, zeros, jnp.zeros_like(gram), zeros, level, jnp.int32(0), level <= penalty)
    more = lambda path: ~path.done & (path.events < 10 * len(target))
    return jax.lax.while_loop(more, lambda path: _to_next_event(path, gram, penalty, rank), start)


def _to_next_event(path: _Path, gram, penalty, rank) -> _Path:
    weights, c, signs, inverse, left, level, events, _ = path
    active = signs != 0
    # With as many weights as x has rank the fit is perfect, and all correlations reach 0 with the level, at once.
    free = ~active & (jnp.sum(active) < rank)
    # As the level falls by 1, active weights move by u; what rounding has left is mended on the way.
    u = inverse @ signs
    mend = inverse @ jnp.where(active, c - level * signs, 0.0)
    slope = gram @ u
    weights, c = weights + mend, c - gram @ mend

    def reaches(sign):
        """The fall of the level at which an inactive correlation meets it with this sign."""
        closing = 1.0 - sign * slope
        possible = free & (closing > 1e-6) & (left != sign)
        fall = jnp.maximum(level - sign * c, 0.0) / jnp.where(possible, closing, 1.0)
        return jnp.where(possible, fall, jnp.inf)

    # A weight that joined a rounding error too early starts off in the wrong direction, and leaves at once.
    shrinking = active & (u * signs < 0)
    vanishes = jnp.maximum(weights * signs, 0.0) / jnp.where(shrinking, -u * signs, 1.0)
    vanishes = jnp.where(shrinking, vanishes, jnp.inf)
    falls = jnp.minimum(jnp.minimum(reaches(1.0), reaches(-1.0)), vanishes)
    who, rest = jnp.argmin(falls), level - penalty
    done = ~(falls[who] < rest)
    fall = jnp.where(done, rest, falls[who])
    moved = _Path(
        weights + fall * u, c - fall * slope, signs, inverse, 0.0 * left, level - fall, events + 1, done
    )
    turned = jnp.where(done, 0.0, jax.nn.one_hot(who, len(c), dtype=c.dtype))
    return _toggled(moved, gram, turned)


def _toggled(path: _Path, gram, who) -> _Path:
    """The weight at the 1 of `who [D]` joins the active ones or leaves them; nothing happens if all are 0.

    Either changes the inverse by a matrix of rank one: bordering by a row, or its reverse.
    """
    active = path.signs != 0
    leaves = jnp.any(active & (who > 0))
    column = jnp.where(active, gram @ who, 0.0)
    solved = path.inverse @ jnp.where(leaves, who, column)
    own, diagonal = who @ solved, who @ gram @ who
    schur = jnp.maximum(diagonal - column @ solved, 1e-7 * diagonal)
    v = jnp.where(leaves, solved, solved - who)
    scale = jnp.where(leaves, -1.0 / jnp.where(leaves, own, 1.0), 1.0 / jnp.where(schur > 0, schur, 1.0))
    scale = jnp.where(jnp.any(who > 0), scale, 0.0)
    stays = 1.0 - jnp.where(leaves, who, 0.0)
    return path._replace(
        weights=path.weights * stays,
        signs=jnp.where(leaves, path.signs * stays, path.signs + who * jnp.sign(path.correlations)),
        inverse=(path.inverse + scale * v[:, None] * v[None, :]) * stays[:, None] * stays[None, :],
        left=jnp.where(leaves, who * path.signs, 0.0),
    )


def descended(gram, correlations, penalty, weights, tolerance):
    """Coordinate descent from `weights [D]` until the optimality conditions hold to `tolerance`."""
    diagonal = jnp.diag(gram)

    def coordinate(j, state):
        weights, c = state
        pull = c[j] + diagonal[j] * weights[j]
        shrunk = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - penalty, 0.0)
        new = jnp.where(diagonal[j] > 0, shrunk / jnp.where(diagonal[j] > 0, diagonal[j], 1.0), 0.0)
        return weights.at[j].set(new), c - gram[j] * (new - weights[j])

    def sweep(state):
        weights, c, sweeps = state
        weights, _ = jax.lax.fori_loop(0, len(weights), coordinate, (weights, c))
        return weights, correlations(weights), sweeps + 1

    def unmet(state):
        weights, c, sweeps = state
        return (violation(c, weights, penalty) > tolerance) & (sweeps < SWEEPS)

    return jax.lax.while_loop(unmet, sweep, (weights, correlations(weights), jnp.int32(0)))[0]
