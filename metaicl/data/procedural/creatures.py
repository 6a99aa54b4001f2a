# SPDX-License-Identifier: Apache-2.0
"""Domain `creatures`: pinned beetles, swimming fishes and butterflies, each from a body plan."""

from __future__ import annotations

import numpy as np

from metaicl.data.procedural.raster import (
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
    pose,
    ramp,
    whole,
)


def _beetle_class(u, rng):
    """A class is a species: proportions of head, thorax and wings, legs, feelers and markings."""
    return Class(
        head=between(u[0], 0.1, 0.22),
        thorax=between(u[1], 0.18, 0.36),
        wide=between(u[2], 0.28, 0.5),
        long=between(u[3], 0.4, 0.62),
        legs=between(u[4], 0.5, 0.95),
        feelers=between(u[5], 0.15, 0.6),
        horn=pick(u[6], ("none", "none", "horn", "jaws")),
        marking=pick(u[7], ("plain", "spots", "stripes", "bands")),
        marks=whole(u[8], 1, 4),
        hue=u[9],
        saturation=between(u[10], 0.2, 0.9),
        value=between(u[11], 0.25, 0.85),
        mark_hue=u[12],
    )


def _limbs(canvas: Canvas, k: Class, rng) -> None:
    """Six jointed legs, two feelers and what grows on the head."""
    dark = hsv(0.08, 0.4, 0.13)
    for side in (np.array([-1.0, 1.0]), np.ones(2)):
        for y, lean in ((-0.3, -0.6), (0.0, 0.1), (0.25, 0.7)):
            lean = lean + rng.normal(0, 0.12)
            knee = np.array([k.wide + 0.4 * k.legs, y + 0.3 * lean])
            foot = knee + k.legs * np.array([0.3, 0.5 * lean + 0.15])
            canvas.stroke(np.array([[0, y], knee, foot]) * side, dark, 0.045)
        tip = np.array([0.3, -0.75 - k.feelers + rng.normal(0, 0.04)])
        canvas.stroke(np.array([[0.05, -0.7], [0.25, -0.75 - 0.4 * k.feelers], tip]) * side, dark, 0.025)
        if k.horn == "jaws":
            canvas.stroke(np.array([[0.06, -0.75], [0.16, -0.95], [0.03, -1.05]]) * side, dark, 0.06)
    if k.horn == "horn":
        canvas.fill(np.array([[-0.07, -0.75], [0.07, -0.75], [0.0, -1.2]]), dark)


def _beetle(k: Class, rng):
    """Pinned on card, head up, more or less."""
    card = hsv(rng.random(), rng.uniform(0.03, 0.3), rng.uniform(0.55, 0.97))
    canvas = Canvas(backdrop(rng, card, 0.1), pose(rng, 0.6, (0.66, 0.88), 0.15, 0.12))
    _limbs(canvas, k, rng)
    hue = k.hue + rng.normal(0, 0.04)
    value = k.value * rng.uniform(0.8, 1.2)
    shell, dark = hsv(hue, k.saturation, value), hsv(hue, k.saturation, value * 0.5)
    canvas.fill(ellipse(0, -0.68, k.head * 1.1, k.head), dark)
    canvas.fill(ellipse(0, -0.42, k.thorax, 0.24), dark * 0.6 + shell * 0.4)
    wings = ellipse(0, 0.3, k.wide, k.long, 32)
    canvas.fill(wings, shell)
    mark = hsv(k.mark_hue + rng.normal(0, 0.03), 0.8, 0.9 if value < 0.55 else 0.15)
    rows = np.linspace(0.3 - 0.6 * k.long, 0.3 + 0.6 * k.long, k.marks + 1)
    for side in (-1, 1):
        if k.marking == "spots":
            for y in rows:
                canvas.fill(ellipse(side * 0.5 * k.wide, y, 0.085, 0.085, 12), mark)
        elif k.marking == "stripes":
            for n in range(k.marks):
                x = side * k.wide * (n + 0.7) / (k.marks + 0.7) * 0.85
                canvas.stroke(np.array([[x, 0.3 - 0.6 * k.long], [x, 0.3 + 0.6 * k.long]]), mark, 0.05)
    if k.marking == "bands":
        for y in rows:
            half = k.wide * np.sqrt(max(0.05, 1 - ((y - 0.3) / k.long) ** 2)) * 0.92
            canvas.stroke(np.array([[-half, y], [half, y]]), mark, 0.1)
    canvas.stroke(np.array([[0, 0.3 - k.long], [0, 0.3 + k.long]]), dark, 0.035)
    canvas.fill(ellipse(-0.4 * k.wide, 0.05, 0.05, 0.14, 12, 0.2), np.clip(shell + 0.35, 0, 1))
    return finish(canvas.photo(), rng)


def _fish_class(u, rng):
    """A class is a species: depth of the body, tail, fins, markings and colours."""
    return Class(
        depth=between(u[0], 0.22, 0.62),
        tail=pick(u[1], ("fork", "round", "flag", "sickle")),
        dorsal=between(u[2], 0.1, 0.4),
        dorsal_at=between(u[3], -0.35, 0.3),
        marking=pick(u[4], ("plain", "bars", "lines", "dots", "half")),
        marks=whole(u[5], 2, 5),
        hue=u[6],
        belly=u[7],
        mark_hue=u[8],
        mark_dark=u[9] > 0.5,
        snout=between(u[10], 0.7, 1.6),
        saturation=between(u[11], 0.3, 0.9),
    )


_TAILS = {
    "fork": [[0.55, 0], [1.0, -0.42], [0.85, 0], [1.0, 0.42]],
    "round": [[0.55, 0], [0.75, -0.28], [0.95, -0.22], [1.02, 0], [0.95, 0.22], [0.75, 0.28]],
    "flag": [[0.55, 0], [0.72, -0.3], [1.0, -0.3], [1.0, 0.3], [0.72, 0.3]],
    "sickle": [[0.6, 0], [0.8, -0.25], [1.0, -0.6], [0.88, 0], [1.0, 0.6], [0.8, 0.25]],
}


def _fish(k: Class, rng):
    """Side view in murky water, swimming left or right."""
    deep, shallow = hsv(
        np.array([0.6, 0.5]) + rng.normal(0, 0.06), 0.6, np.array([0.25, 0.7]) * rng.uniform(0.7, 1.3)
    )
    water = ramp(Y * 0.4 + 0.5 + 0.3 * (clouds(rng, 3) - 0.5), np.clip(np.stack([shallow, deep]), 0, 1))
    place = pose(rng, 0.35, (0.6, 0.9), 0.2, 0.1)
    if rng.random() < 0.5:
        place[:, 0] *= -1
    canvas = Canvas(water, place)
    hue, value = k.hue + rng.normal(0, 0.04), rng.uniform(0.65, 1)
    body, fin = hsv(hue, k.saturation, value), hsv(hue + 0.06, k.saturation, value * 0.65)
    s = np.linspace(0, 1, 20)
    half = k.depth * np.sin(np.pi * s ** (1 / k.snout)) ** 0.8 * (1 - 0.2 * s) + 0.06 * s
    x, wave = -0.95 + 1.65 * s, rng.normal(0, 0.06) * np.sin(3 * s)
    top, bottom = np.column_stack([x, wave - half]), np.column_stack([x, wave + half])
    canvas.fill(np.array(_TAILS[k.tail]) * [1, 0.7 + k.depth * 0.6], fin)
    at = k.dorsal_at
    crest = -k.depth - k.dorsal
    canvas.fill(np.array([[at - 0.3, -0.1], [at, crest], [at + 0.2, crest], [at + 0.35, -0.1]]), fin)
    canvas.fill(np.array([[at - 0.1, 0.1], [at + 0.2, k.depth + 0.5 * k.dorsal], [at + 0.3, 0.1]]), fin)
    canvas.fill(np.concatenate([top, bottom[::-1]]), body)
    under = np.column_stack([x, wave + 0.25 * half])
    canvas.fill(np.concatenate([under, bottom[::-1]]), hsv(k.belly, 0.35, min(1, value + 0.05)))
    _fish_marks(canvas, k, x, wave, half, rng)
    canvas.fill(ellipse(-0.68, -0.08, 0.09, 0.09, 12), np.full(3, 0.95))
    canvas.fill(ellipse(-0.69, -0.08, 0.05, 0.05, 10), np.full(3, 0.05))
    canvas.fill(np.array([[-0.35, 0.05], [-0.1, 0.0], [-0.12, 0.2]]), fin)
    return finish(canvas.photo(), rng)


def _fish_marks(canvas: Canvas, k: Class, x, wave, half, rng) -> None:
    """Bars, lines, dots or a dark hind part, along the body's own outline."""
    ink = hsv(k.mark_hue, 0.8, 0.2 if k.mark_dark else 0.95)
    for n in range(k.marks):
        i = int(4 + (n + 0.5) * 13 / k.marks)
        if k.marking == "bars":
            canvas.stroke(
                np.array([[x[i], wave[i] - 0.9 * half[i]], [x[i], wave[i] + 0.9 * half[i]]]), ink, 0.09
            )
        elif k.marking == "lines":
            level = -0.7 + 1.3 * (n + 0.5) / k.marks
            canvas.stroke(np.column_stack([x, wave + level * half])[4:18], ink, 0.05)
        elif k.marking == "dots":
            for level in (-0.55, 0.1):
                canvas.fill(ellipse(x[i], wave[i] + level * half[i], 0.065, 0.065, 10), ink)
    if k.marking == "half":
        i = slice(8 + k.marks, 20)
        upper, lower = np.column_stack([x, wave - half])[i], np.column_stack([x, wave + half])[i]
        canvas.fill(np.concatenate([upper, lower[::-1]]), ink)


def _butterfly_class(u, rng):
    """A class is a species: outlines of fore and hind wings, bands, eye spots and colours."""
    return Class(
        fore=between(u[0:3], [0.8, 0.5, -0.8], [1.15, 0.85, -0.4]),
        hind=between(u[3:6], [0.6, 0.5, 0.55], [0.95, 0.85, 0.95]),
        tails=u[6] > 0.65,
        band=between(u[7], 0.5, 0.85),
        banded=u[8] > 0.35,
        eyes=whole(u[9], 0, 3),
        hues=u[10:13].copy(),
        saturation=between(u[13], 0.25, 0.95),
        value=between(u[14], 0.45, 1),
        frilled=u[15] > 0.6,
    )


def _wing(length: float, width: float, lean: float, frill: float) -> np.ndarray:
    """A wing `[32, 2]` that starts at the origin and leans by an angle."""
    t = np.linspace(0, np.pi, 32)
    r = length * np.sin(t) ** 0.55 * (1 + frill * np.sin(t * 14))
    spread = (t / np.pi - 0.5) * 2.2 * width + lean
    return np.column_stack([r * np.cos(spread), r * np.sin(spread)])


def _butterfly(k: Class, rng):
    """Wings open to a different degree in every image, over a meadow."""
    hue = rng.uniform(0.12, 0.45)
    meadow = hsv(hue + np.array([0, 0.05, 0.1]), rng.uniform(0.2, 0.7), np.array([0.25, 0.5, 0.75]))
    canvas = Canvas(ramp(clouds(rng, 4, 2), meadow), pose(rng, 0.9, (0.65, 0.95), 0.18, 0.06))
    opened = rng.uniform(0.6, 1.0)
    hues, value = k.hues + rng.normal(0, 0.03), k.value * rng.uniform(0.8, 1.15)
    wing, rim, spot = (
        hsv(h, k.saturation, v) for h, v in zip(hues, (value, value * 0.35, 0.95), strict=True)
    )
    frill = 0.06 if k.frilled else 0.0
    for side in (np.array([-opened, 1]), np.array([opened, 1])):
        for length, width, lean in (k.hind, k.fore):
            outline = _wing(length, width, lean, frill)
            canvas.fill(outline * side, rim if k.banded else wing)
            canvas.fill(outline * side * k.band, wing if k.banded else wing * 0.7 + spot * 0.3)
            canvas.stroke(outline * side, rim, 0.03)
            for n in range(k.eyes):
                r, a = length * (0.8 - 0.22 * n), lean + 0.15
                x, y = r * np.cos(a), r * np.sin(a)
                canvas.fill(ellipse(x, y, 0.11, 0.11, 12) * side, spot)
                canvas.fill(ellipse(x, y, 0.05, 0.05, 8) * side, rim)
        if k.tails:
            a, r = k.hind[2] + 0.2, k.hind[0]
            tail = np.array([[0.5 * r * np.cos(a), 0.5 * r * np.sin(a)], [0.35, 1.1]])
            canvas.stroke(tail * side, rim, 0.08)
        canvas.stroke(np.array([[0, -0.25], [0.12, -0.6], [0.25, -0.7]]) * side, np.full(3, 0.08), 0.025)
    canvas.fill(ellipse(0, 0.05, 0.06, 0.42, 14), np.full(3, 0.1))
    return finish(canvas.photo(), rng)


FAMILIES = {
    "beetles": Family(_beetle_class, _beetle),
    "fishes": Family(_fish_class, _fish),
    "butterflies": Family(_butterfly_class, _butterfly),
}
