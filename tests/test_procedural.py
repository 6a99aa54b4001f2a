# SPDX-License-Identifier: Apache-2.0
"""Promises of the embedded album.

Every image is a pure function of its place, classes are neither trivial nor hopeless, and a damaged cache is
drawn again.
"""

import hashlib
import os
import platform
import subprocess
import sys
import zipfile
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from metaicl.data.pool import Pool
from metaicl.data.procedural import EMBEDDED_DOMAINS, album, build, contact_sheet, embedded_album
from metaicl.files import DamagedFile

ALL_SETS = [name for names in EMBEDDED_DOMAINS.values() for name in names]

# First 12 digits of the SHA-256 of class 1, image 1 at seed 0. The same with numpy 2.0.2, OpenCV 4.10.0 and
# matplotlib 3.9.4 as with 2.4.6, 5.0.0 and 3.11.2, with and without AVX2 and AVX-512 (x86-64, Linux).
GOLDEN = {
    "printed_letters": "c2244258e4f6",
    "chalk_scripts": "ea1255299d89",
    "neon_symbols": "66c1a570a3f7",
    "weaves": "a231c5b4729f",
    "stones": "2b4daf923ebb",
    "tilings": "2e0e3617af8a",
    "shrubs": "df87c3b57750",
    "flowers": "6bdafc3499da",
    "leaves": "5edd82af1e6e",
    "blood_smears": "ad97db822c8f",
    "bacteria": "a7243ee5a9e0",
    "tissues": "5c461cbf6936",
    "farmland": "1a2ac38fddeb",
    "towns": "4928815732d5",
    "coasts": "a272970cd24b",
    "gears": "3966ea610a03",
    "flanges": "aaa2226d50fb",
    "circuit_parts": "4a7dc2940f4e",
    "pendulums": "9a621d76d522",
    "spirographs": "04548b460d18",
    "string_art": "23a6bae59db8",
    "beetles": "7922c7fc0eb4",
    "fishes": "8ce345330629",
    "butterflies": "7067cdbb1467",
    "gray_scott": "b9cf603aa236",
    "animal_coats": "de5506e5b599",
    "spiral_waves": "cad6ab16b72f",
    "polyhedra": "4e1c7b05990e",
    "vessels": "05e5f1b422a2",
    "cube_stacks": "1332aa2cacec",
}


def build_small(name, seed=0, classes=2, images_per_class=2, image_size=64):
    return build.build_images(name, seed, classes, images_per_class, image_size)


def nearest_centroid_accuracy(pool, episodes=300):
    """5-way 5-shot accuracy on raw pixels, 10 queries a class."""
    pixels = np.asarray(pool.x, np.float32).reshape(len(pool), -1) / 255
    gram = pixels @ pixels.T
    starts, counts = np.concatenate([[0], np.cumsum(pool.counts)]), pool.counts
    rng, right = np.random.default_rng(0), 0.0
    for _ in range(episodes):
        ways = rng.choice(len(counts), 5, replace=False)
        rows = np.stack([starts[c] + rng.choice(counts[c], 15, replace=False) for c in ways])
        queries = rows[:, 5:].ravel()
        # |q - m|^2 without |q|^2, the mean m of the support written through inner products.
        distance = [gram[np.ix_(s, s)].mean() - 2 * gram[np.ix_(queries, s)].mean(1) for s in rows[:, :5]]
        right += np.mean(np.argmin(distance, 0) == np.repeat(np.arange(5), 10))
    return right / episodes


def assert_in_band(pools):
    accuracy = {pool.name: nearest_centroid_accuracy(pool) for pool in pools}
    for name, value in accuracy.items():
        assert 0.3 <= value <= 0.85, f"{name}: {value:.3f}"
    for domain, names in EMBEDDED_DOMAINS.items():
        if set(names) <= set(accuracy):
            assert 0.3 <= np.mean([accuracy[name] for name in names]) <= 0.8, domain


def test_ten_domains_of_three_sets():
    assert len(EMBEDDED_DOMAINS) == 10
    assert all(len(names) == 3 for names in EMBEDDED_DOMAINS.values())
    assert len(set(ALL_SETS)) == 30
    assert set(ALL_SETS) == set(build.FAMILIES)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors may round differently"
)
def test_golden_digests():
    now = {name: hashlib.sha256(build_small(name)[3].tobytes()).hexdigest()[:12] for name in ALL_SETS}
    assert now == GOLDEN


@pytest.mark.parametrize("name", ["gears", "chalk_scripts", "gray_scott"])
def test_an_image_depends_only_on_its_place(name):
    """More classes, more images or another order of drawing change nothing that was there."""
    few = build_small(name, classes=2, images_per_class=2).reshape(2, 2, 64, 64, 3)
    many = build_small(name, classes=3, images_per_class=5).reshape(3, 5, 64, 64, 3)
    np.testing.assert_array_equal(few, many[:2, :2])
    assert not np.array_equal(few, build_small(name, seed=1).reshape(few.shape))


def test_workers_and_hash_seed_change_nothing(tmp_path):
    names = ["gears", "stones", "printed_letters"]
    arguments = {"datasets": names, "classes": 2, "images_per_class": 3}
    alone = embedded_album(tmp_path / "alone", workers=1, **arguments)
    beside = embedded_album(tmp_path / "beside", workers=2, **arguments)
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
    # A worker imports numpy and OpenCV; JAX would cost it seconds and threads.
    program = (
        "import sys, hashlib; from metaicl.data.procedural import build;"
        "x = build.build_images('gears', 0, 2, 3, 64); assert not {'jax', 'matplotlib'} & set(sys.modules);"
        "print(hashlib.sha256(x).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == hashlib.sha256(alone[0].x.tobytes()).hexdigest()


def test_draws_alone_where_processes_cannot_start(tmp_path, monkeypatch):
    """What a script without the usual guard, or one read from standard input, gets."""

    def broken(*args):
        raise BrokenProcessPool("no children")
        yield

    monkeypatch.setattr(album, "_draw_beside", broken)
    arguments = {"datasets": ["gears", "stones"], "classes": 2, "images_per_class": 2, "workers": 2}
    with pytest.warns(RuntimeWarning, match="drawing 2 sets alone"):
        pools = embedded_album(tmp_path, **arguments)
    np.testing.assert_array_equal(pools[0].x, build_small("gears"))


def test_table_of_domains_costs_no_import():
    program = (
        "import sys; from metaicl.data.procedural import EMBEDDED_DOMAINS, embedded_album;"
        "assert not {'cv2', 'jax', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pools_say_what_they_hold(tmp_path):
    pools = embedded_album(
        tmp_path, datasets=["fishes", "towns"], classes=3, images_per_class=4, image_size=32
    )
    assert [(p.name, p.domain) for p in pools] == [("fishes", "creatures"), ("towns", "land_cover")]
    for pool in pools:
        assert isinstance(pool, Pool)
        assert pool.x.shape == (12, 32, 32, 3) and pool.x.dtype == np.uint8
        assert pool.labels.dtype == np.int32
        np.testing.assert_array_equal(pool.counts, [4, 4, 4])
        assert len(set(pool.classes)) == 3
        assert pool.digests.dtype == "S64" and len(set(pool.digests)) == 12
        assert pool.digests[5].decode() == hashlib.sha256(pool.x[5].tobytes()).hexdigest()
        assert pool.phashes.dtype == np.uint64 and pool.phashes.shape == (12,)


def test_unknown_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="'trains'"):
        embedded_album(tmp_path, datasets=["trains"])


def test_cache_is_read_and_keyed(tmp_path, monkeypatch):
    arguments = {"datasets": ["gears", "flanges"], "classes": 2, "images_per_class": 2}
    calls = []
    first = embedded_album(tmp_path, progress=lambda done, total: calls.append((done, total)), **arguments)
    assert calls == [(0, 2), (1, 2), (2, 2)]
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    embedded_album(tmp_path, seed=1, **arguments)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(album, "_draw", lambda names, shape, workers: iter(()))
    calls.clear()
    again = embedded_album(tmp_path, progress=lambda done, total: calls.append((done, total)), **arguments)
    assert calls == [(2, 2)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.digests, other.digests)
        np.testing.assert_array_equal(one.phashes, other.phashes)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def _rewrite(path):
    """A valid archive with the wrong pixels, so that only the stored digest can tell."""
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["images"][0, 0, 0, 0] ^= 1
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, _rewrite])
def test_damaged_cache_is_drawn_again(tmp_path, damage):
    arguments = {"datasets": ["gears"], "classes": 2, "images_per_class": 2}
    good = embedded_album(tmp_path, **arguments)[0]
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.warns(DamagedFile, match="damaged"):
        drawn = embedded_album(tmp_path, **arguments)[0]
    np.testing.assert_array_equal(drawn.x, good.x)
    # The file was repaired, and no temporary one is left: reading warns no more.
    np.testing.assert_array_equal(embedded_album(tmp_path, **arguments)[0].x, good.x)
    assert list(tmp_path.iterdir()) == [path]


def test_contact_sheet_shows_the_images(tmp_path):
    pools = embedded_album(tmp_path, datasets=["fishes", "gears"], classes=3, images_per_class=4)
    sheet = contact_sheet(pools, per_set=3, per_class=2)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (64, 64, 3))[:, :, 0]
    for pool in pools:
        for row in (0, 5, 9):
            first = np.argwhere((windows[..., 0, 0, :] == pool.x[row][0, 0]).all(-1))
            assert any(np.array_equal(windows[i, j], pool.x[row]) for i, j in first)


def test_raw_pixels_are_neither_useless_nor_enough(tmp_path):
    names = [*EMBEDDED_DOMAINS["glyphs"], *EMBEDDED_DOMAINS["land_cover"]]
    assert_in_band(embedded_album(tmp_path, datasets=names, images_per_class=20))


@pytest.mark.slow
def test_whole_album(tmp_path):
    pools = embedded_album(tmp_path)
    assert [pool.name for pool in pools] == ALL_SETS
    assert all(pool.x.shape == (800, 64, 64, 3) for pool in pools)
    assert len(set(np.concatenate([pool.digests for pool in pools]))) == 24_000
    assert_in_band(pools)
