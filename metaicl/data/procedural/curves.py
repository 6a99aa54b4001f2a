# SPDX-License-Identifier: Apache-2.0
"""Domain `curves`: pendulum drawings in ink, glowing spirographs, and string art on pinned boards."""

from __future__ import annotations

import cv2
import numpy as np

from metaicl.data.procedural.raster import (
    SIZE,
    TAU,
    Canvas,
    Class,
    Family,
    X,
    Y,
    backdrop,
    between,
    ellipse,
    finish,
    hsv,
    pick,
    polar,
    pose,
    ramp,
    whole,
)

_RATIOS = ((1, 2), (2, 3), (3, 4), (1, 3), (3, 5), (2, 5), (4, 5), (1, 1), (5, 6), (3, 7))


def _pendulum_class(u, rng):
    """A class is a pair of pendulums: their ratio, relative phase and damping, with pen and paper."""
    return Class(
        ratio=pick(u[0], _RATIOS),
        phase=between(u[1], 0, np.pi),
        damping=between(u[2], 0.01, 0.07),
        second=pick(u[3], (0.0, 0.0, 0.3, 0.5)),
        second_ratio=whole(u[4], 2, 5),
        cycles=whole(u[5], 5, 11),
        ink_hue=u[6],
        ink_value=between(u[7], 0.15, 0.6),
        paper_hue=u[8],
        paper_value=between(u[9], 0.75, 1),
    )


def _pendulum(k: Class, rng):
    """A fine decaying line in ink."""
    paper = hsv(
        k.paper_hue + rng.normal(0, 0.15), rng.uniform(0.03, 0.22), k.paper_value + rng.normal(0, 0.06)
    )
    canvas = Canvas(backdrop(rng, paper, 0.08, 4), pose(rng, 0.9, (0.65, 0.95), 0.2, 0.12))
    a, b = k.ratio
    t = np.linspace(0, TAU * k.cycles, 90 * k.cycles)
    decay = np.exp(-k.damping * rng.uniform(0.85, 1.2) * t)
    phase = k.phase + rng.normal(0, 0.18)
    detune = 1 + rng.normal(0, 0.0012)
    x = decay * ((1 - k.second) * np.sin(a * detune * t + phase) + k.second * np.sin(k.second_ratio * t))
    y = decay * ((1 - k.second) * np.sin(b * t) + k.second * np.cos(k.second_ratio * t))
    ink = hsv(k.ink_hue + rng.normal(0, 0.14), 0.8, k.ink_value * rng.uniform(0.8, 1.2))
    canvas.stroke(np.column_stack([x, y]), ink, 0.01)
    return finish(canvas.photo(), rng)


def _spiro_class(u, rng):
    """A class is a wheel in a ring: how many lobes and turns, the pen's offset, and a pair of colours."""
    lobes = whole(u[0], 3, 13)
    return Class(
        lobes=lobes,
        skip=pick(u[1], [s for s in range(1, 5) if np.gcd(s, lobes) == 1 and 2 * s < lobes]),
        pen=between(u[2], 0.25, 1.4),
        outside=u[3] > 0.5,
        hues=np.array([u[4], u[4] + between(u[5], 0.08, 0.5)]),
        nested=whole(u[6], 1, 3),
        wall=u[7],
    )


def _spiro(k: Class, rng):
    """Nested glowing rosettes in the dark."""
    canvas = Canvas(np.zeros((SIZE, SIZE, 3)), pose(rng, np.pi, (0.55, 0.95), 0.28, 0.15))
    r = k.skip / k.lobes * (1 if k.outside else -1)
    t = np.linspace(0, TAU * k.skip, 60 * max(k.lobes, k.skip * 3))
    pen = r * k.pen * rng.uniform(0.9, 1.1)
    x = (1 + r) * np.cos(t) - pen * np.cos((1 + r) / r * t)
    y = (1 + r) * np.sin(t) - pen * np.sin((1 + r) / r * t)
    line = np.column_stack([x, y]) / np.hypot(x, y).max()
    hues = k.hues + rng.normal(0, 0.14)
    for n in range(k.nested):
        hue = hues[0] + (hues[1] - hues[0]) * n / max(1, k.nested - 1)
        canvas.stroke(line * (1 - 0.28 * n), hsv(hue, 0.85, 1), 0.025, closed=True)
    tube = canvas.photo()
    glow = cv2.GaussianBlur(tube, (0, 0), rng.uniform(1.5, 3))
    wall = backdrop(rng, hsv(k.wall + rng.normal(0, 0.1), 0.6, rng.uniform(0.05, 0.18)), 0.4)
    return finish(np.clip(wall + tube + 0.9 * glow, 0, 1), rng)


def _string_class(u, rng):
    """A class is a board: shape and number of its pins, the rule that joins them, and thread colours."""
    return Class(
        frame=pick(u[0], ("circle", "circle", "triangle", "square", "star", "heart")),
        pins=whole(u[1], 24, 56),
        rule=pick(u[2], ("times", "times", "skip")),
        factor=whole(u[3], 2, 9),
        board=hsv(u[4], between(u[5], 0.2, 0.6), between(u[6], 0.2, 0.6)),
        thread=u[7],
        thread_span=between(u[8], 0, 0.5),
        light=between(u[9], 0.75, 1),
    )


def _frame(shape: str, n: int) -> np.ndarray:
    """n pins `[n, 2]` evenly along a frame."""
    t = np.arange(n) * (TAU / n)
    if shape == "heart":
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.column_stack([x, -y]) / 17
    if shape == "star":
        return polar(0.72 + 0.28 * np.cos(5 * t), -np.pi / 2)
    sides = {"circle": 0, "triangle": 3, "square": 4}[shape]
    if not sides:
        return polar(np.ones(n))
    corners = polar(np.ones(sides), -np.pi / 2)
    place = np.arange(n) * (sides / n)
    start = place.astype(int)
    part = (place - start)[:, None]
    return corners[start % sides] * (1 - part) + corners[(start + 1) % sides] * part


def _strings(k: Class, rng):
    """Straight threads between pins, their colour running along the frame."""
    board = np.clip(k.board * rng.uniform(0.75, 1.3) + rng.normal(0, 0.14, 3), 0, 1)
    heading = rng.uniform(0, np.pi)
    wood = 1 + 0.06 * np.sin(25 * (X * np.cos(heading) + Y * np.sin(heading)))
    canvas = Canvas(backdrop(rng, board, 0.2, 4) * wood[..., None], pose(rng, 0.8, (0.62, 0.98), 0.24, 0.12))
    pins = _frame(k.frame, k.pins)
    i = np.arange(k.pins)
    j = (i * k.factor) % k.pins if k.rule == "times" else (i + k.pins * k.factor // 20) % k.pins
    start = rng.integers(k.pins)
    hue = k.thread + rng.normal(0, 0.12)
    ends = hsv(hue + np.array([0, k.thread_span, 0]), 0.6, k.light)
    colours = ramp(((i + start) % k.pins) / k.pins, ends)
    for n in range(k.pins):
        canvas.stroke(np.stack([pins[i[n]], pins[j[n]]]), colours[n], 0.01)
    for x, y in pins:
        canvas.fill(ellipse(x, y, 0.03, 0.03, 6), np.full(3, 0.85))
    return finish(canvas.photo(), rng)


FAMILIES = {
    "pendulums": Family(_pendulum_class, _pendulum),
    "spirographs": Family(_spiro_class, _spiro),
    "string_art": Family(_string_class, _strings),
}
