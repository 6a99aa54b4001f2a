# SPDX-License-Identifier: Apache-2.0
"""What an encoder is: a pair of pure functions, so that no flax module leaves this room; and functions of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Normalization = Literal["none", "unit", "sqrt_unit", "standard"]


class Network(NamedTuple):
    """An encoder of items.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [n, *x_shape], mask [n]) -> [n, width]`; masked rows influence no other row.
      width: D.
      independent: a row's output ignores the other rows (false with batch normalisation).
      noisy: `(params, x, mask, key) -> [n, width]`: `apply` with dropout; None where there is none. What is dropped
        depends on the key and on n and T alone.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    width: int
    independent: bool = True
    noisy: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def encode(self, params: Any, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        """`apply`, or `noisy` where there is such a thing and a key."""
        if self.noisy is None or key is None:
            return self.apply(params, x, mask)
        return self.noisy(params, x, mask, key)


def flat(x: jax.Array) -> jax.Array:
    """`[n, *x_shape] -> float [n, D]`; bytes are scaled to [0, 1]."""
    rows = x.reshape(x.shape[0], size_of(x.shape[1:]))
    if jnp.issubdtype(x.dtype, jnp.floating):
        return rows
    return rows.astype(jnp.float32) / (255.0 if x.dtype == jnp.uint8 else 1.0)


def normalized(x: jax.Array, how: Normalization) -> jax.Array:
    """Row normalisation `[n, D] -> [n, D]`; rows of zeros stay zero, and have a finite gradient."""
    if how == "none":
        return x
    if how == "standard":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    elif how == "sqrt_unit":
        x = jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-12)
    elif how != "unit":
        raise ValueError(f"Unknown normalisation {how!r}; use 'none', 'unit', 'sqrt_unit' or 'standard'.")
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + 1e-12)


def size_of(shape: Sequence[int]) -> int:
    """Numbers in an item of this shape."""
    size = 1
    for n in shape:
        size *= n
    return size
