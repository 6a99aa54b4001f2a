# SPDX-License-Identifier: Apache-2.0
"""Splits by domain, class and image, and the removal of what training and test data share."""

import dataclasses
import hashlib

import cv2
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real

from metaicl.data import splits
from metaicl.data.images import DataWarning, decode_pool, perceptual_hash
from metaicl.data.meta_album import read_album
from metaicl.data.pool import Pool


def make_pool(name: str, domain: str = "d", counts=(3, 3)) -> Pool:
    """A pool whose items are the numbers from 0 on, and whose class names sort as their labels."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    digests = np.array(
        [hashlib.sha256(f"{name} {i}".encode()).hexdigest() for i in range(len(labels))], "S64"
    )
    return Pool(
        name, domain, tuple(f"c{c:03d}" for c in range(len(counts))), labels, np.arange(len(labels)), digests
    )


def image_pool(name: str, images: np.ndarray) -> Pool:
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images], "S64")
    return Pool(name, name, ("c",), np.zeros(len(images), np.int32), images, digests, perceptual_hash(images))


def pictures(n: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (n, 6, 6, 3), np.uint8)
    return np.stack([cv2.resize(c, (48, 48), interpolation=cv2.INTER_CUBIC) for c in coarse])


POOLS = [make_pool(n, d) for n, d in [("p", "plants"), ("q", "plants"), ("m", "medicine"), ("a", "animals")]]


def test_leave_domain_out_rotates_the_validation_domain():
    seen = {}
    for held_out in ("animals", "medicine", "plants"):
        split = splits.leave_domain_out(POOLS, held_out)
        assert {p.domain for p in split.test} == {held_out}
        assert sorted(p.name for part in split for p in part) == ["a", "m", "p", "q"]
        seen[held_out] = split.validation[0].domain
    assert seen == {"animals": "medicine", "medicine": "plants", "plants": "animals"}
    assert [p.name for p in splits.leave_domain_out(POOLS, "plants").test] == ["p", "q"]


def test_leave_domain_out_with_a_named_or_no_validation_domain():
    split = splits.leave_domain_out(POOLS, "Animals", validation="plants")
    assert [p.name for p in split.validation] == ["p", "q"] and [p.name for p in split.train] == ["m"]
    split = splits.leave_domain_out(POOLS[1:3], "plants")
    assert (len(split.train), len(split.validation), len(split.test)) == (1, 0, 1)


def test_domains_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"'plant'.*mean 'plants'.*animals, medicine, plants"):
        splits.leave_domain_out(POOLS, "plant")
    with pytest.raises(ValueError, match="both validate and test"):
        splits.leave_domain_out(POOLS, "plants", validation="plants")
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        splits.leave_domain_out(POOLS[:2], "plants")
    assert splits.find_domain("remote_sensing", ["OCR", "remote sensing"]) == "remote sensing"


@pytest.mark.parametrize(
    ("classes", "counts"),
    # floor(.7 n), floor(.1 n), floor(.2 n), each at least 5, the largest shrunk to fit, the rest to training
    [(100, (70, 10, 20)), (25, (15, 5, 5)), (47, (33, 5, 9)), (15, (5, 5, 5))],
)
def test_split_by_classes_takes_sorted_names_in_order(classes, counts):
    split, by = splits.split_within(make_pool("p", counts=(2,) * classes))
    names = [name for part in split for name in part[0].classes]
    assert by == "classes" and tuple(len(part[0].classes) for part in split) == counts
    assert names == sorted(names) and len(names) == classes
    assert sorted(np.concatenate([part[0].x for part in split])) == list(range(2 * classes))


def test_shuffled_split_by_classes_is_a_function_of_the_seed():
    pool = make_pool("p", counts=(2,) * 40)
    parts = [splits.split_within(pool, seed=seed)[0].test[0].classes for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0] != splits.split_within(pool)[0].test[0].classes


def test_few_classes_are_split_by_images():
    pool = make_pool("p", counts=(20, 10, 40))
    split, by = splits.split_within(pool, seed=3)
    assert by == "images" and all(part[0].classes == pool.classes for part in split)
    assert [part[0].counts.tolist() for part in split] == [[14, 7, 28], [2, 1, 4], [4, 2, 8]]
    assert sorted(np.concatenate([part[0].x for part in split])) == list(range(70))
    with pytest.raises(ValueError, match=r"Class 'c001' of p has 2 images"):
        splits.split_within(make_pool("p", counts=(3, 2)))


def test_a_fraction_of_one_uses_the_whole_data_set():
    split, _ = splits.split_within(POOLS[0], fractions=(0, 0, 1))
    assert split.train == [] == split.validation and len(split.test[0]) == 6
    with pytest.raises(ValueError, match="sum to 1"):
        splits.split_within(POOLS[0], fractions=(0.7, 0.7, 0.2))


def test_small_classes_are_dropped_with_a_count_or_refused():
    pool = make_pool("p", counts=(4, 9, 2, 10))
    with pytest.warns(DataWarning, match=r"p: dropped 2 of 4 classes \(6 images\).*fewer than 9"):
        large = splits.drop_small_classes(pool, 9, ways=2)
    assert large.classes == ("c001", "c003") and large.counts.tolist() == [9, 10]
    assert large.x.tolist() == [*range(4, 13), *range(15, 25)]
    assert splits.drop_small_classes(large, 9) is large
    with pytest.raises(ValueError, match=r"p has 2 classes of at least 9 images, and 5 are.*largest has 10"):
        splits.drop_small_classes(pool, 9, ways=5)
    with pytest.raises(ValueError, match=r"p has 0 classes"):
        splits.drop_small_classes(pool, 11)


def test_leaks_are_dropped_by_bytes_and_by_looks():
    images = pictures(30, seed=0)
    recoded = np.stack([cv2.imdecode(cv2.imencode(".png", i[::2, ::2])[1], 1) for i in images[:3]])
    brighter = np.clip(images[3:5] * 0.8 + 30, 0, 255).astype(np.uint8)
    small = np.stack([cv2.resize(i, (48, 48), interpolation=cv2.INTER_LINEAR) for i in recoded])
    train = image_pool("train", np.concatenate([images[10:], images[:1], small[1:], brighter]))
    test = image_pool("test", images[:10])
    kept, report = splits.drop_leaks([train], [test], max_distance=8)
    assert report == {"train": {"items": 25, "same_bytes": 1, "near_copies": 4}}
    np.testing.assert_array_equal(kept[0].x, images[10:])


def test_equal_hashes_of_unlike_images_are_no_leak_but_of_features_they_are():
    pool, other = image_pool("a", pictures(4, 1)), image_pool("b", pictures(4, 2))
    other = dataclasses.replace(other, phashes=pool.phashes)  # as sparse or flat images may have by chance
    assert splits.drop_leaks([pool], [other])[1]["a"]["near_copies"] == 0
    features = [dataclasses.replace(p, x=np.zeros((4, 2), np.float32)) for p in (pool, other)]
    extra = dataclasses.replace(features[0], name="c", phashes=~pool.phashes)
    kept, report = splits.drop_leaks([features[0], extra], [features[1]])
    assert report["a"] == {"items": 4, "same_bytes": 0, "near_copies": 4} and [p.name for p in kept] == ["c"]
    with pytest.raises(ValueError, match="different data"):
        splits.drop_leaks([features[0]], [features[1]])


def test_flat_images_are_compared_by_their_bytes_alone():
    flat = image_pool("a", np.stack([np.full((9, 9, 3), v, np.uint8) for v in (10, 20, 30)]))
    other = image_pool("b", np.stack([np.full((9, 9, 3), v, np.uint8) for v in (20, 200)]))
    kept, report = splits.drop_leaks([flat], [other])
    assert report["a"] == {"items": 3, "same_bytes": 1, "near_copies": 0} and len(kept[0]) == 2


def test_hash_search_in_chunks_agrees_with_counting_bits_in_python(monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.integers(1, 2**63, 50).astype(np.uint64)
    flips = np.array(
        [sum(1 << int(b) for b in rng.choice(63, k, replace=False)) for k in range(5)], np.uint64
    )
    a = dataclasses.replace(make_pool("a", counts=(50,)), phashes=base ^ flips[np.arange(50) % 5])
    b = dataclasses.replace(make_pool("b", counts=(50,)), phashes=base[::-1].copy())
    expected = [min(bin(int(h) ^ int(g)).count("1") for g in b.phashes) > 2 for h in a.phashes]
    for pairs in (7, 4_000_000):
        monkeypatch.setattr(splits, "_PAIRS_AT_ONCE", pairs)
        kept, _ = splits.drop_leaks([a], [b])
        assert kept[0].x.tolist() == np.flatnonzero(expected).tolist() and sum(expected) == 20


@needs_real
def test_real_domains_share_no_image_and_tiles_shot_twice_are_found():
    names = ["MTD_Mini", "OMN_Mini", "NEU_Mini", "SGN_Mini"]
    pools = [decode_pool(p) for p in read_album(REAL_DATA / "album", image_size=64, datasets=names)]
    for held_out in ("manufacturing", "OCR"):
        split = splits.leave_domain_out(pools, held_out)
        _, report = splits.drop_leaks(split.train, split.test)
        assert all(r["same_bytes"] == r["near_copies"] == 0 for r in report.values())
    (tiles,) = [p for p in pools if p.name == "MTD_Mini"]
    split, by = splits.split_within(tiles)
    _, report = splits.drop_leaks(split.train, split.test)
    assert by == "images" and 1 <= report["MTD_Mini"]["near_copies"] <= 30
