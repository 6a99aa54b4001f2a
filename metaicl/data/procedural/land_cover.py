# SPDX-License-Identifier: Apache-2.0
"""Domain `land_cover`: fields, settlements and coasts, seen from far above."""

from __future__ import annotations

import numpy as np

from metaicl.data.procedural.raster import (
    TAU,
    Class,
    Family,
    between,
    clouds,
    finish,
    hsv,
    pick,
    ramp,
    turned,
    whole,
)


def _field_class(u, rng):
    """A class is a way of farming: shape and size of parcels, crops, rows, hedges, round irrigation."""
    crops = hsv(
        pick(u[0], (0.1, 0.16, 0.24, 0.3)) + rng.normal(0, 0.04, 4),
        between(u[1], 0.25, 0.7) + rng.normal(0, 0.12, 4),
        between(u[2], 0.4, 0.8) + rng.normal(0, 0.15, 4),
    )
    return Class(
        layout=pick(u[3], ("patchwork", "strips", "grid", "circles", "terraces")),
        size=between(u[4], 1.3, 3.2),
        stretch=between(u[5], 1, 3.0),
        rows=between(u[6], 8, 22),
        row_depth=between(u[7], 0.05, 0.35),
        hedge=pick(u[8], (0.0, 0.06, 0.1)),
        hedge_colour=hsv(pick(u[9], (0.33, 0.1)), 0.45, pick(u[10], (0.22, 0.8))),
        crops=crops,
    )


def _parcels(k: Class, rng, x, y):
    """Distance to the parcel's border and a parcel number, each `[SIZE, SIZE]`."""
    x, y = x * k.size, y * k.size * k.stretch
    if k.layout == "terraces":
        height = k.size * 2.2 * (clouds(rng, 2) + 0.25 * (x / k.size))
        return np.abs(height * 2 - np.rint(height * 2)) / 3, np.floor(height * 2 + 0.5)
    if k.layout == "patchwork":
        seeds = rng.uniform(-2, 2, (18, 2)) * [k.size, k.size * k.stretch] / 1.4
        far = np.abs(x[..., None] - seeds[:, 0]) + np.abs(y[..., None] - seeds[:, 1])
        two = np.partition(far, 1, -1)
        return (two[..., 1] - two[..., 0]) / 2, far.argmin(-1).astype(float)
    if k.layout == "strips":
        x = x * 0.35 + 0.37 * np.floor(y)
    if k.layout == "circles":
        i, j = np.floor(y / k.stretch), np.floor(x)
        r = np.hypot(x - j - 0.5, y / k.stretch - i - 0.5)
        return np.abs(0.46 - r), np.where(r < 0.46, i * 7 + j * 3, 3)
    edge = np.minimum(0.5 - np.abs(x - np.floor(x) - 0.5), 0.5 - np.abs(y - np.floor(y) - 0.5))
    return edge, np.floor(x) * 5 + np.floor(y) * 3


def _field(k: Class, rng):
    """Parcels of the class's crops, ploughed in rows."""
    x, y = turned(rng, np.pi, (0.85, 1.2), 1.0)
    edge, owner = _parcels(k, rng, x, y)
    owner = owner.astype(np.int64) % 64
    season = rng.normal(0, 0.05, 3)
    crop = np.clip(k.crops + season, 0.05, 1)[rng.integers(0, 4, 64)][owner]
    heading = (rng.integers(0, 2, 64) * (np.pi / 2) + rng.normal(0, 0.1, 64))[owner]
    rows = np.sin(k.rows * (x * np.cos(heading) + y * np.sin(heading)) * 2.2)
    image = crop * (1 + k.row_depth * rows + 0.25 * (clouds(rng, 7, 2) - 0.5))[..., None]
    hedge = np.clip((k.hedge - edge) * 18 + 0.4, 0, 1)[..., None] * (k.hedge > 0)
    return finish(image * (1 - hedge) + k.hedge_colour * hedge, rng)


def _town_class(u, rng):
    """A class is a town plan: blocks, streets, roofs, gardens, and the bend of its roads."""
    return Class(
        block=between(u[0], 1.4, 3.2),
        aspect=between(u[1], 1, 2.0),
        street=between(u[2], 0.06, 0.16),
        street_value=pick(u[3], (0.25, 0.5, 0.75)),
        lots=whole(u[4], 1, 4),
        roof=between(u[5], 0.5, 0.92),
        roof_hue=pick(u[6], (0.02, 0.05, 0.1, 0.6, 0.55)),
        roof_saturation=between(u[7], 0.05, 0.7),
        garden=hsv(pick(u[8], (0.1, 0.2, 0.3, 0.36)), between(u[9], 0.15, 0.6), between(u[10], 0.25, 0.7)),
        bend=pick(u[11], (0.0, 0.0, 0.35, 0.8)),
        radial=u[12] > 0.75,
        empty=between(u[13], 0, 0.45),
    )


def _town(k: Class, rng):
    """Streets around blocks of houses with gardens; each roof has its own shade and a sunny side."""
    x, y = turned(rng, np.pi, (0.85, 1.2), 0.5)
    x = x + k.bend * (clouds(rng, 2) - 0.5)
    y = y + k.bend * (clouds(rng, 2) - 0.5)
    if k.radial:
        x, y = np.hypot(x + 0.6, y + 0.4) * 1.2, np.arctan2(y + 0.4, x + 0.6) * 3 / np.pi
    x, y = x * k.block + rng.random(), y * k.block * k.aspect + rng.random()
    i, j = np.floor(y), np.floor(x)
    bx, by = x - j, y - i
    edge = np.minimum(0.5 - np.abs(bx - 0.5), 0.5 - np.abs(by - 0.5))
    lx, ly = ((np.clip((v - k.street) / (1 - 2 * k.street), 0, 0.999)) * k.lots for v in (bx, by))
    house = np.maximum(np.abs(lx - np.floor(lx) - 0.5), np.abs(ly - np.floor(ly) - 0.5)) * 2
    lot = (np.floor(lx) * 5 + np.floor(ly) * 11 + i * 29 + j * 17).astype(np.int64) % 97
    shade, built = rng.uniform(0.45, 0.95, 97), rng.random(97) > k.empty
    sunny = np.where(lx - np.floor(lx) > 0.5, 1.12, 0.88)
    hue = k.roof_hue + rng.normal(0, 0.02) + rng.normal(0, 0.015, 97)[lot]
    roofs = hsv(hue, k.roof_saturation, shade[lot] * sunny)
    image = k.garden * (0.7 + 0.6 * clouds(rng, 12))[..., None] * rng.uniform(0.85, 1.15)
    cover = (np.clip((k.roof - house) * 6 + 0.5, 0, 1) * built[lot])[..., None]
    image = image * (1 - cover) + roofs * cover
    road = np.clip((k.street - edge) * 25 + 0.5, 0, 1)[..., None]
    return finish(image * (1 - road) + k.street_value * np.array([1, 0.98, 0.95]) * road, rng)


_CLIMATES = (
    ((0.62, 0.8, 0.35), (0.52, 0.6, 0.8), (0.13, 0.35, 0.92), (0.3, 0.65, 0.45), (0.28, 0.6, 0.25)),
    ((0.6, 0.6, 0.25), (0.56, 0.4, 0.55), (0.6, 0.1, 0.7), (0.6, 0.03, 0.92), (0.6, 0.0, 1.0)),
    ((0.55, 0.5, 0.3), (0.48, 0.45, 0.5), (0.1, 0.45, 0.6), (0.07, 0.55, 0.7), (0.05, 0.6, 0.5)),
    ((0.6, 0.7, 0.2), (0.58, 0.6, 0.35), (0.0, 0.0, 0.2), (0.03, 0.3, 0.32), (0.05, 0.4, 0.55)),
    ((0.4, 0.4, 0.25), (0.35, 0.4, 0.4), (0.2, 0.4, 0.5), (0.25, 0.5, 0.4), (0.12, 0.4, 0.5)),
)


def _coast_class(u, rng):
    """A class is a coast: climate (sea to summit), roughness, share of sea, and form of the land."""
    colours = hsv(*np.array(pick(u[0], _CLIMATES)).T)
    return Class(
        colours=np.clip(colours + rng.normal(0, 0.045, (5, 3)), 0, 1),
        form=pick(u[1], ("islands", "shore", "delta", "atoll", "lakes", "ridges")),
        cells=whole(u[2], 2, 5),
        octaves=whole(u[3], 1, 4),
        sea=between(u[4], -0.12, 0.12),
        relief=between(u[5], 1.0, 4.0),
        surf=u[6] > 0.5,
    )


def _coast(k: Class, rng):
    """A height field coloured from deep water to summits, lit from one side."""
    height = clouds(rng, k.cells, k.octaves)
    x, y = turned(rng, np.pi, (0.85, 1.15), 0.25)
    if k.form == "shore":
        height = height * 0.6 + 0.2 + 0.3 * x
    elif k.form == "delta":
        height = (
            0.75 - 0.5 * np.exp(-((np.sin(3 * x + 6 * height + TAU * rng.random()) / 0.35) ** 2)) - 0.1 * x
        )
    elif k.form == "atoll":
        height = 0.25 + 0.6 * np.exp(-(((np.hypot(x, y) - 0.6 + 0.5 * (height - 0.5)) / 0.17) ** 2))
    elif k.form == "lakes":
        height = 1.05 - 1.1 * height
    elif k.form == "ridges":
        height = 0.9 - 1.6 * np.abs(height - 0.5)
    height = np.clip(height - k.sea, 0, 1)
    land = np.clip((height - 0.5) * 14 + 0.5, 0, 1)
    image = ramp(
        np.where(height < 0.5, height * 0.8, 0.4 + (height - 0.5) * 1.9), k.colours + rng.normal(0, 0.05, 3)
    )
    sun = rng.uniform(0, TAU)
    slope = np.cos(sun) * np.gradient(height, axis=1) + np.sin(sun) * np.gradient(height, axis=0)
    image = image * (1 + np.clip(k.relief * 6 * slope * land, -0.5, 0.5))[..., None]
    if k.surf:
        image = image + 0.35 * np.exp(-(((height - 0.49) / 0.02) ** 2))[..., None]
    return finish(np.clip(image, 0, 1), rng)


FAMILIES = {
    "farmland": Family(_field_class, _field),
    "towns": Family(_town_class, _town),
    "coasts": Family(_coast_class, _coast),
}
