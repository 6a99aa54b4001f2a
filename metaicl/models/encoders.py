# SPDX-License-Identifier: Apache-2.0
"""The encoders by name, and the plain ones: the items themselves, perceptrons and stacks of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.bert_encoder import bert
from metaicl.models.convolution import ConvStack
from metaicl.models.image_encoders import resnet, small_resnet, squeezenet_encoder
from metaicl.models.network import Network, Normalization, flat, normalized, size_of


def make_encoder(
    name: str,
    x_shape: Sequence[int],
    *,
    dtype: str = "float32",
    task_batched: bool = False,
    noisy: bool = False,
    **settings,
) -> Network:
    """Builds the encoder called `name` for items of `x_shape`.

    Args:
      name: a key of `ENCODERS`.
      x_shape: shape of one item.
      dtype: compute dtype; parameters stay float32.
      task_batched: the weights will carry a task axis (an inner loop under `vmap`): convolutions then
        take the forms that `vmap` keeps fast, see `convolution.conv3x3`.
      noisy: the caller trains with `Network.noisy`; others are refused an encoder with dropout.
      **settings: see the functions in `ENCODERS`.

    Raises:
      ValueError: for an unknown name or setting.
    """
    if name not in ENCODERS:
        raise ValueError(f"Unknown encoder {name!r}; there are {', '.join(sorted(ENCODERS))}.")
    try:
        net = ENCODERS[name](tuple(x_shape), dtype=dtype, task_batched=task_batched, **settings)
    except TypeError as error:
        raise ValueError(f"Encoder {name!r}: {error}") from None
    if net.noisy is not None and not noisy:
        raise ValueError(f"Encoder {name!r}: this learner does not train with dropout; leave it at 0.")
    return net


def identity(x_shape, *, dtype, task_batched, normalize: Normalization = "none") -> Network:
    """The items themselves, flattened: bytes to [0, 1], then optionally normalised.

    `unit` scales every row to root mean square 1, `sqrt_unit` takes signed square roots before (good for
    non-negative, heavy-tailed features of a pooled network). `standard` subtracts the mean of a row before.
    """
    del task_batched
    width = size_of(x_shape)

    def apply(params, x, mask):
        del params, mask
        return normalized(flat(x), normalize).astype(dtype)

    return Network(lambda key: {}, apply, width)


def mlp(
    x_shape,
    *,
    dtype,
    task_batched,
    hidden: Sequence[int] = (40, 40),
    activation: str = "relu",
    out: int | None = None,
    residual: bool = False,
    normalize: Normalization = "none",
) -> Network:
    """A multi-layer perceptron (Finn et al. 2017, section 5.1).

    The output is the last hidden layer, or a linear layer of width `out` behind it. With `residual` it is the
    (normalised) items plus a linear layer that starts at zero: training then starts from the items as they
    are, which is where good frozen features should be left from.
    """
    del task_batched
    if not hidden and out is None:
        raise ValueError("Encoder 'mlp' needs a hidden layer or a width `out`; use 'identity' for neither.")
    if residual and out is not None:
        raise ValueError("Encoder 'mlp' with residual=True has the width of its items: leave `out` away.")
    width = size_of(x_shape) if residual else out or hidden[-1]
    linear_width = width if residual else out
    module = _MLP(tuple(hidden), activation, linear_width, residual, jnp.dtype(dtype))

    def apply(params, x, mask):
        del mask
        return module.apply({"params": params}, normalized(flat(x), normalize))

    return _network(module, (1, size_of(x_shape)), apply, width, independent=True)


def conv(
    x_shape,
    *,
    dtype,
    task_batched,
    filters: Sequence[int] = (64, 64, 64, 64),
    downsample: Literal["stride", "max_pool", "max_pool_same"] = "max_pool",
    pool: Literal["mean", "flatten"] = "mean",
    norm: Literal["group", "batch", "none"] = "group",
    activation: str = "relu",
    pixels: Literal["symmetric", "unit"] = "symmetric",
    kernel_init: Literal["he_normal", "glorot_uniform"] = "he_normal",
    adapters: bool = False,
) -> Network:
    """A stack of 3 x 3 convolutions, each halving the image (Vinyals et al. 2016's conv-4 by default).

    Input: uint8 or float `[n, h, w, c]`; uint8 is scaled to [-1, 1] (`pixels="symmetric"`) or [0, 1] (`unit`).
    `norm="batch"` uses the statistics of the real rows of the current batch, so rows then depend on each other.
    `max_pool` drops an odd border, `max_pool_same` keeps it. `adapters` adds a residual 1 x 1 convolution behind
    each of the 3 x 3 ones, which starts at zero (Rebuffi et al. 2017).
    """
    if len(x_shape) != 3:
        raise ValueError(f"Encoder 'conv' needs images [h, w, c]; items have shape {tuple(x_shape)}.")
    for setting, value, known in (
        ("downsample", downsample, ("stride", "max_pool", "max_pool_same")),
        ("pool", pool, ("mean", "flatten")),
        ("norm", norm, ("group", "batch", "none")),
        ("pixels", pixels, ("symmetric", "unit")),
        ("kernel_init", kernel_init, ("he_normal", "glorot_uniform")),
    ):
        if value not in known:
            raise ValueError(f"Encoder 'conv': {setting} is {value!r}; use one of {', '.join(known)}.")
    shape = (tuple(filters), downsample, pool, norm, activation, task_batched, adapters, kernel_init)
    module = ConvStack(*shape, jnp.dtype(dtype))
    spec = jax.eval_shape(
        lambda k: module.init_with_output(k, jnp.zeros((2, *x_shape)), jnp.ones(2))[0], jax.random.key(0)
    )

    def apply(params, x, mask):
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / (127.5 if pixels == "symmetric" else 255.0)
            x = x - (pixels == "symmetric")
        return module.apply({"params": params}, x, mask)

    return _network(module, (2, *x_shape), apply, spec.shape[-1], independent=norm != "batch", masked=True)


ENCODERS: dict[str, Callable[..., Network]] = {
    "identity": identity,
    "mlp": mlp,
    "conv": conv,
    "small_resnet": small_resnet,
    "squeezenet": squeezenet_encoder,
    "resnet": resnet,
    "bert": bert,
}


class _MLP(nn.Module):
    hidden: tuple[int, ...]
    activation: str
    out: int | None
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, items):
        x = items
        for i, width in enumerate(self.hidden):
            x = getattr(nn, self.activation)(nn.Dense(width, dtype=self.dtype, name=f"layer_{i}")(x))
        if self.out is None:
            return x
        start = nn.initializers.zeros if self.residual else nn.initializers.lecun_normal()
        x = nn.Dense(self.out, kernel_init=start, dtype=self.dtype, name="out")(x)
        return items.astype(self.dtype) + x if self.residual else x


def _network(module, shape, apply, width, *, independent, masked=False) -> Network:
    def init(key):
        arguments = (jnp.zeros(shape), jnp.ones(shape[0])) if masked else (jnp.zeros(shape),)
        return module.init(key, *arguments)["params"]

    return Network(init, apply, width, independent)
