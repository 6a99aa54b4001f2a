# SPDX-License-Identifier: Apache-2.0
"""Small random episodes and settings of small learners, shared by the tests of the learners."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import Episode, Examples, TaskSpec

WAYS = 3
VECTORS = TaskSpec("classify", (12,), "float32", WAYS)
IMAGES = TaskSpec("classify", (6, 6, 1), "uint8", WAYS)
POINTS = TaskSpec("regress", (12,), "float32", 2)

# Settings of small learners.
_TINY = {"filters": (4,), "pool": "flatten"}
GROUP = {"encoder": "conv", "encoder_settings": _TINY}
BATCH = {"encoder": "conv", "encoder_settings": _TINY | {"norm": "batch"}}
MLP = {"encoder": "mlp", "encoder_settings": {"hidden": (8,)}}
SEQUENCE = {"width": 8, "layers": 1, "heads": 2, "max_points": 24}
ATTENTION = {"image_width": 8, "label_width": 8, "layers": 1, "heads": 2, "mlp": 16}
INNER = {"inner_steps": 2, "inner_lr": 0.1}
ADAM = {"inner_optimizer": "adam", "inner_settings": {"eps_root": 1e-8}}


def items(rng, spec: TaskSpec, n: int, scale: float = 1.0) -> np.ndarray:
    """Random items `[n, *x_shape]`."""
    if spec.x_dtype == "uint8":
        return rng.integers(0, 256, (n, *spec.x_shape)).astype(np.uint8)
    return (scale * rng.normal(size=(n, *spec.x_shape))).astype(spec.x_dtype)


def examples(rng, spec: TaskSpec, n: int) -> Examples:
    """n real items; every class in turn, or random targets."""
    if spec.kind == "classify":
        y = (np.arange(n) % spec.num_outputs).astype(np.int32)
    else:
        y = rng.normal(size=(n, spec.num_outputs)).astype(np.float32)
    return Examples(items(rng, spec, n), y, np.ones(n, np.float32))


def episode(rng, spec: TaskSpec, support: int = 6, query: int = 4) -> Episode:
    """One episode without padding."""
    return Episode(examples(rng, spec, support), examples(rng, spec, query))


def padded(rng, spec: TaskSpec, real: Examples, at: tuple[int, ...]) -> Examples:
    """Inserts masked garbage in front of the given rows (`np.insert`), in the middle and at the end."""
    n = len(at)
    y = (
        rng.integers(0, spec.num_outputs, n)
        if spec.kind == "classify"
        else 10 * rng.normal(size=(n, spec.num_outputs))
    )
    garbage = Examples(items(rng, spec, n, 10.0), y, np.zeros(n))
    return jax.tree.map(lambda a, g: np.insert(a, at, g.astype(a.dtype), axis=0), real, garbage)


def stacked(episodes: list[Episode]) -> Episode:
    """A batch `[B, ...]`."""
    return jax.tree.map(lambda *parts: np.stack(parts), *episodes)


def to_float64(tree):
    """Floating leaves in 64 bits; needs the `x64` fixture."""
    widen = lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(widen, tree)


def leaves_close(a, b, **tolerance) -> None:
    """Asserts that two trees agree in structure and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, equal_nan=False, **tolerance)


def distance(a, b) -> float:
    """Relative distance of two trees of arrays in the Euclidean norm."""
    norm = lambda tree: sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)) ** 0.5
    return norm(jax.tree.map(jnp.subtract, a, b)) / norm(b)
