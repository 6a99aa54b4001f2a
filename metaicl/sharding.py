# SPDX-License-Identifier: Apache-2.0
"""Mesh and placement: data parallelism is `jit` over a one-dimensional mesh of every process's devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones).

    Axes are Auto: with Explicit ones, the default of `jax.make_mesh`, a step that vmaps over sharded episodes
    and freshly split keys fails with an inconsistent axis.
    """
    chosen = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_episode(mesh: Mesh) -> NamedSharding:
    """The leading (episode) axis is spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Places host or device arrays on every device; what is there already is not copied."""
    return jax.device_put(tree, replicated(mesh))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Makes one global batch of the parts that the processes hold."""
    sharding = by_episode(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Refuses a batch that the devices cannot share evenly."""
    if batch_size % mesh.size:
        raise ValueError(
            f"A batch of {batch_size} episodes cannot be spread over {mesh.size} devices: "
            f"set train.batch to a multiple of {mesh.size}."
        )
