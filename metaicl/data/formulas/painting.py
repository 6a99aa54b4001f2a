# SPDX-License-Identifier: Apache-2.0
"""Colours, backgrounds and changes of view for drawings, inside the jitted step: one image at a time, under `vmap`."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaicl.episode import Array

COLOURS = 4  # of a palette, over which the shade runs
_GRIDS = (2, 4, 8, 16)  # of the random fields whose sum is a background


class Painting(NamedTuple):
    """How much drawings are changed.

    Attributes:
      own_palette: chance that an image has the palette of its class and not a random one.
      colour: size of the changes of a palette, of brightness and of contrast.
      scale: smallest and largest part of a drawing that is seen, by its side.
      saturation: least and most of what is left of the colours, which random ones have too much of.
      blur: chance of a blurred image.
      grey: chance of an image without colours.
      noise: largest standard deviation of the noise of the pixels, of 1.
    """

    own_palette: float = 0.95
    colour: float = 0.08
    scale: tuple[float, float] = (0.6, 1.15)
    saturation: tuple[float, float] = (0.4, 1.0)
    blur: float = 0.2
    grey: float = 0.1
    noise: float = 0.04


def noise_tile(key: Array, side: int) -> Array:
    """Normal noise, `[2 side, 2 side, 3]`, of which every image of an episode gets a part."""
    return jax.random.normal(key, (2 * side, 2 * side, 3))


def paint(painting: Painting, side: int, key: Array, class_key: Array, drawing: Array, tile: Array) -> Array:
    """One image of a drawing.

    Args:
      painting: how much is changed.
      side: pixels of the image.
      key: of the image.
      class_key: of its class, which decides its palette.
      drawing: `uint16 [h * h]`, ink in the lower and shade in the upper byte.
      tile: of noise, see `noise_tile`.

    Returns:
      `uint8 [side, side, 3]`.
    """
    keys = jax.random.split(key, 7)
    ink, shade = seen(painting, side, keys[0], drawing)
    palette = _palette(painting, keys[1], class_key)
    figure = _along(palette, shade)
    ground = background(keys[2], side)
    opacity = jax.random.uniform(keys[3], (), minval=0.7)
    image = ground + (opacity * ink)[..., None] * (figure - ground)
    image = _relit(painting, keys[4], image)
    image = _blurred(image, jax.random.uniform(keys[5]) < painting.blur)
    size, place = jax.random.split(keys[6])
    top, left = jax.random.randint(place, (2,), 0, side)
    noise = jax.lax.dynamic_slice(tile, (top, left, 0), (side, side, 3))
    image = image + painting.noise * jax.random.uniform(size) ** 2 * noise
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


def seen(painting: Painting, side: int, key: Array, drawing: Array) -> tuple[Array, Array]:
    """Ink and shade of a part of a drawing, turned, mirrored and scaled: `[side, side]` each, in [0, 1]."""
    keys = jax.random.split(key, 5)
    low, high = painting.scale
    part = jax.random.uniform(keys[0], (), minval=low, maxval=high)
    quarter = jax.random.randint(keys[1], (), 0, 4) * (jnp.pi / 2)
    angle = quarter + jax.random.uniform(keys[2], (), minval=-0.35, maxval=0.35)
    mirror = 2.0 * jax.random.bernoulli(keys[3]) - 1.0
    centre = jax.random.uniform(keys[4], (2,), minval=-1.0, maxval=1.0) * jnp.maximum(0.1, 0.5 - part / 2)
    line = (jnp.arange(side) + 0.5) / side - 0.5
    rows, columns = part * line[:, None], part * mirror * line[None, :]
    c, s = jnp.cos(angle), jnp.sin(angle)
    extent = math.isqrt(drawing.shape[0])
    y = (c * rows - s * columns + centre[0] + 0.5) * extent - 0.5
    x = (s * rows + c * columns + centre[1] + 0.5) * extent - 0.5
    return _interpolated(drawing, extent, y, x)


def _interpolated(drawing: Array, extent: int, y: Array, x: Array) -> tuple[Array, Array]:
    """Bilinear; outside there is nothing."""
    top, left = jnp.floor(y), jnp.floor(x)
    ink, shade = jnp.zeros_like(y), jnp.zeros_like(y)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            inside = (row >= 0) & (row < extent) & (column >= 0) & (column < extent)
            at = jnp.clip(row, 0, extent - 1) * extent + jnp.clip(column, 0, extent - 1)
            value = jnp.take(drawing, at.astype(jnp.int32), mode="clip")
            ink = ink + weight * inside * (value & 255)
            shade = shade + weight * inside * (value >> 8)
    return ink / 255.0, shade / 255.0


def _palette(painting: Painting, key: Array, class_key: Array) -> Array:  # [COLOURS, 3]
    keys = jax.random.split(key, 3)
    shape = (COLOURS, 3)
    of_class = jax.random.uniform(class_key, shape)
    chosen = jnp.where(
        jax.random.bernoulli(keys[0], painting.own_palette), of_class, jax.random.uniform(keys[1], shape)
    )
    return chosen + painting.colour * jax.random.normal(keys[2], shape)


def _along(palette: Array, shade: Array) -> Array:
    """Colours on the line through those of the palette: `[h, w] -> [h, w, 3]`."""
    places = jnp.arange(COLOURS, dtype=shade.dtype)
    weights = jnp.maximum(0.0, 1 - jnp.abs((COLOURS - 1) * shade[..., None] - places[None, None, :]))
    return weights @ palette


def background(key: Array, side: int) -> Array:
    """A random field between two random colours: plain, a gradient, clouds or grain. `[side, side, 3]`."""
    keys = jax.random.split(key, len(_GRIDS) + 3)
    sizes = jax.random.uniform(keys[0], (len(_GRIDS),)) ** 3 * jnp.asarray([1.0, 1.0, 0.8, 0.5])
    field = jnp.zeros((side, side))
    for grid, size, part in zip(_GRIDS, sizes, keys[3:], strict=True):
        coarse = jax.random.normal(part, (grid, grid))
        field = field + size * jax.image.resize(coarse, (side, side), "linear")
    mix = jax.nn.sigmoid(2 * field)[..., None]
    colours = jax.random.uniform(keys[1], (2, 3))
    second = jnp.where(jax.random.bernoulli(keys[2], 0.3), colours[0], colours[1])
    return mix * colours[0][None, None, :] + (1 - mix) * second[None, None, :]


def _relit(painting: Painting, key: Array, image: Array) -> Array:
    keys = jax.random.split(key, 4)
    low, high = painting.saturation
    saturation = jax.random.uniform(keys[2], (), minval=low, maxval=high)
    saturation = jnp.where(jax.random.bernoulli(keys[3], painting.grey), 0.0, saturation)
    grey = jnp.mean(image, axis=-1, keepdims=True)
    image = grey + saturation * (image - grey)
    contrast = jnp.exp(2 * painting.colour * jax.random.normal(keys[0]))
    shift = painting.colour * jax.random.normal(keys[1], (3,))
    return 0.5 + contrast * (image - 0.5) + shift[None, None, :]


def _blurred(image: Array, blurs: Array) -> Array:
    """Binomial over three pixels a side, or as it is.

    As products with matrices: XLA would draw the whole image again for each of the nine shifts.
    """
    side = image.shape[0]
    near = jnp.maximum(0, 2 - jnp.abs(jnp.arange(side)[:, None] - jnp.arange(side)[None, :]))
    spread = jnp.where(blurs, near / jnp.sum(near, axis=1, keepdims=True), jnp.eye(side))
    return jnp.einsum("ij,kl,jlc->ikc", spread, spread, image)
