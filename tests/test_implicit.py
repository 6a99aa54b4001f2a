# SPDX-License-Identifier: Apache-2.0
"""Implicit MAML: its solution and its derivative have closed forms on quadratics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl.episode import Examples, TaskSpec
from metaicl.learners import Meta, make_learner
from metaicl.learners.implicit import proximal_solution
from metaicl.learners.inner import inner_loop

pytestmark = pytest.mark.usefixtures("x64")

SPEC = TaskSpec("classify", (5,), "float64", 3)
NETWORK = {"encoder": "mlp", "encoder_settings": {"hidden": (6,), "activation": "tanh"}, "dtype": "float64"}


def quadratic(seed=0, n=4):
    """w'Aw/2 - b'w with a positive definite A; the support carries the problem."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    return root @ root.T / n, rng.normal(size=n), rng.normal(size=n)


def quadratic_loss(params, examples, key, shown):
    del key, shown
    return 0.5 * params["w"] @ examples.x @ params["w"] - examples.y @ params["w"]


@pytest.mark.parametrize("proximal", [0.3, 2.0])
def test_quadratic_closed_form(proximal):
    """w* = (A + lambda)^-1 (b + lambda theta), and its derivative is lambda (A + lambda)^-1."""
    a, b, theta = quadratic()
    regular = a + proximal * np.eye(4)
    rate = 1.0 / np.linalg.norm(regular, 2)
    inner = inner_loop(steps=2000, learning_rate=rate, order="first")
    solution = proximal_solution(quadratic_loss, inner, proximal, solver_steps=8)
    support = Examples(jnp.asarray(a), jnp.asarray(b), jnp.ones(4))
    run = lambda theta: solution({"w": theta}, support, jax.random.key(0))[0]["w"]
    np.testing.assert_allclose(
        run(jnp.asarray(theta)), np.linalg.solve(regular, b + proximal * theta), rtol=1e-9
    )
    expected = proximal * np.linalg.inv(regular)
    np.testing.assert_allclose(jax.jacrev(run)(jnp.asarray(theta)), expected, rtol=1e-8, atol=1e-10)


def test_few_solver_steps_are_an_approximation():
    a, b, theta = quadratic()
    support = Examples(jnp.asarray(a), jnp.asarray(b), jnp.ones(4))
    inner = inner_loop(steps=50, learning_rate=0.1, order="first")
    slopes = []
    for steps in (1, 2, 8):
        solution = proximal_solution(quadratic_loss, inner, 0.3, solver_steps=steps)
        total = lambda t, s=solution: jnp.sum(s({"w": t}, support, jax.random.key(0))[0]["w"] ** 2)
        slopes.append(np.asarray(jax.grad(total)(jnp.asarray(theta))))
    errors = [np.linalg.norm(s - slopes[-1]) for s in slopes[:2]]
    assert errors[0] > errors[1] > 1e-6


def test_meta_gradient_is_the_derivative_where_the_inner_problem_is_solved():
    """With the proximal problem solved and enough solver steps it is the derivative of what it computes."""
    settings = dict(inner_steps=800, inner_lr=0.3, proximal=2.0, solver_steps=60)
    learner = make_learner("implicit_maml", SPEC, **NETWORK, **settings)
    rng = np.random.default_rng(0)
    batch = synthetic.to_float64(synthetic.stacked([synthetic.episode(rng, SPEC) for _ in range(2)]))
    batch = jax.tree.map(jnp.asarray, batch)
    params = synthetic.to_float64(jax.jit(learner.init)(jax.random.key(0))).params
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, jax.random.key(0), 0))
    way = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(1).normal(size=a.shape)), params)
    moved = lambda t: float(run(jax.tree.map(lambda a, w: a + t * w, params, way))[2]["loss"])
    step = 1e-4
    expected = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
    slope = sum(
        jnp.vdot(g, w) for g, w in zip(jax.tree.leaves(run(params)[0]), jax.tree.leaves(way), strict=True)
    )
    assert float(slope) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("settings", [{"proximal": 0.0}, {"solver_steps": 0}])
def test_refuses(settings):
    with pytest.raises(ValueError, match="must be positive"):
        make_learner("implicit_maml", SPEC, **NETWORK, **settings)
