# SPDX-License-Identifier: Apache-2.0
"""Import of pretrained weights from safetensors files, checked by name and shape before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np

from metaicl.files import given_path

_SHOWN = 5  # names an error lists before it only counts
_ADVICE = (
    "weights of this architecture, without its classifier, under these names, kernels in the order height, width, "
    "in, out"
)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def tensor_shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file by name, from its head alone.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = given_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}. Give the path of a .safetensors file.")
    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). Download it again.") from error


def check_safetensors(
    path: str | os.PathLike,
    expected_shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    advice: str = _ADVICE,
) -> None:
    """Compares the head of a safetensors file with what is expected; arguments and errors as `load_safetensors`."""
    found = tensor_shapes(path)
    missing = [name for name in expected_shapes if name not in found]
    unexpected = [name for name in found if name not in expected_shapes and not ignored(name)]
    shapes = [
        f"{name} is {found[name]} instead of {tuple(shape)}"
        for name, shape in expected_shapes.items()
        if name in found and found[name] != tuple(shape)
    ]
    faults = [
        f"{what}: {_few(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
        if names
    ]
    if faults:
        raise ValueError(f"{given_path(path)} does not fit the network ({'; '.join(faults)}). Give {advice}.")


def load_safetensors(
    path: str | os.PathLike,
    expected_shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    advice: str = _ADVICE,
) -> dict[str, np.ndarray]:
    """Reads the expected tensors of a safetensors file.

    Args:
      path: the file.
      expected_shapes: shape of each tensor by name. Further tensors in the file are an error too: they mean
        that the file belongs to another network.
      ignored: which further tensors may be there all the same.
      advice: what to give instead of a file that does not fit.

    Returns:
      `{name: array}`, with the dtypes of the file, in the order of `expected_shapes`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a safetensors file, or tensors are missing, unexpected or of another shape.
    """
    from safetensors import safe_open

    check_safetensors(path, expected_shapes, ignored=ignored, advice=advice)
    with safe_open(given_path(path), "numpy") as file:
        return {name: file.get_tensor(name) for name in expected_shapes}
