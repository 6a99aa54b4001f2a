# SPDX-License-Identifier: Apache-2.0
"""Readers of data sets that come divided: csv files beside images, and the two layouts of CIFAR-FS."""

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from metaicl.data import sampler, split_folders
from metaicl.data.images import BadImage, DataWarning
from metaicl.data.split_folders import read_cifar_fs, read_csv_splits

CLASSES = {"train": ("n03", "n01"), "val": ("n02",), "test": ("n05", "n04")}
EACH = 3


def picture(seed: int, side: int) -> np.ndarray:
    """A smooth random RGB image."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def write_picture(path: Path, seed: int, side: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture(seed, side)[..., ::-1])[1].tobytes())


def seed_of(label: str, i: int) -> int:
    return 10 * int(label[1:]) + i


def write_mini(folder: Path, by_label: bool) -> Path:
    for part, labels in CLASSES.items():
        lines = ["filename,label"]
        for label in labels:
            for i in reversed(range(EACH)):
                name = f"{label}{i}.png"
                lines.append(f"{name},{label}")
                write_picture(folder / "images" / (label if by_label else "") / name, seed_of(label, i), 168)
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n\n")
    return folder


def mini(folder, **settings):
    return read_csv_splits(folder, name="mini", domain="objects", **settings)


def check_parts(parts, side: int, shrink: int = 1):
    """Every part has its sorted classes, and the pixels they were written from."""
    for part, labels in zip(parts, CLASSES.values(), strict=True):
        (pool,) = part
        assert pool.classes == tuple(sorted(labels)) and pool.counts.tolist() == [EACH] * len(labels)
        assert pool.x.dtype == np.uint8 and pool.x.shape == (len(pool), side, side, 3)
        for row, label in enumerate(pool.labels):
            image = picture(seed_of(pool.classes[label], row % EACH), side * shrink).astype(float)
            means = image.reshape(side, shrink, side, shrink, 3).mean(axis=(1, 3))
            assert np.abs(pool.x[row] - means).max() <= 0.51


@pytest.mark.parametrize("by_label", [False, True])
def test_csv_files_divide_the_images_they_list(tmp_path, by_label):
    steps = []
    parts = mini(write_mini(tmp_path, by_label), progress=lambda *step: steps.append(step))
    check_parts(parts, 84, shrink=2)
    pools = [pool for part in parts for pool in part]
    assert {(p.name, p.domain) for p in pools} == {("mini", "objects")}
    assert ("mini", 6, 6) in steps and ("decode", 6, 6) in steps
    digest = hashlib.sha256(next(tmp_path.rglob("n022.png")).read_bytes()).hexdigest()
    assert parts.validation[0].digests[2] == digest.encode()


def test_parts_are_rows_of_one_store(tmp_path):
    parts = mini(write_mini(tmp_path, False), image_size=16)
    pools = [pool for part in parts for pool in part]
    store = sampler.Store({"x": np.concatenate([pool.x for pool in pools])}, {"mini": 0})
    for pool in pools:
        np.testing.assert_array_equal(store.consts["x"][pool.rows], pool.x)


def test_capitals_spaces_and_further_columns_of_a_csv_do_not_mind(tmp_path):
    write_mini(tmp_path, False)
    rows = [line.split(",") for line in (tmp_path / "val.csv").read_text().split()[1:]]
    text = "\ufefflabel, Number ,FileName \r\n" + "".join(f"{b},1, {a}\r\n" for a, b in rows)
    (tmp_path / "val.csv").write_bytes(text.encode())
    check_parts(mini(tmp_path), 84, shrink=2)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (shutil.rmtree, FileNotFoundError, "There is no folder"),
        (lambda f: (f / "val.csv").unlink(), FileNotFoundError, r"lacks val\.csv"),
        (lambda f: shutil.rmtree(f / "images"), FileNotFoundError, "lacks images"),
        (
            lambda f: (f / "val.csv").write_text(""),
            ValueError,
            r"val\.csv has no column 'filename'.*it is empty",
        ),
        (lambda f: (f / "val.csv").write_text("filename,label\n"), ValueError, r"val\.csv lists no images"),
        (
            lambda f: (f / "val.csv").write_text("filename,class\na,b\n"),
            ValueError,
            r"no column 'label'.*'class'",
        ),
        (lambda f: (f / "val.csv").write_text("filename,label\nn020.png\n"), ValueError, "line 2"),
        (
            lambda f: [(f / f"images/n0{i}.png").unlink() for i in ("32", "10")],
            FileNotFoundError,
            r"train\.csv lists 2 files, of 6,.*first 'n032\.png'",
        ),
        (
            lambda f: (f / "val.csv").write_text("filename,label\nn020.png,n02\nn021.png,n03\n"),
            ValueError,
            r"class 'n03' is in train\.csv and in val\.csv",
        ),
        (
            lambda f: (f / "val.csv").write_text("filename,label\nn030.png,n02\n"),
            ValueError,
            r"n030\.png is listed twice, in train\.csv and in val\.csv",
        ),
        (lambda f: (f / "images/n051.png").write_bytes(b"<html>"), BadImage, r"n051\.png cannot be decoded"),
    ],
)
def test_broken_csv_splits_are_refused_by_name(tmp_path, damage, error, text):
    folder = write_mini(tmp_path / "mini", False)
    damage(folder)
    with pytest.raises(error, match=text) as caught:
        mini(folder)
    assert str(folder) in str(caught.value)


def test_every_file_is_checked_before_one_is_decoded(tmp_path):
    write_mini(tmp_path, False)
    (tmp_path / "images/n051.png").write_bytes(b"")
    steps = []
    with pytest.raises(BadImage, match="empty file"):
        mini(tmp_path, progress=lambda what, *_: steps.append(what))
    assert "decode" not in steps


def test_bad_images_are_left_out_on_request(tmp_path):
    write_mini(tmp_path, False)
    (tmp_path / "images/n030.png").write_bytes(b"<html>")
    with pytest.warns(DataWarning, match=r"left out 1 images that do not decode.*n030"):
        parts = mini(tmp_path, skip_bad=True)
    assert parts.train[0].counts.tolist() == [3, 2]
    assert [int(pool.rows[0]) for part in parts for pool in part] == [0, 5, 8]


def write_cifar(folder: Path, layout: str) -> Path:
    for part, labels in CLASSES.items():
        for label in labels:
            above = f"meta-{part}" if layout == "meta" else "data"
            for i in range(EACH):
                write_picture(folder / above / label / f"{i}.png", seed_of(label, i), 32)
        if layout == "text":
            listed = folder / "splits" / "bertinetto" / f"{part}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("\n".join(labels) + "\n")
    return folder


@pytest.fixture
def small(monkeypatch):
    """As if CIFAR-FS were as small as what `write_cifar` writes."""
    monkeypatch.setattr(split_folders, "_CIFAR_FS_CLASSES", (2, 1, 2))
    monkeypatch.setattr(split_folders, "_CIFAR_FS_IMAGES", EACH)


@pytest.mark.parametrize("inner", ["", "cifar-fs", "cifar100"])
@pytest.mark.parametrize("layout", ["meta", "text"])
def test_both_layouts_of_cifar_fs_are_read(small, tmp_path, layout, inner):
    write_cifar(tmp_path / inner, layout)
    (tmp_path / inner / ("data" if layout == "text" else "meta-val") / "n02" / ".hidden.png").write_bytes(b"")
    parts = read_cifar_fs(tmp_path)
    check_parts(parts, 32)
    assert {(p.name, p.domain) for part in parts for p in part} == {("cifar_fs", "objects")}


def test_classes_that_no_split_lists_are_left_out(small, tmp_path):
    write_picture(write_cifar(tmp_path, "text") / "data" / "n09" / "0.png", 9, 32)
    check_parts(read_cifar_fs(tmp_path), 32)


def test_an_incomplete_cifar_fs_is_read_with_a_warning(tmp_path):
    with pytest.warns(
        DataWarning, match=r"\(2, 1, 2\) classes of 3 to 3 images; CIFAR-FS has \(64, 16, 20\) of 600"
    ):
        check_parts(read_cifar_fs(write_cifar(tmp_path, "meta")), 32)


@pytest.mark.parametrize(
    ("layout", "damage", "error", "text"),
    [
        ("meta", lambda f: shutil.rmtree(f / "meta-train"), FileNotFoundError, "is not CIFAR-FS"),
        ("meta", lambda f: shutil.rmtree(f / "meta-test"), FileNotFoundError, "lacks meta-test"),
        ("meta", lambda f: shutil.rmtree(f / "meta-val/n02"), ValueError, "meta-val holds no class folders"),
        ("meta", lambda f: [p.unlink() for p in f.glob("meta-val/n02/*")], ValueError, "n02 holds no image"),
        (
            "meta",
            lambda f: shutil.copytree(f / "meta-val/n02", f / "meta-test/n02"),
            ValueError,
            "class 'n02' is in meta-val and in meta-test",
        ),
        (
            "text",
            lambda f: (f / "splits/bertinetto/val.txt").unlink(),
            FileNotFoundError,
            r"val\.txt is missing",
        ),
        (
            "text",
            lambda f: (f / "splits/bertinetto/val.txt").write_text("\n"),
            ValueError,
            "lists no classes",
        ),
        (
            "text",
            lambda f: shutil.rmtree(f / "data/n05"),
            FileNotFoundError,
            r"test\.txt lists 1 classes.*'n05'",
        ),
        (
            "text",
            lambda f: (f / "splits/bertinetto/val.txt").write_text("n02\nn04\n"),
            ValueError,
            r"class 'n04' is in val\.txt and in test\.txt",
        ),
        (
            "text",
            lambda f: (f / "data/n05/1.png").write_bytes(b"x"),
            BadImage,
            r"n05/1\.png cannot be decoded",
        ),
    ],
)
def test_broken_cifar_fs_is_refused_by_name(small, tmp_path, layout, damage, error, text):
    folder = write_cifar(tmp_path / "c", layout)
    damage(folder)
    with pytest.raises(error, match=text) as caught:
        read_cifar_fs(folder)
    assert str(folder) in str(caught.value)
