# SPDX-License-Identifier: Apache-2.0
"""Weights of ResNets from the files of torchvision and timm, which name them alike."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metaicl.files import given_path
from metaicl.models.hub import fetched
from metaicl.models.resnet import resnet
from metaicl.models.weights import TORCH_ENDINGS, check_shapes, read_tensors, tensor_shapes

WEIGHTS = "model.safetensors"  # of a folder or a hub name
_EPSILON = 1e-5  # of PyTorch's batch normalisation
_NORM = ("weight", "bias", "running_mean", "running_var")
_PUBLISHED = {
    18: ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "timm/resnet18.a1_in1k"),
    34: ("https://download.pytorch.org/models/resnet34-b627a593.pth", "timm/resnet34.a1_in1k"),
    50: (
        "https://download.pytorch.org/models/resnet50-11ad3fa6.pth (or the older resnet50-0676ba61.pth)",
        "timm/resnet50.a1_in1k",
    ),
}


def where_to_get(depth: int) -> str:
    """Where pretrained weights are and how to name them, for behind a colon."""
    address, name = _PUBLISHED[depth]
    return (
        f"download {address} to any folder and give weights=PATH of the file, or a .safetensors file with the same "
        f"names, or weights={name}, which the Hugging Face client fetches"
    )


def weights_file(depth: int, given: str | os.PathLike) -> Path:
    """The file that is meant by a path, a folder with `model.safetensors`, or a name of the Hugging Face hub.

    Raises:
      FileNotFoundError: if there is none, with where to get one.
    """
    if not os.fspath(given):
        raise FileNotFoundError(f"ResNet-{depth} needs its pretrained weights: {where_to_get(depth)}.")
    path = given_path(given)
    if path.is_dir():
        path = path / WEIGHTS
    elif not path.exists() and _is_hub_name(os.fspath(given)):
        path = (
            fetched(os.fspath(given), [WEIGHTS], f"folder with {WEIGHTS}, or {where_to_get(depth)}") / WEIGHTS
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path} of ResNet-{depth}: {where_to_get(depth)}.")
    return path


def _is_hub_name(text: str) -> bool:
    endings = (".safetensors", ".json", *TORCH_ENDINGS)
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None and not text.endswith(endings)


def expected_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that is read of a file, by its name as `layer1.0.conv1.weight`; kernels out, in, h, w."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv, (h, w, below, above) in _kernels(depth).items():
        kernel, norm = _their_names(conv)
        shapes[f"{kernel}.weight"] = (above, below, h, w)
        shapes |= {f"{norm}.{part}": (above,) for part in _NORM}
    return shapes


@functools.lru_cache
def _kernels(depth: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of the kernel of each of our convolutions."""
    flat = flatten_dict(jax.eval_shape(resnet(depth).init, jax.random.key(0)))
    return {path[:-1]: leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"}


def _their_names(conv: tuple[str, ...]) -> tuple[str, str]:
    """Names of a convolution and of the norm behind it: of `("layer1_0", "conv2")` `layer1.0.conv2`, `layer1.0.bn2`."""
    *block, own = conv
    above = "".join(f"{part.replace('_', '.')}." for part in block)
    if own == "downsample":
        return f"{above}downsample.0", f"{above}downsample.1"
    return f"{above}{own}", f"{above}{own.replace('conv', 'bn')}"


def check_resnet(depth: int, given: str | os.PathLike) -> tuple[Path, str]:
    """The file of weights and what stands before its names, once its tensors' names and shapes fit.

    Raises:
      FileNotFoundError: if there is no such file, with where to get one.
      ValueError: if it cannot be read safely, or tensors are missing, unexpected or of another shape.
    """
    path = weights_file(depth, given)
    found = tensor_shapes(path)
    prefix = _prefix(found)
    named = {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}
    left = lambda name: name.startswith("fc.") or name.endswith("num_batches_tracked")
    advice = f"weights of a ResNet-{depth} as torchvision and timm name them: {where_to_get(depth)}"
    check_shapes(path, named, expected_shapes(depth), ignored=left, advice=advice)
    return path, prefix


def _prefix(found: Mapping[str, Any]) -> str:
    """What wrappers put before all names of the network, as `module.` or `state_dict.backbone.`; the shortest such."""
    last = "layer1.0.conv1.weight"
    prefixes = [name.removesuffix(last) for name in found if name.endswith(last)]
    whole = [prefix for prefix in prefixes if f"{prefix}conv1.weight" in found]
    return min(whole, key=lambda prefix: (len(prefix), prefix), default="")


def load_resnet(depth: int, given: str | os.PathLike) -> Any:
    """Parameters of `resnet(depth)` from a file, a folder or a hub name, see `from_tensors`.

    Raises:
      FileNotFoundError, ValueError: as `check_resnet`.
    """
    return jax.tree.map(jnp.asarray, _read(depth, *check_resnet(depth, given)))


def pretrained(depth: int, given: str | os.PathLike) -> Any:
    """The same for a program under `jit`, into which the weights would be compiled else: they come by a callback."""
    path, prefix = check_resnet(depth, given)
    shapes = jax.eval_shape(resnet(depth).init, jax.random.key(0))
    return jax.pure_callback(lambda: _read(depth, path, prefix), shapes, vmap_method="sequential")


def _read(depth: int, path: Path, prefix: str) -> Any:
    tensors = read_tensors(path, [prefix + name for name in expected_shapes(depth)])
    return from_tensors(depth, {name.removeprefix(prefix): value for name, value in tensors.items()})


def from_tensors(depth: int, tensors: Mapping[str, np.ndarray]) -> Any:
    """Parameters of `resnet(depth)` in float32, from tensors of `expected_shapes`.

    Batch normalisation by running statistics becomes one slope and one offset a channel:
    `weight / sqrt(running_var + 1e-5)` and `bias - running_mean * slope`.
    """
    params = {}
    for conv in _kernels(depth):
        kernel, norm = _their_names(conv)
        weight, bias, mean, var = (tensors[f"{norm}.{part}"].astype(np.float64) for part in _NORM)
        slope = weight / np.sqrt(var + _EPSILON)
        params[*conv, "kernel"] = tensors[f"{kernel}.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        params[*conv, "scale"] = slope.astype(np.float32)
        params[*conv, "bias"] = (bias - mean * slope).astype(np.float32)
    return unflatten_dict({name: np.ascontiguousarray(value) for name, value in params.items()})
