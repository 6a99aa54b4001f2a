# SPDX-License-Identifier: Apache-2.0
"""Mesh and placement: data parallelism is `jit` over a one-dimensional mesh of every process's devices."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones)."""
    return _mesh_of(np.asarray(jax.devices() if devices is None else devices))


def _mesh_of(devices: np.ndarray) -> Mesh:
    """A mesh of one axis.

    Axes are Auto: with Explicit ones, the default of `jax.make_mesh`, a step that vmaps over sharded episodes
    and freshly split keys fails with an inconsistent axis.
    """
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_episode(mesh: Mesh) -> NamedSharding:
    """The leading (episode) axis is spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Places host or device arrays on every device; what is there already is not copied.

    Raises:
      ValueError: if the processes of the job hold different arrays.
    """
    target = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, target)
    # `device_put` would compare host arrays by gathering those of all processes on every device.
    leaves, treedef = jax.tree.flatten(tree)
    local = {i: np.asarray(a) for i, a in enumerate(leaves) if not _is_global(a)}
    check_same("arrays", *(np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in local.values()))
    for i, a in local.items():
        leaves[i] = jax.make_array_from_process_local_data(target, a, a.shape)
    return jax.device_put(jax.tree.unflatten(treedef, leaves), target)


@functools.lru_cache
def placer(mesh: Mesh) -> Callable[[Any], Any]:
    """`put_replicated` on a mesh: one function per mesh, so that equal data settings find what is placed already."""
    return functools.partial(put_replicated, mesh)


def check_same(what: str, *parts) -> None:
    """Refuses to go on if the processes of the job hold different bytes.

    Every process must call it, with a name for what is compared and objects with the buffer protocol.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    own = np.frombuffer(digest.digest(), np.uint32)
    if (multihost_utils.process_allgather(own) != own).any():
        raise ValueError(
            f"The processes of this job have different {what}: give every host the same files and flags."
        )


def agreed(value: int) -> int:
    """The value of process 0, in every process; every process must call it."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _is_global(a: Any) -> bool:
    return isinstance(a, jax.Array) and not a.is_fully_addressable


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Makes one global batch of the parts that the processes hold."""
    sharding = by_episode(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def fitting(mesh: Mesh, batch_size: int, *, serial: bool = False) -> Mesh:
    """The mesh, or as much of it as can share a batch evenly.

    One process leaves the rest of its devices idle, and says so on stderr, once. In a job of several processes every
    device has to take part.

    Args:
      mesh: over all devices.
      batch_size: episodes of a batch.
      serial: whether the learner carries state from one episode of a batch to the next, which only one device can.

    Raises:
      ValueError: in a job of several processes, for a batch that not all devices can share.
    """
    count = 1 if serial else max(n for n in range(1, mesh.size + 1) if batch_size % n == 0)
    if count == mesh.size:
        return mesh
    if serial:
        fault = f"This learner carries state from task to task and cannot be spread over {mesh.size} devices"
        remedy = "use its batched mode (for Reptile: moments='fresh')"
    else:
        fault = f"A batch of {batch_size} episodes cannot be spread over {mesh.size} devices"
        remedy = f"set train.batch to a multiple of {mesh.size}"
    if jax.process_count() > 1:
        raise ValueError(f"{fault}: {remedy}.")
    _note(f"{fault}: {count} of them will train. To use all, {remedy}.")
    return _mesh_of(mesh.devices[:count])


@functools.lru_cache
def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
