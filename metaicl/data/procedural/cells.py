# SPDX-License-Identifier: Apache-2.0
"""Domain `cells`: what a microscope shows, as stained blood smears, glowing bacteria and sliced tissue."""

from __future__ import annotations

import cv2
import numpy as np

from metaicl.data.procedural.raster import (
    TAU,
    Canvas,
    Class,
    Family,
    X,
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
    turned,
    whole,
)


def _smear_class(u, rng):
    """A class is a kind of cell: its size, wobble, nucleus (lobes, size) and granules, in its own stain."""
    return Class(
        radius=between(u[0], 0.2, 0.42),
        wobble=between(u[1], 0, 0.16),
        lobes=whole(u[2], 0, 4),
        nucleus=between(u[3], 0.3, 0.75),
        granules=pick(u[4], (0, 0, 8, 20)),
        hue=between(u[5], 0.68, 1.1),
        plasma=between(u[6], 0.15, 0.55),
        dark=between(u[7], 0.3, 0.65),
        pale=u[8] > 0.6,
        squash=between(u[9], 0.65, 1.0),
    )


def _blob(rng, x: float, y: float, radius: float, wobble: float, squash: float = 1.0) -> np.ndarray:
    """A wobbly closed outline `[32, 2]`."""
    t = np.arange(32) * (TAU / 32)
    waves = sum(rng.normal() * np.cos(m * t + rng.uniform(0, TAU)) for m in (2, 3, 5))
    outline = polar(radius * (1 + wobble * waves * 0.6))
    a = rng.uniform(0, TAU)
    spin = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return outline * [squash, 1 / squash] @ spin + [x, y]


def _smear(k: Class, rng):
    """A few cells of the class among plain red ones, on a washed-out ground."""
    ground = hsv(rng.uniform(0.0, 0.15), rng.uniform(0.03, 0.15), rng.uniform(0.82, 0.97))
    canvas = Canvas(backdrop(rng, ground, 0.06), pose(rng, np.pi, (0.9, 1.15), 0.1))
    for _ in range(rng.integers(1, 5)):
        x, y = rng.uniform(-1, 1, 2)
        red = hsv(rng.normal(0.98, 0.015), 0.35, 0.85)
        canvas.fill(ellipse(x, y, 0.24, 0.22), red)
        canvas.fill(ellipse(x, y, 0.1, 0.1, 12), red * 0.5 + ground * 0.5)
    hue = k.hue + rng.normal(0, 0.025)
    for _ in range(rng.integers(3, 6)):
        _stained(canvas, k, rng, hue)
    return finish(canvas.photo(), rng)


def _stained(canvas: Canvas, k: Class, rng, hue: float) -> None:
    """One cell of the class, anywhere."""
    x, y = rng.uniform(-0.85, 0.85, 2)
    r = k.radius * rng.uniform(0.88, 1.12)
    value = rng.uniform(0.78, 0.95)
    body = _blob(rng, x, y, r, k.wobble, k.squash)
    canvas.fill(body, hsv(hue, k.plasma, value))
    canvas.stroke(body, hsv(hue, k.plasma + 0.2, value * 0.75), 0.02, closed=True)
    for gx, gy in 0.75 * r * rng.uniform(-1, 1, (k.granules, 2)):
        canvas.fill(ellipse(x + gx, y + gy, 0.025, 0.025, 6), hsv(hue + 0.06, 0.75, 0.6))
    inside = r * k.nucleus
    turn = rng.uniform(0, TAU)
    for lobe in range(k.lobes):
        a = turn + lobe * TAU / max(k.lobes, 1)
        off = 0 if k.lobes == 1 else inside * 0.55
        size = inside * (0.8 if k.lobes == 1 else 0.55)
        nucleus = _blob(rng, x + off * np.cos(a), y + off * np.sin(a), size, 0.06)
        canvas.fill(nucleus, hsv(hue - 0.04, 0.3 if k.pale else 0.75, k.dark))


def _bacteria_class(u, rng):
    """A class is a strain: rod, sphere, comma or spiral, single or in chains, in one or two dyes."""
    return Class(
        shape=pick(u[0], ("coccus", "rod", "comma", "spiral", "filament")),
        length=between(u[1], 0.22, 0.5),
        width=between(u[2], 0.05, 0.13),
        chain=pick(u[3], (1, 1, 2, 4)),
        count=whole(u[4], 7, 22),
        hue=u[5],
        tip_hue=u[6],
        tips=u[7] > 0.5,
        halo=between(u[8], 0.8, 2.2),
    )


def _bacterium(k: Class, rng, at: np.ndarray, heading: float) -> np.ndarray:
    """The centre line `[n, 2]` of one bacterium that starts at a point."""
    if k.shape == "coccus":
        return at + np.array([[0.0, 0.0], [0.01, 0.0]])
    n = 12
    s = np.linspace(0, 1, n) * k.length * (2.2 if k.shape == "filament" else 1) * rng.uniform(0.75, 1.2)
    bend = {"rod": 0, "comma": 5, "spiral": 0, "filament": 1.5}[k.shape] * s * rng.choice([-1, 1])
    if k.shape == "spiral":
        bend = 0.9 * np.sin(s * 45)
    if k.shape == "filament":
        bend = bend + np.cumsum(rng.normal(0, 0.25, n))
    step = np.diff(s, prepend=0)
    return at + np.cumsum(
        step[:, None] * np.column_stack([np.cos(heading + bend), np.sin(heading + bend)]), 0
    )


def _bacteria(k: Class, rng):
    """Fluorescent strains on black, in and out of focus."""
    canvas = Canvas(np.zeros((64, 64, 3)), pose(rng, np.pi, (0.85, 1.2), 0.1))
    hue = k.hue + rng.normal(0, 0.04)
    width = 2 * k.width if k.shape == "coccus" else k.width * (0.6 if k.shape == "filament" else 1)
    for _ in range(max(2, round(k.count * rng.uniform(0.7, 1.3) / k.chain))):
        at, heading = rng.uniform(-1.1, 1.1, 2), rng.uniform(0, TAU)
        glow = hsv(hue + rng.normal(0, 0.02), 0.8, rng.uniform(0.55, 1))
        for _link in range(k.chain):
            line = _bacterium(k, rng, at, heading)
            canvas.stroke(line, glow, width)
            if k.tips:
                canvas.stroke(line[-2:], hsv(k.tip_hue, 0.7, 1), width * 0.8)
            step = width + 0.02
            at = line[-1] + step * np.array([np.cos(heading), np.sin(heading)])
            heading += rng.normal(0, 0.35)
    sharp = canvas.photo()
    glow = cv2.GaussianBlur(sharp, (0, 0), k.halo)
    ground = backdrop(rng, hsv(k.hue, 0.7, rng.uniform(0.03, 0.12)), 0.6)
    return finish(np.clip(0.65 * sharp + 0.6 * glow + ground, 0, 1), rng, noise=0.04)


def _tissue_class(u, rng):
    """A class is a tissue: density and direction of its cells, walls, nuclei and stain."""
    return Class(
        count=whole(u[0], 14, 46),
        stretch=between(u[1], 1, 2.4),
        wall=between(u[2], 0.012, 0.07),
        nucleus=between(u[3], 0.05, 0.13),
        offset=between(u[4], 0, 0.6),
        hue=between(u[5], 0.74, 1.04),
        wall_hue=pick(u[6], (0.9, 0.75, 0.6, 0.08)),
        wall_value=pick(u[7], (0.95, 0.35)),
        saturation=between(u[8], 0.25, 0.6),
        holes=pick(u[9], (0, 0, 2, 4)),
    )


def _tissue(k: Class, rng):
    """Voronoi cells with walls and nuclei, and sometimes empty vessels."""
    x, y = turned(rng, np.pi, (0.9, 1.15), 0.3)
    y = y * k.stretch
    side = int(np.ceil(np.sqrt(k.count * k.stretch)))
    grid = (np.indices((side, side)).reshape(2, -1).T + rng.uniform(0.1, 0.9, (side * side, 2))) / side
    seeds = (2 * grid - 1) * 1.45 * np.array([1, k.stretch])
    near = (np.abs(seeds[:, 0]) < 1.6) & (np.abs(seeds[:, 1]) < 1.6 * k.stretch)
    seeds = seeds[near]
    far = (x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2
    two = np.sqrt(np.partition(far, 1, -1)[..., :2])
    owner = far.argmin(-1)
    hue = k.hue + rng.normal(0, 0.025)
    shade = rng.uniform(0.8, 1.05, len(seeds))[owner]
    image = hsv(hue, k.saturation * rng.uniform(0.8, 1.2), np.clip(0.85 * shade, 0, 1))
    image = image * (0.9 + 0.2 * clouds(rng, 9))[..., None]
    nudge = k.offset * rng.uniform(-0.15, 0.15, (len(seeds), 2))
    inner = np.hypot(x - seeds[owner, 0] - nudge[owner, 0], y - seeds[owner, 1] - nudge[owner, 1])
    image = _over(image, hsv(hue - 0.12, 0.7, 0.4), (k.nucleus - inner) * 25 + 0.5)
    image = _over(
        image, hsv(k.wall_hue, 0.2, k.wall_value), (k.wall - (two[..., 1] - two[..., 0])) * 25 + 0.5
    )
    for cx, cy, r in rng.uniform([-0.8, -0.8, 0.15], [0.8, 0.8, 0.38], (k.holes, 3)):
        image = _over(image, np.array([0.93, 0.9, 0.93]), (r - np.hypot(X - cx, Y - cy)) * 25 + 0.5)
    return finish(image, rng)


def _over(image: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Paints a colour where cover (clipped to 0..1) is 1."""
    cover = np.clip(cover, 0, 1)[..., None]
    return image * (1 - cover) + colour * cover


FAMILIES = {
    "blood_smears": Family(_smear_class, _smear),
    "bacteria": Family(_bacteria_class, _bacteria),
    "tissues": Family(_tissue_class, _tissue),
}
