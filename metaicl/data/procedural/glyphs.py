# SPDX-License-Identifier: Apache-2.0
"""Domain `glyphs`: letters on paper, chalked scripts and neon symbols, in the fonts matplotlib ships."""

from __future__ import annotations

import functools
import os

import cv2
import numpy as np

from metaicl.data.procedural.raster import (
    SIZE,
    Canvas,
    Class,
    Family,
    backdrop,
    clouds,
    finish,
    hsv,
    pick,
    pose,
)

_PRINT = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSerif-Bold",
    "DejaVuSans-Oblique",
    "STIXGeneral",
)
_CHALK = ("DejaVuSans", "DejaVuSans-Bold")
_NEON = ("DejaVuSans", "DejaVuSans-Bold")

_LETTERS = "AΔБЖQЯΨRgΞkФMaΩЮWξ8Щ5λ&ДGβ2ыS?эNыKπE"
_SCRIPTS = "ႠაბგდვზთიკლმნოპႣႤႨႬႱԱԲԳԵԶԸԺԽՀՇՋաբգդեզըժխճאבגדהוטלמסעשתبجدسصطعقكلموه"
_SYMBOLS = "♔♞♠♣☂☎☯☮☼☾★✂✈✿❄♫⚓⚔⚖⚙∞∮∇∑⊗⊕↻⇄⟳⌘♻☘☢☣♀♂♉♌♏♐"


@functools.cache
def _outline(font: str, character: str) -> tuple[np.ndarray, ...]:
    """Contours `[n, 2]` of a character in unit coordinates, centred, its longer side 2; () if absent."""
    import matplotlib
    from matplotlib import ft2font

    # At a pixel per font unit, unhinted outlines are the font's own numbers; hinting differs by version.
    flags = ft2font.LoadFlags.NO_HINTING if hasattr(ft2font, "LoadFlags") else ft2font.LOAD_NO_HINTING
    face = ft2font.FT2Font(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))
    if ord(character) not in face.get_charmap():
        return ()
    face.set_size(face.units_per_EM, 72)
    face.load_char(ord(character), flags=flags)
    contours = _flatten(*face.get_path())
    points = np.concatenate(contours)
    low, high = points.min(0), points.max(0)
    scale = 2 / (high - low).max()
    return tuple((c - (low + high) / 2) * [scale, -scale] for c in contours)


def _flatten(points: np.ndarray, codes: np.ndarray, steps: int = 5) -> list[np.ndarray]:
    """Polygons of a glyph path (1 move, 2 line, 3 quadratic curve, 4 cubic curve, 79 close)."""
    t = (np.arange(1, steps + 1) / steps)[:, None]
    contours, i = [], 0
    while i < len(codes):
        code, p = codes[i], points[i : i + 3]
        last = contours[-1][-1][-1] if code not in (1, 79) else None
        if code == 1:
            contours.append([p[:1]])
        elif code == 2:
            contours[-1].append(p[:1])
        elif code == 3:
            contours[-1].append((1 - t) ** 2 * last + 2 * t * (1 - t) * p[0] + t**2 * p[1])
        elif code == 4:
            a, b = 3 * t * (1 - t) ** 2 * p[0], 3 * t**2 * (1 - t) * p[1]
            contours[-1].append((1 - t) ** 3 * last + a + b + t**3 * p[2])
        i += {3: 2, 4: 3}.get(int(code), 1)
    return [np.concatenate(c) for c in contours]


def _describe(characters: str, fonts: tuple[str, ...]):
    """A class is one character: there are more of them than strata, so 20 classes have 20 characters."""

    def describe(u, rng):
        unique = list(dict.fromkeys(characters))
        return Class(outlines=_outlines(fonts, pick(u[0], unique)), hue=u[1], hue2=u[2], dark=u[3])

    return describe


def _outlines(fonts: tuple[str, ...], character: str) -> list[tuple[np.ndarray, ...]]:
    return [o for o in (_outline(font, character) for font in fonts) if o]


def _mask(k: Class, rng, place: np.ndarray) -> np.ndarray:
    """Coverage of a random outline of the class, float64 `[SIZE, SIZE]` in 0..1."""
    canvas = Canvas(np.zeros((SIZE, SIZE, 3)), place)
    canvas.fill(k.outlines[rng.integers(len(k.outlines))], np.ones(3))
    return canvas.photo()[..., 0]


def _letter(k: Class, rng):
    """Ink on coloured paper, slightly turned, sometimes badly printed."""
    place = pose(rng, 0.3, (0.5, 0.75), 0.22, 0.15)
    ink = _mask(k, rng, place) * np.clip(1.5 - 1.1 * clouds(rng, 9) * rng.random(), 0, 1)
    paper = backdrop(
        rng, hsv(k.hue + rng.normal(0, 0.12), rng.uniform(0.05, 0.35), rng.uniform(0.75, 1)), 0.08
    )
    colour = hsv(k.hue2 + rng.normal(0, 0.25), rng.uniform(0.2, 1), rng.uniform(0.05, 0.45))
    return finish(paper * (1 - ink[..., None]) + colour * ink[..., None], rng)


def _chalk(k: Class, rng):
    """Wobbling chalk on a smeared board: the outline is displaced and the fill is grainy."""
    mask = _mask(k, rng, pose(rng, 0.25, (0.5, 0.78), 0.2, 0.2))
    grid = np.indices((SIZE, SIZE))[::-1]
    shift = [(g + 9 * (clouds(rng, 4) - 0.5)).astype(np.float32) for g in grid]
    mask = cv2.remap(mask, shift[0], shift[1], cv2.INTER_LINEAR)
    grain = np.clip(0.55 + 0.9 * rng.random((SIZE, SIZE)) * clouds(rng, 12), 0, 1)
    board = backdrop(rng, hsv(0.3 + 0.35 * k.hue + rng.normal(0, 0.05), 0.45, 0.2 + 0.1 * k.dark), 0.5, 3)
    board = board + (0.12 * np.clip(clouds(rng, 2, 3) - 0.45, 0, 1))[..., None]
    chalk = hsv(k.hue2 + rng.normal(0, 0.3), rng.uniform(0, 0.35), 0.95)
    cover = (mask * grain)[..., None]
    return finish(board * (1 - cover) + chalk * cover, rng, noise=0.04)


def _neon(k: Class, rng):
    """A glowing tube along the outline, in front of a dark wall."""
    place = pose(rng, 0.35, (0.5, 0.75), 0.2, 0.12)
    canvas = Canvas(np.zeros((SIZE, SIZE, 3)), place)
    outline = k.outlines[rng.integers(len(k.outlines))]
    canvas.stroke(outline, np.ones(3), 0.07, closed=True)
    tube = canvas.photo()[..., 0]
    glow = cv2.GaussianBlur(tube, (0, 0), rng.uniform(2, 4))
    colour = hsv(k.hue + rng.normal(0, 0.1), rng.uniform(0.6, 1), 1)
    wall = backdrop(rng, hsv(k.hue2 + rng.normal(0, 0.1), 0.6, rng.uniform(0.1, 0.25)), 0.4, 8)
    light = wall + (1.3 * glow + 0.5 * tube)[..., None] * colour + 0.6 * tube[..., None]
    return finish(np.clip(light, 0, 1), rng)


FAMILIES = {
    "printed_letters": Family(_describe(_LETTERS, _PRINT), _letter),
    "chalk_scripts": Family(_describe(_SCRIPTS, _CHALK), _chalk),
    "neon_symbols": Family(_describe(_SYMBOLS, _NEON), _neon),
}
