# SPDX-License-Identifier: Apache-2.0
"""Mixtures: a class drawn for every prompt with given weights, and classes that are convex combinations of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.functions.classes import (
    CLASSES,
    check_range,
    checked_settings,
    mean_square,
    nearest,
    uniform,
)
from metaicl.data.functions.inputs import Inputs

COMBINATION = "combination"
_TOLERANCE = 1e-4  # of the sum of the weights

# A class as the compiled program knows it: kinds, each with what is static about it; two for a combination.
Form = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


class Component(NamedTuple):
    """One class of a mixture: its form, its settings as arrays, and E[y^2]."""

    form: Form
    consts: dict[str, Any]
    variance: float


def mixture(
    classes: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float], dimensions: int, inputs: Inputs
) -> list[Component]:
    """The components of a mixture, in the order of `weights`.

    Args:
      classes: by name, each `{"kind": one of CLASSES, **its settings}` or `{"kind": "combination", "of": (name,
        name), "share": (low, high)}`: (1 - share) f + share g, where g is first scaled to the variance of f and the
        share is uniform in its range. The others may have `scale: (low, high)`, a uniform factor of y.
      weights: of the classes that take part; at least 0, and 1 in sum.
      dimensions: d. inputs: of the points.

    Raises:
      ValueError: for what is unknown (naming the nearest), or weights that are none.
    """
    if not weights:
        raise ValueError("A mixture needs the weight of at least one function class.")
    for name, weight in weights.items():
        if name not in classes:
            raise ValueError(f"The mixture has no function class {name!r}; {nearest(name, classes)}")
        if not weight >= 0:
            raise ValueError(f"The weight of function class {name!r} is {weight:g}; it has to be at least 0.")
    if abs(sum(weights.values()) - 1) > _TOLERANCE:
        listing = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise ValueError(f"The weights of the mixture sum to {sum(weights.values()):g}, not to 1: {listing}.")
    return [_component(name, classes, dimensions, inputs) for name in weights]


def mixture_variance(components: Sequence[Component], weights: Mapping[str, float]) -> float:
    """E[y^2] of a mixture."""
    return sum(
        weight * component.variance for weight, component in zip(weights.values(), components, strict=True)
    )


def _component(name: str, classes, dimensions: int, inputs: Inputs) -> Component:
    given = dict(classes[name])
    kind = given.pop("kind", "")
    if kind == COMBINATION:
        return _combination(name, given, classes, dimensions, inputs)
    scale = given.pop("scale", (1.0, 1.0))
    check_range(f"scale of function class {name!r}", scale)
    settings = checked_settings(name, kind, given, dimensions)
    shapes = CLASSES[kind].shapes
    static = {key: int(settings[key]) for key in shapes}
    # Not drawn where it is not asked for: every draw takes time to compile.
    static |= {"scaled": int(tuple(scale) != (1.0, 1.0)), "pooled": int(settings.get("pool", 0) > 0)}
    arrays = {key: _array(value) for key, value in settings.items() if key not in shapes}
    variance = float(CLASSES[kind].variance(settings, dimensions, inputs.moments(dimensions)))
    part = arrays | {"scale": _array(scale)}
    return Component(((kind, tuple(static.items())),), {"parts": (part,)}, variance * mean_square(scale))


def _combination(name, given, classes, dimensions, inputs):
    if unknown := [key for key in given if key not in ("of", "share")]:
        raise ValueError(
            f"Function class {name!r} has no setting {unknown[0]!r}; {nearest(unknown[0], ('of', 'share'))}"
        )
    of, share = tuple(given.get("of", ())), given.get("share", (0.0, 1.0))
    if len(of) != 2:
        raise ValueError(f"The combination {name!r} is of {len(of)} function classes; `of` names two.")
    check_range(f"share of the combination {name!r}", share)
    if not 0 <= share[0] <= share[1] <= 1:
        raise ValueError(f"share of the combination {name!r} is {tuple(share)}; it lies between 0 and 1.")
    parts = []
    for other in of:
        if other not in classes or classes[other].get("kind") == COMBINATION:
            simple = [n for n, settings in classes.items() if settings.get("kind") != COMBINATION]
            raise ValueError(
                f"The combination {name!r} is of {other!r}, which is none of its classes; {nearest(other, simple)}"
            )
        parts.append(_component(other, classes, dimensions, inputs))
    f, g = parts
    consts = {
        "parts": (*f.consts["parts"], *g.consts["parts"]),
        "share": _array(share),
        "match": _array(np.sqrt(f.variance / g.variance)),
    }
    # The two are independent, and at least one of them has mean 0 at every point, as every class here has.
    variance = f.variance * (mean_square([1 - share[1], 1 - share[0]]) + mean_square(share))
    return Component((*f.form, *g.form), consts, variance)


def values(form: Form, key, x, active, consts):
    """One function of a component, drawn and read at the points `x [n, d]`: `[n]`."""
    parts = list(zip(form, consts["parts"], strict=True))
    if len(parts) == 1:
        return _values(*parts[0], key, x, active)
    share_key, *keys = jax.random.split(key, 3)
    f, g = (_values(*part, k, x, active) for part, k in zip(parts, keys, strict=True))
    share = uniform(share_key, consts["share"])
    return (1 - share) * f + share * consts["match"] * g


def _values(known, settings, key, x, active):
    kind, static = known[0], dict(known[1])
    y = CLASSES[kind].values(key, x, active, settings | static)
    return y * uniform(jax.random.fold_in(key, 1), settings["scale"]) if static["scaled"] else y


def choose(key, weights, each: Sequence[jax.Array]):
    """A class by the weights `[C]`, and its values: `(int, [n])`.

    All classes are computed and one is kept, which is what `lax.switch` becomes under `vmap`.
    """
    if len(each) == 1:
        return jnp.int32(0), each[0]
    number = jax.random.categorical(key, jnp.log(weights))
    return number, jnp.stack(each)[number]


def _array(value: Any) -> np.ndarray:
    found = np.asarray(value)
    return found.astype(np.int32 if found.dtype.kind in "iu" else np.float32)
