# SPDX-License-Identifier: Apache-2.0
"""Reading Omniglot: published splits and pixels, damaged and misplaced files, and the real archives."""

import functools
import hashlib
import io
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real

from metaicl.data import omniglot, sampler
from metaicl.data.download import DownloadError
from metaicl.data.images import BadImage

ALPHABETS = {"images_background": {"Greek": 3, "Latin": 3}, "images_evaluation": {"Angelic": 4}}
SMALL = {
    "reptile": omniglot.Published((6, 0, 4), (True, False, False), inverted=False),
    "maml": omniglot.Published((5, 1, 4), (True, True, True), inverted=True),
}


def drawing(seed: int, side: int = 105) -> np.ndarray:
    """Strokes 0 on 255, of a few pixels each."""
    coarse = np.random.default_rng(seed).random((side // 3 + 1, side // 3 + 1)) < 0.2
    return np.where(np.kron(coarse, np.ones((3, 3), bool))[:side, :side], 0, 255).astype(np.uint8)


@functools.cache
def png(seed: int, side: int = 105) -> bytes:
    return cv2.imencode(".png", drawing(seed, side), [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()


def members(half: str) -> dict[str, bytes]:
    """Files of one half; every drawing has another seed."""
    files, seed = {}, 0 if half == "images_background" else 1000
    for alphabet, characters in ALPHABETS[half].items():
        for c in range(1, characters + 1):
            for i in range(1, 21):
                files[f"{half}/{alphabet}/character{c:02}/{seed // 20:04}_{i:02}.png"] = png(seed)
                seed += 1
    return files


def write_zip(path, files: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with two small archives in the official layout."""
    for half, alphabets in ALPHABETS.items():
        known = omniglot.HALVES[half]._replace(characters=sum(alphabets.values()))
        monkeypatch.setitem(omniglot.HALVES, half, known)
        write_zip(tmp_path / f"{half}.zip", members(half))
    for name, split in SMALL.items():
        monkeypatch.setitem(omniglot.SPLITS, name, split)
    return tmp_path


def characters(part) -> set[str]:
    return {name.split("/rot")[0] for pool in part for name in pool.classes}


def expected_item(name: str, i: int, inverted: bool, size: int = 28) -> np.ndarray:
    """Drawing i of a class, from the array it was written from."""
    place, _, degrees = name.partition("/rot")
    half = next(h for h in ALPHABETS if place.split("/")[0] in ALPHABETS[h])
    data = [d for n, d in members(half).items() if n.startswith(f"{half}/{place}/")][i]
    seed = next(s for s in range(2000) if png(s) == data)
    middles = np.floor((np.arange(size) + 0.5) * 105 / size).astype(int)
    image = np.rot90(drawing(seed)[np.ix_(middles, middles)], int(degrees or 0) // 90)
    return (255 - image if inverted else image)[..., None]


@pytest.mark.parametrize(("split", "classes"), [("reptile", (24, 0, 4)), ("maml", (20, 4, 16))])
def test_parts_have_the_published_classes_and_pixels(small, split, classes):
    parts = omniglot.read_omniglot(small, split=split)
    assert tuple(sum(len(pool.classes) for pool in part) for part in parts) == classes
    assert [len(part) for part in parts] == [1, int(split == "maml"), 1]
    assert len(characters(parts.train) | characters(parts.validation) | characters(parts.test)) == 10
    for part in parts:
        for pool in part:
            assert (pool.name, pool.domain, pool.x.dtype) == ("omniglot", "characters", np.uint8)
            assert pool.x.shape == (len(pool), 28, 28, 1) and set(pool.counts) == {20}
            for c in (0, 1, len(pool.classes) - 1):
                for i in (0, 19):
                    wanted = expected_item(pool.classes[c], i, inverted=split == "maml")
                    np.testing.assert_array_equal(pool.x[20 * c + i], wanted)


def test_classes_are_named_by_alphabet_character_and_rotation(small):
    train = omniglot.read_omniglot(small).train[0]
    first = min(characters([train]))
    assert train.classes[:4] == (first, f"{first}/rot90", f"{first}/rot180", f"{first}/rot270")
    assert [c for c in train.classes if "rot" not in c] == sorted(characters([train]))


def test_digests_are_those_of_the_files_and_differ_by_rotation(small):
    for split in SMALL:
        pools = [pool for part in omniglot.read_omniglot(small, split=split) for pool in part]
        digests = np.concatenate([pool.digests for pool in pools])
        assert len(np.unique(digests)) == len(digests)
        stored = {
            hashlib.sha256(d).hexdigest().encode() for half in ALPHABETS for d in members(half).values()
        }
        plain = np.concatenate([["rot" not in p.classes[c] for c in p.labels] for p in pools])
        assert set(digests[plain]) == stored and not stored & set(digests[~plain])


def test_the_split_depends_on_the_seed_alone(small):
    for split in SMALL:
        first, again, other = (omniglot.read_omniglot(small, split=split, seed=s) for s in (0, 0, 1))
        for a, b in zip(first, again, strict=True):
            assert [p.classes for p in a] == [p.classes for p in b]
            assert all(np.array_equal(p.x, q.x) for p, q in zip(a, b, strict=True))
        assert characters(first.test) != characters(other.test)


def test_parts_are_rows_of_one_store(small):
    parts = omniglot.read_omniglot(small, split="maml")
    pools = [pool for part in parts for pool in part]
    store = sampler.Store({"x": np.concatenate([pool.x for pool in pools])}, {"omniglot": 0})
    for pool in pools:
        np.testing.assert_array_equal(store.consts["x"][pool.rows], pool.x)
        source = sampler.episodes(store, [pool], seed=3, ways=4, shots=1, queries=2)
        rows = source.indices(0)["query_rows"]
        assert np.isin(rows, pool.rows).all()


def test_unpacked_folders_give_the_same_and_progress_counts_drawings(small, tmp_path_factory):
    steps = []
    zipped = omniglot.read_omniglot(small, progress=lambda *step: steps.append(step))
    assert steps[-1] == ("omniglot", 200, 200)
    unpacked = tmp_path_factory.mktemp("unpacked")
    for half in ALPHABETS:
        zipfile.ZipFile(small / f"{half}.zip").extractall(unpacked)
    for a, b in zip(zipped, omniglot.read_omniglot(unpacked), strict=True):
        for p, q in zip(a, b, strict=True):
            assert (
                p.classes == q.classes and np.array_equal(p.x, q.x) and np.array_equal(p.digests, q.digests)
            )


def test_files_that_archivers_add_do_not_mind(small):
    half = "images_evaluation"
    extra = {
        f"__MACOSX/{half}/Angelic/character01/._0_01.png": b"x",
        f"{half}/Angelic/.DS_Store": b"",
        f"{half}/": b"",
    }
    write_zip(small / f"{half}.zip", members(half) | extra)
    assert len(characters(omniglot.read_omniglot(small).test)) == 4


def rewrite(folder, change):
    """Applies `change` to the files of the evaluation archive and writes it again."""
    files = members("images_evaluation")
    write_zip(folder / "images_evaluation.zip", change(files))


def truncate(folder):
    path = folder / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-5000])


def corrupt(folder):
    path = folder / "images_evaluation.zip"
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[30]
        at = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def swap(folder):
    a, b = (folder / f"{half}.zip" for half in ALPHABETS)
    a.rename(folder / "c")
    b.rename(a)
    (folder / "c").rename(b)


LAST = "images_evaluation/Angelic/character04/0053_20.png"


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (truncate, ValueError, r"images_evaluation\.zip is no whole zip file.*Delete and download"),
        (
            corrupt,
            ValueError,
            r"images_evaluation\.zip is damaged at images_evaluation/Angelic/character02/\S+_11",
        ),
        (swap, ValueError, r"images_background\.zip holds images_evaluation.*swapped"),
        (
            lambda f: rewrite(f, lambda d: {k.split("/", 1)[1]: v for k, v in d.items()}),
            ValueError,
            "laid out",
        ),
        (lambda f: rewrite(f, lambda d: {}), ValueError, r"laid out as images_evaluation/.*no png"),
        (
            lambda f: rewrite(f, lambda d: {k: v for k, v in d.items() if k != LAST}),
            ValueError,
            r"images_evaluation\.zip: Angelic/character04 has 19 drawings and should have 20",
        ),
        (
            lambda f: rewrite(f, lambda d: {k: v for k, v in d.items() if "character04" not in k}),
            ValueError,
            r"images_evaluation\.zip holds 3 characters.*images_evaluation has 4",
        ),
        (
            lambda f: rewrite(f, lambda d: d | {LAST: png(7, 28)}),
            BadImage,
            r"0053_20\.png is no PNG of 105 x 105",
        ),
        (lambda f: rewrite(f, lambda d: d | {LAST: b""}), BadImage, r"0053_20\.png is no PNG"),
        (lambda f: rewrite(f, lambda d: d | {LAST: png(7)[:90]}), BadImage, r"0053_20\.png is damaged"),
        (
            lambda f: rewrite(f, lambda d: d | {LAST: cv2.imencode(".png", drawing(7) // 2)[1].tobytes()}),
            BadImage,
            r"0053_20\.png is not in black and white",
        ),
        (
            lambda f: (f / "images_evaluation.zip").unlink(),
            FileNotFoundError,
            r"images_evaluation\.zip.*fetch=True",
        ),
        (
            shutil.rmtree,
            FileNotFoundError,
            r"does not exist.*images_background\.zip and images_evaluation\.zip.*",
        ),
    ],
)
def test_broken_files_are_refused_by_name(small, damage, error, text):
    damage(small)
    with pytest.raises(error, match=text) as caught:
        omniglot.read_omniglot(small)
    assert str(small) in str(caught.value)


def test_listings_are_checked_before_a_drawing_is_read(small, monkeypatch):
    rewrite(small, lambda d: {k: v for k, v in d.items() if k != LAST})
    monkeypatch.setattr(omniglot, "_read_half", lambda *args: pytest.fail("read a half"))
    with pytest.raises(ValueError, match="19 drawings"):
        omniglot.read_omniglot(small)


def test_unknown_splits_and_sizes_are_refused(small):
    with pytest.raises(ValueError, match=r"no split 'lake'.*'reptile' or 'maml'"):
        omniglot.read_omniglot(small, split="lake")
    with pytest.raises(ValueError, match="image_size is 0"):
        omniglot.read_omniglot(small, image_size=0)


def test_only_missing_halves_are_fetched_and_checked(small, monkeypatch, tmp_path_factory):
    empty = tmp_path_factory.mktemp("new") / "folder"
    empty.mkdir()
    shutil.copy(small / "images_background.zip", empty)
    asked = []

    def fake(url, path, *, md5, progress):
        asked.append((url, md5))
        shutil.copy(small / path.name, path)

    monkeypatch.setattr(omniglot, "download", fake)
    fetched = omniglot.read_omniglot(empty, fetch=True)
    assert asked == [(f"{omniglot.URL}/images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811")]
    assert characters(fetched.test) == characters(omniglot.read_omniglot(small, fetch=True).test)
    assert len(asked) == 1


def test_without_a_connection_the_fetch_says_what_to_do(tmp_path):
    def broken(*args, **keywords):
        raise DownloadError("by hand")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omniglot, "download", broken)
        with pytest.raises(DownloadError, match="by hand"):
            omniglot.read_omniglot(tmp_path / "new", fetch=True)


def test_nearest_pixels_are_those_of_pillow():
    image = pytest.importorskip("PIL.Image")
    stored = drawing(5)
    for size in (1, 7, 14, 20, 28, 30, 32, 64, 84, 105, 120):
        nearest = omniglot.nearest_pixels(105, size)
        resized = np.asarray(image.fromarray(stored).convert("1").resize((size, size)))
        np.testing.assert_array_equal(stored[np.ix_(nearest, nearest)] == 255, resized)


@functools.cache
def real(split: str):
    return omniglot.read_omniglot(REAL_DATA / "omniglot", split=split)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Gives the memory of the real images back after this file."""
    yield
    real.cache_clear()


@needs_real
@pytest.mark.parametrize(("split", "classes"), [("reptile", (4800, 0, 423)), ("maml", (4400, 400, 1692))])
def test_real_parts_have_the_published_sizes(split, classes):
    parts = real(split)
    assert tuple(sum(len(pool.classes) for pool in part) for part in parts) == classes
    names = [characters(part) for part in parts]
    assert len(set().union(*names)) == sum(map(len, names)) == 1623  # none in two parts
    for part in parts:
        for pool in part:
            assert set(pool.counts) == {20} and np.all((pool.x == 0) | (pool.x == 255))


@needs_real
def test_real_split_is_the_same_on_every_machine_and_both_papers_share_the_test_characters():
    names = [sorted(characters(real(split).test)) for split in SMALL]
    assert names[0] == names[1]
    digest = hashlib.sha256("\n".join(names[0]).encode()).hexdigest()
    assert digest[:16] == "7b70066da23e0006"


@needs_real
def test_real_backgrounds_are_white_for_reptile_and_black_for_maml():
    means = {}
    for split in SMALL:
        pools = [pool for part in real(split) for pool in part]
        plain = [p.x.reshape(-1, 20, 784)[["rot" not in c for c in p.classes]] for p in pools]
        means[split] = np.concatenate(plain).mean() / 255
    assert means["reptile"] == pytest.approx(0.9195, abs=5e-4)
    assert means["maml"] == pytest.approx(1 - means["reptile"], abs=1e-9)


@needs_real
@pytest.mark.parametrize("split", SMALL)
def test_real_rotated_classes_are_turned_copies(split):
    pool = real(split).train[0]
    x = pool.x.reshape(-1, 4, 20, 28, 28)
    for c in range(0, len(x), 50):
        assert pool.classes[4 * c + 3] == f"{pool.classes[4 * c]}/rot270"
        for k in range(1, 4):
            for plain, turned in zip(x[c, 0], x[c, k], strict=True):
                np.testing.assert_array_equal(turned, np.rot90(plain, k))


@needs_real
def test_real_pixels_are_those_of_pillow():
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    archives = [zipfile.ZipFile(REAL_DATA / "omniglot" / f"{half}.zip") for half in omniglot.HALVES]
    half_of = {"/".join(n.split("/")[1:3]): z for z in archives for n in z.namelist()}
    for split, inverted in (("reptile", False), ("maml", True)):
        pool = real(split).train[0]
        for row in rng.integers(0, len(pool), 100):
            name, _, degrees = pool.classes[pool.labels[row]].partition("/rot")
            archive = half_of[name]
            files = sorted(n for n in archive.namelist() if f"/{name}/" in n)
            stored = image.open(io.BytesIO(archive.read(files[row % 20])))
            assert stored.mode == "1"
            wanted = np.asarray(stored.resize((28, 28)).rotate(int(degrees or 0)), np.uint8) * 255
            np.testing.assert_array_equal(pool.x[row, ..., 0], 255 - wanted if inverted else wanted)
    for archive in archives:
        archive.close()


def test_an_unset_variable_in_a_path_is_named(monkeypatch):
    monkeypatch.delenv("METAICL_NOWHERE", raising=False)
    with pytest.raises(FileNotFoundError, match="environment variable METAICL_NOWHERE is not set"):
        omniglot.read_omniglot("$METAICL_NOWHERE/omniglot")
