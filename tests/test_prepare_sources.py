# SPDX-License-Identifier: Apache-2.0
"""`python -m metaicl.prepare` for Omniglot, CIFAR-FS, folders and TFDS; what is read from a store and from pickles."""

import hashlib
import io
import pickle
import re
import shutil
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import openml_server
import pytest
from openml_server import album_files, jpeg
from real_data import REAL_DATA, needs_real

from metaicl import prepare
from metaicl.data import cifar, download, meta_album, omniglot, openml, tfds_album
from metaicl.data.download import DownloadError, fetch
from metaicl.data.split_folders import read_cifar_fs


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("METAICL_OPENML", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with openml_server.serve() as running:
        yield running


def run(*arguments) -> int:
    return prepare.main(["prepare", *map(str, arguments)])


def same(pool, other) -> bool:
    return (
        pool.classes == other.classes
        and pool.digests.tolist() == other.digests.tolist()
        and pool.labels.tolist() == other.labels.tolist()
    )


# OpenML's descriptions and listings


def test_a_data_set_of_the_store_is_listed_page_by_page(server):
    key = server.add(44241, "Meta_Album_BRD_Micro", b"zip", file="BRD & Micro.zip")
    server.objects["0004/442410/other.zip"] = b"of another number"
    server.objects["0004/44241/"] = b""  # how stores mark a folder
    server.page = 1
    files = openml.list_files(44241, openml.describe(44241, server.url), server.url)
    assert [(f.name, f.size, f.md5) for f in files] == [
        ("BRD & Micro.zip", 3, hashlib.md5(b"zip").hexdigest()),
        ("dataset_44241.pq", len(openml_server.TABLE), hashlib.md5(openml_server.TABLE).hexdigest()),
    ]
    assert fetch(files[0].url) == server.objects[key]
    server.whole = False
    (file, _) = openml.list_files(44241, openml.describe(44241, server.url), server.url)
    assert file.md5 is None and file.tag.endswith("-2")


@pytest.mark.parametrize(
    ("told", "server", "store"),
    [
        ({"parquet_url": "https://data.openml.org/datasets/0004/44241/x.pq"}, openml.API, openml.STORE),
        (
            {"minio_url": "https://eu.openml.org/s3/datasets/0004/44241/x"},
            openml.API,
            "https://eu.openml.org/s3",
        ),
        ({"parquet_url": "http://data.openml.org/datasets/0004/44241/x.pq"}, openml.API, openml.STORE),
        ({"parquet_url": "https://openml.org.evil.com/datasets/0004/44241/x"}, openml.API, openml.STORE),
        ({"parquet_url": "https://evilopenml.org/datasets/0004/44241/x.pq"}, openml.API, openml.STORE),
        ({"parquet_url": "https://data.openml.org/dataset44241/x.pq"}, openml.API, openml.STORE),
        ({}, openml.API, openml.STORE),
        (
            {"parquet_url": "https://data.openml.org/datasets/0004/44241/x.pq"},
            "http://mirror",
            "http://mirror",
        ),
        ({"parquet_url": "http://mirror/a/datasets/0004/44241/x.pq"}, "http://mirror", "http://mirror/a"),
    ],
)
def test_files_come_from_openml_or_from_the_mirror_that_was_given(monkeypatch, told, server, store):
    asked = []

    def answer(url):
        asked.append(url)
        return b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

    monkeypatch.setattr(openml, "fetch", answer)
    assert openml.list_files(44241, told, server) == []
    assert asked == [f"{store}/datasets?list-type=2&prefix=0004%2F44241%2F"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"<html>busy", "no listing"),
        (b"<Error><Code>AccessDenied</Code></Error>", "it is a Error"),
        (b'<!DOCTYPE x [<!ENTITY a "a">]><ListBucketResult/>', "it defines entities"),
        (
            b"<ListBucketResult><Contents><Key>0004/44241/x</Key></Contents></ListBucketResult>",
            "a Size is missing",
        ),
        (
            b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            "NextContinuationToken is mis",
        ),
    ],
)
def test_listings_that_are_none_are_refused(monkeypatch, answer, fault):
    monkeypatch.setattr(openml, "fetch", lambda url: answer)
    with pytest.raises(DownloadError, match=fault):
        openml.list_files(44241, {})


@pytest.mark.parametrize(
    "answer", [b"<html>", b"{}", b'{"data_set_description": {"id": "7", "name": "x"}}', b"[1]", b"\xff"]
)
def test_descriptions_that_are_none_are_refused(monkeypatch, answer):
    monkeypatch.setattr(openml, "fetch", lambda url: answer)
    with pytest.raises(DownloadError, match="does not describe data set 44241"):
        openml.describe(44241)


def test_small_answers_are_asked_for_again_and_large_ones_refused(server):
    server.objects["x"] = bytes(10_000)
    server.stops = [100]
    assert fetch(f"{server.url}/x") == bytes(10_000) and len(server.asked) == 2
    with pytest.raises(DownloadError, match="more than 9999 bytes"):
        fetch(f"{server.url}/x", limit=9999)
    with pytest.raises(DownloadError, match=r"y cannot be downloaded: the server answers 404"):
        fetch(f"{server.url}/y")


# Omniglot


@pytest.fixture
def halves(server, monkeypatch):
    """Two zip files of two and one characters, on the server."""
    side = np.full((omniglot.SIDE, omniglot.SIDE), 255, np.uint8)
    known = {}
    for half, characters in (("images_background", 2), ("images_evaluation", 1)):
        files = {}
        for c in range(characters):
            for d in range(omniglot.DRAWINGS):
                image = side.copy()
                image[d, c] = 0
                png = cv2.imencode(".png", image)[1].tobytes()
                files[f"{half}/Greek/character{c + 1:02d}/{d}.png"] = png
        server.objects[f"files/{half}.zip"] = data = openml_server.zipped(files)
        known[half] = omniglot.Half(characters, hashlib.md5(data).hexdigest())
    monkeypatch.setattr(omniglot, "HALVES", known)
    return f"--server={server.url}/files/"


def test_omniglot_is_fetched_checked_and_left(server, halves, tmp_path, capsys):
    server.stops = [500]
    assert run("omniglot", f"--out={tmp_path}", halves) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "omniglot"
    assert re.search(rf"omniglot +3 +60 .*{folder}", told) and f"configs/omniglot.py:folder={folder}" in told
    assert [wanted for _, wanted in server.asked] == [None, "bytes=500-", None]
    server.asked.clear()
    assert run("omniglot", f"--out={tmp_path}", halves) == 0 and server.asked == []
    (folder / "images_evaluation.zip").write_bytes(b"another file")
    assert run("omniglot", f"--out={tmp_path}", halves) == 1
    assert "images_evaluation.zip is no whole zip file" in capsys.readouterr().err
    (folder / "images_evaluation.zip").unlink()
    server.damage = lambda data: data[:-1] + b"?"
    assert run("omniglot", f"--out={tmp_path}", halves) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["images_background.zip"]


@needs_real
def test_the_real_omniglot_is_recognised(tmp_path, capsys):
    shutil.copytree(REAL_DATA / "omniglot", tmp_path / "omniglot")
    assert run("omniglot", f"--out={tmp_path}", "--server=http://127.0.0.1:9") == 0
    assert re.search(r"omniglot +1,623 +32,460", capsys.readouterr().out)


def test_another_zip_with_the_same_drawings_is_taken_with_a_note(server, halves, tmp_path, capsys):
    assert run("omniglot", f"--out={tmp_path}", halves) == 0
    path = tmp_path / "omniglot" / "images_background.zip"
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    path.write_bytes(openml_server.zipped(dict(reversed(files.items()))))
    assert run("omniglot", f"--out={tmp_path}", halves) == 0
    told = capsys.readouterr().err
    assert re.search(r"note: .*images_background.zip is not the official file.*holds all its drawings", told)
    files.popitem()
    path.write_bytes(openml_server.zipped(files))
    assert run("omniglot", f"--out={tmp_path}", halves) == 1
    assert "19 drawings and should have 20" in capsys.readouterr().err


# CIFAR-FS


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as the `str` of Python 2, in which CIFAR-100 was written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_old(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_old


def python2(content) -> bytes:
    target = io.BytesIO()
    Python2Pickler(target, protocol=2).dump(content)
    return target.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


NAMES = sorted(name for names in cifar.SPLITS.values() for name in names)


def cifar_files(train: int = 2, test: int = 1) -> dict[str, bytes]:
    """The files of the archive, with so many images of each class."""
    generator = np.random.default_rng(0)
    files = {}
    for part, each in (("train", train), ("test", test)):
        labels = [i % 100 for i in range(100 * each)]
        content = {
            "data": generator.integers(0, 256, (len(labels), 3072), np.uint8),
            "fine_labels": labels,
            "coarse_labels": [0] * len(labels),
            "filenames": [f"{NAMES[label]}_s_{part}{i:06d}.png" for i, label in enumerate(labels)],
            "batch_label": "training batch 1 of 1",
        }
        files[f"cifar-100-python/{part}"] = python2(content)
    files["cifar-100-python/meta"] = python2({"fine_label_names": NAMES, "coarse_label_names": ["fish"]})
    return files


@pytest.fixture
def cifar_server(server, monkeypatch):
    def put(files):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        data = server.objects[f"kriz/{cifar.ARCHIVE}"] = target.getvalue()
        monkeypatch.setattr(cifar, "MD5", hashlib.md5(data).hexdigest())
        return f"--server={server.url}/kriz"

    monkeypatch.setattr(cifar, "PARTS", {"train": 200, "test": 100})
    return put


def test_cifar_fs_is_made_of_cifar_100(server, cifar_server, tmp_path, capsys):
    files = cifar_files()
    address = cifar_server(files)
    server.stops = [100_000]
    assert run("cifar_fs", f"--out={tmp_path}", address) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "cifar_fs"
    assert re.search(rf"cifar_fs +100 +300 .*{folder}", told) and f"data=cifar_fs,folder={folder}" in told
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-"]
    assert sorted(p.name for p in folder.iterdir()) == ["data", "prepared.json", "splits"]
    with pytest.warns(UserWarning, match="of 3 to 3 images"):  # where CIFAR-FS has 600
        parts = read_cifar_fs(folder)
    assert [len(pool.classes) for (pool,) in parts] == [64, 16, 20]
    (test,) = parts.test
    # The pixels as plain unpickling and the documented order of the planes give them.
    content = pickle.loads(
        files["cifar-100-python/test"].replace(b"numpy.core", b"numpy._core"), encoding="latin1"
    )
    label = NAMES.index("worm")
    planes = content["data"][label].reshape(3, 32, 32)
    worms = test.x[test.labels == test.classes.index("worm")]
    assert len(worms) == 3
    np.testing.assert_array_equal(worms[0], np.stack(list(planes), axis=-1))
    server.asked.clear()
    assert run("cifar_fs", f"--out={tmp_path}", address) == 0 and server.asked == []


def test_the_classes_of_cifar_fs_are_divided_as_published():
    parts = [set(names) for names in cifar.SPLITS.values()]
    assert [len(part) for part in parts] == [64, 16, 20] and len(set().union(*parts)) == 100
    # As the files of Bertinetto et al. list them, val.txt and test.txt.
    val = "otter motorcycle television lamp crocodile shark butterfly beaver beetle tractor flatfish maple_tree camel"
    assert set(cifar.SPLITS["val"]) == {*val.split(), "crab", "sea", "cattle"}
    test = """baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper
        table telephone wardrobe whale woman worm"""
    assert cifar.SPLITS["test"] == test.split()
    assert NAMES[:3] + NAMES[-3:] == ["apple", "aquarium_fish", "baby", "wolf", "woman", "worm"]


class Evil:
    """What makes an ordinary unpickler run a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/metaicl-was-here",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (lambda: pickle.dumps(Evil()), r"asks for \w+\.system"),
        (lambda: b"cbuiltins\neval\n(S'1'\ntR.", r"asks for builtins\.eval"),
        (lambda: b"cnumpy\nload\n(S'/etc/passwd'\ntR.", r"asks for numpy\.load"),
        (lambda: python2([1]), "it holds a list"),
        (lambda: python2({"data": 1})[:-3], "cannot be read"),
        (lambda: b"", "cannot be read"),
        (
            lambda: b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
            "another kind of array",
        ),
    ],
)
def test_pickles_that_ask_for_more_than_arrays_are_refused(tmp_path, content, fault):
    (tmp_path / "train").write_bytes(content())
    with pytest.raises(ValueError, match="train of CIFAR-100 cannot be read: ") as caught:
        cifar.read_pickle(tmp_path / "train")
    assert re.search(fault, str(caught.value))
    assert not Path("/tmp/metaicl-was-here").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda f: f.pop("cifar-100-python/meta"), "lacks meta"),
        (
            lambda f: f.update({"cifar-100-python/meta": python2({"fine_label_names": NAMES[1:]})}),
            "not the 100 known",
        ),
        (lambda f: f.update({"cifar-100-python/test": python2({"data": 3})}), "its data should be.* missing"),
        (
            lambda f: f.update(cifar_files(2, 2)),
            r"test of CIFAR-100: .*\[100, 3072\].*are uint8 \[200, 3072\]",
        ),
        (lambda f: f.update({"../x": b""}), "a path outside"),
    ],
)
def test_another_archive_than_cifar_100_is_refused_and_leaves_nothing(
    cifar_server, tmp_path, capsys, change, fault
):
    files = cifar_files()
    change(files)
    assert run("cifar_fs", f"--out={tmp_path}", cifar_server(files)) == 1
    assert re.search(f"error: cifar_fs: .*{fault}", capsys.readouterr().err)
    assert not (tmp_path / "cifar_fs").exists() and not (tmp_path / ".downloads").exists()
    assert not list(tmp_path.glob(".cifar*"))


# Folders


def write_folders(folder: Path) -> Path:
    for i, name in enumerate(["cat/1.jpg", "cat/2.jpg", "dog, small/1.jpg", "dog, small/deep/1.jpg"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(i))
    return folder


@pytest.mark.parametrize("format", ["array_record", "files"])
def test_class_folders_are_converted_byte_for_byte(tmp_path, capsys, format):
    source = write_folders(tmp_path / "my pets")
    out = tmp_path / "out"
    assert run("folder", source, f"--out={out}", f"--format={format}", "--domain=animals") == 0
    told = capsys.readouterr().out
    place = out / "folder" / "my pets"
    assert re.search(rf"my pets +2 +4 .*{place}", told)
    assert f"'--config=configs/mini_imagenet.py:5w1s,data=album,folder={place}'" in told
    again = meta_album.read_dataset(place, image_size=8)
    assert same(again, meta_album.read_dataset(source, image_size=8))
    assert again.name == "my pets" and again.domain == "animals" and again.classes == ("cat", "dog, small")
    assert run("folder", source, f"--out={out}", f"--format={format}") == 0
    assert "finished before, and unchanged" in capsys.readouterr().err


def test_what_was_converted_can_be_converted_back(tmp_path):
    source = write_folders(tmp_path / "pets")
    assert run("folder", source, f"--out={tmp_path / 'a'}") == 0
    prepared = tmp_path / "a" / "folder" / "pets"
    assert run("folder", prepared, f"--out={tmp_path / 'b'}", "--format=files") == 0
    files = tmp_path / "b" / "folder" / "pets"
    assert sorted(p.name for p in files.iterdir()) == ["images", "info.json", "labels.csv", "prepared.json"]
    assert same(meta_album.read_dataset(files, image_size=8), meta_album.read_dataset(source, image_size=8))


def test_an_album_is_converted_data_set_by_data_set(tmp_path, capsys):
    for name in ("A_Mini", "B_Mini", "BRD_Mini"):
        for path, data in album_files(name, 2, 6).items():
            (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / path).write_bytes(data)
    bad = tmp_path / "mine" / "B_Mini" / "images" / "B_000000.jpg"
    bad.write_bytes(b"")
    assert run("folder", tmp_path / "mine", f"--out={tmp_path / 'out'}") == 1
    told = capsys.readouterr()
    assert (
        re.search(r"error: B_Mini: .*B_000000.jpg is an empty file", told.err) and "1 of 3 failed" in told.err
    )
    album = tmp_path / "out" / "folder" / "mine"
    assert sorted(p.name for p in album.iterdir()) == ["A_Mini", "BRD_Mini"]
    bad.write_bytes(jpeg(0))
    assert run("folder", tmp_path / "mine", f"--out={tmp_path / 'out'}") == 0
    assert f"--config=configs/loo.py:album={album}" in capsys.readouterr().out
    for raw, pool in zip(
        *(meta_album.read_album(f, image_size=8) for f in (tmp_path / "mine", album)), strict=True
    ):
        assert same(raw, pool) and (raw.name, raw.domain) == (pool.name, pool.domain)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("nowhere", "There is no album at"),
        ("empty", "holds no data set"),
        ("$UNSET_PLACE/x", "UNSET_PLACE is not"),
    ],
)
def test_folders_without_data_are_refused(tmp_path, capsys, monkeypatch, path, fault):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("folder", path, f"--out={tmp_path / 'out'}") == 1
    assert fault in capsys.readouterr().err


def test_outputs_inside_the_source_are_refused(tmp_path, capsys):
    source = write_folders(tmp_path / "pets")
    assert run("folder", source, f"--out={source}") == 1
    assert "would lie in" in capsys.readouterr().err and not (source / "folder").exists()


def test_names_that_lead_out_of_a_prepared_data_set_are_refused(tmp_path, capsys):
    """A folder that TFDS prepared may be from elsewhere, and its file names anything."""
    source = tmp_path / "pets"
    listing = meta_album.Listing("pets", None, source, ["../../../evil.jpg"], ["cat"], lambda i: jpeg(0))
    source.mkdir()
    tfds_album.write_prepared(listing, source)
    assert run("folder", source, f"--out={tmp_path / 'a' / 'b'}", "--format=files") == 1
    assert "no name of a file inside a folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil.jpg"))


@needs_real
def test_real_data_sets_read_the_same_after_conversion(tmp_path):
    names = ["FL5_Mini", "SGN_Mini"]
    for name in names:
        assert run("folder", REAL_DATA / "album" / name, f"--out={tmp_path}") == 0
    again = meta_album.read_album(tmp_path / "folder", image_size=32)
    for raw, pool in zip(
        meta_album.read_album(REAL_DATA / "album", image_size=32, datasets=names), again, strict=True
    ):
        assert same(raw, pool) and (raw.name, raw.domain) == (pool.name, pool.domain)


# TFDS


@pytest.fixture(scope="module")
def catalogue():
    """Three data sets that TFDS then knows by name."""
    tfds = tfds_album.import_tfds()

    def make(name, features, items, keys=None, needs=""):
        def info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def splits(self, manager):
            if needs:
                raise ModuleNotFoundError(f"No module named '{needs}'", name=needs)
            return {split: iter(enumerate(rows)) for split, rows in items.items()}

        body = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": splits,
            "_generate_examples": lambda self: None,
            "code_path": None,
            "__module__": __name__,
        }
        return type(name, (tfds.core.GeneratorBasedBuilder,), body)

    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    label = tfds.features.ClassLabel(names=["rose", "tulip"])
    row = lambda seed, name: {"image": io.BytesIO(jpeg(seed)), "label": name, "mask": io.BytesIO(jpeg(99))}
    train = [row(0, "tulip"), row(1, "rose"), row(2, "tulip")]
    test = [row(3, "rose"), {**row(4, "rose"), "label": -1}]
    made = [
        make(
            "LoopbackFlowers",
            {"image": image, "label": label, "mask": image},
            {"train": train, "test": test},
            ("image", "label"),
        ),
        make("LoopbackNumbers", {"x": tfds.features.Scalar(np.int64)}, {"train": [{"x": 1}]}),
        make("LoopbackNeedy", {"image": image, "label": label}, {}, ("image", "label"), needs="tensorflow"),
    ]
    yield made
    tfds.core.registered._DATASET_REGISTRY = {
        name: cls
        for name, cls in tfds.core.registered._DATASET_REGISTRY.items()
        if not name.startswith("loopback")
    }


def test_a_data_set_of_tfds_becomes_one_of_ours(catalogue, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert run("tfds", "loopback_flowers", f"--out={tmp_path}", "--domain=plants") == 0
    told = capsys.readouterr()
    place = tmp_path / "tfds" / "loopback_flowers"
    assert re.search(rf"loopback_flowers +2 +4 .*{place}", told.out)
    assert "left out 1 items without a label" in told.err
    pool = meta_album.read_dataset(place, image_size=8)
    assert (pool.name, pool.domain, pool.classes) == ("loopback_flowers", "plants", ("rose", "tulip"))
    digest = lambda seed: hashlib.sha256(jpeg(seed)).hexdigest().encode()
    assert sorted(pool.digests[pool.labels == 0].tolist()) == sorted([digest(1), digest(3)])
    assert sorted(pool.digests[pool.labels == 1].tolist()) == sorted([digest(0), digest(2)])
    assert not (tmp_path / ".downloads").exists()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("loopback_flower", "no data set 'loopback_flower'. Did you mean 'loopback_flowers'"),
        ("loopback_numbers", "no data set of labelled images: it has 0 images and 0 class labels.* among x"),
        ("loopback_needy", r"TFDS needs tensorflow to prepare loopback_needy .*pip install tensorflow"),
    ],
)
def test_what_tfds_cannot_give_is_said_with_the_remedy(catalogue, tmp_path, capsys, name, fault):
    assert run("tfds", name, f"--out={tmp_path}") == 1
    assert re.search(f"error: {name}: .*{fault}", capsys.readouterr().err)
    assert not (tmp_path / "tfds" / name).exists()
