# SPDX-License-Identifier: Apache-2.0
"""Layers against the plain operations of jax and flax that they stand for."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaicl.models import bilinear
from metaicl.models.convolution import (
    GROUPS,
    batch_affine,
    conv3x3,
    group_normalized,
    halved_by_max,
)
from metaicl.models.encoders import make_encoder
from metaicl.models.linear import init_linear, linear
from metaicl.models.network import normalized
from metaicl.models.pointwise import LayerNorm, gelu

SIZES = [(6, 6), (7, 7), (8, 5), (1, 2), (3, 1)]


def batch_normalized(x, mask):
    """What batch norm makes of x with scale 1 and offset 0."""
    slope, shift = batch_affine(x, mask, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))
    return x * slope[None, None, None, :] + shift[None, None, None, :]


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_convolution_as_matrix_product(rng, size, stride):
    x, kernel = normal(rng, 2, *size, 3), normal(rng, 3, 3, 3, 4)
    expected = conv3x3(x, kernel, stride, task_batched=False)
    got = conv3x3(x, kernel, stride, task_batched=True)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_convolution_as_matrix_product_has_the_same_gradient(rng):
    x, kernel = normal(rng, 2, 5, 6, 3), normal(rng, 3, 3, 3, 4)
    slopes = [
        jax.grad(lambda x, k, m=m: jnp.sum(jnp.sin(conv3x3(x, k, 2, m))), argnums=(0, 1))(x, kernel)
        for m in (False, True)
    ]
    for a, b in zip(*slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [*SIZES[:3], (2, 9)])
def test_halving_is_max_pool(rng, size):
    x = normal(rng, 2, *size, 3)
    np.testing.assert_array_equal(halved_by_max(x), nn.max_pool(x, (2, 2), (2, 2)))


@pytest.mark.parametrize("size", [*SIZES, (2, 9)])
def test_halving_with_borders_is_same_padding(rng, size):
    x = normal(rng, 2, *size, 3)
    expected = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
    if min(size) == 1:
        expected = nn.max_pool(x, (2, 2), (2, 2), padding=((0, size[0] % 2), (0, size[1] % 2)))
    np.testing.assert_array_equal(halved_by_max(x, keep_border=True), expected)


def test_adapters_start_as_nothing(rng):
    images = jnp.asarray(rng.integers(0, 256, (3, 8, 8, 1)), jnp.uint8)
    plain, adapted = (make_encoder("conv", (8, 8, 1), filters=(4, 4), adapters=on) for on in (False, True))
    params = adapted.init(jax.random.key(0))
    weights = {name: leaf for name, leaf in params.items() if not name.startswith("adapter")}
    assert len(params) == len(weights) + 2
    mask = jnp.ones(3)
    np.testing.assert_array_equal(adapted.apply(params, images, mask), plain.apply(weights, images, mask))
    params["adapter_1"] = params["adapter_1"] + 0.1
    assert np.abs(adapted.apply(params, images, mask) - plain.apply(weights, images, mask)).max() > 1e-3


def test_pixels_are_scaled_as_asked(rng):
    images = rng.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    for pixels, scaled in (("symmetric", images / 127.5 - 1), ("unit", images / 255)):
        net = make_encoder("conv", (8, 8, 1), filters=(4,), norm="none", pixels=pixels)
        params, mask = net.init(jax.random.key(0)), jnp.ones(3)
        expected = net.apply(params, jnp.asarray(scaled, jnp.float32), mask)
        np.testing.assert_allclose(net.apply(params, jnp.asarray(images), mask), expected, atol=1e-6)


def test_halving_leaves_a_line_alone(rng):
    x = normal(rng, 2, 1, 5, 3)
    assert halved_by_max(x) is x


def test_batch_norm_is_the_textbook(rng):
    x = 3 + 2 * normal(rng, 4, 5, 5, 3)
    got = np.asarray(batch_normalized(x, jnp.ones(4)))
    x = np.asarray(x)
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_batch_norm_ignores_masked_rows(rng):
    x, mask = normal(rng, 5, 4, 4, 3), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    kept = np.flatnonzero(mask)
    expected = batch_normalized(x[kept], jnp.ones(3))
    for garbage in (1.0, 100.0):
        noisy = x.at[jnp.array([1, 4])].multiply(garbage)
        np.testing.assert_allclose(batch_normalized(noisy, mask)[kept], expected, atol=1e-5)


def test_batch_norm_of_nothing_is_finite(rng):
    x = normal(rng, 2, 4, 4, 3)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(batch_normalized(x, jnp.zeros(2)))))(x)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("channels", [GROUPS, 2 * GROUPS, 6, 5])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_group_norm_is_flax(rng, channels, offset):
    x = offset + normal(rng, 3, 4, 5, channels)
    groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
    layer = nn.GroupNorm(groups, epsilon=1e-5, use_bias=False, use_scale=False)
    np.testing.assert_allclose(group_normalized(x), layer.apply({}, x), atol=2e-4 if offset else 1e-5)


def test_gelu_and_layer_norm_are_flax(rng, x64):
    """Values and first derivatives, far out on both sides too."""
    x = jnp.asarray(np.concatenate([rng.normal(size=(50, 8)) * 3, np.linspace(-30, 30, 80).reshape(10, 8)]))
    theirs, ours = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float64), LayerNorm(1e-6, jnp.float64)
    params = {"params": {"scale": jnp.asarray(rng.normal(size=8)), "bias": jnp.asarray(rng.normal(size=8))}}
    assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(params)
    exact = lambda x: nn.gelu(x, approximate=False)
    for expected, found, arguments in [(exact, gelu, (x,)), (theirs.apply, ours.apply, (params, x))]:
        both = [
            jax.value_and_grad(lambda a, f=f: jnp.sum(jnp.sin(f(*a))))(arguments) for f in (expected, found)
        ]
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-9)
    low = LayerNorm(1e-6, jnp.bfloat16).apply(params, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_dense(rng, bias):
    params = init_linear(jax.random.key(0), 5, 3, bias=bias)
    assert float(jnp.max(jnp.abs(params["kernel"]))) <= 5**-0.5
    x = normal(rng, 2, 4, 5)
    expected = nn.Dense(3, use_bias=bias).apply({"params": params}, x)
    np.testing.assert_allclose(linear(params, x), expected, atol=1e-6)


def test_task_batched_convolution_is_the_same_network(rng):
    x, mask = rng.integers(0, 256, (4, 9, 9, 3)).astype(np.uint8), jnp.ones(4)
    for settings in ({"pool": "mean"}, {"pool": "flatten", "downsample": "stride", "norm": "none"}):
        plain, batched = (
            make_encoder("conv", (9, 9, 3), filters=(4, 6), task_batched=t, **settings) for t in (False, True)
        )
        params = jax.jit(plain.init)(jax.random.key(0))
        got, expected = (jax.jit(net.apply)(params, x, mask) for net in (batched, plain))
        assert got.shape == (4, batched.width)
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_bytes_become_unit_floats():
    x = np.array([[[[0], [255]], [[51], [102]]]], np.uint8)
    identity = make_encoder("identity", (2, 2, 1))
    np.testing.assert_allclose(identity.apply({}, x, jnp.ones(1)), [[0, 1, 0.2, 0.4]], rtol=1e-6)
    conv = make_encoder("conv", (2, 2, 1), filters=(4,))
    params = conv.init(jax.random.key(0))
    as_float = jnp.asarray(x, jnp.float32) / 127.5 - 1
    got, expected = (conv.apply(params, a, jnp.ones(1)) for a in (x, as_float))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["none", "unit", "sqrt_unit"])
def test_row_normalisation(rng, how):
    x = normal(rng, 3, 6).at[1].set(0.0)
    got = np.asarray(normalized(x, how))
    raw = {"none": x, "unit": x, "sqrt_unit": jnp.sign(x) * jnp.sqrt(jnp.abs(x))}[how]
    scale = np.ones((3, 1)) if how == "none" else np.sqrt(np.mean(raw**2, axis=1, keepdims=True))
    np.testing.assert_allclose(got[[0, 2]], (np.asarray(raw) / np.maximum(scale, 1e-9))[[0, 2]], rtol=1e-4)
    np.testing.assert_array_equal(got[1], 0)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(normalized(x, how) ** 2))(x)))


def test_unknown_row_normalisation_is_refused():
    with pytest.raises(ValueError, match="Unknown normalisation 'l3'"):
        normalized(jnp.ones((1, 2)), "l3")


@pytest.mark.parametrize(
    "name, settings", [("mlp", {"hidden": (8, 5)}), ("mlp", {"hidden": (), "out": 7}), ("identity", {})]
)
def test_width_is_the_width(name, settings):
    net = make_encoder(name, (2, 3), **settings)
    assert net.apply(net.init(jax.random.key(0)), jnp.ones((4, 2, 3)), jnp.ones(4)).shape == (4, net.width)


def test_compute_dtype_leaves_parameters_in_single():
    net = make_encoder("conv", (6, 6, 1), filters=(4,), dtype="bfloat16")
    params = net.init(jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert net.apply(params, jnp.ones((2, 6, 6, 1)), jnp.ones(2)).dtype == jnp.bfloat16


def second_derivatives(function, points, ways):
    """Value, gradient, and the second derivative along `ways`, forward over reverse and reverse over reverse."""
    gradient = jax.grad(function, argnums=tuple(range(len(points))))
    along = lambda *p: sum(jnp.vdot(g, v) for g, v in zip(gradient(*p), ways, strict=True))
    yield function(*points)
    yield gradient(*points)
    yield jax.jvp(gradient, points, ways)[1]
    yield jax.grad(along, argnums=tuple(range(len(points))))(*points)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("channels", [2, bilinear.FEW_CHANNELS])
@pytest.mark.parametrize("tasks", [2, bilinear.UNROLLED_TASKS + 1])
def test_task_batched_convolution_has_the_second_derivatives_of_lax(rng, channels, tasks):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    shapes = (tasks, 2, 5, 4, channels), (tasks, 3, 3, channels, 3)
    points, ways = (tuple(draw(*shape) for shape in shapes) for _ in range(2))

    def loss(task_batched):
        one = lambda x, kernel: jnp.sum(jnp.sin(conv3x3(x, kernel, 1, task_batched)))
        return lambda x, kernel: jnp.sum(jax.vmap(one)(x, kernel))

    run = lambda batched: jax.jit(lambda p, v: list(second_derivatives(loss(batched), p, v)))(points, ways)
    for got, expected in zip(jax.tree.leaves(run(True)), jax.tree.leaves(run(False)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_convolution_under_two_vmaps_and_with_shared_kernels(rng):
    x, kernels = (
        jnp.asarray(rng.normal(size=(2, 3, 2, 4, 4, 2))),
        jnp.asarray(rng.normal(size=(2, 3, 3, 2, 5))),
    )
    for axes in ((0, 0), (0, None)):
        kernel = kernels if axes[1] == 0 else kernels[0]
        both = []
        for batched in (True, False):
            one = lambda x, k, b=batched: conv3x3(x, k, 1, b)
            shared = jax.vmap(one, in_axes=(0, None))  # the kernel is shared by the inner axis
            both.append(jax.vmap(shared, in_axes=axes)(x, kernel))
        np.testing.assert_allclose(*both, rtol=1e-10, atol=1e-10)


def test_convolution_of_a_batch_spread_over_devices(rng, devices):
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, kernel = normal(rng, len(devices), 2, 4, 4, 8), normal(rng, len(devices), 3, 3, 8, 4)
    loss = lambda x, k: jnp.sum(jax.vmap(lambda x, k: halved_by_max(conv3x3(x, k, 1, True)))(x, k) ** 2)
    slopes = jax.grad(loss, argnums=(0, 1))
    expected = jax.jit(slopes)(x, kernel)
    got = jax.jit(slopes, in_shardings=split, out_shardings=split)(x, kernel)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_halving_has_the_second_derivatives_of_max_pool(rng):
    x, way, weight = (jnp.asarray(rng.normal(size=(3, 2, 5, 6, 2))) for _ in range(3))

    def loss(pool):
        return lambda x: jnp.sum(jnp.sin(jax.vmap(pool)(x)) * jax.vmap(pool)(weight))

    def plain(x):
        blocks = x[:, :4].reshape(2, 2, 2, 3, 2, 2)
        return jnp.max(blocks, axis=(2, 4))

    for pools in zip(
        *(second_derivatives(loss(p), (x,), (way,)) for p in (halved_by_max, plain)), strict=True
    ):
        for got, expected in zip(*map(jax.tree.leaves, pools), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_of_equal_entries_the_first_has_the_derivative():
    slope = jax.grad(lambda x: jnp.sum(halved_by_max(x)))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(slope[0, ..., 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("downsample", ["max_pool", "max_pool_same"])
def test_halving_before_batch_norm_is_halving_after(rng, activation, downsample):
    settings = {"filters": (6,), "norm": "batch", "activation": activation, "pool": "flatten"}
    net = make_encoder("conv", (5, 6, 2), downsample=downsample, **settings)
    x, mask = normal(rng, 4, 5, 6, 2), jnp.array([1.0, 1.0, 0.0, 1.0])
    params = net.init(jax.random.key(0))
    params |= {"scale_0": jnp.array([1.0, -1.0, 0.5, -2.0, 3.0, -0.1]), "offset_0": normal(rng, 6)}
    y = batch_normalized(conv3x3(x, params["kernel_0"], 1, False), mask)
    y = getattr(jax.nn, activation)(
        y * params["scale_0"].reshape(1, 1, 1, -1) + params["offset_0"].reshape(1, 1, 1, -1)
    )
    expected = halved_by_max(y, keep_border=downsample == "max_pool_same").reshape(4, -1)
    np.testing.assert_allclose(net.apply(params, x, mask), expected, atol=1e-4, rtol=1e-4)
    biased = params | {"bias_0": params["bias_0"] + 3.0}
    np.testing.assert_array_equal(net.apply(biased, x, mask), net.apply(params, x, mask))
