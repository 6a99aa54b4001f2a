# SPDX-License-Identifier: Apache-2.0
"""Domain `plants`: branching shrubs (L-systems), flowers seen from above, and single leaves with diseases."""

from __future__ import annotations

import numpy as np

from metaicl.data.procedural.raster import (
    TAU,
    Canvas,
    Class,
    Family,
    Y,
    backdrop,
    between,
    clouds,
    ellipse,
    finish,
    hsv,
    pick,
    polar,
    pose,
    ramp,
    whole,
)


def _shrub_class(u, rng):
    """A class is a rewriting rule: how many arms, at which angles and lengths, and what grows at the tips."""
    arms = whole(u[0], 2, 4)
    depth = {2: 6, 3: 4, 4: 3}[arms]
    spread = between(u[1], 0.25, 0.95)
    angles = np.linspace(-spread, spread, arms) + between(u[2], -0.12, 0.12)
    return Class(
        angles=angles,
        ratios=between(u[3], 0.66, 0.86)
        * (1 - between(u[4], 0, 0.25) * np.abs(np.linspace(-1, 1, arms)) ** 2),
        depth=depth,
        droop=between(u[5], -0.12, 0.25),
        tip=pick(u[6], ("none", "leaf", "berry", "needle", "blossom")),
        tip_hue=pick(u[7], (0.0, 0.08, 0.14, 0.22, 0.3, 0.36, 0.9)),
        bark=between(u[8], 0.03, 0.13),
        sky=u[9],
    )


def _shrub(k: Class, rng):
    """Grows level by level: each segment splits into the class's arms, with a breeze and small accidents."""
    sky = hsv(0.45 + 0.25 * k.sky + rng.normal(0, 0.08), rng.uniform(0.1, 0.4), rng.uniform(0.75, 1))
    ground = hsv(rng.uniform(0.08, 0.3), 0.4, rng.uniform(0.35, 0.6))
    scene = np.where((rng.uniform(0.65, 0.9) < Y)[..., None], ground, backdrop(rng, sky, 0.1))
    canvas = Canvas(scene, pose(rng, 0.1, (0.78, 1.0), 0.17, 0.08))
    bark = hsv(k.bark + rng.normal(0, 0.02), rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.45))
    start, heading, length = np.array([[0.0, 0.95]]), np.array([rng.normal(0, 0.06)]), 0.62
    length = np.array([length * rng.uniform(0.9, 1.15)])
    breeze = rng.normal(0, 0.06)
    for level in range(k.depth):
        heading = heading + k.droop * np.sin(heading) + breeze + rng.normal(0, 0.08, len(heading))
        end = start + length[:, None] * np.column_stack([np.sin(heading), -np.cos(heading)])
        canvas.stroke(list(np.stack([start, end], 1)), bark, 0.085 * 0.62**level)
        start, tips = np.repeat(end, len(k.angles), 0), end
        heading = (heading[:, None] + k.angles).ravel()
        length = (length[:, None] * k.ratios * rng.uniform(0.85, 1.1, (len(length), 1))).ravel()
    _tips(canvas, k, tips[rng.random(len(tips)) < 0.8], rng)
    return finish(canvas.photo(), rng)


def _tips(canvas: Canvas, k: Class, tips: np.ndarray, rng) -> None:
    """What hangs at the ends of the twigs, at most 60 pieces."""
    if k.tip == "none":
        return
    hue = k.tip_hue + rng.normal(0, 0.03)
    for x, y in tips[:60]:
        colour = hsv(hue + rng.normal(0, 0.015), 0.75, rng.uniform(0.45, 0.95))
        if k.tip == "needle":
            ends = np.array([[x, y]]) + 0.1 * polar(np.ones(5), rng.random())
            canvas.stroke([np.array([[x, y], e]) for e in ends], colour, 0.01)
        else:
            size = {"leaf": (0.045, 0.11), "berry": (0.06, 0.06), "blossom": (0.1, 0.085)}[k.tip]
            canvas.fill(ellipse(x, y, *size, n=8, tilt=rng.uniform(-1, 1)), colour)


def _flower_class(u, rng):
    """A class is a corolla: number, shape and layering of petals, the disc, and colours."""
    return Class(
        petals=pick(u[0], (3, 4, 5, 5, 6, 7, 8, 10, 13, 16, 21)),
        width=between(u[1], 0.55, 1.35),
        tip=pick(u[2], ("round", "point", "notch")),
        layers=whole(u[3], 1, 3),
        disc=between(u[4], 0.1, 0.4),
        hue=u[5],
        saturation=between(u[6], 0.15, 0.95),
        disc_hue=pick(u[7], (0.13, 0.08, 0.25, 0.95, 0.75)),
        eye=u[8] > 0.5,
        veined=u[9] > 0.6,
    )


def _petal(tip: str, width: float, inner: float, outer: float) -> np.ndarray:
    """A petal `[19, 2]` along +x between two radii."""
    t = np.linspace(0, 1, 10)
    belly = np.sin(np.pi * t**0.75) * width
    x = inner + (outer - inner) * t
    if tip == "round":
        belly = np.sqrt(np.clip(t * (1 - t) * 4, 0, 1)) * width * np.linspace(0.7, 1.1, 10)
    elif tip == "notch":
        belly = np.sin(np.pi * t**1.6 * 0.8) * width
        x = np.where(t > 0.95, x - 0.16 * (outer - inner), x)
    return np.column_stack([np.r_[x, x[-2::-1]], np.r_[belly, -belly[-2::-1]]])


def _flower(k: Class, rng):
    """Petals back to front, seen a little from the side, over blurred foliage."""
    green = hsv(rng.uniform(0.2, 0.42), rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.6))
    leaves = ramp(clouds(rng, 5, 2) * 1.5 - 0.25, np.stack([green * 0.4, green, np.clip(green * 1.4, 0, 1)]))
    canvas = Canvas(leaves, pose(rng, np.pi, (0.6, 0.92), 0.22, 0.2))
    hue = k.hue + rng.normal(0, 0.06)
    light = rng.uniform(0.75, 1)
    for layer in range(k.layers):
        outer, turn = 1 - 0.27 * layer, layer * np.pi / k.petals
        half = k.width * outer * min(np.pi / k.petals, 0.7)
        outline = _petal(k.tip, half, 0.1, outer)
        for p in range(k.petals):
            a = turn + p * TAU / k.petals + rng.normal(0, 0.04)
            spin = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * rng.uniform(0.92, 1.04)
            shade = light * (0.72 + 0.1 * layer + rng.uniform(0, 0.16))
            canvas.fill(outline @ spin, hsv(hue, k.saturation, shade))
            canvas.stroke(outline @ spin, hsv(hue, k.saturation, shade * 0.65), 0.01)
            if k.veined:
                canvas.stroke(
                    np.array([[0.2, 0], [outer * 0.8, 0]]) @ spin, hsv(hue + 0.1, 0.8, shade * 0.5), 0.02
                )
    canvas.fill(ellipse(0, 0, k.disc, k.disc), hsv(k.disc_hue + rng.normal(0, 0.02), 0.85, light * 0.85))
    if k.eye:
        canvas.fill(ellipse(0, 0, k.disc * 0.5, k.disc * 0.5, 12), hsv(k.disc_hue, 0.8, light * 0.35))
    return finish(canvas.photo(), rng)


def _leaf_class(u, rng):
    """A class is a species (outline and veins) together with a disease (kind, hue and number of spots)."""
    return Class(
        lobes=pick(u[0], (0, 0, 0, 3, 5, 5, 7)),
        lobe_depth=between(u[1], 0.15, 0.45),
        aspect=between(u[2], 0.4, 0.9),
        teeth=pick(u[3], (0, 0, 16, 30)),
        veins=whole(u[4], 3, 7),
        hue=between(u[5], 0.17, 0.4),
        value=between(u[6], 0.35, 0.75),
        disease=pick(u[7], ("healthy", "spots", "rings", "mildew", "margin", "mosaic")),
        spot_hue=pick(u[8], (0.05, 0.1, 0.14, 0.0, 0.8)),
        spots=whole(u[9], 4, 14),
    )


def _leaf_outline(k: Class, rng) -> np.ndarray:
    """The outline `[96, 2]` with its tip at the top."""
    t = np.arange(96) * (TAU / 96)
    radius = 0.85 * (1 + 0.12 * np.cos(t))
    if k.lobes:
        radius = radius * (1 - k.lobe_depth * (0.5 - 0.5 * np.cos(k.lobes * t)))
    if k.teeth:
        radius = radius * (1 + 0.07 * ((k.teeth * t / TAU) % 1 - 0.5))
    outline = polar(radius * (1 + rng.normal(0, 0.012, 96)), np.pi * 1.5)
    pointed = 1 - 0.35 * np.clip(-outline[:, 1], 0, 1) ** 2
    return outline * np.column_stack([k.aspect * (1 if k.lobes else pointed) * np.ones(96), np.ones(96)])


def _leaf(k: Class, rng):
    """One leaf on soil, paper or cloth, with veins and its disease."""
    ground = pick(
        rng.random(), (hsv(0.08, 0.4, 0.4), hsv(0.6, 0.05, 0.72), hsv(0.1, 0.2, 0.6), hsv(0.6, 0.2, 0.45))
    )
    canvas = Canvas(backdrop(rng, ground, 0.35, 7), pose(rng, 0.7, (0.78, 1.05), 0.13, 0.12))
    outline = _leaf_outline(k, rng)
    hue, value = k.hue + rng.normal(0, 0.025), k.value * rng.uniform(0.8, 1.2)
    colour, vein = hsv(hue, 0.65, value), hsv(hue - 0.02, 0.4, min(1, value + 0.25))
    if k.disease == "margin":
        canvas.fill(outline, hsv(k.spot_hue, 0.6, value * 0.9))
        canvas.fill(outline * rng.uniform(0.65, 0.82), colour)
    else:
        canvas.fill(outline, colour)
    stem = np.array([[0, 1.15], [0, -0.75]])
    sides = [
        np.array([[0, y + 0.25], [s * k.aspect * 0.75, y]])
        for y in np.linspace(-0.5, 0.45, k.veins)
        for s in (-1, 1)
    ]
    sides = [s * [0.75 if k.lobes else 0.9, 1] for s in sides]
    _disease(canvas, k, outline, value, rng)
    canvas.stroke(sides, vein * 0.9, 0.015)
    canvas.stroke(stem, vein, 0.05)
    return finish(canvas.photo(), rng)


def _disease(canvas: Canvas, k: Class, outline: np.ndarray, value: float, rng) -> None:
    """Spots strewn inside the outline, as the class's disease has them."""
    if k.disease in ("healthy", "margin"):
        return
    hue = k.spot_hue + rng.normal(0, 0.015)
    for _ in range(k.spots):
        x, y = outline[rng.integers(len(outline))] * rng.uniform(0.1, 0.75)
        r = rng.uniform(0.05, 0.12)
        if k.disease == "rings":
            canvas.fill(ellipse(x, y, 1.6 * r, 1.6 * r, 14), hsv(0.15, 0.7, 0.85))
            canvas.fill(ellipse(x, y, 0.9 * r, 0.9 * r, 12), hsv(hue, 0.7, 0.35))
        elif k.disease == "mildew":
            canvas.fill(
                ellipse(x, y, 1.7 * r, 1.2 * r, 10, rng.random()), hsv(0.3, 0.06, rng.uniform(0.75, 0.95))
            )
        elif k.disease == "mosaic":
            patch = ellipse(x, y, 2 * r, r, 5, rng.uniform(0, 3))
            canvas.fill(patch, hsv(0.17, 0.6, min(1, value + 0.25)))
        else:
            canvas.fill(ellipse(x, y, r, r, 10), hsv(hue, 0.75, rng.uniform(0.2, 0.45)))


FAMILIES = {
    "shrubs": Family(_shrub_class, _shrub),
    "flowers": Family(_flower_class, _flower),
    "leaves": Family(_leaf_class, _leaf),
}
