# SPDX-License-Identifier: Apache-2.0
"""Domain `machines`: toothed wheels, bolted flanges and parts on a circuit board."""

from __future__ import annotations

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
    ellipse,
    finish,
    hsv,
    pick,
    polar,
    pose,
    whole,
)

_METALS = (
    (0.6, 0.06, 0.8),
    (0.12, 0.5, 0.8),
    (0.05, 0.5, 0.72),
    (0.6, 0.25, 0.5),
    (0.0, 0.65, 0.65),
    (0.35, 0.35, 0.5),
)


def _metal(u: float, rng) -> np.ndarray:
    """A metal or paint of the class, a little different in every image."""
    h, s, v = pick(u, _METALS)
    return hsv(h + rng.normal(0, 0.025), s + rng.normal(0, 0.06), v * rng.uniform(0.75, 1.15))


def _bench(rng) -> np.ndarray:
    """What the part lies on: brushed steel, wood, cloth or cardboard."""
    ground = hsv(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.2, 0.75))
    heading = rng.uniform(0, np.pi)
    brushed = np.sin((X * np.cos(heading) + Y * np.sin(heading)) * rng.uniform(10, 50)) * rng.uniform(0, 0.12)
    return backdrop(rng, ground, 0.2, 4) * (1 + brushed)[..., None]


def _turned_about(
    n: int, radius: float, size: float, start: float = 0.0, sides: int = 14
) -> list[np.ndarray]:
    """n equal holes on a circle."""
    centres = polar(np.full(n, radius), start)
    return [ellipse(x, y, size, size, sides) for x, y in centres]


def _gear_class(u, rng):
    """A class is a wheel: teeth (number, depth, shape), web (holes or spokes), bore and metal."""
    return Class(
        teeth=whole(u[0], 7, 26),
        depth=between(u[1], 0.1, 0.28),
        shape=pick(u[2], ("square", "pointed", "saw", "round")),
        windows=pick(u[3], (0, 3, 4, 5, 6, 8)),
        window_size=between(u[4], 0.09, 0.17),
        spokes=u[5] > 0.6,
        bore=between(u[6], 0.1, 0.26),
        square_bore=u[7] > 0.5,
        ring=u[8] > 0.5,
        metal=u[9],
    )


def _gear_outline(k: Class) -> np.ndarray:
    """The toothed outline, its tips at radius 1."""
    profile = {
        "square": [0, 1, 1, 1, 0, 0],
        "pointed": [0, 0.5, 1, 0.5, 0, 0],
        "saw": [0, 0.25, 0.5, 0.75, 1, 0],
        "round": [0.1, 0.7, 1, 0.7, 0.1, 0],
    }[k.shape]
    return polar(1 - k.depth * (1 - np.tile(np.array(profile, float), k.teeth)))


def _gear(k: Class, rng):
    """The wheel with its shadow; through the windows one sees the bench."""
    canvas = Canvas(_bench(rng), pose(rng, np.pi, (0.6, 0.88), 0.2, 0.12))
    metal, outline = _metal(k.metal, rng), _gear_outline(k)
    bore = ellipse(0, 0, k.bore, k.bore, 4 if k.square_bore else 20)
    middle = (k.bore + 1 - k.depth) / 2
    if k.spokes and k.windows:
        half, a = np.pi / k.windows * 0.7, np.arange(k.windows) * (TAU / k.windows)
        arc = np.linspace(-half, half, 6)
        wedge = lambda t, r: np.column_stack([r * np.cos(t), r * np.sin(t)])
        inner, outer = k.bore + 0.12, 0.88 - k.depth
        holes = [np.concatenate([wedge(t + arc, outer), wedge(t + arc[::-1], inner)]) for t in a]
    else:
        holes = _turned_about(k.windows, middle, k.window_size)
    canvas.fill([outline + rng.uniform(-0.12, 0.12, 2), bore], np.zeros(3) + 0.08)
    canvas.fill([outline, bore, *holes], metal)
    canvas.stroke([outline], metal * 0.5, 0.03, closed=True)
    if k.ring:
        canvas.stroke(
            ellipse(0, 0, 0.93 - k.depth, 0.93 - k.depth, 40), np.clip(metal * 1.35, 0, 1), 0.04, closed=True
        )
    canvas.stroke(ellipse(0, 0, k.bore + 0.06, k.bore + 0.06), metal * 0.65, 0.04, closed=True)
    return finish(canvas.photo(), rng)


def _flange_class(u, rng):
    """A class is a flange: its outline (round, polygon, lobed), bolts, grooves and metal."""
    return Class(
        sides=pick(u[0], (0, 0, 3, 4, 5, 6, 8)),
        lobed=u[1] > 0.65,
        bolts=whole(u[2], 2, 9),
        bolt=between(u[3], 0.06, 0.14),
        heads=u[4] > 0.5,
        bore=between(u[5], 0.12, 0.42),
        bore_sides=pick(u[6], (24, 24, 6, 4)),
        grooves=whole(u[7], 0, 2),
        aspect=between(u[8], 0.65, 1.0),
        metal=u[9],
    )


def _flange(k: Class, rng):
    """Seen from above under grazing light: rims are bright, grooves are dark."""
    canvas = Canvas(_bench(rng), pose(rng, np.pi, (0.62, 0.88), 0.2, 0.1))
    metal, t = _metal(k.metal, rng), np.arange(72) * (TAU / 72)
    radius = np.ones(72)
    if k.lobed:
        radius = 0.8 + 0.2 * np.cos(k.bolts * t)
    elif k.sides:
        radius = np.cos(np.pi / k.sides) / np.cos((t % (TAU / k.sides)) - np.pi / k.sides)
    outline = polar(radius) * [1, k.aspect]
    bore = ellipse(0, 0, k.bore, k.bore * k.aspect, k.bore_sides)
    canvas.fill([outline * 1.04 + rng.uniform(-0.1, 0.1, 2), bore], np.zeros(3) + 0.08)
    canvas.fill([outline, bore], metal)
    canvas.stroke([outline, bore], np.clip(metal * 1.35, 0, 1), 0.035, closed=True)
    for g in range(k.grooves):
        r = k.bore + 0.12 + 0.1 * g
        canvas.stroke(ellipse(0, 0, r, r * k.aspect, 36), metal * 0.5, 0.03, closed=True)
    for hole in _turned_about(k.bolts, 0.74, k.bolt, 0.0, 6 if k.heads else 12):
        canvas.fill(hole * [1, k.aspect], np.clip(metal * 1.3, 0, 1) if k.heads else metal * 0.2)
        if k.heads:
            canvas.stroke(hole * [1, k.aspect], metal * 0.35, 0.02, closed=True)
    return finish(canvas.photo(), rng, light=0.25)


def _part_class(u, rng):
    """A class is a component: its package, pins, size, colour and marking."""
    return Class(
        package=pick(u[0], ("dual", "quad", "can", "resistor", "coil", "header")),
        pins=whole(u[1], 2, 8),
        aspect=between(u[2], 0.4, 0.95),
        body=hsv(u[3], between(u[4], 0.0, 0.7), between(u[5], 0.12, 0.75)),
        bands=rng.random((4, 3)),
        marking=pick(u[6], ("dot", "stripe", "text", "cross")),
        board=pick(u[7], (0.36, 0.4, 0.6, 0.0, 0.75)),
        pin_length=between(u[8], 0.12, 0.28),
    )


def _board(k: Class, rng) -> np.ndarray:
    """The board with its copper traces: lines that bend by 45 degrees, and vias."""
    colour = hsv(k.board + rng.normal(0, 0.09), rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.45))
    canvas = Canvas(backdrop(rng, colour, 0.1), pose(rng, np.pi, (1, 1), 0))
    trace, spacing = np.clip(colour * 1.45 + 0.05, 0, 1), rng.uniform(0.12, 0.22)
    knee = rng.uniform(-0.5, 0.5)
    lines = []
    for n in range(-6, 7):
        y = n * spacing
        lines.append(np.array([[-1.6, y], [knee, y], [knee + 0.5, y + 0.5], [1.8, y + 0.5]]))
    canvas.stroke([line for line in lines if rng.random() < 0.7], trace, 0.035)
    for x, y in rng.uniform(-1, 1, (6, 2)):
        canvas.fill([ellipse(x, y, 0.08, 0.08, 10), ellipse(x, y, 0.035, 0.035, 8)], hsv(0.12, 0.5, 0.8))
    return canvas.photo()


def _box(cx: float, cy: float, w: float, h: float) -> np.ndarray:
    """The four corners `[4, 2]` of a box with half sides w and h."""
    return np.array([[cx - w, cy - h], [cx + w, cy - h], [cx + w, cy + h], [cx - w, cy + h]])


def _part(k: Class, rng):
    """The component, soldered at any angle."""
    canvas = Canvas(_board(k, rng), pose(rng, np.pi, (0.6, 0.9), 0.27, 0.06))
    solder, body = (
        hsv(0.6, 0.05, rng.uniform(0.65, 0.95)),
        np.clip(k.body * rng.uniform(0.7, 1.35) + rng.normal(0, 0.04, 3), 0.05, 1),
    )
    w, h = 0.75, 0.75 * k.aspect
    if k.package == "quad":
        h = w = 0.62
    along = (np.arange(k.pins) - (k.pins - 1) / 2) * (1.5 * w / k.pins)
    if k.package in ("dual", "quad", "header"):
        pins = [_box(x, s * h, 0.35 * w / k.pins, k.pin_length) for x in along for s in (-1, 1)]
        pins += [
            _box(s * w, x, k.pin_length, 0.35 * w / k.pins)
            for x in along
            for s in (-1, 1)
            if k.package == "quad"
        ]
        for pin in pins:
            canvas.fill(pin, solder)
        canvas.fill(_box(0, 0, w, h), body)
    elif k.package == "can":
        canvas.fill(ellipse(0.06, 0.06, w, w), body * 0.4)
        canvas.fill(ellipse(0, 0, w, w), body)
        canvas.fill(ellipse(0, 0, w * k.aspect, w * k.aspect), np.clip(body * 0.5 + 0.4, 0, 1))
    else:
        canvas.stroke(np.array([[-1.1, 0], [1.1, 0]]), solder, 0.08)
        canvas.fill(ellipse(0, 0, w, h * 0.6, 24), body)
        for b in range(k.pins if k.package == "coil" else 4):
            x = (b + 0.5) / (k.pins if k.package == "coil" else 4) * 1.3 * w - 0.65 * w
            band = hsv(0.07, 0.7, 0.7) if k.package == "coil" else k.bands[b]
            tall = h * 0.58 * np.sqrt(1 - (x / w) ** 2)
            canvas.stroke(np.array([[x, -tall], [x, tall]]), band, 0.09)
    _marking(canvas, k, w, h, along)
    return finish(canvas.photo(), rng, light=0.2)


def _marking(canvas: Canvas, k: Class, w: float, h: float, along: np.ndarray) -> None:
    """What is printed on the body."""
    if k.package in ("resistor", "coil"):
        return
    ink = np.full(3, 0.92 if k.body.mean() < 0.5 else 0.1)
    if k.package == "header":
        for x in along:
            canvas.fill(_box(x, 0, 0.3 * w / k.pins, 0.3 * w / k.pins), hsv(0.13, 0.6, 0.9))
    elif k.marking == "dot":
        canvas.fill(ellipse(-0.6 * w, -0.5 * h, 0.1, 0.1, 12), ink)
    elif k.marking == "stripe":
        canvas.fill(_box(-0.6 * w, 0, 0.08, 0.75 * h), ink)
    elif k.marking == "text":
        canvas.stroke([np.array([[-0.5 * w, y], [0.5 * w, y]]) for y in (-0.25 * h, 0.15 * h)], ink, 0.06)
    else:
        canvas.stroke([np.array([[-0.4, 0], [0.4, 0]]), np.array([[0, -0.4], [0, 0.4]]) * h / w], ink, 0.1)


FAMILIES = {
    "gears": Family(_gear_class, _gear),
    "flanges": Family(_flange_class, _flange),
    "circuit_parts": Family(_part_class, _part),
}
