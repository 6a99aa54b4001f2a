# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save` read without torch: the same tensors as torch reads, and what a file asks for is not run."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from metaicl.models.torch_file import Refused, open_torch_file
from metaicl.models.weights import tensor_shapes

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


@FORMATS
def test_all_kinds_of_tensors(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(60.0).view(3, 4, 5)
    tensors = collections.OrderedDict(
        whole=base,
        turned=base.permute(2, 0, 1),
        inner=base[1:, ::2, 1],
        same_storage=base.view(-1)[7:9],
        repeated=torch.ones(3, 1).expand(3, 4),
        nothing=torch.zeros(0, 3),
        number=torch.tensor(2.5),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    )
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8)
    tensors |= {str(kind): torch.tensor([-1.5, 0, 3]).to(kind) for kind in (*kinds, torch.uint8, torch.bool)}
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    file = open_torch_file(tmp_path / "w.pth")
    assert file.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        found = file.read(name)
        assert str(found.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.astype(np.float64), tensor.detach().double().numpy())


@FORMATS
def test_a_network_with_its_optimiser(zipped, tmp_path):
    """Nested dictionaries are flattened; what is no tensor is passed over."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    adam.step()
    whole = {"epoch": 3, "names": ["a", None], "state_dict": net.state_dict(), "optimizer": adam.state_dict()}
    path = tmp_path / "w.pt"
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    shapes = tensor_shapes(path)
    assert shapes["state_dict.0.weight"] == (4, 3, 3, 3) and shapes["state_dict.1.num_batches_tracked"] == ()
    assert shapes["optimizer.state.0.exp_avg"] == (4, 3, 3, 3)
    found = open_torch_file(path).read("state_dict.1.running_var")
    np.testing.assert_array_equal(found, net[1].running_var.numpy())


class _Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


def write_pickle(path, content: bytes, zipped: bool):
    """A file of either format around a pickle, without storages."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")
    else:
        heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + content + pickle.dumps([], 2))
    return path


def harmful(marker: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make a file `marker`, and what is said of each."""
    touch = f"touch {marker}"
    runs = lambda *made: pickle.dumps({"conv1.weight": _Runs(*made)}, 4)
    shell = b"cos\nsystem\n(V" + touch.encode() + b"\ntR."
    return {
        "os": (runs(os.system, touch), "asks for posix.system"),
        "plain": (shell, "asks for os.system"),
        "inst": (b"(V" + touch.encode() + b"\nios\nsystem\n.", "asks for os.system"),
        "eval": (runs(eval, f"open({marker!r}, 'w')"), "asks for builtins.eval"),
        "open": (runs(open, marker, "w"), r"asks for \w+.open"),
        "popen": (runs(subprocess.Popen, ["touch", marker]), "asks for subprocess.Popen"),
        "dotted": (b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__new__\x93.", r"OrderedDict\.__new__"),
        "load": (b"ctorch\nload\n(V" + marker.encode() + b"\ntR.", "asks for torch.load"),
        "changed": (b"ctorch._utils\n_rebuild_tensor_v2\n(N}V__call__\nI1\nstb.", "changes what its names"),
        "numbers": (b"ctorch\nFloatStorage\n(tR.", "calls a type of numbers"),
        "reference": (b"(Vmodule\nNNNNtQ.", "no storage"),
    }


@FORMATS
@pytest.mark.parametrize("kind", list(harmful("")))
def test_what_a_file_asks_for_is_not_run(kind, zipped, tmp_path):
    marker = tmp_path / "marker"
    content, said = harmful(str(marker))[kind]
    path = write_pickle(tmp_path / "w.pth", content, zipped)
    with pytest.raises(Refused, match=said) as caught:
        open_torch_file(path)
    assert str(path) in str(caught.value) and "safetensors.torch.save_file" in str(caught.value)
    assert not marker.exists()


def test_such_pickles_would_run_otherwise(tmp_path):
    """The test above means something: an ordinary reader obeys."""
    pickle.loads(harmful(str(tmp_path / "marker"))["plain"][0])
    assert (tmp_path / "marker").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(Refused, match=r"asks for torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        open_torch_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "said"),
    [
        (0, (7,), (1,), "ends behind its storage"),
        (3, (2, 2), (2, 2), "ends behind its storage"),
        (-1, (2,), (1,), "impossible shape"),
        (0, (2,), (-1,), "impossible shape"),
        (0, (2, 2), (1,), "impossible shape"),
    ],
)
def test_views_outside_their_storage_are_refused(offset, shape, strides, said, tmp_path):
    """No tensor shows memory that is not of the file."""
    numbers = lambda values: b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + numbers(shape)
    path = write_pickle(tmp_path / "w.pth", view + numbers(strides) + b"I00\nNtR.", True)
    with pytest.raises(Refused, match=said):
        open_torch_file(path)


@FORMATS
def test_files_that_are_not_whole(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    torch.save({"a": torch.randn(1000), "b": torch.randn(1000)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in (0, 10, 100, len(content) - 1500):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"w\.pth.* Download it again"):
            file = open_torch_file(path)
            [file.read(name) for name in ("a", "b")]
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match=r"not a whole file of torch\.save"):
        open_torch_file(path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        open_torch_file(tmp_path / "none.pth")
