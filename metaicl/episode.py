# SPDX-License-Identifier: Apache-2.0
"""The nouns that data and learners share, and the shape legend of the whole project.

Shape legend, used in every docstring and bracket comment:

  B  episodes in a batch        S  support items of an episode    Q  query items of an episode
  N  ways (outputs)             K  shots (support items a class)  D  width of a vector
  T  tokens of a sequence       R  replicas trained side by side
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
Kind = Literal["classify", "regress"]


@flax.struct.dataclass
class Examples:
    """Labelled items, padded to a fixed length.

    Attributes:
      x: `[n, *x_shape]`.
      y: `int32 [n]` slots in `0..N-1` (classify) or `float32 [n, N]` targets (regress).
      mask: `float32 [n]`, 1 for a real item and 0 for padding.
    """

    x: Array
    y: Array
    mask: Array


@flax.struct.dataclass
class Episode:
    """One task: look at `support`, answer `query`. A batch has one more leading axis B on every leaf.

    Nothing else is inside. Data-set names and true class ids travel beside it in `info`, so that no label
    can leak into a learner.
    """

    support: Examples
    query: Examples


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """All that the parameters of a learner may depend on. Never on S, Q or T.

    Attributes:
      kind: `"classify"` or `"regress"`.
      x_shape: shape of one item.
      x_dtype: dtype name of an item as the learner receives it (`"float32"`, `"uint8"`, `"int32"`).
      num_outputs: N ways, or the number of regressed values.
    """

    kind: Kind
    x_shape: tuple[int, ...]
    x_dtype: str
    num_outputs: int

    def __post_init__(self):
        """Refuses what no learner could be built for."""
        if self.kind not in ("classify", "regress"):
            raise ValueError(f"TaskSpec.kind is {self.kind!r}; use 'classify' or 'regress'.")
        if self.num_outputs < 1:
            raise ValueError(f"TaskSpec.num_outputs is {self.num_outputs}; it must be at least 1.")


class Source(NamedTuple):
    """Where episodes come from; see the module `metaicl.data` for the ones that exist.

    Attributes:
      indices: `(i) -> dict of small NumPy arrays`, the host's part of episode i; a pure function of (seed, i). Where
        there is a `width`, `(i, width=None)`: its items are to be `width` wide.
      consts: device-resident arrays (pools, backbone weights, mixture weights). They are *arguments* of the
        jitted step, never closures: no copy is baked into the program and every fold shares one program.
      build: `(consts, batch, key) -> (Episode, info)`, called inside the jitted step with the batch's leading
        axis B. Two sources with equal settings share one `build` object, so that they share one program.
      const_axes: the replica axis of each leaf of `consts`: None where the replicas share it, 0 where they
        do not. None for a source without replicas.
      width: for items whose widths differ (sentences): `(numbers of all episodes of a batch) -> the width of its
        items`, one of a few, each of which is compiled once. A pure function, so that all hosts agree.
    """

    indices: Callable[..., dict[str, np.ndarray]]
    consts: PyTree
    build: Callable[[PyTree, PyTree, Array], tuple[Episode, PyTree]]
    const_axes: PyTree | None = None
    width: Callable[[Sequence[int]], int] | None = None


class Stage(NamedTuple):
    """One stretch of training. Ordinary training has one stage, sequential training has many."""

    name: str
    source: Source
    steps: int
    reset_optimizer: bool = False


def host_batch(
    source: Source, episodes: Sequence[int], own: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The host's part of a batch of episodes, stacked.

    Args:
      source: where they come from.
      episodes: numbers of all episodes of the batch, which decide its width.
      own: numbers of those that this process serves; None for all.
    """
    width = () if source.width is None else (source.width(episodes),)
    rows = [source.indices(i, *width) for i in (episodes if own is None else own)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def replicate(sources: list[Source]) -> Source:
    """Stacks the sources of R replicas into one, for `vmap` over the whole training step.

    Host batches get the replica axis behind the episode axis (`[B, R, ...]`, so that B stays the axis that a
    mesh shards). A leaf of `consts` that is the same object in every source is shared; the others are stacked.

    Raises:
      ValueError: if the sources do not share one `build`.
    """
    if any(s.build is not sources[0].build for s in sources):
        raise ValueError(
            "Replicas must share one program: their sources differ in more than seeds, indices and consts. "
            "Run such variants as separate runs."
        )
    leaves = [jax.tree.leaves(s.consts) for s in sources]
    treedef = jax.tree.structure(sources[0].consts)
    shared = [all(x is column[0] for x in column) for column in zip(*leaves, strict=True)]
    consts = [
        c[0] if same else np.stack(c) for c, same in zip(zip(*leaves, strict=True), shared, strict=True)
    ]
    axes = [None if same else 0 for same in shared]

    widths = [s.width for s in sources if s.width is not None]

    def indices(i: int, *width: int) -> dict[str, np.ndarray]:
        parts = [s.indices(i, *width) for s in sources]
        return {name: np.stack([p[name] for p in parts]) for name in parts[0]}

    return Source(
        indices,
        jax.tree.unflatten(treedef, consts),
        sources[0].build,
        jax.tree.unflatten(treedef, axes),
        (lambda episodes: max(width(episodes) for width in widths)) if widths else None,
    )


def limit_shots(support: Examples, shots: Array) -> Examples:
    """Keeps the first `shots` real items of every class (of everything, for regression) by masking the rest.

    `support.x` is `[S, ...]` without a batch axis; `shots` may be traced, so a whole curve from 0 to K uses
    one compiled program.
    """
    if jnp.issubdtype(support.y.dtype, jnp.integer):
        same = support.y[:, None] == support.y[None, :]  # [S, S]
    else:
        same = jnp.ones((support.mask.shape[0],) * 2, bool)
    before = jnp.tril(same, -1) @ support.mask  # [S] real items of the same class in front
    return dataclasses.replace(support, mask=support.mask * (before < shots))
