# SPDX-License-Identifier: Apache-2.0
"""Reptile against its definition, written down again in NumPy and plain Python, in 64 bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from metaicl import losses
from metaicl.episode import TaskSpec
from metaicl.learners import Meta, make_learner
from metaicl.learners.inner import cycling_rows, replacement_rows

SPEC = TaskSpec("classify", (5,), "float64", 3)
NETWORK = {"encoder": "mlp", "encoder_settings": {"hidden": (6,), "activation": "tanh"}, "dtype": "float64"}
KEY = jax.random.key(7)


def make(**settings):
    learner = make_learner("reptile", SPEC, **(NETWORK | settings))
    return learner, synthetic.to_float64(jax.jit(learner.init)(jax.random.key(0)))


def batch(count):
    rng = np.random.default_rng(0)
    return synthetic.to_float64(synthetic.stacked([synthetic.episode(rng, SPEC) for _ in range(count)]))


def forward(params, x):
    layer, head = params["encoder"]["layer_0"], params["head"]
    hidden = np.tanh(x @ layer["kernel"] + layer["bias"])
    return hidden, hidden @ head["kernel"] + head["bias"]


def backward(params, x, y):
    """Gradient of the mean cross-entropy of a one-layer tanh network, by hand."""
    hidden, outputs = forward(params, x)
    p = np.exp(outputs - outputs.max(1, keepdims=True))
    d_out = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
    d_hidden = (d_out @ params["head"]["kernel"].T) * (1 - hidden**2)
    return {
        "encoder": {"layer_0": {"kernel": x.T @ d_hidden, "bias": d_hidden.sum(0)}},
        "head": {"kernel": hidden.T @ d_out, "bias": d_out.sum(0)},
    }


def adam_on(params, nu, count, x, y, steps, rate):
    """Adam with beta1 = 0, beta2 = 0.999, epsilon = 1e-8."""
    for _ in range(steps):
        grads, count = backward(params, x, y), count + 1
        nu = jax.tree.map(lambda n, g: 0.999 * n + 0.001 * g * g, nu, grads)
        # The update is a function of this step's count alone: bind it now.
        correction = 1 - 0.999**count
        params = jax.tree.map(
            lambda w, g, n, c=correction: w - rate * g / (np.sqrt(n / c) + 1e-8), params, grads, nu
        )
    return params, nu, count


def by_hand(params, episodes, moments, steps, rate):
    """Algorithm 2 of Nichol et al. 2018: the mean of `params - adapted`, and the moments it ends with."""
    params = jax.tree.map(np.asarray, params)
    zero = jax.tree.map(np.zeros_like, params)
    nu, count, differences = zero, 0, []
    for x, y in zip(np.asarray(episodes.support.x), np.asarray(episodes.support.y), strict=True):
        start = (nu, count) if moments == "carried" else (zero, 0)
        adapted, nu, count = adam_on(params, *start, x, y, steps, rate)
        differences.append(jax.tree.map(np.subtract, params, adapted))
    return jax.tree.map(lambda *d: np.mean(d, axis=0), *differences), nu


def test_one_full_sgd_step_is_the_support_gradient(x64):
    learner, meta = make(
        inner_optimizer="sgd", inner_batch=None, inner_steps=1, inner_lr=0.3, moments="fresh"
    )
    episodes = batch(3)
    grads, carry, _ = jax.jit(learner.meta_grad)(meta, episodes, KEY, 0)
    each = [
        backward(jax.tree.map(np.asarray, meta.params), x, y)
        for x, y in zip(np.asarray(episodes.support.x), np.asarray(episodes.support.y), strict=True)
    ]
    synthetic.leaves_close(
        grads, jax.tree.map(lambda *g: 0.3 * np.mean(g, axis=0), *each), rtol=1e-10, atol=1e-15
    )
    assert carry == ()


@pytest.mark.parametrize("moments", ["carried", "fresh"])
def test_is_the_definition(x64, moments):
    learner, meta = make(inner_batch=None, inner_steps=4, inner_lr=0.05, moments=moments)
    episodes = batch(3)
    grads, carry, values = jax.jit(learner.meta_grad)(meta, episodes, KEY, 0)
    expected, nu = by_hand(meta.params, episodes, moments, steps=4, rate=0.05)
    synthetic.leaves_close(grads, expected, rtol=1e-8, atol=1e-12)
    other, _ = by_hand(
        meta.params, episodes, "fresh" if moments == "carried" else "carried", steps=4, rate=0.05
    )
    assert synthetic.distance(grads, other) > 0.01
    if moments == "carried":
        adam = carry[0]
        assert int(adam.count) == 12
        synthetic.leaves_close(adam.nu, nu, rtol=1e-8, atol=1e-16)
    assert set(values) == {"loss", "accuracy", "failed_task", "failed_step"}


def test_moments_go_on_from_step_to_step_and_into_evaluation(x64):
    learner, meta = make(inner_batch=None, inner_steps=3, inner_lr=0.05)
    step = jax.jit(learner.meta_grad)
    both = batch(2)
    one, two = (jax.tree.map(lambda a, b=b: a[b : b + 1], both) for b in range(2))
    first, first_carry, _ = step(meta, one, KEY, 0)
    second, last_carry, _ = step(Meta(meta.params, first_carry), two, KEY, 1)
    together, carry, _ = step(meta, both, KEY, 0)
    synthetic.leaves_close(
        together, jax.tree.map(lambda a, b: (a + b) / 2, first, second), rtol=1e-9, atol=1e-14
    )
    synthetic.leaves_close(carry, last_carry, rtol=1e-9)
    # Adapting after training starts from the carried moments.
    support = jax.tree.map(lambda a: a[1], both.support)
    adapted, _ = jax.jit(learner.adapt)(Meta(meta.params, first_carry), support, KEY)
    synthetic.leaves_close(jax.tree.map(jnp.subtract, meta.params, adapted), second, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_batched_mode_is_the_mean_of_separate_runs(x64):
    learner, meta = make(inner_batch=2, inner_steps=3, inner_lr=0.05, moments="fresh")
    episodes = batch(3)
    grads, _, values = jax.jit(learner.meta_grad)(meta, episodes, KEY, 0)
    adapt = jax.jit(learner.adapt)
    keys, parts, errors = jax.random.split(KEY, 3), [], []
    for b in range(3):
        e = jax.tree.map(lambda a, b=b: a[b], episodes)
        adapted, _ = adapt(meta, e.support, keys[b])
        parts.append(jax.tree.map(jnp.subtract, meta.params, adapted))
        outputs = forward(jax.tree.map(np.asarray, adapted), np.asarray(e.query.x))[1]
        errors.append(losses.mean_loss(SPEC, jnp.asarray(outputs), e.query))
    synthetic.leaves_close(grads, jax.tree.map(lambda *p: sum(p) / 3, *parts), rtol=1e-9, atol=1e-14)
    assert float(values["loss"]) == pytest.approx(float(sum(errors)) / 3, rel=1e-9)


def test_minibatches_cycle_over_the_real_items():
    mask = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
    rows = np.asarray(cycling_rows(KEY, mask, 3, 5)).reshape(-1)  # 15 = 3 passes over 5 items
    passes = rows.reshape(3, 5)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.flatnonzero(mask), (3, 1)))
    assert len({tuple(p) for p in passes}) > 1  # reshuffled


def test_minibatches_do_not_depend_on_padding():
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 0, 0], np.float32)
    padded = np.asarray(cycling_rows(KEY, mask, 2, 6))
    plain = np.asarray(cycling_rows(KEY, np.ones(5, np.float32), 2, 6))
    np.testing.assert_array_equal(padded, np.flatnonzero(mask)[plain])


def test_a_minibatch_larger_than_the_set_repeats_it():
    rows = np.asarray(cycling_rows(KEY, np.ones(2, np.float32), 6, 1))
    np.testing.assert_array_equal(np.bincount(rows[0]), [3, 3])


SGD = {"inner_optimizer": "sgd", "inner_lr": 0.3, "moments": "fresh"}


def sgd_path(params, x, y, rows, rate=0.3):
    """Weights after every step of SGD on the given rows, by hand; the first are those it starts from."""
    path = [jax.tree.map(np.asarray, params)]
    for chosen in rows:
        grads = backward(path[-1], x[chosen], y[chosen])
        path.append(jax.tree.map(lambda w, g: w - rate * g, path[-1], grads))
    return path


@pytest.mark.parametrize("steps", [1, 3])
def test_last_direction_is_the_last_step(x64, steps):
    learner, meta = make(inner_batch=None, inner_steps=steps, direction="last", **SGD)
    episodes = batch(2)
    grads, _, _ = jax.jit(learner.meta_grad)(meta, episodes, KEY, 0)
    differences = []
    for x, y in zip(np.asarray(episodes.support.x), np.asarray(episodes.support.y), strict=True):
        path = sgd_path(meta.params, x, y, [slice(None)] * steps)
        differences.append(jax.tree.map(np.subtract, path[-2], path[-1]))
    expected = jax.tree.map(lambda *d: np.mean(d, axis=0), *differences)
    synthetic.leaves_close(grads, expected, rtol=1e-10, atol=1e-14)


def test_separate_tail_ends_on_the_queries(x64):
    """Two steps on the support, the last on the queries: first-order MAML with the queries as its test set."""
    learner, meta = make(inner_batch=4, inner_steps=3, direction="last", tail="separate", **SGD)
    episodes = batch(2)
    grads, _, _ = jax.jit(learner.meta_grad)(meta, episodes, KEY, 0)
    keys, differences = jax.random.split(KEY, 2), []
    for b in range(2):
        e = jax.tree.map(lambda a, b=b: np.asarray(a[b]), episodes)
        rows = np.asarray(cycling_rows(jax.random.split(keys[b])[0], e.support.mask, 4, 3))[:2]
        path = sgd_path(meta.params, e.support.x, e.support.y, rows)
        last = backward(path[-1], e.query.x, e.query.y)
        differences.append(jax.tree.map(lambda g: 0.3 * g, last))
    expected = jax.tree.map(lambda *d: np.mean(d, axis=0), *differences)
    synthetic.leaves_close(grads, expected, rtol=1e-10, atol=1e-14)


def test_separate_tail_needs_a_minibatch_of_queries(x64):
    learner, meta = make(inner_batch=3, inner_steps=3, direction="last", tail="separate", **SGD)
    with pytest.raises(ValueError, match="as many training queries; an episode has 4"):
        learner.meta_grad(meta, batch(2), KEY, 0)


def test_minibatches_with_replacement_are_fresh_subsets():
    mask = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
    rows = np.asarray(replacement_rows(KEY, mask, 3, 200))
    assert rows.shape == (200, 3)
    assert all(len(set(r)) == 3 for r in rows.tolist())
    counts = np.bincount(rows.reshape(-1), minlength=7)
    assert counts[1] == counts[4] == 0
    real = np.flatnonzero(mask)
    assert np.all(np.abs(counts[real] - 120) < 40)  # 600 places for 5 items
    plain = np.asarray(replacement_rows(KEY, np.ones(5, np.float32), 3, 200))
    np.testing.assert_array_equal(rows, real[plain])


def test_subsets_of_a_smaller_set_repeat_it():
    rows = np.asarray(replacement_rows(KEY, np.ones(2, np.float32), 6, 4))
    assert all(np.array_equal(np.bincount(r), [3, 3]) for r in rows)


def test_training_needs_no_queries(x64):
    """The pseudo-gradient is of the support alone; without queries there are no metrics of them."""
    learner, meta = make(inner_batch=None, inner_steps=2, **SGD)
    episodes = batch(2)
    nothing = episodes.replace(query=jax.tree.map(lambda a: a[:, :0], episodes.query))
    step = jax.jit(learner.meta_grad)
    with_queries, _, _ = step(meta, episodes, KEY, 0)
    without, _, values = step(meta, nothing, KEY, 0)
    synthetic.leaves_close(without, with_queries, rtol=1e-12)
    assert set(values) == {"failed_task", "failed_step"}
