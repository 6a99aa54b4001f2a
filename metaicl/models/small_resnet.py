# SPDX-License-Identifier: Apache-2.0
"""A small residual network with group normalisation, for images of 32 pixels and more on a few CPU cores.

The stem looks at blocks of 2 x 2 pixels; four stages of residual blocks (He et al., arXiv 1512.03385) follow, each but
the first behind a halving by averages, which leaves every convolution a stride of 1. Features are the averages of
the stages' outputs over all positions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from metaicl.files import array_digest, write_bytes, write_text
from metaicl.models.convolution import conv3x3, group_normalized
from metaicl.models.squeezenet import Backbone
from metaicl.models.weights import load_safetensors, tensor_shapes

# Bump when the same bytes of an image would give other features: caches of features are keyed by it.
PREPROCESSING = "rgb-symmetric-v1"
LEAST_SIDE = 16
_FEW_POSITIONS = 4


class Size(NamedTuple):
    """Sizes of the network.

    Attributes:
      widths: channels of each stage, all of them multiples of 8.
      blocks: residual blocks of each stage.
      pooled: how many stages, counted from the last, have their averages among the features.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    pooled: int = 1

    @property
    def features(self) -> int:
        """D, the number of features."""
        return sum(self.widths[len(self.widths) - self.pooled :])


class SmallResNet(nn.Module):
    """`uint8` or float RGB of 0..255 `[n, h, w, 3]` to the averages of all stages, `[n, width]` each."""

    size: Size
    task_batched: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """The first stage's averages first."""
        x = (x.astype(jnp.float32) / 127.5 - 1).astype(self.dtype)
        x = nn.relu(self._normalized("stem", self._conv("stem", _blocks_of_pixels(x), self.size.widths[0])))
        averages = []
        for stage, (width, blocks) in enumerate(zip(self.size.widths, self.size.blocks, strict=True)):
            if stage:
                x = _halved(x)
            for block in range(blocks):
                x = self._block(f"stage{stage + 1}.block{block + 1}", x, width)
            averages.append(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
        return averages

    def _block(self, name, x, width):
        y = nn.relu(self._normalized(f"{name}.1", self._conv(f"{name}.1", x, width)))
        y = self._normalized(f"{name}.2", self._conv(f"{name}.2", y, width))
        if x.shape[-1] != width:
            kernel = self.param(
                f"{name}.shortcut.kernel", nn.initializers.lecun_normal(), (x.shape[-1], width), jnp.float32
            )
            x = x @ kernel.astype(self.dtype)
        return nn.relu(x + y)

    def _conv(self, name, x, width):
        kernel = self.param(
            f"{name}.kernel", nn.initializers.he_normal(), (3, 3, x.shape[-1], width), jnp.float32
        )
        kernel = kernel.astype(self.dtype)
        if x.shape[1] * x.shape[2] <= _FEW_POSITIONS:
            return _conv_of_patches(x, kernel)
        return conv3x3(x, kernel, 1, self.task_batched)

    def _normalized(self, name, x):
        scale = self.param(f"{name}.scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        offset = self.param(f"{name}.offset", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        y = group_normalized(x.astype(jnp.float32)) * scale[None, None, None, :] + offset[None, None, None, :]
        return y.astype(self.dtype)


def _blocks_of_pixels(x):  # [n, h, w, c] -> [n, h / 2, w / 2, 4 c]; an odd border is dropped
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return jnp.concatenate([x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)], axis=-1)


def _conv_of_patches(x, kernel):
    """The same convolution as one product, whose gradient on a CPU takes less time where positions are few."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _halved(x):  # averages of 2 x 2, [n, h, w, c] -> [n, h / 2, w / 2, c]
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return sum(x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)) / 4


PRETRAINED = Path(__file__).parent / "pretrained" / "formulas.safetensors"
_IN_A_RUN = ".params['encoder']['{}']"  # the name of a tensor in the weights of a run
FROZEN = Size(pooled=2)


def features(
    params: Any, x: jax.Array, size: Size = FROZEN, task_batched: bool = False, dtype: Any = None
) -> jax.Array:
    """Averages of the last `size.pooled` stages of `x [n, h, w, 3]`, side by side: `float [n, D]`, at least 0.

    Raises:
      ValueError: for what is no RGB, or too small for the stages.
    """
    if x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"small_resnet takes RGB [n, h, w, 3] of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, got {x.shape}."
        )
    module = SmallResNet(size, task_batched, jnp.dtype(dtype or jnp.float32))
    averages: Any = module.apply({"params": params}, x)
    return jnp.concatenate(averages[len(averages) - size.pooled :], axis=-1)


def init(key: jax.Array, size: Size = FROZEN) -> dict[str, jax.Array]:
    """Random parameters by name, as `stage1.block1.1.kernel`."""
    return dict(SmallResNet(size).init(key, jnp.zeros((1, LEAST_SIDE, LEAST_SIDE, 3)))["params"])


def small_resnet() -> Backbone:
    """The frozen network: images to the averages of its last stages."""
    return Backbone(init=init, apply=features, width=FROZEN.features, preprocessing=PREPROCESSING)


def load_small_resnet(path: str | os.PathLike = "") -> dict[str, jax.Array]:
    """Parameters of `small_resnet()` from a safetensors file: those of the package, or the weights of a run.

    Args:
      path: of the file; empty for the weights that come with the package.

    Raises:
      FileNotFoundError, ValueError: as `metaicl.models.weights.load_safetensors`.
    """
    path = path or PRETRAINED
    shapes = {name: leaf.shape for name, leaf in jax.eval_shape(init, jax.random.key(0)).items()}
    form = _IN_A_RUN if any(name.startswith(".params") for name in tensor_shapes(path)) else "{}"
    expected = {form.format(name): shape for name, shape in shapes.items()}
    advice = (
        "weights of small_resnet: those of a run of configs/formulas.py, or none for those of the package"
    )
    found = load_safetensors(path, expected, ignored=lambda name: name.startswith(".params"), advice=advice)
    return {name: jnp.asarray(found[form.format(name)], jnp.float32) for name in shapes}


def export(weights: str | os.PathLike, path: str | os.PathLike, **notes: Any) -> None:
    """Writes the network of a run's weights as float16, and beside it (`.json`) its digest and what made it.

    Args:
      weights: of a run of configs/formulas.py.
      path: of the new safetensors file.
      **notes: what else the file beside it says, as the command, the steps and the seed.
    """
    from safetensors.numpy import save

    tensors = {name: np.asarray(tensor, np.float16) for name, tensor in load_small_resnet(weights).items()}
    size = sum(tensor.size for tensor in tensors.values())
    write_bytes(path, save(tensors))
    said = {"parameters": size, "dtype": "float16", "digest": array_digest(tensors), **notes}
    write_text(Path(path).with_suffix(".json"), json.dumps(said, indent=1) + "\n")
