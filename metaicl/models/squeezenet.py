# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet 1.1 without its classifier, the small frozen backbone (Iandola et al., arXiv 1602.07360)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaicl.models.weights import load_safetensors

# Bump when the same bytes of an image would give other features: caches of features are keyed by it.
PREPROCESSING = "bgr-minus-imagenet-mean-v1"

_BGR_MEAN = (103.939, 116.779, 123.68)
_POOLS_BEFORE = ("fire2", "fire4", "fire6")
_FIRES = {  # name: (squeezed channels, channels of each of the two expansions)
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
WIDTH = 512


class Backbone(NamedTuple):
    """A frozen encoder of items: RGB images, or token ids.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [n, ...]) -> float32 [n, width]`; of images for uint8 or float RGB in 0..255.
      width: D.
      preprocessing: names the preprocessing inside `apply`, for caches.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    width: int
    preprocessing: str


class _Fire(nn.Module):
    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze1x1")(x))
        left = nn.Conv(self.expand, (1, 1), name="expand1x1")(x)
        right = nn.Conv(self.expand, (3, 3), name="expand3x3")(x)
        return nn.relu(jnp.concatenate([left, right], axis=-1))


class _SqueezeNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """All stages by name, `features [n, 512]` last; those that nobody uses cost nothing under jit."""
        x = x.astype(jnp.float32)[..., ::-1] - jnp.array(_BGR_MEAN, jnp.float32).reshape(1, 1, 1, 3)
        x = nn.relu(nn.Conv(64, (3, 3), strides=(2, 2), padding="VALID", name="conv1")(x))
        stages = {"conv1": x}
        for name, (squeeze, expand) in _FIRES.items():
            if name in _POOLS_BEFORE:
                x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
            x = stages[name] = _Fire(squeeze, expand, name=name)(x)
        return stages | {"features": x.mean(axis=(1, 2))}


def stages(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Activations of every stage by name (`conv1`, `fire2` to `fire9`, `features`) for `x [n, h, w, 3]`.

    Raises:
      ValueError: for images of fewer than 31 pixels a side, for which nothing is left after the poolings.
    """
    if x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < 31:
        raise ValueError(f"SqueezeNet takes RGB [n, h, w, 3] of at least 31 x 31 pixels, got {x.shape}.")
    found: Any = _SqueezeNet().apply({"params": params}, x)
    return found


def squeezenet() -> Backbone:
    """SqueezeNet 1.1 up to the global average: images to 512 features, all of them at least 0."""
    return Backbone(
        init=lambda key: _SqueezeNet().init(key, jnp.zeros((1, 32, 32, 3)))["params"],
        apply=lambda params, x: stages(params, x)["features"],
        width=WIDTH,
        preprocessing=PREPROCESSING,
    )


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a weights file by its name, as `fire2.squeeze1x1.kernel`."""
    shapes = jax.eval_shape(squeezenet().init, jax.random.key(0))
    leaves, _ = jax.tree.flatten_with_path(shapes)
    return {".".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def load_squeezenet(path: str | os.PathLike) -> Any:
    """Parameters of `squeezenet()` from a safetensors file.

    Raises:
      FileNotFoundError, ValueError: as `metaicl.models.weights.load_safetensors`.
    """
    params: dict[str, Any] = {}
    for name, tensor in load_safetensors(path, expected_shapes()).items():
        *scopes, leaf = name.split(".")
        scope = params
        for key in scopes:
            scope = scope.setdefault(key, {})
        scope[leaf] = jnp.asarray(tensor, jnp.float32)
    return params
