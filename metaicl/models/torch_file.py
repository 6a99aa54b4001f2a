# SPDX-License-Identifier: Apache-2.0
"""Tensors from the files of `torch.save`, without torch and without running anything that a file says.

Such a file is a pickle, and a pickle is a program that may call any function. Here it may name only the few stand-ins
of `_KNOWN`, which do nothing but note a tensor's place; any other name is refused before it is looked up. Both formats
are read: the zip archive (since torch 1.6), and the stream of pickles with raw storages behind it (before).
"""

from __future__ import annotations

import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_ZIPPED = b"PK\x03\x04"  # an archive's first bytes, and those of each of its entries
_MAGIC = 0x1950A86A20F9469CFC6C  # first object of the older format
_PROTOCOL = 1001  # its second
_REMEDY = (
    "Save its weights alone with torch.save(model.state_dict(), PATH), or as safetensors with "
    "safetensors.torch.save_file(model.state_dict(), PATH)."
)


class Refused(ValueError):
    """The file asks for more than tensors."""


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    dtype: np.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage; strides and offset in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StandIn:
    """What the name of a function or class in the file becomes; it cannot be changed by the file."""

    __slots__ = ("call", "dtype")
    call: Callable[..., Any] | None
    dtype: np.dtype | None

    def __init__(self, call: Callable[..., Any] | None = None, dtype: Any = None):
        object.__setattr__(self, "call", call)
        object.__setattr__(self, "dtype", None if dtype is None else np.dtype(dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("it changes what its names stand for")

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise Refused("it calls a type of numbers")
        return self.call(*arguments)


def _view(storage, offset, shape, strides, *_) -> _Tensor:
    """What `torch._utils._rebuild_tensor_v2` is told; gradients and hooks are left."""
    if not isinstance(storage, _Storage):
        raise Refused("it has a tensor without a storage")
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    if len(shape) != len(strides) or offset < 0 or min((*shape, *strides), default=0) < 0:
        raise Refused("it has a tensor of impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.numel:
        raise Refused("it has a tensor that ends behind its storage")
    return _Tensor(storage, int(offset), shape, strides)


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _StandIn(call=lambda *items: OrderedDict(*items)),
    ("torch._utils", "_rebuild_tensor"): _StandIn(call=_view),
    ("torch._utils", "_rebuild_tensor_v2"): _StandIn(call=_view),
    ("torch._utils", "_rebuild_parameter"): _StandIn(call=lambda data, *_: data),
    ("torch", "DoubleStorage"): _StandIn(dtype=np.float64),
    ("torch", "FloatStorage"): _StandIn(dtype=np.float32),
    ("torch", "HalfStorage"): _StandIn(dtype=np.float16),
    ("torch", "BFloat16Storage"): _StandIn(dtype=jnp.bfloat16),
    ("torch", "LongStorage"): _StandIn(dtype=np.int64),
    ("torch", "IntStorage"): _StandIn(dtype=np.int32),
    ("torch", "ShortStorage"): _StandIn(dtype=np.int16),
    ("torch", "CharStorage"): _StandIn(dtype=np.int8),
    ("torch", "ByteStorage"): _StandIn(dtype=np.uint8),
    ("torch", "BoolStorage"): _StandIn(dtype=np.bool_),
}


class _Unpickler(pickle.Unpickler):
    """Names of `_KNOWN` become stand-ins, all others an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise Refused(f"it asks for {module}.{name}, and only tensors are read")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StandIn) or storage_type.dtype is None:
            raise Refused("it refers to something that is no storage")
        if view and view[0] is not None:
            raise Refused("it has a storage within another")
        return _Storage(storage_type.dtype, str(key), int(numel))


class TorchFile(NamedTuple):
    """What a file holds, none of it read yet.

    Attributes:
      tensors: views by dotted name; names of nested dictionaries are joined, and what is no tensor is left out.
      storages: where each storage begins in the file, and how many bytes it has, by key.
      path: of the file.
    """

    tensors: dict[str, _Tensor]
    storages: dict[str, tuple[int, int]]
    path: Path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Raises:
          ValueError: if the file ends before it.
        """
        storage, offset, shape, strides = self.tensors[name]
        start, size = self.storages.get(storage.key, (0, None))
        if size != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"{self.path}: the storage of {name} is not whole. Download it again.")
        if start + size > self.path.stat().st_size:
            raise ValueError(f"{self.path} ends within {name}. Download it again.")
        numbers = np.fromfile(self.path, storage.dtype, storage.numel, offset=start)
        steps = [step * storage.dtype.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
        return np.array(view, order="C")


def open_torch_file(path: str | os.PathLike) -> TorchFile:
    """Reads the names and places of the tensors of a file of `torch.save`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not such a file or damaged, or `Refused` if it asks for anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weights file {path}. Give the path of a .pth or .safetensors file."
        )
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == _ZIPPED
        found, storages = _from_zip(path) if zipped else _from_stream(path)
    except Refused as error:
        raise Refused(f"{path} is refused: {error}. {_REMEDY}") from None
    except OSError:
        raise
    except Exception as error:  # bytes of anything else make an unpickler raise whatever there is
        raise ValueError(
            f"{path} is not a whole file of torch.save ({type(error).__name__}: {error}). Download it again."
        ) from error
    return TorchFile(_named(found), storages, path)


def _named(found: Any) -> dict[str, _Tensor]:
    """Tensors of nested dictionaries by dotted name; a dictionary that holds itself is looked at once."""
    tensors: dict[str, _Tensor] = {}
    waiting, seen = [("", found)], {id(found)}
    while waiting:
        above, inner = waiting.pop()
        for key, value in inner.items() if isinstance(inner, dict) else ():
            name = f"{above}{key}"
            if isinstance(value, _Tensor):
                tensors[name] = value
            elif isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{name}.", value))
    return tensors


def _from_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object, and the places of the storages, of an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if re.fullmatch("[^/]+/data.pkl", name)]
        if len(roots) != 1:
            raise ValueError("the archive holds no single data.pkl")
        root = roots[0]
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("its entries are compressed")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
        if order.strip() != b"little":
            raise ValueError(f"its numbers are stored {order.decode()}-endian")
        with archive.open(f"{root}data.pkl") as file:
            found = _Unpickler(file, encoding="utf-8").load()
    kept = {name: info for name, info in entries.items() if name.startswith(f"{root}data/")}
    with open(path, "rb") as raw:
        places = {name.removeprefix(f"{root}data/"): _place(raw, info) for name, info in kept.items()}
    return found, places


def _place(file: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an uncompressed entry are: behind its local header, of 30 bytes, a name and padding."""
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != _ZIPPED:
        raise ValueError(f"the entry {info.filename} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths, info.file_size


def _from_stream(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same of the older format: three heads, the object, the keys of its storages, and these in order."""
    storages: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}

    class Noting(_Unpickler):
        def persistent_load(self, pid: Any) -> _Storage:
            storage = super().persistent_load(pid)
            sizes[storage.key] = storage.dtype.itemsize
            return storage

    with open(path, "rb") as file:
        load = lambda kind=_Unpickler: kind(file, encoding="utf-8").load()
        if load() != _MAGIC or load() != _PROTOCOL:
            raise ValueError("its first bytes are not those of torch.save")
        if not load().get("little_endian", True):
            raise ValueError("its numbers are stored big-endian")
        found, keys = load(Noting), load()
        for key in keys:
            size = int.from_bytes(file.read(8), "little") * sizes[str(key)]
            storages[str(key)] = (file.tell(), size)
            file.seek(size, os.SEEK_CUR)
    return found, storages
