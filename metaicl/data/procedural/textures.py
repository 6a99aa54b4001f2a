# SPDX-License-Identifier: Apache-2.0
"""Domain `textures`: woven cloth, cut stone and laid tiles, each seen from close by."""

from __future__ import annotations

import numpy as np

from metaicl.data.procedural.raster import (
    SIZE,
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

_ANGLE = 0.6


def _weave_class(u, rng):
    """A class is a thread pattern (which of warp and weft is on top, `[h, w]`) with coloured yarns."""
    n, step = whole(u[0], 2, 6), whole(u[1], 1, 3)
    run = whole(u[2], 1, max(1, n - 1))
    over = (np.arange(n)[None] + step * np.arange(n)[:, None]) % n < run
    if u[3] > 0.6:
        over = rng.random((n + 2, n + 2)) < 0.5
    hues = u[4] + np.array([0, pick(u[5], (0.05, 0.15, 0.33, 0.5))])
    yarns = hsv(hues, between(u[6:8], 0.25, 0.8), between(u[8:10], 0.35, 0.95))
    stripes = rng.integers(0, 2, (2, whole(u[10], 2, 8)))
    return Class(over=over, yarns=yarns, stripes=stripes, threads=between(u[11], 5, 12), plaid=u[12] > 0.5)


def _weave(k: Class, rng):
    """Round threads over and under each other, a little crooked."""
    x, y = turned(rng, _ANGLE, (0.8, 1.25), 2.0)
    x, y = (v * k.threads + 0.35 * clouds(rng, 3) for v in (x, y))
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    top = k.over[i % k.over.shape[0], j % k.over.shape[1]]
    warp = k.stripes[0][j % k.stripes.shape[1]] if k.plaid else np.zeros_like(i)
    weft = k.stripes[1][i % k.stripes.shape[1]] if k.plaid else np.ones_like(i)
    shift = rng.normal(0, 0.1, 3)
    yarns = np.clip(k.yarns + shift + rng.normal(0, 0.05, (2, 3)), 0, 1)
    across = np.where(top, x - j, y - i) - 0.5
    along = np.where(top, y - i, x - j) - 0.5
    height = (1 - 3 * across**2) * (1 - 0.8 * along**2)
    cloth = yarns[np.where(top, warp, weft)] * np.clip(0.2 + 0.85 * height, 0, 1)[..., None]
    return finish(cloth, rng, noise=0.04)


def _stone_class(u, rng):
    """A class is a way of veining: frequency, warp, ridges, bands and a ramp of four colours."""
    hue = u[0]
    colours = hsv(
        hue + np.array([0, 0.04, 0.1, between(u[1], 0, 0.5)]),
        np.array([0.5, 0.35, 0.25, 0.5]) * between(u[2], 0.4, 1.6),
        np.array([0.3, 0.55, 0.75, 0.95])[rng.permutation(4)],
    )
    return Class(
        kind=pick(u[3], ("veins", "bands", "grains", "cloud")),
        warp=between(u[4], 0.1, 1.2),
        frequency=between(u[5], 1.2, 4.5),
        stretch=between(u[6], 1, 3.5),
        octaves=whole(u[7], 1, 3),
        colours=colours,
    )


def _stone(k: Class, rng):
    """Warped noise through the class's ramp."""
    x, y = turned(rng, 0.5, (0.8, 1.25), 1.0)
    a, b = clouds(rng, 3, k.octaves), clouds(rng, 4, k.octaves)
    x, y = x + k.warp * (a - 0.5) * 2, y + k.warp * (b - 0.5) * 2
    if k.kind == "bands":
        field = 0.5 + 0.5 * np.sin(TAU * k.frequency * (x + 0.15 * y))
    elif k.kind == "veins":
        field = np.abs(np.sin(np.pi * k.frequency * x / k.stretch + 3 * a)) ** 0.5
    elif k.kind == "grains":
        field = 0.5 + 0.3 * (
            np.sin(TAU * k.frequency * x) + np.sin(TAU * k.frequency * y / k.stretch + 4 * b)
        )
    else:
        field = clouds(rng, int(2 * k.frequency), 3) * 1.6 - 0.3
    colours = np.clip(k.colours + rng.normal(0, 0.1, 3) + rng.normal(0, 0.03, (4, 3)), 0, 1)
    return finish(ramp(field, colours), rng)


def _tile_class(u, rng):
    """A class is a way of laying tiles, with a joint, a relief and one or two clays."""
    hues = u[0] + np.array([0, between(u[1], -0.08, 0.5)])
    return Class(
        layout=pick(
            u[2], ("running", "stack", "hexagons", "triangles", "scales", "basket", "diamonds", "cobbles")
        ),
        aspect=between(u[3], 1.2, 3.0),
        size=between(u[4], 2.2, 4.2),
        joint=between(u[5], 0.06, 0.16),
        clays=hsv(hues, between(u[6], 0.2, 0.75), between(u[7:9], 0.35, 0.9)),
        grout=pick(u[9], (0.15, 0.85)),
        checks=u[10] > 0.4,
    )


def _cobble_cells(x, y):
    """Distance to the joint and cell ids of a jittered grid of stones."""
    i, j = np.floor(y), np.floor(x)
    first = second = np.full(x.shape, 9.0)
    owner = np.zeros(x.shape)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            ci, cj = i + di, j + dj
            jitter = (ci * 0.754877 + cj * 0.569840) % 1
            far = np.hypot(x - cj - 0.2 - 0.6 * jitter, y - ci - 0.2 - 0.6 * ((jitter * 7.31) % 1))
            nearer = far < first
            second = np.where(nearer, first, np.minimum(second, far))
            owner = np.where(nearer, ci * 31 + cj * 17, owner)
            first = np.where(nearer, far, first)
    return (second - first) / 2, owner


def _lattice(layout: str, aspect: float, x, y):
    """Distance to the nearest joint and integer tile ids, each `[SIZE, SIZE]`."""
    if layout == "cobbles":
        return _cobble_cells(x, y)
    if layout in ("hexagons", "triangles"):
        axes = np.stack([x, 0.5 * x + 0.8660254 * y, -0.5 * x + 0.8660254 * y])
        if layout == "triangles":
            cell = np.floor(axes)
            return np.abs(axes - np.rint(axes)).min(0), cell.sum(0)
        row = np.rint(y / 0.8660254)
        options = []
        for r in (row - 1, row, row + 1):
            column = np.rint(x - 0.5 * (r % 2))
            options.append((np.hypot(x - column - 0.5 * (r % 2), y - 0.8660254 * r), r * 2 + column))
        far = np.sort(np.stack([o[0] for o in options]), 0)
        owner = np.choose(np.argmin([o[0] for o in options], 0), [o[1] for o in options])
        return np.minimum(0.5 - far[0] * 0.93, 0.4), owner
    if layout == "diamonds":
        x, y = (x + y) * 0.8, (x - y) * 0.8 * aspect / 2
    elif layout == "basket":
        flip = (np.floor(x / 2) + np.floor(y / 2)) % 2 > 0
        x, y = np.where(flip, y, x), np.where(flip, x, y)
        x = x / 2
    elif layout in ("running", "scales"):
        x = x / (aspect if layout == "running" else 1) + 0.5 * (np.floor(y) % 2)
    if layout == "scales":
        arc = np.sqrt(np.clip(1 - (2 * (x - np.floor(x)) - 1) ** 2, 0, 1))
        lower = y - np.floor(y) < arc * 0.9
        return np.abs(y - np.floor(y) - arc * 0.9) * 0.7, np.floor(y) * 3 + np.where(
            lower, np.floor(x), np.rint(x)
        )
    edge = np.minimum(0.5 - np.abs(x - np.floor(x) - 0.5), 0.5 - np.abs(y - np.floor(y) - 0.5))
    return edge, np.floor(x) + np.floor(y)


def _tile(k: Class, rng):
    """Tiles with a joint between them; each tile has its own shade."""
    x, y = turned(rng, _ANGLE, (0.8, 1.25), 2.0)
    edge, owner = _lattice(k.layout, k.aspect, x * k.size, y * k.size)
    owner = owner.astype(np.int64)
    clays = np.clip(k.clays + rng.normal(0, 0.09, 3) + rng.normal(0, 0.03, (2, 3)), 0, 1)
    shade = rng.uniform(0.8, 1.1, 256)[(owner * 37) % 256]
    body = clays[owner % 2 if k.checks else np.zeros_like(owner)] * shade[..., None]
    body = body * (0.85 + 0.3 * clouds(rng, 10))[..., None]
    open_joint = np.clip((k.joint - edge) * SIZE / (2 * k.size) * 0.7 + 0.5, 0, 1)[..., None]
    return finish(body * (1 - open_joint) + k.grout * 0.8 * open_joint, rng)


FAMILIES = {
    "weaves": Family(_weave_class, _weave),
    "stones": Family(_stone_class, _stone),
    "tilings": Family(_tile_class, _tile),
}
