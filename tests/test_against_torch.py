# SPDX-License-Identifier: Apache-2.0
"""Meta-gradients of every gradient-based learner on conv-4 with batch norm, against PyTorch's double autograd."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl.episode import TaskSpec
from metaicl.learners import Meta, make_learner
from metaicl.learners.maml import step_weights

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("x64")

SPEC = TaskSpec("classify", (16, 16, 1), "float64", 3)
CONV4 = {"filters": (4, 4, 4, 4), "norm": "batch", "pool": "flatten"}
STEPS, RATE, OUTER_STEP, UNTIL = 5, 0.1, 3, 10
SETTINGS = dict(encoder="conv", encoder_settings=CONV4, inner_steps=STEPS, inner_lr=RATE, dtype="float64")


def tensor(a):
    return torch.tensor(np.array(a))


@functools.cache
def problem():
    """Two episodes, and weights away from where they start: scales, offsets and biases are not trivial."""
    rng = np.random.default_rng(0)
    batch = synthetic.stacked([synthetic.episode(rng, SPEC) for _ in range(2)])
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if a.dtype == np.float32 else a, batch)


def weights_of(learner):
    rng = np.random.default_rng(1)
    params = jax.jit(learner.init)(jax.random.key(0)).params
    return jax.tree.map(lambda a: np.asarray(a, np.float64) + 0.05 * rng.normal(size=a.shape), params)


def network(weights, x):
    """Conv-4: convolution, batch norm with the statistics of the batch, relu, 2 x 2 maximum; linear head."""
    encoder, x = weights["encoder"], x.permute(0, 3, 1, 2)
    for i in range(4):
        kernel = encoder[f"kernel_{i}"].permute(3, 2, 0, 1)
        x = torch.nn.functional.conv2d(x, kernel, encoder[f"bias_{i}"], padding=1)
        x = torch.nn.functional.batch_norm(
            x, None, None, encoder[f"scale_{i}"], encoder[f"offset_{i}"], training=True, eps=1e-5
        )
        x = torch.nn.functional.max_pool2d(torch.relu(x), 2)
    return x.permute(0, 2, 3, 1).flatten(1) @ weights["head"]["kernel"] + weights["head"]["bias"]


def loss(weights, examples, b):
    return torch.nn.functional.cross_entropy(
        network(weights, tensor(examples.x[b])), tensor(examples.y[b]).long()
    )


def torch_meta_gradient(params, *, moves=lambda path: True, first_order=False, rates=None, step_losses=None):
    """MAML, written down again: `(gradient, loss)`.

    Args:
      params: weights, with learned `rates` beside them where there are some.
      moves: which weights adapt, by path.
      first_order: the inner gradient is a constant.
      rates: None, `"parameter"` or `"layer"`.
      step_losses: weights of the losses after each step; None for the last alone.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(key.key for key in path) for path, _ in flat]
    leaves = dict(zip(names, [tensor(leaf).requires_grad_() for _, leaf in flat], strict=True))
    tree = lambda leaves: treedef.unflatten([leaves[name] for name in names])
    fast_names = [name for name in names if not name.startswith("rates") and moves(name)]
    share = [0.0] * (STEPS - 1) + [1.0] if step_losses is None else list(map(float, step_losses))
    total, count, batch = 0.0, 2, problem()
    for b in range(count):
        fast = dict(leaves)
        for k in range(STEPS):
            grads = torch.autograd.grad(
                loss(tree(fast), batch.support, b),
                [fast[n] for n in fast_names],
                create_graph=not first_order,
            )
            for name, g in zip(fast_names, grads, strict=True):
                rate = RATE if rates is None else leaves[f"rates/{name}"]
                rate = rate[k] if rates == "layer" else rate
                fast[name] = fast[name] - rate * (g.detach() if first_order else g)
            if share[k]:
                total = total + share[k] * loss(tree(fast), batch.query, b) / count
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    zero = [torch.zeros_like(a) if g is None else g for g, a in zip(grads, leaves.values(), strict=True)]
    return treedef.unflatten([g.numpy() for g in zero]), float(total.detach())


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
METHODS = {
    "maml": ({}, {}),
    "fomaml": ({"order": "first"}, {"first_order": True}),
    "anil": ({"adapted": "head"}, {"moves": lambda name: name.startswith("head")}),
    "boil": ({"adapted": "body"}, {"moves": lambda name: name.startswith("encoder")}),
    "one_layer": ({"adapted": "encoder/*_3"}, {"moves": lambda name: name.endswith("_3")}),
    "meta_sgd": ({"rates": "parameter"}, {"rates": "parameter"}),
    "maml++": (
        {"rates": "layer", "multi_step_until": UNTIL},
        {"rates": "layer", "step_losses": step_weights(STEPS, OUTER_STEP, UNTIL)},
    ),
    "reverse": ({"order": "second_reverse"}, {}),
}


@pytest.mark.parametrize(
    "method",
    [
        "maml",
        "fomaml",
        *(slow(name) for name in METHODS if name not in ("maml", "fomaml")),
    ],
)
def test_equals_pytorch(method):
    settings, peer = METHODS[method]
    learner = make_learner("maml", SPEC, **SETTINGS, **settings)
    params = weights_of(learner)
    expected, expected_loss = torch_meta_gradient(params, **peer)
    run = jax.jit(learner.meta_grad)
    grads, _, values = run(Meta(params), problem(), jax.random.key(0), jnp.int32(OUTER_STEP))
    if "step_losses" not in peer:
        assert float(values["loss"]) == pytest.approx(expected_loss, rel=1e-8)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(expected))
    synthetic.leaves_close(grads, expected, rtol=1e-8, atol=1e-9 * largest)


def test_first_order_is_not_the_derivative():
    learner = make_learner("maml", SPEC, **SETTINGS)
    params = weights_of(learner)
    exact, _ = torch_meta_gradient(params)
    cheap, _ = torch_meta_gradient(params, first_order=True)
    assert synthetic.distance(exact, cheap) > 0.01
