# SPDX-License-Identifier: Apache-2.0
"""Encoders as pairs of pure functions, so that no flax module leaves this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models import resnet as resnets
from metaicl.models import resnet_weights
from metaicl.models import small_resnet as residual_network
from metaicl.models.bert import (
    POOLINGS,
    Bert,
    BertShape,
    hidden_states,
    padded_states,
    pool_states,
    real_tokens,
)
from metaicl.models.bert_weights import pretrained, read_config, weights_folder
from metaicl.models.convolution import ConvStack
from metaicl.models.squeezenet import load_squeezenet, squeezenet

Normalization = Literal["none", "unit", "sqrt_unit", "standard"]


class Network(NamedTuple):
    """An encoder of items.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [n, *x_shape], mask [n]) -> [n, width]`; masked rows influence no other row.
      width: D.
      independent: a row's output ignores the other rows (false with batch normalisation).
      noisy: `(params, x, mask, key) -> [n, width]`: `apply` with dropout; None where there is none. What is dropped
        depends on the key and on n and T alone.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    width: int
    independent: bool = True
    noisy: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def encode(self, params: Any, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        """`apply`, or `noisy` where there is such a thing and a key."""
        if self.noisy is None or key is None:
            return self.apply(params, x, mask)
        return self.noisy(params, x, mask, key)


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
    width = _size(x_shape)

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
    width = _size(x_shape) if residual else out or hidden[-1]
    linear_width = width if residual else out
    module = _MLP(tuple(hidden), activation, linear_width, residual, jnp.dtype(dtype))

    def apply(params, x, mask):
        del mask
        return module.apply({"params": params}, normalized(flat(x), normalize))

    return _network(module, (1, _size(x_shape)), apply, width, independent=True)


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


def squeezenet_encoder(
    x_shape, *, dtype, task_batched, weights: str = "", normalize: Normalization = "none"
) -> Network:
    """SqueezeNet 1.1 up to its global average, to be trained on: `[n, h, w, 3]` of 0..255 to `[n, 512]`.

    It starts from the pretrained `weights` (a safetensors file), or at random if none are given. The features are
    normalised as those of `identity`, so that `normalize="sqrt_unit"` starts where frozen features do.
    """
    del task_batched
    if dtype != "float32":
        raise ValueError(f"Encoder 'squeezenet' computes in float32, not in {dtype}.")
    net = squeezenet()
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    jax.eval_shape(net.apply, shapes, jnp.zeros((1, *x_shape), jnp.uint8))  # refuses what are no such images

    def init(key):
        return load_squeezenet(weights) if weights else net.init(key)

    def apply(params, x, mask):
        del mask
        return normalized(net.apply(params, x), normalize)

    return Network(init, apply, net.width)


def resnet(
    x_shape,
    *,
    dtype,
    task_batched,
    depth: int = 50,
    weights: str = "",
    normalize: Normalization = "none",
) -> Network:
    """ResNet-18, 34 or 50 up to its global average, trained end to end: `[n, h, w, 3]` of 0..255 to `[n, D]`.

    Batch normalisation stays at the running statistics of the file: slope and offset of every channel are trained,
    and no item depends on the others. Without weights it starts at random, the residual branches at zero.

    Args:
      x_shape, dtype, task_batched: see `make_encoder`.
      depth: 18 and 34 have 512 features, 50 has 2048.
      weights: a file, folder or hub name, see `resnet_weights`; empty for random weights.
      normalize: of the features, see `identity`.
    """
    del task_batched  # its convolutions of 1 x 1 are matrix products as it is
    net = resnets.resnet(depth, dtype)
    features = lambda params, x: resnets.stages(depth, params, x, dtype)["features"]
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    jax.eval_shape(features, shapes, jnp.zeros((1, *x_shape), jnp.uint8))  # refuses what are no such images
    init = (lambda key: resnet_weights.pretrained(depth, weights)) if weights else net.init
    return Network(init, lambda params, x, mask: normalized(features(params, x), normalize), net.width)


def small_resnet(
    x_shape,
    *,
    dtype,
    task_batched,
    widths: Sequence[int] = residual_network.Size().widths,
    blocks: Sequence[int] = residual_network.Size().blocks,
    pooled: int = 1,
    weights: str = "",
    normalize: Normalization = "none",
) -> Network:
    """A small residual network with group normalisation, of `[n, h, w, 3]` of 0..255; see `models.small_resnet`.

    `widths` and `blocks` are those of its stages; the features are the averages of the last `pooled` of them. It
    starts at random, or from `weights`: a safetensors file, or `package` for the weights that come with it.
    """
    size = residual_network.Size(tuple(widths), tuple(blocks), pooled)
    if len(size.widths) != len(size.blocks) or not 1 <= pooled <= len(size.widths):
        raise ValueError(
            f"Encoder 'small_resnet': widths {size.widths}, blocks {size.blocks} and pooled={pooled} do not fit: "
            "give one number of blocks for each width, and pool at most as many stages."
        )

    def apply(params, x, mask):
        del mask
        return normalized(residual_network.features(params, x, size, task_batched, dtype), normalize)

    def init(key):
        if weights:
            return residual_network.load_small_resnet("" if weights == "package" else weights)
        return residual_network.init(key, size)

    shapes = jax.eval_shape(lambda key: residual_network.init(key, size), jax.random.key(0))
    jax.eval_shape(
        apply, shapes, jnp.zeros((1, *x_shape), jnp.uint8), jnp.ones(1)
    )  # refuses what is no such image
    return Network(init, apply, size.features)


def bert(
    x_shape,
    *,
    dtype,
    task_batched,
    weights: str = "",
    shape: dict | None = None,
    pool: str = "mean",
    normalize: Normalization = "none",
    adapters: int = 0,
    lora: int = 0,
    prompts: int = 0,
    fresh_layers: int = 0,
    frozen_layers: int = 0,
    remat: bool = False,
    dropout: float = 0.0,
) -> Network:
    """A BERT of sentences, pretrained or not; see `bert.Bert` for the architecture.

    Input: token ids `int32 [n, T]`. Padding has an id of its own, so that the attention mask follows from the ids
    and an item stays one array of one dtype. T may be anything up to the positions: no parameter depends on it.
    With `frozen_layers`, what `lower_bert` gives for the ids, `float [n, T, D]`.

    Args:
      x_shape, dtype, task_batched: see `make_encoder`.
      weights: folder or hub name of a Hugging Face model, which then gives the shape; empty for random weights.
      shape: of a network without weights: keyword arguments of `bert.BertShape`.
      pool: the `mean` over the real tokens, the first token (`cls`), or the latter through the `pooler`.
      normalize: of the pooled vector, see `identity`.
      adapters, lora, prompts: width, rank and number a layer of what is added; 0 for none.
      fresh_layers: so many layers from the top start at random all the same.
      frozen_layers: so many layers from the bottom, and the embeddings, are no part of the encoder: their output is
        computed beforehand, once.
      remat: recompute each layer in the backward pass.
      dropout: the share that is dropped in training, see `bert.Bert`; 0.1 in BERT's own.

    Raises:
      ValueError, FileNotFoundError: for settings or weights that do not fit.
    """
    del task_batched
    if pool not in POOLINGS:
        raise ValueError(f"Encoder 'bert': pool is {pool!r}; use one of {', '.join(POOLINGS)}.")
    folder, size = _bert_size(weights, shape, x_shape, frozen_layers)
    if not 0 <= fresh_layers <= size.layers - frozen_layers:
        raise ValueError(
            f"Encoder 'bert': fresh_layers is {fresh_layers}; there are {size.layers} layers, {frozen_layers} of them "
            "frozen."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"Encoder 'bert': dropout is {dropout:g}; it must be at least 0 and below 1.")
    added = (adapters, lora, prompts)
    module = Bert(size, pool == "pooler", *added, jnp.dtype(dtype), remat, dropout, below=frozen_layers)
    fresh = tuple(f"layer_{i}" for i in range(size.layers - fresh_layers, size.layers))

    def noisy(params, x, mask, key):
        del mask
        states, pooled = hidden_states(module, params, x, key)
        if pooled is None:
            pooled = pool_states(states[-1], real_tokens(x, size.padding), pool)
        return normalized(pooled, normalize)

    apply = lambda params, x, mask: noisy(params, x, mask, None)
    return Network(_bert_init(module, folder, fresh), apply, size.width, noisy=noisy if dropout else None)


def lower_bert(layers: int, *, weights: str = "", shape: dict | None = None) -> Network:
    """The embeddings and the lowest `layers` layers of a BERT: token ids `[n, T]` to their states `[n, T, D]`.

    What an encoder `bert` with so many `frozen_layers` takes. Arguments and errors as those of `bert`.
    """
    folder, size = _bert_size(weights, shape, (1,), 0)
    if not 0 < layers < size.layers:
        raise ValueError(
            f"{layers} frozen layers: of this network's {size.layers}, give 1 to {size.layers - 1}."
        )
    module = Bert(size, False, 0, 0, 0, jnp.float32, False, above=size.layers - layers)

    def apply(params, x, mask):
        del mask
        return padded_states(hidden_states(module, params, x)[0][-1], real_tokens(x, size.padding))

    return Network(_bert_init(module, folder, ()), apply, size.width)


def _bert_size(weights: str, shape: dict | None, x_shape: Sequence[int], frozen: int):
    """The folder of the weights, if any, and the shape of the network, which items of `x_shape` have to fit."""
    if weights and shape:
        raise ValueError("Encoder 'bert': the weights give the shape; leave `shape` or `weights` away.")
    folder = weights_folder(weights) if weights else None
    size = read_config(folder)[1] if folder else BertShape(**(shape or {}))
    if not 0 <= frozen < size.layers:
        raise ValueError(f"Encoder 'bert': frozen_layers is {frozen}; give 0 to {size.layers - 1}.")
    if not frozen and len(x_shape) != 1:
        raise ValueError(f"Encoder 'bert' needs token ids [T]; items have shape {tuple(x_shape)}.")
    if frozen and (len(x_shape) != 2 or x_shape[1] != size.width):
        raise ValueError(
            f"Encoder 'bert' with frozen layers needs their states [T, {size.width}]; items have shape "
            f"{tuple(x_shape)}."
        )
    if x_shape[0] > size.positions:
        raise ValueError(f"Sentences of {x_shape[0]} tokens exceed BERT's {size.positions} positions.")
    return folder, size


def _bert_init(module: Bert, folder, fresh: tuple[str, ...]) -> Callable[[jax.Array], Any]:
    item = jnp.zeros((1, 1, module.shape.width)) if module.below else jnp.zeros((1, 1), jnp.int32)

    def init(key):
        params = module.init(key, item)["params"]
        return pretrained(params, folder, fresh) if folder else params

    return init


ENCODERS: dict[str, Callable[..., Network]] = {
    "identity": identity,
    "mlp": mlp,
    "conv": conv,
    "small_resnet": small_resnet,
    "squeezenet": squeezenet_encoder,
    "resnet": resnet,
    "bert": bert,
}


def flat(x: jax.Array) -> jax.Array:
    """`[n, *x_shape] -> float [n, D]`; bytes are scaled to [0, 1]."""
    rows = x.reshape(x.shape[0], _size(x.shape[1:]))
    if jnp.issubdtype(x.dtype, jnp.floating):
        return rows
    return rows.astype(jnp.float32) / (255.0 if x.dtype == jnp.uint8 else 1.0)


def normalized(x: jax.Array, how: Normalization) -> jax.Array:
    """Row normalisation `[n, D] -> [n, D]`; rows of zeros stay zero, and have a finite gradient."""
    if how == "none":
        return x
    if how == "standard":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    elif how == "sqrt_unit":
        x = jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-12)
    elif how != "unit":
        raise ValueError(f"Unknown normalisation {how!r}; use 'none', 'unit', 'sqrt_unit' or 'standard'.")
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + 1e-12)


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


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
