# SPDX-License-Identifier: Apache-2.0
"""Augmentations against OpenCV, SciPy, colorsys and closed forms, and what strong ones are made of."""

from __future__ import annotations

import colorsys
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from metaicl.data import augmentation

SIDE = 24
KEYS = jax.random.split(jax.random.key(0), 400)
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def image(rng) -> np.ndarray:
    """Smooth, so that how an image is interpolated matters little."""
    noise = rng.uniform(0, 255, (SIDE, SIDE, 3))
    return cv2.GaussianBlur(noise, (7, 7), 2).astype(np.float32)


SHAPE = (SIDE, SIDE, 3)
MAPS = {
    name: jax.jit(functools.partial(augmentation._map_of, pick=number, shape=SHAPE))
    for number, name in enumerate(augmentation.GEOMETRIC)
}


def map_of(name: str, keys: jax.Array, shape=SHAPE) -> np.ndarray:
    """The maps `[n, 2, 3]` that an operation draws."""
    pick = augmentation.OPERATIONS.index(name)
    each = jax.vmap(lambda k: augmentation._map_of(k, pick, shape))
    return np.asarray(jax.jit(each)(keys))


def opencv_warp(image: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """OpenCV's bilinear warp by a map `[2, 3]` of (row, column) from the result to the input."""
    swap = np.array([[0, 1], [1, 0]])
    xy = np.concatenate([swap @ pull[:, :2] @ swap, swap @ pull[:, 2:]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, xy, image.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def inside(pull: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixels of the result show a point of the input."""
    rows, columns = np.mgrid[:height, :width]
    y, x = np.einsum("ab,bhw->ahw", pull, np.stack([rows, columns, np.ones_like(rows)]))
    return (y >= -0.5) & (y <= height - 0.5) & (x >= -0.5) & (x <= width - 0.5)


@pytest.mark.parametrize("name", ["crop", "rotation", "shear"])
def test_geometric_operations_are_opencv_warps(name, image):
    operation = jax.jit(getattr(augmentation, name))
    wide = np.concatenate([image, image[:, ::-1]], axis=1)  # and images whose sides differ
    for picture in (image, wide):
        for key, pull in zip(KEYS[:4], map_of(name, KEYS[:4], picture.shape), strict=True):
            shown = inside(pull, *picture.shape[:2])
            assert shown.all() == (name == "crop")
            expected = np.where(shown[..., None], opencv_warp(picture, pull), 0)
            # OpenCV rounds coordinates to 1/32 of a pixel.
            np.testing.assert_allclose(operation(picture, key), expected, atol=2.0)


def test_rotations_are_about_the_centre_and_as_far_as_said(image):
    maps = map_of("rotation", KEYS)
    angles = np.degrees(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert -60 <= angles.min() < -57 and 57 < angles.max() <= 60 and abs(angles.mean()) < 5
    products = maps[:, :, :2] @ maps[:, :, :2].transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(2), products.shape), atol=1e-6)
    centre = (SIDE - 1) / 2
    np.testing.assert_allclose(maps @ np.array([centre, centre, 1]), centre, atol=1e-4)
    turned = augmentation.rotation(image, KEYS[0])
    expected = scipy.ndimage.rotate(image, angles[0], axes=(0, 1), reshape=False, order=1)
    middle = slice(SIDE // 4, -SIDE // 4)
    np.testing.assert_allclose(turned[middle, middle], expected[middle, middle], atol=1e-2)


def test_shears_are_those_of_two_angles():
    """In torchvision a shear by (a, b) shows at (x, y) the point (x + tan(a) (y + tan(b) x), y + tan(b) x)."""
    maps = map_of("shear", KEYS)
    across, down = maps[:, 1, 0], maps[:, 0, 1]
    np.testing.assert_allclose(maps[:, 0, 0], 1, atol=1e-6)
    np.testing.assert_allclose(maps[:, 1, 1], 1 + across * down, atol=1e-5)
    for tangents in (across, down):
        angles = np.degrees(np.arctan(tangents))
        assert -45 <= angles.min() < -42 and 42 < angles.max() <= 45
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.15


def test_crops_have_the_areas_and_ratios_that_they_should(image):
    maps = map_of("crop", KEYS)
    height, width = maps[:, 0, 0], maps[:, 1, 1]  # shares of the sides
    assert not maps[:, 0, 1].any() and not maps[:, 1, 0].any()
    whole = (height < 1) & (width < 1)  # others are cut to what there is
    area, ratio = (height * width)[whole], (width / height)[whole]
    assert whole.mean() > 0.9 and 0.2 <= area.min() < 0.23 and 0.75 < area.max() <= 0.8 + 1e-6
    assert 3 / 4 - 1e-5 <= ratio.min() < 0.78 and 1.28 < ratio.max() <= 4 / 3 + 1e-5
    # OpenCV's resize of a crop of whole pixels, but for the half pixel at its edge.
    pull = jnp.array([[0.5, 0, 4 - 0.25], [0, 0.5, 6 - 0.25]])
    found = augmentation.warp(image, pull[None])
    expected = cv2.resize(image[4 : 4 + SIDE // 2, 6 : 6 + SIDE // 2], (SIDE, SIDE))
    np.testing.assert_allclose(found[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-2)


def test_flip_and_grey(image, rng):
    np.testing.assert_array_equal(augmentation.flip(image), image[:, ::-1])
    np.testing.assert_array_equal(augmentation.warp(image, map_of("flip", KEYS[:1])), image[:, ::-1])
    picture = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    found = augmentation.grey(picture.astype(np.float32))
    expected = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    for channel in range(3):
        np.testing.assert_allclose(found[..., channel], expected, atol=0.51)  # OpenCV rounds


def by_hand(image: np.ndarray, factors: np.ndarray, turn: float) -> np.ndarray:
    """Brightness, contrast, saturation and hue, pixel by pixel."""
    clip = lambda a: np.clip(a, 0, 255)
    image = clip(np.asarray(image, np.float64) * factors[0])
    image = clip(factors[1] * image + (1 - factors[1]) * np.mean(image @ LUMA))
    image = clip(factors[2] * image + (1 - factors[2]) * (image @ LUMA)[..., None])
    pixels = []
    for pixel in image.reshape(-1, 3):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        pixels.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    return np.array(pixels).reshape(image.shape)


@pytest.mark.parametrize(
    "factors, turn", [((1, 1, 1), 0), ((1.2, 0.8, 1), 0), ((1, 1, 1.2), 0.1), ((0.8, 1.2, 0.8), -0.1)]
)
def test_jitter_is_that_of_colorsys(factors, turn, rng):
    image = rng.uniform(0, 255, (8, 8, 3))
    image[0, :4] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [7, 200, 200]]  # no hue, and two largest channels
    found = augmentation.jittered(jnp.asarray(image, jnp.float32), jnp.array(factors, jnp.float32), turn)
    np.testing.assert_allclose(found, by_hand(image, factors, turn), atol=2e-3)


def test_hues_are_right_in_a_program_that_resamples_first(rng):
    """The compiler may compute a channel twice, not to the same bit: nothing may rest on the equality of two."""
    image = rng.uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)
    pull = jnp.asarray(map_of("rotation", KEYS[:1]))
    factors = jnp.array([0.9, 1.1, 1.2])
    both = jax.jit(lambda x: augmentation.jittered(augmentation.warp(x, pull), factors, 0.07))(image)
    np.testing.assert_allclose(both, by_hand(augmentation.warp(image, pull), factors, 0.07), atol=5e-3)


def test_jitter_draws_what_it_says():
    dim = jnp.full((4, 4, 3), 100.0)  # grey: only its brightness changes
    levels = np.asarray(jax.vmap(lambda k: augmentation.jitter(dim, k))(KEYS))[:, 0, 0, 0] / 100
    assert 0.8 <= levels.min() < 0.81 and 1.19 < levels.max() <= 1.2
    red = jnp.concatenate([jnp.full((2, 4, 1), 100.0), jnp.zeros((2, 4, 2))], axis=-1)
    turned = np.asarray(jax.vmap(lambda k: augmentation.jitter(red, k))(KEYS))[:, 0, 0]
    hues = np.array([(colorsys.rgb_to_hsv(*map(float, p))[0] + 0.5) % 1 - 0.5 for p in turned])
    assert -0.1 - 1e-4 <= hues.min() < -0.095 and 0.095 < hues.max() <= 0.1 + 1e-4


def test_blur_is_opencvs(image):
    for sigma in (0.1, 0.7, 2.0):
        expected = cv2.GaussianBlur(image, (3, 3), sigma, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(augmentation.blurred(image, sigma), expected, atol=1e-3)
    dot = jnp.zeros((5, 5, 3)).at[2, 2].set(100.0)
    peaks = np.asarray(jax.vmap(lambda k: augmentation.blur(dot, k))(KEYS))[:, 2, 2, 0]
    assert peaks.max() > 99 and peaks.min() < 14  # of 100, and of a ninth or a little more


def test_a_chain_of_maps_blackens_what_any_of_them_does(image):
    """The first map moves everything out to the right, the second back: nothing of it is seen again."""
    right = jnp.array([[1.0, 0, 0], [0, 1, -SIDE / 2]])
    back = jnp.array([[1.0, 0, 0], [0, 1, SIDE / 2]])
    found = augmentation.warp(image, jnp.stack([right, back]))
    np.testing.assert_allclose(found[:, : SIDE // 2], image[:, : SIDE // 2], atol=1e-3)
    assert not np.any(found[:, SIDE // 2 :])
    other = augmentation.warp(image, jnp.stack([back, right]))
    np.testing.assert_allclose(other[:, SIDE // 2 :], image[:, SIDE // 2 :], atol=1e-3)
    assert not np.any(other[:, : SIDE // 2])


def test_maps_act_in_their_order(image):
    turn, shear = (jnp.asarray(map_of(name, KEYS[:1])[0]) for name in ("rotation", "shear"))
    found = augmentation.warp(image, jnp.stack([turn, shear]))
    one_by_one = augmentation.warp(augmentation.warp(image, turn[None]), shear[None])
    middle = slice(SIDE // 3, -SIDE // 3)
    np.testing.assert_allclose(found[middle, middle], one_by_one[middle, middle], atol=6.0)
    assert np.abs(found - augmentation.warp(image, jnp.stack([shear, turn]))).max() > 20


@pytest.mark.slow
def test_strong_is_three_of_the_operations(image):
    """Each view is what its three draws give when the geometric ones go first; all seven are drawn alike."""
    warp = jax.jit(augmentation.warp)
    colour = {name: jax.jit(getattr(augmentation, name)) for name in augmentation.COLOUR}
    views = np.asarray(
        jax.jit(augmentation.strong_views)(jnp.broadcast_to(image, (24, *image.shape)), KEYS[:24])
    )
    for view, key in zip(views, KEYS, strict=False):
        pick_key, rest = jax.random.split(key)
        picks = [int(p) for p in jax.random.randint(pick_key, (3,), 0, 7)]
        drawn = [
            (augmentation.OPERATIONS[p], k) for p, k in zip(picks, jax.random.split(rest, 3), strict=True)
        ]
        maps = [MAPS[name](k) if name in MAPS else jnp.eye(2, 3) for name, k in drawn]
        expected = warp(image, jnp.stack(maps))
        for name, k in drawn:
            expected = colour[name](expected, k) if name in colour else expected
        np.testing.assert_allclose(view, expected, atol=0.05)
    picks = jax.vmap(lambda k: jax.random.randint(jax.random.split(k)[0], (3,), 0, 7))(KEYS)
    counts = np.bincount(np.asarray(picks).ravel(), minlength=7)
    assert counts.min() > 125 and counts.max() < 220  # 171 of each; the deviation is 12
    assert any(len(set(row)) < 3 for row in np.asarray(picks).tolist())  # with replacement


def test_together_and_one_by_one_are_the_same(image):
    images = jnp.broadcast_to(image, (24, *image.shape))
    together = jax.jit(jax.vmap(augmentation.strong))(images, KEYS[:24])
    found = jax.jit(augmentation.strong_views)(images, KEYS[:24])
    np.testing.assert_allclose(found, together, atol=0.05)
    assert found.min() >= 0 and found.max() <= 255 and found.shape == images.shape
