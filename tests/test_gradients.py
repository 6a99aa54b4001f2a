# SPDX-License-Identifier: Apache-2.0
"""Meta-gradients are exact: differences, closed forms and PyTorch's double autograd, in 64 bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl import losses
from metaicl.episode import Examples, TaskSpec
from metaicl.learners import Meta, make_learner
from metaicl.learners.inner import inner_loop
from metaicl.learners.maml import step_weights
from metaicl.learners.subtree import split

pytestmark = pytest.mark.usefixtures("x64")

VECTORS = TaskSpec("classify", (5,), "float64", 3)
IMAGES = TaskSpec("classify", (6, 6, 1), "float64", 3)
ENCODERS = {
    "mlp": (VECTORS, {"encoder": "mlp", "encoder_settings": {"hidden": (6,), "activation": "tanh"}}),
    "conv_group": (IMAGES, {"encoder": "conv", "encoder_settings": {"filters": (4,), "activation": "tanh"}}),
    "conv_batch": (
        IMAGES,
        {"encoder": "conv", "encoder_settings": {"filters": (4,), "activation": "tanh", "norm": "batch"}},
    ),
}


def episodes(spec, count=2):
    rng = np.random.default_rng(0)
    return synthetic.to_float64(synthetic.stacked([synthetic.episode(rng, spec) for _ in range(count)]))


def parameters(learner, seed=0):
    return synthetic.to_float64(jax.jit(learner.init)(jax.random.key(seed))).params


def make(encoder, **settings):
    spec, network = ENCODERS[encoder]
    defaults = {"inner_steps": 3, "inner_lr": 0.2, "dtype": "float64"}
    return spec, make_learner("maml", spec, **(defaults | network | settings))


def gradient(learner, params, batch):
    return jax.jit(learner.meta_grad)(Meta(params), batch, jax.random.key(0), 0)[0]


def direction(params, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def central_difference(function, point, way, step=1e-6):
    """Derivative along `way`, of fourth order in `step`."""
    at = lambda t: float(function(jax.tree.map(lambda a, w: a + t * w, point, way)))
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "encoder, adapted",
    [
        ("mlp", "all"),
        ("mlp", "head"),
        slow("mlp", "-head"),
        ("conv_group", "all"),
        slow("conv_group", "head"),
        slow("conv_group", "-head"),
        slow("conv_batch", "all"),
        slow("conv_batch", "head"),
        ("conv_batch", "-head"),
    ],
)
def test_meta_gradient_is_the_derivative(encoder, adapted):
    spec, learner = make(encoder, adapted=adapted)
    params, batch = parameters(learner), episodes(spec)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, jax.random.key(0), 0))
    way = direction(params)
    expected = central_difference(lambda p: run(p)[2]["loss"], params, way)
    assert float(dot(run(params)[0], way)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rates", ["parameter", "layer"])
def test_meta_gradient_of_learned_rates_is_the_derivative(rates):
    """Meta-SGD and the rates of MAML++: weights and rates move along one direction."""
    spec, learner = make("mlp", rates=rates)
    params, batch = parameters(learner), episodes(spec)
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, jax.random.key(0), 0))
    way = direction(params)
    expected = central_difference(lambda p: run(p)[2]["loss"], params, way)
    assert float(dot(run(params)[0], way)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [0, 2])
def test_meta_gradient_through_a_head_of_prototypes_is_the_derivative(steps):
    """Proto-MAML: the class means that the head starts from are differentiated, whatever is adapted after."""
    spec, learner = make("mlp", head="prototypes", inner_steps=steps)
    params, batch = parameters(learner), episodes(spec)
    assert set(params) == {"encoder"}
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, jax.random.key(0), 0))
    way = direction(params)
    expected = central_difference(lambda p: run(p)[2]["loss"], params, way)
    assert float(dot(run(params)[0], way)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_first_order_keeps_the_derivative_of_a_head_of_prototypes():
    """Without inner steps both orders are one; with them first order differs, and still is not nothing."""
    found = {}
    for steps in (0, 2):
        for order in ("first", "second"):
            spec, learner = make("mlp", head="prototypes", inner_steps=steps, order=order)
            found[steps, order] = gradient(learner, parameters(learner), episodes(spec))
    synthetic.leaves_close(found[0, "first"], found[0, "second"], rtol=1e-12, atol=1e-15)
    assert synthetic.distance(found[2, "first"], found[2, "second"]) > 0.01


def test_meta_gradient_of_the_multi_step_loss_is_the_derivative():
    """MAML++: the weighted losses come from learners that stop after 1, 2 and 3 of the same steps."""
    step, until = 4, 10
    spec, learner = make("mlp", rates="layer", multi_step_until=until)
    params, batch = parameters(learner), episodes(spec)
    stopped = [make("mlp", rates="layer", inner_steps=k)[1] for k in (1, 2, 3)]
    runs = [
        jax.jit(lambda p, one=one: one.meta_grad(Meta(p), batch, jax.random.key(0), 0)) for one in stopped
    ]
    weights = step_weights(3, step, until)
    total = lambda p: sum(float(w) * float(run(p)[2]["loss"]) for w, run in zip(weights, runs, strict=True))
    way = direction(params)
    grads = jax.jit(learner.meta_grad)(Meta(params), batch, jax.random.key(0), step)[0]
    assert float(dot(grads, way)) == pytest.approx(central_difference(total, params, way), rel=1e-6)


@pytest.mark.parametrize(
    "encoder, adapted",
    [
        ("mlp", "all"),
        slow("mlp", "head"),
        slow("mlp", "-head"),
        slow("conv_group", "all"),
        slow("conv_group", "head"),
        slow("conv_batch", "-head"),
    ],
)
def test_forward_over_reverse_equals_reverse_over_reverse(encoder, adapted):
    results = []
    for settings in ({}, {"remat": True}, {"order": "second_reverse"}):
        spec, learner = make(encoder, adapted=adapted, **settings)
        results.append(gradient(learner, parameters(learner), episodes(spec)))
    synthetic.leaves_close(results[0], results[2], rtol=1e-10, atol=1e-13)
    synthetic.leaves_close(results[1], results[2], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("adapted", [slow("all"), "head", slow("-head")])
def test_derivative_with_respect_to_the_support(adapted):
    """The rule differentiates the support and the frozen weights too, not only what adapts."""
    results = []
    for order in ("second", "second_reverse"):
        spec, learner = make("mlp", adapted=adapted, order=order)
        e = jax.tree.map(lambda a: a[0], episodes(spec))
        meta = Meta(parameters(learner))

        def query_loss(x, e=e, meta=meta, learner=learner, spec=spec):
            fast = learner.adapt(meta, e.support.replace(x=x), jax.random.key(0))
            outputs = learner.predict(meta, fast, e.query.x, e.query.mask)
            return losses.mean_loss(spec, outputs, e.query)

        query_loss = jax.jit(query_loss)
        results.append(jax.jit(jax.grad(query_loss))(e.support.x))
        way = direction(e.support.x)
        expected = central_difference(query_loss, e.support.x, way)
        assert float(dot(results[-1], way)) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(*results, rtol=1e-10, atol=1e-14)


def test_first_order_is_its_definition_and_not_the_derivative():
    """FOMAML: the gradient of the query loss at the adapted weights (Finn et al. 2017, section 5.2)."""
    spec, learner = make("mlp", order="first")
    _, exact = make("mlp")
    params, batch = parameters(learner), episodes(spec)

    def query_loss(fast, e):
        outputs = learner.predict(Meta(params), (fast, ()), e.query.x, e.query.mask)
        return losses.mean_loss(spec, losses.mask_absent(spec, outputs, e.support), e.query)

    @jax.jit
    @jax.vmap
    def per_episode(e):
        fast, _ = learner.adapt(Meta(params), e.support, jax.random.key(0))
        return jax.grad(query_loss)(fast, e)

    definition = jax.tree.map(lambda a: a.mean(0), per_episode(batch))
    first = gradient(learner, params, batch)
    synthetic.leaves_close(first, definition, rtol=1e-12, atol=1e-15)
    assert synthetic.distance(first, gradient(exact, params, batch)) > 0.01


@pytest.mark.parametrize("order, exact", [("second", True), ("second_reverse", True), ("first", False)])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_quadratic_closed_form(order, exact, steps):
    """On w'Aw/2 - b'w, d/dw L(w_k) is (I - rate A)^k (A w_k - b); first order leaves the power out."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    a, b, w = root @ root.T, rng.normal(size=4), rng.normal(size=4)
    rate = 0.3 / np.linalg.norm(a, 2)
    inner = inner_loop(steps=steps, learning_rate=rate, order=order)
    quadratic = lambda w, a, b: 0.5 * w @ a @ w - b @ w
    # The support carries the problem, for the inner loss may close over nothing.
    support = Examples(jnp.asarray(a), jnp.asarray(b), jnp.ones(4))
    loss = lambda params, examples, key, shown: quadratic(params["w"], examples.x, examples.y)

    def after(w):
        adapted = inner.run(loss, {"w": w}, support, jax.random.key(0)).params
        return quadratic(adapted["w"], a, b)

    adapted = w
    for _ in range(steps):
        adapted = adapted - rate * (a @ adapted - b)
    power = np.linalg.matrix_power(np.eye(4) - rate * a, steps) if exact else np.eye(4)
    np.testing.assert_allclose(jax.grad(after)(jnp.asarray(w)), power @ (a @ adapted - b), rtol=1e-11)


@pytest.mark.parametrize("settings", [{"inner_lr": 0.0}, {"inner_steps": 0}], ids=["rate", "steps"])
def test_without_adaptation_it_is_joint_training(settings):
    spec, learner = make("mlp", **settings)
    joint = make_learner("supervised", spec, **ENCODERS["mlp"][1], dtype="float64")
    params, batch = parameters(learner), episodes(spec)
    synthetic.leaves_close(
        gradient(learner, params, batch), gradient(joint, params, batch), rtol=1e-12, atol=1e-15
    )


def torch_meta_gradient(params, batch, steps, rate):
    """MAML by double autograd, written down again."""
    torch = pytest.importorskip("torch")
    tensor = lambda a: torch.tensor(np.array(a))
    leaves, treedef = jax.tree.flatten(params)
    leaves = [tensor(a).requires_grad_() for a in leaves]

    def loss(leaves, examples, b):
        p = treedef.unflatten(leaves)
        hidden = tensor(examples.x[b]) @ p["encoder"]["layer_0"]["kernel"] + p["encoder"]["layer_0"]["bias"]
        outputs = torch.tanh(hidden) @ p["head"]["kernel"] + p["head"]["bias"]
        return torch.nn.functional.cross_entropy(outputs, tensor(examples.y[b]).long())

    total = 0.0
    for b in range(len(batch.query.mask)):
        fast = leaves
        for _ in range(steps):
            grads = torch.autograd.grad(loss(fast, batch.support, b), fast, create_graph=True)
            fast = [w - rate * g for w, g in zip(fast, grads, strict=True)]
        total = total + loss(fast, batch.query, b) / len(batch.query.mask)
    grads = torch.autograd.grad(total, leaves)
    return treedef.unflatten([g.numpy() for g in grads]), float(total.detach())


def test_equals_pytorch_double_autograd():
    spec, learner = make("mlp", inner_steps=4)
    params, batch = parameters(learner), episodes(spec)
    expected, expected_loss = torch_meta_gradient(params, batch, steps=4, rate=0.2)
    grads, _, values = jax.jit(learner.meta_grad)(Meta(params), batch, jax.random.key(0), 0)
    assert float(values["loss"]) == pytest.approx(expected_loss, rel=1e-8)
    synthetic.leaves_close(grads, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_rematerialised_adam_is_the_derivative():
    adam = {"inner_optimizer": "adam", "inner_settings": {"eps_root": 1e-8}, "inner_lr": 0.05}
    spec, learner = make("mlp", remat=True, **adam)
    params, batch = parameters(learner), episodes(spec)
    run = jax.jit(lambda p: learner.meta_grad(Meta(p), batch, jax.random.key(0), 0))
    way = direction(params)
    expected = central_difference(lambda p: run(p)[2]["loss"], params, way)
    assert float(dot(run(params)[0], way)) == pytest.approx(expected, rel=1e-6)


def test_adapted_subtrees_move_and_frozen_ones_do_not():
    for adapted, moves in (("all", {"encoder", "head"}), ("head", {"head"}), ("-head", {"encoder"})):
        spec, learner = make("mlp", adapted=adapted)
        params = parameters(learner)
        support = jax.tree.map(lambda a: a[0], episodes(spec)).support
        fast, _ = learner.adapt(Meta(params), support, jax.random.key(0))
        moved = {name for name in params if synthetic.distance(fast[name], params[name]) > 1e-6}
        assert moved == moves
        assert set(split(params, adapted)[0]) == moves


def temporaries(order):
    spec = TaskSpec("classify", (32,), "float32", 5)
    network = {"encoder": "mlp", "encoder_settings": {"hidden": (64, 64)}}
    learner = make_learner("maml", spec, inner_steps=5, order=order, **network)
    rng = np.random.default_rng(0)
    batch = synthetic.stacked([synthetic.episode(rng, spec, 50, 10) for _ in range(4)])
    meta = learner.init(jax.random.key(0))
    program = jax.jit(learner.meta_grad).lower(meta, batch, jax.random.key(0), 0).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_forward_over_reverse_needs_no_more_memory():
    assert temporaries("second") <= temporaries("second_reverse")
