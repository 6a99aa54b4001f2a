# SPDX-License-Identifier: Apache-2.0
"""Import of pretrained weights from safetensors files, checked by name and shape before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from metaicl.files import given_path

_SHOWN = 5  # names an error lists before it only counts


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def load_safetensors(
    path: str | os.PathLike, expected_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Reads the expected tensors of a safetensors file.

    Args:
      path: the file.
      expected_shapes: shape of each tensor by name. Further tensors in the file are an error too: they mean
        that the file belongs to another network.

    Returns:
      `{name: array}`, with the dtypes of the file, in the order of `expected_shapes`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a safetensors file, or tensors are missing, unexpected or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = given_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}. Give the path of a .safetensors file.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). Download it again.") from error
    missing = [name for name in expected_shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in expected_shapes]
    shapes = [
        f"{name} is {tensors[name].shape} instead of {tuple(shape)}"
        for name, shape in expected_shapes.items()
        if name in tensors and tensors[name].shape != tuple(shape)
    ]
    faults = [
        f"{what}: {_few(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
        if names
    ]
    if faults:
        raise ValueError(
            f"{path} does not fit the network ({'; '.join(faults)}). Give weights of this architecture, "
            "without its classifier, under these names, kernels in the order height, width, in, out."
        )
    return {name: tensors[name] for name in expected_shapes}
