# SPDX-License-Identifier: Apache-2.0
"""Import of pretrained weights from files, checked by name and shape before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from metaicl.files import given_path
from metaicl.models.torch_file import open_torch_file

TORCH_ENDINGS = (".pth", ".pt", ".bin")
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

    The path may also be that of an index (`.json`) of weights that were cut up into several files beside it, or of a
    file of `torch.save` (`.pth`, `.pt`, `.bin`), see `torch_file`.

    Raises:
      FileNotFoundError: if there is no such file, or one that the index names is missing.
      ValueError: if it is not a whole safetensors file, or the index and its files do not agree.
    """
    path = given_path(path)
    if path.suffix in TORCH_ENDINGS:
        return open_torch_file(path).shapes()
    if path.suffix != ".json":
        return _shapes_of_file(path)
    index = _read_index(path)
    if absent := sorted({name for name in index.values() if not (path.parent / name).is_file()}):
        raise FileNotFoundError(
            f"{path} names {_few(absent)}, and there is no such file beside it. Fetch it."
        )
    shards = {name: _shapes_of_file(path.parent / name) for name in sorted(set(index.values()))}
    if lost := [f"{tensor} of {shard}" for tensor, shard in index.items() if tensor not in shards[shard]]:
        raise ValueError(f"{path} names tensors that its files do not hold: {_few(lost)}. Download it again.")
    return {tensor: shards[shard][tensor] for tensor, shard in index.items()}


def _read_index(path: Path) -> dict[str, str]:
    """The names of the files that an index tells for every tensor."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no index {path} of weights.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): Path(shard).name for tensor, shard in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of safetensors files. Download it again.") from error


def _shapes_of_file(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

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
    check_shapes(path, tensor_shapes(path), expected_shapes, ignored=ignored, advice=advice)


def check_shapes(
    path: str | os.PathLike,
    found: Mapping[str, tuple[int, ...]],
    expected_shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    advice: str = _ADVICE,
) -> None:
    """Compares the shapes `found` in the file `path` with those expected.

    Raises:
      ValueError: naming tensors that are missing, unexpected or of another shape.
    """
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
      path: the file, or an index of several, see `tensor_shapes`.
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
    check_safetensors(path, expected_shapes, ignored=ignored, advice=advice)
    return read_tensors(path, expected_shapes)


def read_tensors(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Tensors of a file that `tensor_shapes` takes, by name and in order; all names must be in it."""
    from safetensors import safe_open

    path, names = given_path(path), list(names)
    if path.suffix in TORCH_ENDINGS:
        whole = open_torch_file(path)
        return {name: whole.read(name) for name in names}
    found: dict[str, np.ndarray] = {}
    index = _read_index(path) if path.suffix == ".json" else dict.fromkeys(names, path.name)
    for shard in sorted({index[name] for name in names}):
        with safe_open(path.parent / shard, "numpy") as file:
            found |= {name: file.get_tensor(name) for name in names if index[name] == shard}
    return {name: found[name] for name in names}
