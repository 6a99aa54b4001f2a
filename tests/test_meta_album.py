# SPDX-License-Identifier: Apache-2.0
"""Readers of albums: layouts, oddities of real label files, errors, decoding, and the way through TFDS."""

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real

from metaicl.data import images, meta_album
from metaicl.data.images import BadImage, DataWarning, EncodedImages, decode_image


def picture(seed: int, side: int = 24) -> np.ndarray:
    """A smooth random RGB image."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, ending: str = ".png") -> bytes:
    bgr = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    return cv2.imencode(ending, bgr)[1].tobytes()


def write_album(folder: Path, rows: list[tuple[str, str]], info: dict | None = None, header=None) -> Path:
    """A data set in Meta-Album's layout; the i-th row's picture has seed i."""
    (folder / "images").mkdir(parents=True)
    lines = [header or "FILE_NAME,CATEGORY,SUPER_CATEGORY"]
    for i, (name, category) in enumerate(rows):
        lines.append(f"{name},{category},")
        path = folder / "images" / name
        if not path.exists() and not name.startswith("."):
            path.write_bytes(encode(picture(i), Path(name).suffix.lower()))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    if info is not None:
        (folder / "info.json").write_text(json.dumps(info))
    return folder


ROWS = [("b.png", "zebra"), ("a.png", "zebra"), ("d.png", "ant"), ("c.PNG", "ant")]


def test_items_are_ordered_by_category_and_name_and_keep_their_bytes(tmp_path):
    pool = meta_album.read_dataset(write_album(tmp_path / "BRD_Mini", ROWS), image_size=24)
    assert pool.name == "BRD_Mini" and pool.domain == "large animals"
    assert pool.classes == ("ant", "zebra") and pool.labels.tolist() == [0, 0, 1, 1]
    order = ["c.PNG", "d.png", "a.png", "b.png"]
    stored = [(tmp_path / "BRD_Mini/images" / name).read_bytes() for name in order]
    assert pool.digests.tolist() == [hashlib.sha256(data).hexdigest().encode() for data in stored]
    np.testing.assert_array_equal(np.asarray(pool.x), np.stack([picture(i) for i in (3, 2, 1, 0)]))


def test_selected_images_stay_encoded_until_asked(tmp_path):
    pool = meta_album.read_dataset(write_album(tmp_path / "X", ROWS), image_size=24)
    decoded = np.asarray(pool.x)
    part = pool.select(np.array([1, 3]))
    assert isinstance(part.x, EncodedImages) and part.x.shape == (2, 24, 24, 3)
    np.testing.assert_array_equal(part.x.decode(), decoded[[1, 3]])
    np.testing.assert_array_equal(part.x[1], decoded[3])
    np.testing.assert_array_equal(part.x.decode(np.array([1])), decoded[[3]])
    done = images.decode_pool(part)
    np.testing.assert_array_equal(done.x, decoded[[1, 3]])
    np.testing.assert_array_equal(done.phashes, images.perceptual_hash(decoded[[1, 3]]))


@pytest.mark.parametrize(
    ("name", "info", "argument", "domain"),
    [
        ("BRD_Mini", {"domain": "aviaries"}, "mine", "aviaries"),
        ("INS_2_Micro", None, "mine", "small animals"),
        ("birds", {"Dataset Name": "x", "domain_id": "REM_SEN"}, "mine", "remote sensing"),
        ("birds", {"dataset_name": "PLT_VIL_Mini"}, "mine", "plant diseases"),
        ("birds", {"Total Number of Classes": 7}, "mine", "mine"),
        ("birds", None, None, "unknown"),
    ],
)
def test_domain_comes_from_the_best_source(tmp_path, name, info, argument, domain):
    folder = write_album(tmp_path / name, ROWS, info)
    assert meta_album.read_dataset(folder, image_size=8, domain=argument).domain == domain


def test_official_table_agrees_with_the_published_totals():
    sets = meta_album.OFFICIAL.values()
    assert len(sets) == 30 and {s.domain for s in sets} == set(meta_album.DOMAINS.values())
    assert all(sum(s.domain_id == d for s in sets) == 3 for d in meta_album.DOMAINS)
    assert sum(s.mini.classes for s in sets) == 4080 and sum(s.mini.images for s in sets) == 163_150
    extended = [s.extended for s in sets if s.extended]
    assert len(extended) == 27
    assert (sum(e.classes for e in extended), sum(e.images for e in extended)) == (2001, 1_384_673)
    assert len({n for s in sets for n in (s.micro.openml, s.mini.openml)}) == 60
    assert meta_album.official_set("INS2") is meta_album.OFFICIAL["INS_2"]
    assert meta_album.official_set("Meta_Album_PLT_NET_Extended").mini.openml == 44293
    assert (
        meta_album.official_set("INS_Mini").name == "Insects" and meta_album.official_set("RSS_Mini") is None
    )


def test_column_names_come_from_info_json(tmp_path):
    info = {"image_column_name": "picture", "category_column_name": "kind"}
    folder = write_album(tmp_path / "X", ROWS, info, header="picture,kind,SUPER_CATEGORY")
    assert meta_album.read_dataset(folder, image_size=8).classes == ("ant", "zebra")


def test_strays_and_repeated_names_are_left_out_with_their_counts(tmp_path):
    rows = [*ROWS, (".DS_Store", "ant"), ("a.png", "zebra"), ("a.png", "ant")]
    folder = write_album(tmp_path / "X", rows)
    with pytest.warns(DataWarning, match=r"X: left out 1 rows of hidden.*2 rows that repeat.* 1 of them"):
        pool = meta_album.read_dataset(folder, image_size=8)
    assert pool.counts.tolist() == [2, 2]


def test_capitals_of_file_names_may_differ_from_the_disk(tmp_path):
    folder = write_album(tmp_path / "X", ROWS)
    (folder / "images/a.png").rename(folder / "images/A.PNG")
    assert len(meta_album.read_dataset(folder, image_size=8)) == 4


def test_classes_below_min_images_are_left_out(tmp_path):
    folder = write_album(tmp_path / "X", [*ROWS, ("e.png", "newt")])
    with pytest.warns(DataWarning, match=r"X: dropped 1 of 3 classes \(1 images\)"):
        assert meta_album.read_dataset(folder, image_size=8, min_images=2).classes == ("ant", "zebra")


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda f: (f / "labels.csv").unlink(), FileNotFoundError, "labels.csv"),
        (
            lambda f: (f / "labels.csv").write_text("name,CATEGORY\n"),
            ValueError,
            r"FILE_NAME.*'name', 'CATEGORY'",
        ),
        (lambda f: (f / "labels.csv").write_text("FILE_NAME,CATEGORY\n"), ValueError, "lists no images"),
        (lambda f: (f / "labels.csv").write_text("FILE_NAME,CATEGORY\na.png,\n"), ValueError, "line 2"),
        (lambda f: (f / "images/a.png").unlink(), FileNotFoundError, r"1 files.*'a.png'.*skip_bad"),
        (lambda f: (f / "images/a.png").write_bytes(b""), BadImage, r"a.png is an empty file.*skip_bad"),
        (
            lambda f: (f / "images/a.png").write_bytes(b"<html>no</html>"),
            BadImage,
            r"a.png cannot be decoded",
        ),
        (lambda f: (f / "info.json").write_text("{"), ValueError, "info.json is not valid JSON"),
    ],
)
def test_broken_data_sets_are_refused_with_name_and_remedy(tmp_path, damage, error, text):
    folder = write_album(tmp_path / "album" / "X_Mini", ROWS)
    damage(folder)
    with pytest.raises(error, match=text) as caught:
        meta_album.read_album(tmp_path / "album", image_size=8)
    assert "X_Mini" in str(caught.value)


def test_all_data_sets_are_listed_before_an_image_is_read(tmp_path):
    write_album(tmp_path / "A", ROWS)
    (write_album(tmp_path / "B", ROWS) / "images/a.png").unlink()
    calls = []
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        meta_album.read_album(tmp_path, image_size=8, progress=lambda *step: calls.append(step))
    assert calls == []


def test_bad_images_are_skipped_and_counted_on_request(tmp_path):
    folder = write_album(tmp_path / "X", ROWS)
    data = encode(picture(0, 64), ".jpg")
    (folder / "images/b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"b.png is cut short"):
        meta_album.read_dataset(folder, image_size=8)
    (folder / "images/c.PNG").unlink()
    with pytest.warns(
        DataWarning, match=r"1 listed files that do not exist.*1 images that do not decode.*b\.png"
    ):
        pool = meta_album.read_dataset(folder, image_size=8, skip_bad=True)
    assert pool.counts.tolist() == [1, 1] and np.asarray(pool.x).shape == (2, 8, 8, 3)
    assert pool.rows.tolist() == [0, 1]


def test_album_chooses_data_sets_and_names_the_nearest(tmp_path):
    for name in ("B_Mini", "A_Mini"):
        write_album(tmp_path / name, ROWS)
    (tmp_path / ".cache").mkdir()
    assert [p.name for p in meta_album.read_album(tmp_path, image_size=8)] == ["A_Mini", "B_Mini"]
    assert [p.name for p in meta_album.read_album(tmp_path / "A_Mini", image_size=8)] == ["A_Mini"]
    assert [p.name for p in meta_album.read_album(tmp_path, image_size=8, datasets=["B_Mini"])] == ["B_Mini"]
    with pytest.raises(ValueError, match=r"no data set 'C_Micro'.*A_Mini, B_Mini"):
        meta_album.read_album(tmp_path, image_size=8, datasets=["C_Micro"])
    with pytest.raises(FileNotFoundError, match=r"There is no album at .*nowhere"):
        meta_album.read_album(tmp_path / "nowhere", image_size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no data set"):
        meta_album.read_album(tmp_path / "empty", image_size=8)


def test_a_folder_of_class_folders_is_one_data_set(tmp_path):
    for i, name in enumerate(
        ["cat/1.jpg", "cat/2.JPEG", "dog/deep/1.png", "dog/notes.txt", "cat/.hidden.png"]
    ):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if name.endswith(".txt") else encode(picture(i), ".png"))
    (pool,) = meta_album.read_album(tmp_path / "pets", image_size=24, domain="animals")
    assert (pool.name, pool.domain, pool.classes, pool.counts.tolist()) == (
        "pets",
        "animals",
        ("cat", "dog"),
        [2, 1],
    )
    np.testing.assert_array_equal(pool.x[2], picture(2))


def test_tfds_round_trip_gives_the_same_pool_without_tensorflow(tmp_path):
    source = write_album(tmp_path / "BRD_Mini", ROWS)
    code = (
        "import sys, pathlib; from metaicl.data.tfds_album import prepare; "
        f"print(prepare({str(source)!r}, {str(tmp_path / 'tfds')!r})); "
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prepared = Path(done.stdout.strip().splitlines()[-1])
    raw = meta_album.read_dataset(source, image_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TFDS's own imports
        again = meta_album.read_album(tmp_path / "tfds", image_size=16)
        again.append(meta_album.read_dataset(prepared, image_size=16))
    for pool in again:
        assert (pool.name, pool.domain, pool.classes) == (raw.name, raw.domain, raw.classes)
        np.testing.assert_array_equal(pool.labels, raw.labels)
        np.testing.assert_array_equal(pool.digests, raw.digests)
        np.testing.assert_array_equal(np.asarray(pool.x), np.asarray(raw.x))


def test_decoding_of_grey_palette_alpha_and_sixteen_bits():
    grey = np.full((9, 9), 77, np.uint8)
    assert np.all(decode_image(encode(grey), 9) == 77)
    deep = np.full((9, 9, 3), (65535, 32896, 0), np.uint16)
    assert decode_image(encode(deep), 9)[0, 0].tolist() == [255, 128, 0]
    half = np.full((9, 9, 4), (255, 0, 0, 51), np.uint8)  # a fifth of red over white
    assert decode_image(encode(half), 9)[4, 4].tolist() == [255, 204, 204]
    image = pytest.importorskip("PIL.Image")
    import io

    buffer = io.BytesIO()
    palette = image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 9)[0, 0].tolist() == [10, 20, 30]


def test_exif_orientation_is_honoured():
    image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 0, 0)
    for orientation, red in ((1, "top"), (3, "bottom"), (6, "right"), (8, "left")):
        exif, buffer = image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        image.fromarray(pixels).save(buffer, "JPEG", exif=exif, quality=100, subsampling=0)
        out = decode_image(buffer.getvalue(), 8)[..., 0] > 128
        halves = {"top": out[:4], "bottom": out[4:], "left": out[:, :4], "right": out[:, 4:]}
        assert [side for side, half in halves.items() if half.all()] == [red]


def test_shrinking_averages_areas_also_beside_a_side_that_grows():
    stripes = np.zeros((4, 32, 3), np.uint8)
    stripes[:, ::2] = 200  # every output pixel covers as much of either
    assert np.all(decode_image(encode(stripes), 8) == 100)
    image = picture(0, 32)
    means = image.reshape(8, 4, 8, 4, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(decode_image(encode(image), 8) - means).max() <= 0.51


def test_perceptual_hash_is_the_cosine_transform_of_block_means():
    image = picture(5, 64)
    grey = image @ np.array([0.299, 0.587, 0.114])
    small = grey.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    expected = int("".join("01"[int(b)] for b in bits), 2)
    assert images.perceptual_hash(image[None]).tolist() == [expected]
    flat = np.stack([np.full((20, 30, 3), v, np.uint8) for v in (0, 13, 255)])
    assert images.perceptual_hash(flat).tolist() == [0, 0, 0]


def test_perceptual_hash_survives_recompression_and_tells_images_apart():
    originals = np.stack([picture(i, 64) for i in range(40)])
    again = np.stack([decode_image(encode(i, ".jpg"), 64) for i in originals])
    a, b = images.perceptual_hash(originals), images.perceptual_hash(again)
    distances = np.bitwise_count(a[:, None] ^ b[None, :])
    assert np.diag(distances).max() <= 6 < distances[~np.eye(40, dtype=bool)].min()


@needs_real
def test_real_album_is_read_whole():
    pools = meta_album.read_album(REAL_DATA / "album", image_size=64, datasets=["FL5_Mini", "MTD_Mini"])
    assert [(p.name, p.domain, len(p.classes)) for p in pools] == [
        ("FL5_Mini", "plants", 5),
        ("MTD_Mini", "manufacturing", 6),
    ]
    assert pools[0].counts.tolist() == [40] * 5 and 32 <= pools[1].counts.min() <= pools[1].counts.max() <= 40
    decoded = images.decode_pool(pools[0])
    assert decoded.x.shape == (200, 64, 64, 3) and len(np.unique(decoded.phashes)) == 200
