# SPDX-License-Identifier: Apache-2.0
"""The classes: how the values of a random function are drawn, and the variance that normalises its error.

The definitions are those of Garg et al. 2022 (arXiv 2208.01066, section 4 and appendix A.2); lines and sinusoids
are the one-dimensional classes of Yadlowsky et al. 2023 (arXiv 2311.00871), whose ranges were not published.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.data.functions.inputs import Moments

Settings = Mapping[str, Any]


class FunctionClass(NamedTuple):
    """One class of functions of d variables.

    Attributes:
      values: `(key, x [n, d], active [d], settings) -> y [n]`: one function, drawn and read at n points. `active` is
        1 for dimensions that take part; x is 0 in the others. The settings hold `pooled` beside their own, whether
        there is a `pool`.
      variance: `(settings, d, moments of the inputs) -> E[y^2]`, over functions and points.
      settings: names and defaults of what may be set.
      shapes: the settings that are shapes, and so parts of the compiled program.
      one_dimensional: whether d has to be 1.
    """

    values: Callable[..., jax.Array]
    variance: Callable[[Settings, int, Moments], float]
    settings: Settings
    shapes: tuple[str, ...] = ()
    one_dimensional: bool = False


def weight_pool(seed: int, count: int, dimensions: int) -> jax.Array:
    """The weight vectors `[count, d]` that linear functions with `pool=count`, `pool_seed=seed` choose from."""
    return jax.vmap(lambda member: _member(seed, member, dimensions))(jnp.arange(count))


def _member(seed, member, dimensions):
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), member), (dimensions,))


def _linear_weights(key, x, settings):
    """w ~ N(0, I), or one of the `pool` such vectors that there are."""
    if not settings["pooled"]:
        return jax.random.normal(key, x.shape[1:])
    return _member(settings["pool_seed"], jax.random.randint(key, (), 0, settings["pool"]), x.shape[1])


def _dense_linear(key, x, active, settings):
    del active
    return x @ _linear_weights(key, x, settings)


def _sparse_linear(key, x, active, settings):
    """All but `nonzeros` coordinates of w are 0; those are any of the active ones."""
    w_key, rank_key = jax.random.split(key)
    lottery = jnp.where(active > 0, jax.random.uniform(rank_key, x.shape[1:]), 2.0)
    rank = jnp.argsort(jnp.argsort(lottery))
    w = jax.random.normal(w_key, x.shape[1:])
    return x @ jnp.where(rank < settings["nonzeros"], w, 0.0)


def _noisy_linear(key, x, active, settings):
    """y = c (w.x + noise), scaled by c to the variance of w.x: in expectation, where the paper's code does it
    by the deviation measured in each batch."""
    del active
    w_key, noise_key = jax.random.split(key)
    noise = settings["noise"] * jax.random.normal(noise_key, x.shape[:1])
    return (x @ _linear_weights(w_key, x, settings) + noise) * jnp.sqrt(
        x.shape[1] / (x.shape[1] + settings["noise"] ** 2)
    )


def _relu_network(key, x, active, settings):
    """sqrt(2 / h) times sum_i v_i relu(W_i.x), v and W standard normal."""
    del active
    h = settings["hidden"]
    w_key, v_key = jax.random.split(key)
    hidden = jax.nn.relu(x @ jax.random.normal(w_key, (x.shape[1], h)))
    return hidden @ jax.random.normal(v_key, (h,)) * math.sqrt(2 / h)


def _decision_tree(key, x, active, settings):
    """A full tree: every node asks whether one coordinate is above 0, every leaf answers a N(0, 1)."""
    del active
    depth = settings["depth"]
    ask_key, leaf_key = jax.random.split(key)
    asked = jax.random.randint(ask_key, (2**depth - 1,), 0, x.shape[1])
    answers = (x > 0).astype(jnp.int32)[:, asked]  # [n, nodes]
    node = jnp.zeros(len(x), jnp.int32)
    for _ in range(depth):
        node = 2 * node + 1 + jnp.take_along_axis(answers, node[:, None], axis=1)[:, 0]
    return jax.random.normal(leaf_key, (2**depth,))[node - (2**depth - 1)]


def _quadratic(key, x, active, settings):
    del active, settings
    return (x**2) @ jax.random.normal(key, x.shape[1:]) / math.sqrt(3)


def _line(key, x, active, settings):
    del active
    slope, intercept = jax.random.normal(key, (2,))
    return settings["slope"] * slope * x[:, 0] + settings["intercept"] * intercept


def _sinusoid(key, x, active, settings):
    del active
    amplitude, frequency, phase = (
        uniform(k, settings[name])
        for k, name in zip(jax.random.split(key, 3), ("amplitude", "frequency", "phase"), strict=True)
    )
    return amplitude * jnp.sin(frequency * x[:, 0] + phase)


def uniform(key, ends):
    """One number between two ends, `[2]`; the end itself where they are equal."""
    return ends[0] + (ends[1] - ends[0]) * jax.random.uniform(key)


def mean_square(ends) -> float:
    """E[u^2] of a number that is uniform between two ends."""
    low, high = ends
    return (low * low + low * high + high * high) / 3


def _linear_variance(settings, d, moments):
    del settings
    return d * moments.second


def _noisy_variance(settings, d, moments):
    noise = settings["noise"] ** 2
    return (d * moments.second + noise) * d / (d + noise)


_POOL = dict(pool=0, pool_seed=0)

CLASSES: dict[str, FunctionClass] = {
    "dense_linear": FunctionClass(_dense_linear, _linear_variance, _POOL),
    "sparse_linear": FunctionClass(
        _sparse_linear, lambda settings, d, moments: settings["nonzeros"] * moments.second, dict(nonzeros=3)
    ),
    "noisy_linear": FunctionClass(_noisy_linear, _noisy_variance, dict(noise=1.0) | _POOL),
    "relu_network": FunctionClass(_relu_network, _linear_variance, dict(hidden=100), ("hidden",)),
    "decision_tree": FunctionClass(
        _decision_tree, lambda settings, d, moments: 1.0, dict(depth=4), ("depth",)
    ),
    "quadratic": FunctionClass(_quadratic, lambda settings, d, moments: d * moments.fourth / 3, {}),
    "line": FunctionClass(
        _line,
        lambda s, d, moments: s["slope"] ** 2 * moments.second + s["intercept"] ** 2,
        dict(slope=1.0, intercept=1.0),
        one_dimensional=True,
    ),
    "sinusoid": FunctionClass(
        _sinusoid,
        lambda settings, d, moments: mean_square(settings["amplitude"]) / 2,
        dict(amplitude=(1.0, 1.0), frequency=(1.0, 1.0), phase=(0.0, 2 * math.pi)),
        one_dimensional=True,
    ),
}


def checked_settings(name: str, kind: str, given: Settings, dimensions: int) -> dict[str, Any]:
    """The settings of a class with its defaults.

    Args:
      name: what errors call it. kind: one of `CLASSES`. given: what is set. dimensions: d.

    Raises:
      ValueError: for an unknown class or setting (naming the nearest), more non-zeros than dimensions, a range that
        falls, or a number that is not positive where it has to be.
    """
    if kind not in CLASSES:
        raise ValueError(f"Function class {name!r} is of the kind {kind!r}; {nearest(kind, CLASSES)}")
    known = CLASSES[kind]
    if unknown := [key for key in given if key not in known.settings]:
        raise ValueError(
            f"Function class {name!r} has no setting {unknown[0]!r}; {nearest(unknown[0], known.settings)}"
        )
    settings = dict(known.settings) | dict(given)
    if known.one_dimensional and dimensions != 1:
        raise ValueError(f"Function class {name!r} has one variable, not {dimensions}: set dimensions=1.")
    if "nonzeros" in settings and not 1 <= settings["nonzeros"] <= dimensions:
        raise ValueError(
            f"Function class {name!r} has {settings['nonzeros']} non-zeros in {dimensions} dimensions; "
            f"take 1 to {dimensions}."
        )
    for key in ("hidden", "depth"):
        if key in settings and settings[key] < 1:
            raise ValueError(f"{key} of function class {name!r} is {settings[key]}; it has to be at least 1.")
    for key in ("pool", "noise"):
        if settings.get(key, 0) < 0:
            raise ValueError(f"{key} of function class {name!r} is {settings[key]}, below 0.")
    for key in ("amplitude", "frequency", "phase"):
        if key in settings:
            check_range(f"{key} of function class {name!r}", settings[key])
    if "phase" in settings:
        turns = (settings["phase"][1] - settings["phase"][0]) / (2 * math.pi)
        if turns < 0.5 or abs(turns - round(turns)) > 1e-3:  # else neither mean 0 nor variance 1/2
            raise ValueError(
                f"phase of function class {name!r} has to span whole turns of 2 pi, not {turns:g}."
            )
    return settings


def check_range(what: str, ends) -> None:
    """Refuses what are not two numbers in rising order."""
    if len(ends) != 2 or not -np.inf < ends[0] <= ends[1] < np.inf:
        raise ValueError(f"{what} is {tuple(ends)}; give two numbers, the first not above the second.")


def nearest(name: str, known) -> str:
    """`did you mean 'x'? There are ...` for an unknown name."""
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are {', '.join(known) or 'none'}."
