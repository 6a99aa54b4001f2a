# SPDX-License-Identifier: Apache-2.0
"""The Bayes mixture: the best any learner can do on prompts from a mixture of function classes that it knows.

The posterior predictive mean has the smallest expected squared error of all functions of the prompt, whatever
architecture or training made them. (Two-layer networks and decision trees have no tractable posterior and are not
here.)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta
from metaicl.learners.bayes_components import KINDS, Component
from metaicl.learners.regression import regressor
from metaicl.models.network import flat


def bayes_mixture(
    spec: TaskSpec, *, components: Mapping[str, Mapping[str, Any]], noise: float = 1e-3
) -> Learner:
    """Builds the learner.

    Args:
      spec: regress; every output is a function of its own, from the same mixture.
      components: by name, the settings of a class: `kind` (`dense_linear`, `sparse_linear`, `finite_linear` or
        `curve`; the name itself where it is left out), `weight` (its share; they sum to 1, and are equal where
        left out), `noise` (if not that of all), and what the function of that name in `bayes_components` takes.
        Noisy functions that are rescaled are a class with its own `scale` and `noise`.
      noise: standard deviation of the labels' noise that is assumed. Noiseless functions need one too, or the
        evidence is degenerate; the answers are then those of functions seen through this much noise, whose squared
        error beyond the best is of the order of its square. Below 1e-4 or so times the labels, float32 ends.

    Raises:
      ValueError: for classification, an unknown kind or setting, weights that are negative or do not sum to 1,
        a noise that is not above 0, and what the components refuse.
    """
    width = 1
    for size in spec.x_shape:
        width *= size
    weights = {name: float(part.get("weight", 1.0 / len(components))) for name, part in components.items()}
    _check_weights(weights)
    parts = {name: _component(name, width, part) for name, part in components.items()}
    noises = {name: float(part.get("noise", noise)) for name, part in components.items()}
    for name, value in noises.items():
        if not value > 0:
            raise ValueError(f"bayes_mixture: the noise of {name!r} is {value:g}; it must be above 0.")

    def init(key):
        del key
        return Meta({}, {name: jax.tree.map(jnp.asarray, part.arrays) for name, part in parts.items()})

    def posterior(carry, x, y, mask):
        """Shares of the components `[C]` and their states, for one output `y [S]`."""
        found = {
            name: part.posterior(carry[name], x, y, mask, jnp.asarray(noises[name], x.dtype))
            for name, part in parts.items()
        }
        logs = [
            jnp.log(jnp.asarray(weights[name])) + log_evidence for name, (log_evidence, _) in found.items()
        ]
        return jax.nn.softmax(jnp.stack(logs)), {name: state for name, (_, state) in found.items()}

    def adapt(meta, support, key):
        del key
        one = functools.partial(posterior, meta.carry, jnp.asarray(flat(support.x)))
        return jax.vmap(lambda y: one(y, support.mask), in_axes=1)(support.y)

    def predict(meta, state, x, mask):
        del meta, mask
        rows = jnp.asarray(flat(x))

        def one(shares, states):
            answers = [part.predict(states[name], rows) for name, part in parts.items()]
            return shares @ jnp.stack(answers)

        return jax.vmap(one, out_axes=1)(*state)

    return regressor(spec, "bayes_mixture", adapt, predict, init)


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise ValueError("bayes_mixture: there is no component; give at least one.")
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"bayes_mixture: the weight of {name!r} is {weight:g}; it must be 0 or more.")
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"bayes_mixture: the weights sum to {sum(weights.values()):g}, not to 1: {weights}.")


def _component(name: str, width: int, part: Mapping[str, Any]) -> Component:
    kind = part.get("kind", name)
    if kind not in KINDS:
        raise ValueError(
            f"bayes_mixture: component {name!r} is of unknown kind {kind!r}; use {', '.join(KINDS)}."
        )
    settings = {key: value for key, value in part.items() if key not in ("kind", "weight", "noise")}
    try:
        return KINDS[kind](width, **settings)
    except TypeError as error:
        raise ValueError(f"bayes_mixture: component {name!r}: {error}") from None
