# SPDX-License-Identifier: Apache-2.0
"""Domain `solids`: shaded bodies in space: faceted polyhedra, turned vessels and stacks of cubes."""

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
    finish,
    hsv,
    pick,
    pose,
    turned,
    whole,
)


def _spin(rng, tilt: float) -> np.ndarray:
    """A random rotation `[3, 3]`: any turn about the upright axis, a tilt towards the eye, then a lean."""
    a, b, c = rng.uniform(0, TAU), rng.uniform(0.25, 0.25 + tilt), rng.normal(0, 0.15)
    about = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    lean = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return lean @ nod @ about


def _studio(rng) -> np.ndarray:
    """A wall and a table."""
    wall = backdrop(rng, hsv(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.35, 0.9)), 0.12)
    table = (rng.uniform(0.2, 0.7) < Y)[..., None]
    return np.where(table, wall * rng.uniform(0.6, 0.85), wall)


def _ring(n: int, radius: float, height: float, start: float = 0.0) -> np.ndarray:
    """n corners `[n, 3]` on a level circle (y points down)."""
    t = start + np.arange(n) * (TAU / n)
    return np.column_stack([radius * np.cos(t), np.full(n, height), radius * np.sin(t)])


def _poly_class(u, rng):
    """A class is a convex body: prism, pyramid, bipyramid, antiprism, frustum or cut cube."""
    n, kind = whole(u[0], 3, 8), pick(u[1], ("prism", "pyramid", "bipyramid", "antiprism", "frustum", "drum"))
    high, wide = between(u[2], 0.35, 0.95), between(u[3], 0.5, 0.85)
    if kind == "pyramid":
        corners = np.concatenate([_ring(n, wide, 0.5 * high), [[0, -high, 0]]])
    elif kind == "bipyramid":
        corners = np.concatenate([_ring(n, wide, 0), [[0, -high, 0], [0, high, 0]]])
    elif kind == "drum":
        corners = np.concatenate(
            [_ring(n, 0.6 * wide, -high), _ring(n, wide, 0.0), _ring(n, 0.6 * wide, high)]
        )
    else:
        top, twist = {"prism": (1, 0), "antiprism": (1, 0.5), "frustum": (0.5, 0)}[kind]
        corners = np.concatenate(
            [_ring(n, wide * top, -0.75 * high, twist * TAU / n), _ring(n, wide, 0.75 * high)]
        )
    return Class(
        corners=corners,
        faces=_hull(corners),
        hue=u[4],
        saturation=between(u[5], 0.2, 0.9),
        value=between(u[6], 0.6, 1),
        two_tone=u[7] > 0.5,
        edged=u[8] > 0.5,
    )


def _hull(corners: np.ndarray) -> list[np.ndarray]:
    """Faces of a convex body, each an array of corner numbers in order around its outward normal."""
    faces, seen = [], set()
    n = len(corners)
    for i in range(n):
        for j in range(i + 1, n):
            for m in range(j + 1, n):
                normal = np.cross(corners[j] - corners[i], corners[m] - corners[i])
                side = (corners - corners[i]) @ normal
                flat = np.abs(side) < 1e-9
                if not ((side <= 1e-9).all() or (side >= -1e-9).all()) or tuple(flat) in seen:
                    continue
                seen.add(tuple(flat))
                faces.append(
                    _around(corners, np.flatnonzero(flat), normal * (1 if side.min() < -1e-9 else -1))
                )
    return faces


def _around(corners: np.ndarray, face: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The corners of one face, sorted counter-clockwise seen along its outward normal."""
    rays = corners[face] - corners[face].mean(0)
    side = np.cross(normal, rays[0])
    angle = np.arctan2(rays @ side / np.linalg.norm(side), rays @ rays[0] / np.linalg.norm(rays[0]))
    return face[np.argsort(angle)]


def _paint_face(
    canvas: Canvas, points: np.ndarray, light: np.ndarray, colour: np.ndarray, edged: bool
) -> None:
    """One face `[n, 3]` that looks at the eye, lit by a lamp; faces that look away are left out."""
    normal = np.cross(points[1] - points[0], points[2] - points[1])
    normal = normal / np.linalg.norm(normal)
    if normal[2] <= 0.02:
        return
    lit = np.clip(colour * (0.35 + 0.75 * max(0.0, float(normal @ light))), 0, 1)
    canvas.fill(points[:, :2], lit)
    canvas.stroke(points[:, :2], lit * 0.55 if edged else lit * 0.9, 0.03, closed=True)


def _lamp(rng) -> np.ndarray:
    """Direction to the lamp: above, somewhat in front."""
    light = np.array([rng.uniform(-0.8, 0.8), -0.7, 0.7])
    return light / np.linalg.norm(light)


def _poly(k: Class, rng):
    """The body turned at random, its faces lit by one lamp."""
    canvas = Canvas(_studio(rng), pose(rng, 0.1, (0.75, 1.05), 0.2))
    points = k.corners @ _spin(rng, 0.6).T
    light = _lamp(rng)
    hue, value = k.hue + rng.normal(0, 0.05), k.value * rng.uniform(0.8, 1.1)
    colours = hsv(np.array([hue, hue + 0.12]), k.saturation, value)
    for f, face in enumerate(k.faces):
        tone = colours[f % 2 if k.two_tone else 0]
        _paint_face(canvas, points[face], light, tone, k.edged)
    return finish(canvas.photo(), rng)


def _vessel_class(u, rng):
    """A class is a profile from foot to lip, with a glaze, bands, and perhaps a handle."""
    knots = np.clip(between(u[0:6], 0.14, 0.55) + rng.normal(0, 0.04, 6), 0.1, 0.6)
    knots[4] *= between(u[6], 0.35, 1.0)
    return Class(
        profile=knots,
        hue=u[7],
        saturation=between(u[8], 0.2, 0.85),
        value=between(u[9], 0.4, 0.95),
        bands=pick(u[10], (0, 0, 2, 5)),
        band_hue=u[11],
        gloss=between(u[12], 0.1, 0.9),
        handle=pick(u[13], (0, 0, 1, 2)),
        tall=between(u[14], 0.6, 0.95),
    )


def _profile(k: Class, y: np.ndarray) -> np.ndarray:
    """Radius at each height, by smooth interpolation of the six knots from foot (y = tall) to lip."""
    place = np.clip((k.tall - y) / (2 * k.tall), 0, 0.9999) * 5
    left = place.astype(int)
    t = place - left
    t = t * t * (3 - 2 * t)
    return k.profile[left] * (1 - t) + k.profile[np.minimum(left + 1, 5)] * t


def _vessel(k: Class, rng):
    """Round shading with a highlight, and a dark mouth seen from slightly above."""
    x, y = turned(rng, 0.22, (0.7, 1.0), 0.2)
    nod = rng.uniform(0.12, 0.3)
    u = np.clip(x / _profile(k, y), -1, 1)
    # Seen from above, the front of each level circle sags below its ends.
    level = y - nod * np.sqrt(1 - u**2) * _profile(k, y)
    radius = _profile(k, level)
    u = np.clip(x / radius, -1, 1)
    inside = np.clip((radius - np.abs(x)) * 26 + 0.5, 0, 1)
    inside = inside * np.clip((k.tall - level) * 26, 0, 1) * np.clip((level + k.tall) * 26 + 0.5, 0, 1)
    lamp = rng.uniform(-0.7, 0.7)
    lit = 0.3 + 0.7 * np.clip(u * lamp + np.sqrt(1 - u**2) * 0.75, 0, 1)
    shine = k.gloss * np.exp(-(((u - 0.6 * lamp) / 0.16) ** 2))
    hue, value = k.hue + rng.normal(0, 0.05), k.value * rng.uniform(0.8, 1.15)
    band = (k.bands > 0) & (np.sin(level / k.tall * np.pi * k.bands + 1) > 0.55)
    glaze = np.where(
        band[..., None], hsv(k.band_hue, k.saturation, 0.9 * value), hsv(hue, k.saturation, value)
    )
    body = np.clip(glaze * lit[..., None] + 0.6 * shine[..., None], 0, 1)
    scene = _handles(k, x, y, _studio(rng), hsv(hue, k.saturation, value * 0.7))
    image = scene * (1 - inside[..., None]) + body * inside[..., None]
    lip = k.profile[5]
    mouth = np.clip((1 - (x / lip) ** 2 - ((y + k.tall) / max(lip * nod, 0.02)) ** 2) * 6, 0, 1)[..., None]
    return finish(image * (1 - mouth) + hsv(hue, k.saturation, value * 0.25) * mouth, rng)


def _handles(k: Class, x, y, scene: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Rings at one or both sides, behind the body."""
    for side in (1, -1)[: k.handle]:
        ring = np.abs(np.hypot(x - side * 0.42, (y + 0.1) * 0.8) - 0.3)
        cover = np.clip((0.06 - ring) * 26, 0, 1)[..., None]
        scene = scene * (1 - cover) + colour * cover
    return scene


_CUBE = _ring(4, np.sqrt(0.5), -0.5, np.pi / 4), _ring(4, np.sqrt(0.5), 0.5, np.pi / 4)


def _stack_class(u, rng):
    """A class is a polycube of four to eight cubes, grown at random, with one or two paints."""
    cells = [(0, 0, 0)]
    while len(cells) < 4 + int(u[0] * 5):
        base = np.array(cells[rng.integers(len(cells))])
        step = np.zeros(3, int)
        step[rng.integers(3)] = rng.choice([-1, 1])
        new = tuple(int(v) for v in base + step)
        if new not in cells:
            cells.append(new)
    cubes = np.array(cells, float)
    return Class(
        cubes=cubes - (cubes.max(0) + cubes.min(0)) / 2,
        hue=u[1],
        hue2=u[1] + pick(u[2], (0, 0.15, 0.4)),
        saturation=between(u[3], 0.3, 0.9),
        value=between(u[4], 0.55, 1),
    )


def _stack(k: Class, rng):
    """Cubes painted from far to near."""
    canvas = Canvas(_studio(rng), pose(rng, 0.1, (0.8, 1.05), 0.18))
    spin, light = _spin(rng, 0.5), _lamp(rng)
    size = 1.75 / (np.ptp(k.cubes, 0).max() + 2)
    corners = np.concatenate(_CUBE)
    faces = _CUBE_FACES
    centres = k.cubes @ spin.T
    hue, value = np.array([k.hue, k.hue2]) + rng.normal(0, 0.03), k.value * rng.uniform(0.8, 1.1)
    paints = hsv(hue, k.saturation, value)
    for c in np.argsort(centres[:, 2]):
        points = (corners @ spin.T + centres[c]) * size
        for face in faces:
            _paint_face(canvas, points[face], light, paints[int(c) % 2], True)
    return finish(canvas.photo(), rng)


_CUBE_FACES = _hull(np.concatenate(_CUBE))

FAMILIES = {
    "polyhedra": Family(_poly_class, _poly),
    "vessels": Family(_vessel_class, _vessel),
    "cube_stacks": Family(_stack_class, _stack),
}
