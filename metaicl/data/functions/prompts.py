# SPDX-License-Identifier: Apache-2.0
"""Prompts: points and values of functions drawn from a mixture of classes, as a Source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.functions.curriculum import Curriculum, taking_part
from metaicl.data.functions.inputs import Inputs, draw_points
from metaicl.data.functions.mixtures import Form, choose, mixture, values
from metaicl.episode import Episode, Examples, Source


class _Program(NamedTuple):
    """All that the compiled program of a source depends on; the rest is in `consts`."""

    shape: tuple[int, int, int]  # S, Q, d
    distribution: str
    shift: str
    forms: tuple[Form, ...]
    curriculum: bool
    varied: bool


def prompts(
    *,
    seed: int,
    dimensions: int,
    points: int,
    queries: int = 1,
    classes: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, float],
    inputs: Inputs | None = None,
    fewest: int | None = None,
    curriculum: Curriculum | None = None,
) -> Source:
    """Prompts of functions y = f(x), the class drawn for every prompt.

    Sources that differ in seeds, weights, settings of the classes or scales only share one program, so that they
    can be replicas. The class of a prompt is `info["class"]`, its number in `weights`.

    Args:
      seed: prompt i depends on (seed, i) alone; neither on the batch nor on the weights of other classes.
      dimensions, points, queries: d, S and Q.
      classes, weights: see `mixture`.
      inputs: of the points; N(0, I) if None.
      fewest: where given, every context shows a number of points that is uniform from this one to `points`, for
        learners that train on the query alone. None: all points.
      curriculum: of training, if any. Points that do not take part yet are missing from the context, and
        dimensions that do not are 0.

    Raises:
      ValueError: for classes, weights or inputs that do not fit, or points that no context could show.
    """
    inputs = inputs or Inputs()
    inputs.check(dimensions, points)
    if dimensions < 1 or points < 0 or queries < 1:
        raise ValueError(
            f"Prompts of {dimensions} dimensions, {points} points and {queries} queries: there have to be at least "
            "1 dimension and 1 query, and no fewer points than none."
        )
    if fewest is not None and not 0 <= fewest <= points:
        raise ValueError(f"The fewest points of a context are {fewest}; take 0 to {points}.")
    components = mixture(classes, weights, dimensions, inputs)
    consts = {
        "seed": np.uint32(seed),
        "weights": np.asarray(list(weights.values()), np.float32),
        "classes": tuple(component.consts for component in components),
        "interval": np.asarray(inputs.interval, np.float32),
        "scale": np.float32(inputs.scale),
    }
    if curriculum is not None:
        consts["curriculum"] = {key: np.int32(value) for key, value in dataclasses.asdict(curriculum).items()}
    if fewest is not None:
        consts["fewest"] = np.int32(fewest)
    program = _Program(
        (points, queries, dimensions),
        inputs.distribution,
        inputs.shift,
        tuple(component.form for component in components),
        curriculum is not None,
        fewest is not None,
    )
    return Source(lambda i: {"index": np.asarray(i, np.int32)}, consts, _build(program))


@functools.lru_cache
def _build(program: _Program):
    def build(consts, batch, key):
        del key
        episodes, number = jax.vmap(functools.partial(_prompt, program), in_axes=(None, 0))(
            consts, batch["index"]
        )
        return episodes, {"index": batch["index"], "class": number}

    return build


def _prompt(program: _Program, consts, index):
    """Prompt `index`, and the number of its class."""
    points, queries, dimensions = program.shape
    key = jax.random.fold_in(jax.random.key(consts["seed"]), index)
    x_key, class_key, function_key, count_key = jax.random.split(key, 4)
    active, shown = jnp.ones(dimensions), jnp.ones(points)
    if program.curriculum:
        active, shown = taking_part(index, consts["curriculum"], dimensions, points + 1)
        shown = shown[1:]  # one of the points is the query's
    if program.varied:
        count = jax.random.randint(count_key, (), consts["fewest"], points + 1)
        shown = shown * (jnp.arange(points) < count)
    x = draw_points(x_key, program.distribution, program.shift, program.shape, consts) * active[None, :]
    each = [
        values(form, function_key, x, active, settings)
        for form, settings in zip(program.forms, consts["classes"], strict=True)
    ]
    number, y = choose(class_key, consts["weights"], each)
    y = y[:, None]
    support = Examples(x[:points], y[:points], shown.astype(jnp.float32))
    return Episode(support, Examples(x[points:], y[points:], jnp.ones(queries))), number
