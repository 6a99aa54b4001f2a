# SPDX-License-Identifier: Apache-2.0
"""Affine maps as plain dictionaries of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init_linear(key: jax.Array, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, jax.Array]:
    """`kernel [inputs, outputs]`, uniform within 1/sqrt(inputs) as in torch's `nn.Linear`; zero `bias`."""
    bound = inputs**-0.5
    params = {"kernel": jax.random.uniform(key, (inputs, outputs), jnp.float32, -bound, bound)}
    if bias:
        params["bias"] = jnp.zeros(outputs)
    return params


def linear(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`[..., inputs] -> [..., outputs]`, in the dtype of x."""
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" not in params:
        return y
    bias = params["bias"].astype(x.dtype)
    return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
