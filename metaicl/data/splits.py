# SPDX-License-Identifier: Apache-2.0
"""Which pools, classes and images train, validate and test, and the search for images that are in two parts.

Why near-copies need two tests. Distances of the 64 bit perceptual hashes were counted over all pairs of
11,878 images of 14 data sets in 10 domains. Within 2 bits lie no pair of two data sets (so no false alarm
between domains) and 53 pairs of one data set. Their 16 x 16 grey thumbnails correlate by 0.93 to 1.00 in the
48 pairs that show the same object again, often in another exposure, and by 0.71 to 0.86 in four of the five
pairs of sparse glyphs and hands that only look alike. Copies made by re-encoding, resizing, brightening or
greying all stayed above 0.91. So a pair counts as a copy within 2 bits and with a correlation of 0.9 or more.
An image without any structure has the hash 0 and is compared by its bytes alone.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from metaicl.data.images import DataWarning, grey_thumbnails
from metaicl.data.pool import Pool

_PARTS = ("train", "validation", "test")
_MIN_CORRELATION = 0.9
_PAIRS_AT_ONCE = 4_000_000  # bounds the memory of the comparison of all hashes with all


class Split(NamedTuple):
    """Pools to train on, to choose by, and to report on."""

    train: list[Pool]
    validation: list[Pool]
    test: list[Pool]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def find_domain(name: str, domains: Sequence[str]) -> str:
    """The domain that `name` means; capitals, underscores and hyphens do not matter.

    Raises:
      ValueError: for an unknown domain, naming the nearest and listing all.
    """
    known = {_plain(domain): domain for domain in domains}
    if _plain(name) in known:
        return known[_plain(name)]
    near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.0)
    hint = f" Did you mean {known[near[0]]!r}?" if near else ""
    raise ValueError(f"There is no domain {name!r}.{hint} The domains are: {', '.join(domains)}.")


def leave_domain_out(pools: Sequence[Pool], held_out: str, validation: str | None = None) -> Split:
    """Tests on one domain, validates on another and trains on the rest.

    Args:
      pools: pools of several domains.
      held_out: the domain to test on.
      validation: the domain to validate on. By default the one that follows `held_out` in sorted order, the
        first after the last, so that over all folds each domain validates once. Where there are only two
        domains, the other one trains and nothing validates.

    Raises:
      ValueError: for an unknown domain, one that has two roles, or if nothing is left to train on.
    """
    domains = sorted({pool.domain for pool in pools})
    held_out = find_domain(held_out, domains)
    if validation is not None:
        validation = find_domain(validation, domains)
    elif len(domains) > 2:
        validation = domains[(domains.index(held_out) + 1) % len(domains)]
    if validation == held_out:
        raise ValueError(f"The domain {held_out!r} cannot both validate and test; name another one.")
    split = Split(
        [pool for pool in pools if pool.domain not in (held_out, validation)],
        [pool for pool in pools if pool.domain == validation],
        [pool for pool in pools if pool.domain == held_out],
    )
    if not split.train:
        raise ValueError(
            f"Nothing is left to train on: test {held_out!r}, validation {validation!r}, and all domains are "
            f"{', '.join(domains)}. Add data sets of further domains."
        )
    return split


def _class_counts(total: int, fractions: Sequence[float], least: int) -> list[int]:
    """Classes of each part: floor(fraction x total), at least `least`, the largest part giving way."""
    counts = [max(int(f * total + 1e-9), least) if f > 0 else 0 for f in fractions]
    while sum(counts) > total:
        counts[int(np.argmax(counts))] -= 1
    counts[int(np.argmax(fractions))] += total - sum(counts)
    return counts


def _image_parts(pool: Pool, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Rows of each part, every class in every part that has a fraction."""
    used = sum(f > 0 for f in fractions)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for c, count in enumerate(pool.counts):
        if count < used:
            raise ValueError(
                f"Class {pool.classes[c]!r} of {pool.name} has {count} images, too few for {used} parts. "
                f"Drop small classes first (drop_small_classes)."
            )
        rows = np.random.default_rng([seed, c]).permutation(np.flatnonzero(pool.labels == c))
        stops = np.cumsum(_class_counts(count, fractions, least=1))
        for part, chunk in zip(parts, np.split(rows, stops[:-1]), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def split_within(
    pool: Pool, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int | None = None, min_classes: int = 15
) -> tuple[Split, Literal["classes", "images"]]:
    """Splits one data set into training, validation and test parts.

    With `min_classes` classes or more the parts have different classes: the names in sorted order (shuffled
    by `seed` if one is given) are cut into floor(fraction x classes) each, at least 5, the largest part
    giving way. With fewer classes there would be no task left, so each class's images are shared out instead.

    Args:
      pool: the data set.
      fractions: of train, validation and test; they sum to 1, and a part of fraction 0 is an empty list.
      seed: shuffles the classes, or the images (None shuffles images by seed 0).
      min_classes: from how many classes on the split is by classes.

    Returns:
      The split, one pool in each list, and whether it is by `"classes"` or by `"images"`.

    Raises:
      ValueError: if the fractions are no fractions, or a class has fewer images than there are parts.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {tuple(fractions)}: three numbers that sum to 1, as (0.7, 0.1, 0.2).")
    if len(pool.classes) < min_classes:
        by: Literal["classes", "images"] = "images"
        parts = _image_parts(pool, fractions, seed or 0)
    else:
        by = "classes"
        order = np.argsort(np.array(pool.classes))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        stops = np.cumsum(_class_counts(len(order), fractions, least=5))
        part_of = np.empty(len(order), int)
        for part, classes in enumerate(np.split(order, stops[:-1])):
            part_of[classes] = part
        parts = [np.flatnonzero(part_of[pool.labels] == part) for part in range(len(_PARTS))]
    return Split(*([pool.select(rows)] if len(rows) else [] for rows in parts)), by


def drop_small_classes(pool: Pool, minimum: int, ways: int = 1) -> Pool:
    """The pool without classes of fewer than `minimum` (K + Q) images; a `DataWarning` counts them.

    Raises:
      ValueError: if fewer than `ways` classes are left.
    """
    large = pool.counts >= minimum
    if np.sum(large) < ways:
        raise ValueError(
            f"{pool.name} has {np.sum(large)} classes of at least {minimum} images, and {max(ways, 1)} are "
            f"needed (it has {len(large)} classes; the largest has {max(pool.counts, default=0)} images). "
            "Ask for fewer ways, shots or queries, or leave the data set out."
        )
    if large.all():
        return pool
    rows = np.flatnonzero(large[pool.labels])
    warnings.warn(
        f"{pool.name}: dropped {np.sum(~large)} of {len(large)} classes ({len(pool) - len(rows)} images), "
        f"those with fewer than {minimum} images.",
        DataWarning,
        stacklevel=2,
    )
    return pool.select(rows)


def _has_images(pool: Pool) -> bool:
    shape: tuple[int, ...] = getattr(pool.x, "shape", ())
    return len(shape) == 4 and shape[3] == 3 and pool.x.dtype == np.uint8


def _unit_thumbnails(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """`[len(rows), 256]` thumbnails with zero mean and unit norm, so that a product is a correlation."""
    grey = grey_thumbnails(np.asarray(pool.x[rows]))
    grey -= grey.mean(axis=1, keepdims=True)
    return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)


def _near_copies(a: Pool, b: Pool, max_distance: int) -> np.ndarray:
    """`bool [len(a)]`: which items of `a` are near-copies of an item of `b`."""
    near = np.zeros(len(a), bool)
    if a.phashes is None or b.phashes is None:
        return near
    rows_a, rows_b = np.flatnonzero(a.phashes), np.flatnonzero(b.phashes)  # 0: nothing to compare
    if not (len(rows_a) and len(rows_b)):
        return near
    chunk = max(1, _PAIRS_AT_ONCE // len(rows_b))
    for start in range(0, len(rows_a), chunk):
        rows = rows_a[start : start + chunk]
        bits = np.bitwise_count(a.phashes[rows, None] ^ b.phashes[None, rows_b])
        i, j = np.nonzero(bits <= max_distance)
        i, j = rows[i], rows_b[j]
        if len(i) and _has_images(a) and _has_images(b):
            unique_i, at_i = np.unique(i, return_inverse=True)
            unique_j, at_j = np.unique(j, return_inverse=True)
            thumbs_a, thumbs_b = _unit_thumbnails(a, unique_i), _unit_thumbnails(b, unique_j)
            i = i[np.einsum("kd,kd->k", thumbs_a[at_i], thumbs_b[at_j]) >= _MIN_CORRELATION]
        near[i] = True
    return near


def drop_leaks(
    train: Sequence[Pool], test: Sequence[Pool], max_distance: int = 2
) -> tuple[list[Pool], dict[str, dict[str, int]]]:
    """Takes out of the training pools every image that the test pools hold too, be it as a near-copy.

    An item is dropped if its bytes (SHA-256) occur in a test pool, or if its perceptual hash lies within
    `max_distance` bits of one there and their grey thumbnails correlate by 0.9 or more. Thumbnails are
    compared only where both pools still hold images; features are judged by the hash alone, and pools without
    hashes by their bytes. The module's text gives the figures behind this rule.

    Returns:
      The training pools, in order (one that loses everything is left out), and for each of their names
      `{"items": n, "same_bytes": ..., "near_copies": ...}`, near-copies not counting the identical ones.

    Raises:
      ValueError: if nothing is left to train on.
    """
    kept, report = [], {}
    test_digests = np.concatenate([pool.digests for pool in test]) if test else np.zeros(0, "S64")
    for pool in train:
        same = np.isin(pool.digests, test_digests)
        near = np.zeros(len(pool), bool)
        for other in test:
            near |= _near_copies(pool, other, max_distance)
        near &= ~same
        report[pool.name] = {
            "items": len(pool),
            "same_bytes": int(same.sum()),
            "near_copies": int(near.sum()),
        }
        rows = np.flatnonzero(~(same | near))
        if len(rows):
            kept.append(pool if len(rows) == len(pool) else pool.select(rows))
    if train and not kept:
        raise ValueError("Every training image is in the test pools too; train and test on different data.")
    return kept, report
