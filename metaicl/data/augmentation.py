# SPDX-License-Identifier: Apache-2.0
"""Seven augmentations of images on the device, and compositions of three of them: pseudo-tasks are made of those.

They are those of CAMeLU (arXiv 2405.16124, as its public code has them). Every function takes one RGB image, float32
`[h, w, 3]` from 0 to 255, and a key, and gives one of the same shape and range; `jax.vmap` gives batches.

Resampling is JAX's own. DM-PIX 0.4.5, the library of augmentations for JAX, was tried: its hue is wrong in a program
that resamples before it (it tests floats for equality, which the compiler may compute twice), its resampling and blur
took 13 to 70 times as long on a CPU, and its brightness, contrast and saturation are not those of torchvision.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metaicl.episode import Array

GEOMETRIC = ("crop", "rotation", "flip", "shear")
COLOUR = ("grey", "jitter", "blur")
OPERATIONS = GEOMETRIC + COLOUR
PICKS = 3  # operations of a strong augmentation

_AREAS, _RATIOS = (0.2, 0.8), (3 / 4, 4 / 3)  # of a crop: share of the image, width to height
_MOST_ROTATION, _MOST_SHEAR = jnp.pi / 3, jnp.pi / 4
_BRIGHTNESS = _CONTRAST = _SATURATION = 0.2
_HUE = 0.1  # of the circle
_SIGMAS = (0.1, 2.0)  # pixels, of the blur
_WHITE = 255.0
_LUMA = (0.299, 0.587, 0.114)


def strong_views(images: Array, keys: Array) -> Array:
    """`strong` of images `[n, h, w, 3]`, each with its own key `[n]`.

    Together on an accelerator, where all seven operations are computed for every image and one is kept. On a CPU one
    image after the other, where only those that were drawn are: a tenth of the time (64 x 64 pixels: 0.1 ms each).
    """
    one_by_one = lambda *both: jax.lax.map(lambda pair: strong(*pair), both)
    found: Array = jax.lax.platform_dependent(images, keys, cpu=one_by_one, default=jax.vmap(strong))
    return found


def strong(image: Array, key: Array) -> Array:
    """Three operations, each drawn on its own from the seven, one after the other.

    The geometric ones among them act as one map of the plane, before the others: the image is resampled once at most,
    and what any of them left black is black. Without one of them it is not resampled at all.
    """
    pick_key, key = jax.random.split(key)
    picks = jax.random.randint(pick_key, (PICKS,), 0, len(OPERATIONS))
    keys = jax.random.split(key, PICKS)
    maps = jax.vmap(functools.partial(_map_of, shape=image.shape))(keys, picks)
    warped = lambda x: warp(x, maps)
    image = jax.lax.cond(jnp.any(picks < len(GEOMETRIC)), warped, lambda x: x, image)

    def coloured(x, drawn):
        key, pick = drawn
        branch = jnp.maximum(pick - len(GEOMETRIC) + 1, 0)
        return jax.lax.switch(branch, [lambda x, _: x, grey, jitter, blur], x, key), None

    return jax.lax.scan(coloured, image, (keys, picks))[0]  # a scan: the branches are compiled once


def crop(image: Array, key: Array) -> Array:
    """A random rectangle (a fifth to four fifths of the area, sides 3:4 to 4:3), as large as the whole image."""
    return warp(image, _crop_map(key, image.shape)[None])


def rotation(image: Array, key: Array) -> Array:
    """Turned about its centre by up to 60 degrees to either side; what comes from outside is black."""
    return warp(image, _rotation_map(key, image.shape)[None])


def flip(image: Array, key: Array | None = None) -> Array:
    """Left and right exchanged, always."""
    del key
    return image[:, ::-1]


def shear(image: Array, key: Array) -> Array:
    """Sheared by up to 45 degrees to either side, along both axes; what comes from outside is black."""
    return warp(image, _shear_map(key, image.shape)[None])


def grey(image: Array, key: Array | None = None) -> Array:
    """Three equal channels: the luma of ITU-R BT.601."""
    del key
    luma = jnp.tensordot(image, jnp.array(_LUMA), 1)
    return jnp.broadcast_to(luma[..., None], image.shape)


def jitter(image: Array, key: Array) -> Array:
    """Brightness, contrast, saturation and hue changed at random, in this order.

    torchvision's ColorJitter(0.2, 0.2, 0.2, 0.1), which draws their order too.
    """
    factors = 1 + jax.random.uniform(key, (3,), minval=-1, maxval=1) * jnp.array(
        [_BRIGHTNESS, _CONTRAST, _SATURATION]
    )
    turn = jax.random.uniform(jax.random.fold_in(key, 1), (), minval=-_HUE, maxval=_HUE)
    return jittered(image, factors, turn)


def blur(image: Array, key: Array) -> Array:
    """Blurred by a Gaussian kernel of 3 x 3 pixels, of a deviation from 0.1 to 2 pixels."""
    return blurred(image, jax.random.uniform(key, (), minval=_SIGMAS[0], maxval=_SIGMAS[1]))


def jittered(image: Array, factors: Array, turn: Array) -> Array:
    """The image with its brightness, contrast and saturation times `factors [3]`, its hue turned by `turn` circles."""
    blend = lambda a, b, share: jnp.clip(share * a + (1 - share) * b, 0.0, _WHITE)
    image = blend(image, jnp.zeros_like(image), factors[0])
    image = blend(image, jnp.full_like(image, grey(image).mean()), factors[1])
    image = blend(image, grey(image), factors[2])
    return hue_turned(image, turn)


def hue_turned(image: Array, turn: Array) -> Array:
    """The image with its hues turned by `turn` circles, saturation and value (HSV) kept."""
    red, green, blue = (image[..., c] for c in range(3))
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # Which channel is largest decides the formula; where two are, both give the same.
    of_red, of_green, of_blue = (green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe
    largest_red, largest_green = (red >= green) & (red >= blue), green >= blue
    sixth = jnp.where(largest_red, of_red, jnp.where(largest_green, of_green, of_blue)) + 6 * turn
    # Each channel is the value, less the chroma times how far its own hue is away.
    away = [(offset + sixth) % 6 for offset in (5, 3, 1)]
    lack = [jnp.clip(jnp.minimum(a, 4 - a), 0.0, 1.0) for a in away]
    return jnp.stack([value - chroma * part for part in lack], axis=-1)


def blurred(image: Array, sigma: Array) -> Array:
    """The image under a Gaussian kernel of 3 x 3 pixels; beyond its edges it is reflected."""
    side = jnp.exp(-0.5 / sigma**2)
    side = side / (1 + 2 * side)
    for axis in (0, 1):
        wide = jnp.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        before = jax.lax.slice_in_dim(wide, 0, image.shape[axis], axis=axis)
        after = jax.lax.slice_in_dim(wide, 2, None, axis=axis)
        image = (1 - 2 * side) * image + side * (before + after)
    return image


def warp(image: Array, maps: Array) -> Array:
    """The image under some maps one after the other, resampled once, bilinearly.

    Args:
      image: `[h, w, 3]`.
      maps: `[n, 2, 3]`, each from a pixel (row, column, 1) of its result to the point of its input that is shown there.

    Returns:
      `[h, w, 3]`; black where any of the maps points outside its input, which ends half a pixel beyond the
      centres of its outermost pixels.
    """
    height, width = image.shape[:2]
    rows, columns = jnp.meshgrid(jnp.arange(height) * 1.0, jnp.arange(width) * 1.0, indexing="ij")
    inside = jnp.ones((height, width), bool)
    for m in maps[::-1]:
        rows, columns = (m[a, 0] * rows + m[a, 1] * columns + m[a, 2] for a in (0, 1))
        inside &= (rows >= -0.5) & (rows <= height - 0.5) & (columns >= -0.5) & (columns <= width - 0.5)
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="nearest")
    found = jax.vmap(sample, in_axes=(-1, None), out_axes=-1)(image, [rows, columns])
    return jnp.where(inside[..., None], found, 0.0)


def _map_of(key: Array, pick: Array, shape: tuple[int, ...]) -> Array:
    """`[2, 3]`: the map of the geometric operation of that number; of other numbers, the one that changes nothing."""
    drawn = (_crop_map(key, shape), _rotation_map(key, shape), _flip_map(shape), _shear_map(key, shape))
    return jnp.stack([*drawn, jnp.eye(2, 3)])[jnp.minimum(pick, len(GEOMETRIC))]


def _crop_map(key: Array, shape: tuple[int, ...]) -> Array:
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (), minval=_AREAS[0], maxval=_AREAS[1])
    low, high = jnp.log(_RATIOS[0]), jnp.log(_RATIOS[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, (), minval=low, maxval=high))
    # The ratio is that of the rectangle in pixels, the image may be none with equal sides.
    sides = jnp.sqrt(
        area * jnp.stack([1 / ratio, ratio]) * jnp.array([shape[1] / shape[0], shape[0] / shape[1]])
    )
    shares = jnp.minimum(sides, 1.0)  # of height and width; a long one of a large area may not fit
    size = jnp.array(shape[:2], jnp.float32)
    first = jax.random.uniform(place_key, (2,)) * (1 - shares) * size
    return jnp.concatenate([jnp.diag(shares), (first + 0.5 * shares - 0.5)[:, None]], axis=1)


def _rotation_map(key: Array, shape: tuple[int, ...]) -> Array:
    angle = jax.random.uniform(key, (), minval=-_MOST_ROTATION, maxval=_MOST_ROTATION)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return _about_centre(cosine, sine, -sine, cosine, shape)


def _flip_map(shape: tuple[int, ...]) -> Array:
    return jnp.array([[1.0, 0.0, 0.0], [0.0, -1.0, shape[1] - 1.0]])


def _shear_map(key: Array, shape: tuple[int, ...]) -> Array:
    angles = jax.random.uniform(key, (2,), minval=-_MOST_SHEAR, maxval=_MOST_SHEAR)
    down, across = jnp.tan(angles)
    return _about_centre(1.0, down, across, 1 + down * across, shape)


def _about_centre(a, b, c, d, shape: tuple[int, ...]) -> Array:
    """The map `[[a, b], [c, d]]` of (row, column) that keeps the centre of an image where it is."""
    linear = jnp.array([[a, b], [c, d]])
    centre = (jnp.array(shape[:2], jnp.float32) - 1) / 2
    return jnp.concatenate([linear, (centre - linear @ centre)[:, None]], axis=1)
