# SPDX-License-Identifier: Apache-2.0
"""Domain `reactions`: patterns that chemistry draws: Gray-Scott fields, animal coats and spiral waves."""

from __future__ import annotations

import cv2
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

# Feed and kill rates whose patterns look different: mitosis, coral, worms, mazes, holes, spots, ...
_REGIMES = (
    (0.0367, 0.0649),
    (0.0545, 0.062),
    (0.029, 0.057),
    (0.039, 0.058),
    (0.03, 0.062),
    (0.025, 0.06),
    (0.046, 0.063),
    (0.042, 0.0605),
    (0.035, 0.0605),
    (0.05, 0.0615),
)
_FIELD, _WINDOW, _FINER = 72, 36, 3
_STEPS = 1100


def _scott_class(u, rng):
    """A class is a regime of the reaction, grown once on a torus, with its own dye and magnification."""
    feed, kill = pick(u[0], _REGIMES)
    scale = between(u[1], 0.55, 1.0)
    skew = pick(u[2], (1.0, 1.0, 1.7))
    return Class(
        torus=_finer(_grow(feed, kill, scale, skew, rng)),
        hues=u[3] + np.array([0, between(u[4], 0.05, 0.3), between(u[5], 0.2, 0.6)]),
        values=between(u[6:9], [0.1, 0.3, 0.6], [0.5, 0.8, 1.0])[:: pick(u[9], (1, -1))],
        saturation=between(u[10], 0.3, 0.9),
        zoom=between(u[11], 0.75, 1.25),
    )


def _grow(feed: float, kill: float, scale: float, skew: float, rng) -> np.ndarray:
    """Gray-Scott on a torus, the second species float32 `[_FIELD, _FIELD]`, scaled to 0..1.

    Only additions and products: the result is the same on every processor.
    """
    n = _FIELD
    a, b = np.ones((n, n), np.float32), np.zeros((n, n), np.float32)
    seeds = cv2.resize(rng.random((n // 6, n // 6)), (n, n), interpolation=cv2.INTER_NEAREST) < 0.3
    b[seeds], a[seeds] = 0.35, 0.5
    b += 0.02 * rng.random((n, n), np.float32)
    sideways, upright = np.float32(0.2 * skew), np.float32(0.2 / skew)
    feed, both = np.float32(feed), np.float32(feed + kill)
    pad = np.empty((2, n + 2, n + 2), np.float32)
    ab = np.stack([a, b])
    rate = np.array([scale, scale / 2], np.float32)[:, None, None]
    for _ in range(_STEPS):
        pad[:, 1:-1, 1:-1] = ab
        pad[:, 0, 1:-1], pad[:, -1, 1:-1] = ab[:, -1], ab[:, 0]
        pad[:, 1:-1, 0], pad[:, 1:-1, -1] = ab[:, :, -1], ab[:, :, 0]
        spread = sideways * (pad[:, 1:-1, :-2] + pad[:, 1:-1, 2:]) + upright * (
            pad[:, :-2, 1:-1] + pad[:, 2:, 1:-1]
        )
        spread -= 2 * (sideways + upright) * ab
        reaction = ab[0] * ab[1] * ab[1]
        ab += rate * spread
        ab[0] += feed - feed * ab[0] - reaction
        ab[1] += reaction - both * ab[1]
    low, high = ab[1].min(), ab[1].max()
    return (ab[1] - low) / max(float(high - low), 1e-3)


def _finer(field: np.ndarray) -> np.ndarray:
    """The field with a wrapped border of 3 cells, interpolated to `_FINER` times as many cells."""
    torus = np.pad(field, 3, mode="wrap").astype(np.float64)
    return cv2.resize(torus, None, fx=_FINER, fy=_FINER, interpolation=cv2.INTER_CUBIC)


def _scott(k: Class, rng):
    """A turned window of the class's field, dyed."""
    x, y = turned(rng, 0.5, (0.8 * k.zoom, 1.2 * k.zoom), 0.0)
    at = rng.uniform(0, _FIELD, 2)
    places = (((v * _WINDOW / 2 + o) % _FIELD + 2) * _FINER for v, o in zip((x, y), at, strict=True))
    field = cv2.remap(k.torus, *(place.astype(np.float32) for place in places), cv2.INTER_LINEAR)
    colours = hsv(k.hues + rng.normal(0, 0.1), k.saturation, k.values * rng.uniform(0.75, 1.25))
    return finish(ramp(field.astype(np.float64), colours), rng, light=0.2)


def _coat_class(u, rng):
    """A class is a coat: size, direction and balance of its activator and inhibitor, and fur colours."""
    warm = hsv(between(u[0], 0.02, 0.16), between(u[1], 0.15, 0.75), between(u[2], 0.55, 0.98))
    return Class(
        size=between(u[3], 1.0, 2.2),
        stretch=pick(u[4], (1.0, 1.0, 1.6, 2.6)),
        balance=between(u[5], -0.09, 0.09),
        rosettes=u[6] > 0.65,
        ground=warm,
        mark=hsv(between(u[7], 0.0, 0.12), between(u[8], 0.2, 0.7), between(u[9], 0.06, 0.35)),
        patches=u[10] > 0.7,
    )


def _coat(k: Class, rng):
    """Young's activator and inhibitor rule from a random start, then fur along one direction."""
    field = rng.random((SIZE, SIZE)) - 0.5
    size = k.size * rng.uniform(0.9, 1.1)
    wide, thin = size * np.sqrt(k.stretch), size / np.sqrt(k.stretch)
    for _ in range(7):
        near = cv2.GaussianBlur(field, (0, 0), wide, sigmaY=thin, borderType=cv2.BORDER_REFLECT)
        far = cv2.GaussianBlur(field, (0, 0), 2 * wide, sigmaY=2 * thin, borderType=cv2.BORDER_REFLECT)
        field = np.clip((near - far) * 6 + k.balance, -0.5, 0.5)
    x, y = turned(rng, 0.7, (1.0, 1.25), 0.1)
    places = [((v * 0.8 + 1) * (SIZE / 2)).astype(np.float32) for v in (x, y)]
    field = cv2.remap(field, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    mark = np.clip(field * 2.5 + 0.5, 0, 1)
    centre = (
        np.clip(cv2.GaussianBlur(mark, (0, 0), 2.0) * 4 - 2.6, 0, 1) if k.rosettes else np.zeros_like(mark)
    )
    fur = clouds(rng, 3) * 0.2 + 0.9 + 0.12 * cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)), (1, 5), 0)
    tint = rng.normal(0, 0.04, 3)
    ground, ink = np.clip(k.ground + tint, 0, 1), np.clip(k.mark + tint, 0, 1)
    image = ground + (mark * (1 - centre))[..., None] * (ink - ground)
    image = image - (0.15 * centre)[..., None] * np.array([0.2, 0.6, 0.9])
    if k.patches:
        image = image + 0.5 * np.clip(clouds(rng, 2) * 4 - 2.4, 0, 1)[..., None] * (0.95 - image)
    return finish(image * fur[..., None], rng)


def _spiral_class(u, rng):
    """A class is an excitable dish: number and arms of its spirals, wavelength, wave form and colours."""
    return Class(
        centres=whole(u[0], 1, 4),
        arms=whole(u[1], 0, 3),
        waves=between(u[2], 1.8, 5.0),
        sharp=between(u[3], 0.6, 4.0),
        skew=between(u[4], -0.35, 0.35),
        wobble=between(u[5], 0, 0.5),
        hues=u[6] + np.array([0, between(u[7], 0.05, 0.4), between(u[8], -0.2, 0.6)]),
        values=np.array([0.15, 0.55, 0.95]) * between(u[9], 0.7, 1),
        saturation=between(u[10], 0.35, 0.95),
    )


def _spiral(k: Class, rng):
    """Wave fronts around each centre; where two meet, the nearer one wins."""
    x, y = turned(rng, np.pi, (0.85, 1.2), 0.2)
    x = x + k.wobble * (clouds(rng, 3) - 0.5)
    y = y + k.wobble * (clouds(rng, 3) - 0.5)
    centres = rng.uniform(-0.85, 0.85, (k.centres, 2))
    far = np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1])
    angle = np.arctan2(y[..., None] - centres[:, 1], x[..., None] - centres[:, 0])
    turn = rng.choice([-1, 1], k.centres) * k.arms
    phase = TAU * k.waves * far + turn * angle + rng.uniform(0, TAU, k.centres)
    phase = np.take_along_axis(phase, far.argmin(-1)[..., None], -1)[..., 0]
    wave = 0.5 + 0.5 * np.sin(phase + 2 * k.skew * np.sin(phase))
    core = 1 - np.exp(-((far.min(-1) / 0.08) ** 2))
    colours = hsv(k.hues + rng.normal(0, 0.07), k.saturation, k.values * rng.uniform(0.8, 1.1))
    return finish(ramp(wave**k.sharp * core, colours), rng, light=0.2)


FAMILIES = {
    "gray_scott": Family(_scott_class, _scott),
    "animal_coats": Family(_coat_class, _coat),
    "spiral_waves": Family(_spiral_class, _spiral),
}
