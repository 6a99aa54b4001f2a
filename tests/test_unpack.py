# SPDX-License-Identifier: Apache-2.0
"""Archives are unpacked whole or not at all, and nothing leaves the folder they are unpacked to."""

import errno
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metaicl import files
from metaicl.data import unpack as unpacking
from metaicl.data.unpack import Limits, UnsafeArchive, unpack

CONTENT = {"X/labels.csv": b"FILE_NAME,CATEGORY\n", "X/images/a.jpg": b"\xff\xd8abc", "X/images/b/c.jpg": b""}
KINDS = ("zip", "tar", "tar.gz", "tar.xz")


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_any(path: Path, content: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return write_zip(path, content)
    return write_tar(path, [(tarfile.TarInfo(name), data) for name, data in content.items()])


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, match: str, **limits):
    """Unpacking fails with the error of an unsafe archive and leaves nothing behind."""
    before = sorted(p.name for p in archive.parent.iterdir())
    with pytest.raises(UnsafeArchive, match=match) as caught:
        unpack(archive, archive.parent / "out", limits=Limits(**limits))
    assert str(archive) in str(caught.value) and "not unpacked" in str(caught.value)
    assert sorted(p.name for p in archive.parent.iterdir()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_unpacked_whole(tmp_path, kind):
    steps = []
    archive = write_any(tmp_path / f"x.{kind}", CONTENT | {"X/": b""} if kind == "zip" else CONTENT)
    out = unpack(archive, tmp_path / "new" / "out", progress=lambda *step: steps.append(step))
    assert tree(out) == CONTENT and [p.name for p in out.parent.iterdir()] == ["out"]
    assert steps[-1][0] == archive.name and steps[-1][1] == steps[-1][2] > 0


def test_what_macs_add_is_left_out_and_backslashes_are_understood(tmp_path):
    more = {
        "__MACOSX/X/._a.jpg": b"x",
        "X/.DS_Store": b"x",
        "X/images/._a.jpg": b"x",
        "X\\images\\": b"",
        "X\\images\\d.jpg": b"d",
    }
    out = unpack(write_zip(tmp_path / "x.zip", CONTENT | more), tmp_path / "out")
    assert tree(out) == CONTENT | {"X/images/d.jpg": b"d"}


@pytest.mark.parametrize("kind", ("zip", "tar"))
@pytest.mark.parametrize(
    "name", ("../x", "X/../../x", "/etc/x", "..\\x", "C:\\x", "C:x", "\\\\host\\x", "X/..", "//x")
)
def test_paths_that_lead_out_are_refused(tmp_path, kind, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    refused(write_any(folder / f"x.{kind}", CONTENT | {name: b"evil"}), "a path outside")
    assert [p.name for p in tmp_path.rglob("x")] == [] and not Path("/etc/x").exists()


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, word):
    info = tarfile.TarInfo("X/images")
    info.type, info.linkname = kind, "/etc"
    inside = tarfile.TarInfo("X/images/passwd")
    refused(write_tar(tmp_path / "x.tar", [(info, b""), (inside, b"evil")]), word)


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode, word):
    info = zipfile.ZipInfo("X/images")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc")
    refused(tmp_path / "x.zip", word)


def test_paths_that_come_twice_or_below_a_file_are_refused(tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "x.zip", "w") as archive,
    ):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    refused(tmp_path / "x.zip", "'a' twice")
    refused(write_zip(tmp_path / "x.zip", {"a": b"1", "./a": b"2"}), "'./a' twice")
    refused(write_zip(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"}), "'a/b' inside a file")
    refused(write_zip(tmp_path / "x.zip", {"a/b": b"1", "a": b"2"}), "'a' twice")


@pytest.mark.parametrize("kind", ("zip", "tar.gz", "tar.xz"))
def test_bombs_are_refused(tmp_path, kind):
    archive = write_any(tmp_path / f"x.{kind}", {"zeros": bytes(3_000_000)})
    assert archive.stat().st_size < 10_000
    refused(archive, "more than 50 times its own", slack=1_000_000)
    refused(archive, "more than 2,000,000 bytes", bytes=2_000_000)
    many = write_any(tmp_path / f"x.{kind}", {str(i): b"" for i in range(20)})
    refused(many, "more than 19 files", entries=19)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    """No more bytes are written than were counted."""
    path = write_zip(tmp_path / "x.zip", {"zeros": bytes(3_000_000)})
    data = path.read_bytes()
    told, lie = (3_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert data.count(told) == 2  # beside the file and in the directory
    path.write_bytes(data.replace(told, lie))
    with pytest.raises(ValueError, match=r"damaged|more than"):
        unpack(path, tmp_path / "out", limits=Limits(slack=1000))
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive_is_damaged_and_leaves_nothing(tmp_path, kind):
    content = {f"X/{i}": np.random.default_rng(i).bytes(5000) for i in range(10)}
    archive = write_any(tmp_path / f"x.{kind}", content)
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(ValueError, match=r"damaged.*Delete it and download it again"):
        unpack(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]


def test_a_flipped_bit_of_a_zip_is_found(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"X/a": np.random.default_rng(0).bytes(5000)})
    data = bytearray(archive.read_bytes())
    data[2000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.*CRC"):
        unpack(archive, tmp_path / "out")


def test_an_encrypted_zip_and_other_files_are_named(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flag beside the file
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="password"):
        unpack(archive, tmp_path / "out")
    (tmp_path / "y.zip").write_bytes(b"<html>not here</html>")
    with pytest.raises(ValueError, match=r"y\.zip is no zip or tar file"):
        unpack(tmp_path / "y.zip", tmp_path / "out")


def test_what_does_not_fit_on_the_disk_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "x.zip", CONTENT)
    full = type("Usage", (), {"free": 5})()
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"unpacks to 24 bytes, and there are 5 left") as caught:
        unpack(archive, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC and [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "x.zip", CONTENT)
    plain = Path.open

    def full(path, mode="r", *args, **kwargs):
        if "x" in mode and path.name == "c.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_what_a_killed_process_left_is_made_again_and_nothing_is_overwritten(tmp_path):
    archive = write_zip(tmp_path / "x.zip", CONTENT)
    (tmp_path / ".out.partial" / "half").mkdir(parents=True)
    assert tree(unpack(archive, tmp_path / "out")) == CONTENT
    with pytest.raises(FileExistsError, match=r"something at .*out already"):
        unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == CONTENT
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    with pytest.raises(FileExistsError), files.building(tmp_path / "link"):
        pass
    assert not (tmp_path / ".link.partial").exists()
