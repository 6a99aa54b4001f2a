# SPDX-License-Identifier: Apache-2.0
"""Convolution and pooling as primitives whose derivatives are each other, in every mode and order.

Autodiff of patches, slices and maxima scatters with padding, which compiles to slow loops, and worse so the second
time. Here the derivatives are products of the same kind: with the trilinear form T(x, k, y) = <conv(x, k), y>, `conv`
and `conv_kernel` are its derivatives with respect to y and k, and that with respect to x is `conv` of y with the
turned kernel. All of them take leading task axes, so that `vmap` over the weights keeps them whole.

How each is computed depends on the backend; the CPU's way was chosen by measurement. On other backends, where nothing
was measured yet, tasks are batched matrix products, which every backend does well.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

UNROLLED_TASKS = 8  # more tasks than this are a loop of the program, to keep it small
FEW_CHANNELS = 8  # of the input, below which patches of all tasks are small

_settled_p = Primitive("settled")
_conv_p = Primitive("conv3x3")
_kernel_p = Primitive("conv3x3_kernel")
_kept_p = Primitive("kept")
_spread_p = Primitive("spread")


def settled(x: jax.Array) -> jax.Array:
    """The same array, computed once: on a CPU, XLA does not fuse what made it into what uses it.

    XLA's fusions there compute a cheap producer again in each of its users, and a loop that holds the dynamic slice
    of an enclosing scan is not vectorised (5 times slower when measured). A call that is not inlined is the one
    barrier that lasts until then; it costs no copy.
    """
    return _settled_p.bind(x)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3 x 3 convolution, stride 1, SAME: `[*t, n, h, w, c]`, `[*t, 3, 3, c, f]` -> `[*t, n, h, w, f]`."""
    return _conv_p.bind(x, kernel)


def kept(index: jax.Array, x: jax.Array) -> jax.Array:
    """Of every 2 x 2 block the entry that `index [..., h, w, c]` names: `[..., 2h, 2w, c] -> [..., h, w, c]`."""
    return _kept_p.bind(index, x)


def quarters(x: jax.Array) -> list[jax.Array]:
    """The entries of every 2 x 2 block, numbered as in `kept`: `[..., 2h, 2w, c]` -> 4 of `[..., h, w, c]`."""
    return [x[..., i::2, j::2, :] for i in (0, 1) for j in (0, 1)]


def _turned(kernel):  # the kernel of the input's gradient
    return jnp.flip(kernel, (-4, -3)).swapaxes(-1, -2)


def _rows(x, lead):  # [*t, n, h, w, c] -> [*t, n * h * w, c]
    return x.reshape(*x.shape[:lead], -1, x.shape[-1])


def _shifted(x):  # nine views of [..., h, w, c] with a border of zeros
    h, w = x.shape[-3:-1]
    x = settled(jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)]))
    return [x[..., i : i + h, j : j + w, :] for i in range(3) for j in range(3)]


def _batched_conv(x, kernel):
    lead = kernel.ndim - 4
    patches = _rows(jnp.concatenate(_shifted(x), axis=-1), lead)
    y = patches @ kernel.reshape(*kernel.shape[:lead], -1, kernel.shape[-1])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _batched_kernel(x, y, *, lead):
    patches = _rows(jnp.concatenate(_shifted(x), axis=-1), lead)
    kernel = patches.swapaxes(-1, -2) @ _rows(y, lead)
    return kernel.reshape(*x.shape[:lead], 3, 3, x.shape[-1], y.shape[-1])


def _taps(x, lead):  # [*t, n, h, w, c] -> [*t, 9 c, n * h * w]
    planes = jnp.stack(_shifted(x), axis=lead)  # [*t, 9, n, h, w, c]
    return settled(jnp.moveaxis(planes, -1, lead + 1).reshape(*x.shape[:lead], 9 * x.shape[-1], -1))


def _cpu_conv(x, kernel):
    lead = kernel.ndim - 4
    if x.shape[-1] < FEW_CHANNELS:
        taps = _taps(x, lead).swapaxes(-1, -2)
        y = taps @ kernel.reshape(*kernel.shape[:lead], -1, kernel.shape[-1])
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    return _task_by_task(_lax_conv, lead, settled(x), kernel)


def _cpu_kernel(x, y, *, lead):
    if x.shape[-1] < FEW_CHANNELS:
        kernel = _taps(x, lead) @ _rows(settled(y), lead)
        return kernel.reshape(*x.shape[:lead], 3, 3, x.shape[-1], y.shape[-1])
    return _task_by_task(_lax_kernel, lead, settled(x), settled(y))


def _lax_conv(x, kernel):
    form = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=form)


def _lax_kernel(x, y):
    # The images are the channels here. lax's own derivative says so by dimension numbers, which XLA's CPU backend
    # brings into the form of its fast convolution only outside of loops: a hundred times slower in a scan.
    return _lax_conv(x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)


def _task_by_task(function, lead, *arrays):
    if not lead:
        return function(*arrays)
    tasks = arrays[0].shape[:lead]
    arrays = tuple(a.reshape(-1, *a.shape[lead:]) for a in arrays)
    count = arrays[0].shape[0]
    if count <= UNROLLED_TASKS:
        out = jnp.stack([function(*(a[i] for a in arrays)) for i in range(count)])
    else:
        out = jax.lax.map(lambda one: function(*one), arrays)
    return out.reshape(*tasks, *out.shape[1:])


def _kept(index, x):
    a, b, c, d = quarters(x)
    return jnp.where(index < 2, jnp.where(index == 0, a, b), jnp.where(index == 2, c, d))


def _spread(index, x):  # transpose of `_kept`
    *lead, h, w, c = x.shape
    blocks = lambda a: a[..., :, None, :, None, :]
    position = jnp.arange(4, dtype=index.dtype).reshape(*(1 for _ in lead), 1, 2, 1, 2, 1)
    out = jnp.where(blocks(index) == position, blocks(x), jnp.zeros((), x.dtype))
    return out.reshape(*lead, 2 * h, 2 * w, c)


@jax.jit
def _same(x):
    return x


def _called(x):
    with set_xla_metadata(inlineable="false"):
        return _same(x)


def _register(primitive: Primitive, shape: Callable, default: Callable, cpu: Callable | None = None) -> None:
    """Abstract evaluation, evaluation and lowering; `cpu` is for a program on one CPU device."""
    primitive.def_abstract_eval(shape)
    # Outside of jit: compiled by itself, with the parameters as constants.
    primitive.def_impl(lambda *args, **params: jax.jit(lambda *a: primitive.bind(*a, **params))(*args))
    lower = mlir.lower_fun(default, multiple_results=False)
    mlir.register_lowering(primitive, lower)
    if cpu is not None:
        lower_cpu = mlir.lower_fun(cpu, multiple_results=False)

        def on_cpu(ctx, *args, **params):
            # Slices of a task axis that is spread over devices, and calls, would be gathered on all of them.
            devices = getattr(ctx.module_context.axis_context, "num_devices", 1)
            return (lower_cpu if devices == 1 else lower)(ctx, *args, **params)

        mlir.register_lowering(primitive, on_cpu, platform="cpu")


def _in_front(args, axes):
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    return [
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    ]


def _batch_conv(args, axes):
    (x, kernel), (x_axis, kernel_axis) = args, axes
    if kernel_axis is None and kernel.ndim == 4:  # a shared kernel sees tasks as more images
        x = jnp.moveaxis(x, x_axis, 0)
        y = conv(x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return conv(*_in_front(args, axes)), 0


def _linear_in_second(primitive, transpose):
    """Derivatives of `primitive(index, x)`, linear in x, whose transpose is `transpose(index, y)`."""

    ad.defjvp(primitive, None, lambda x_dot, index, x: primitive.bind(index, x_dot))
    ad.primitive_transposes[primitive] = lambda y, index, x: (None, transpose.bind(index, y))
    batching.primitive_batchers[primitive] = lambda args, axes: (primitive.bind(*_in_front(args, axes)), 0)


_register(_settled_p, lambda x: x, lambda x: x, _called)
ad.deflinear(_settled_p, lambda y: [settled(y)])
batching.defvectorized(_settled_p)

_register(_conv_p, lambda x, k: ShapedArray((*x.shape[:-1], k.shape[-1]), x.dtype), _batched_conv, _cpu_conv)
_register(
    _kernel_p,
    lambda x, y, *, lead: ShapedArray((*x.shape[:lead], 3, 3, x.shape[-1], y.shape[-1]), x.dtype),
    _batched_kernel,
    _cpu_kernel,
)
ad.defbilinear(
    _conv_p,
    lambda y, x, kernel: conv(y, _turned(kernel)),
    lambda y, x, kernel: _kernel_p.bind(x, y, lead=kernel.aval.ndim - 4),
)
ad.defbilinear(
    _kernel_p,
    lambda kernel, x, y, *, lead: conv(y, _turned(kernel)),
    lambda kernel, x, y, *, lead: conv(x, kernel),
)
batching.primitive_batchers[_conv_p] = _batch_conv
batching.primitive_batchers[_kernel_p] = lambda args, axes, *, lead: (
    _kernel_p.bind(*_in_front(args, axes), lead=lead + 1),
    0,
)

_register(_kept_p, lambda index, x: ShapedArray(index.shape, x.dtype), _kept)
_register(
    _spread_p,
    lambda index, x: ShapedArray((*x.shape[:-3], 2 * x.shape[-3], 2 * x.shape[-2], x.shape[-1]), x.dtype),
    _spread,
)
_linear_in_second(_kept_p, _spread_p)
_linear_in_second(_spread_p, _kept_p)
