# SPDX-License-Identifier: Apache-2.0
"""The distance of two data sets and the matrix of many, with what the solver has to say about them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from metaicl.data.pool import Pool
from metaicl.distances.labels import LabelDistances, label_distances
from metaicl.distances.matrix import matrix_of_draw, subsample
from metaicl.distances.settings import Settings
from metaicl.files import array_digest, load_arrays, save_arrays

CODE_VERSION = 1  # bump when this room would compute other distances from the same pools and settings
DEFAULT = Settings()

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`."""


class NotConverged(UserWarning):
    """Some distances are of a transport problem whose solver stopped before it had converged."""


class Distances(NamedTuple):
    """Between P data sets, over S draws of items.

    Attributes:
      names, domains: of the sets, in the order of the matrix.
      values: `[P, P]`, means over the draws; symmetric, 0 on the diagonal if debiased.
      ci95: `[P, P]`, half of the 95 % interval over the draws (Student's t); NaN for a single draw.
      each: `[S, P, P]`, every draw.
      errors: `[S, P, P]`, deviation of the marginals; on the diagonal, of a set's transport to itself.
      iterations: `[S, P, P]`, of the solver.
      converged: `[S, P, P]`.
      epsilons: `[S]`, entropic regularisation in units of the cost.
      label_error, label_failed: largest deviation, and number of class pairs not converged, for `inner="exact"`.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    values: np.ndarray
    ci95: np.ndarray
    each: np.ndarray
    errors: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    epsilons: np.ndarray
    label_error: float
    label_failed: int


class Distance(NamedTuple):
    """Between two data sets, over S draws; the parts are those of `Distances`.

    Attributes:
      value: the mean over the draws.
      ci95: half of the 95 % interval over the draws; NaN for a single draw.
      each: `[S]`.
      error: largest deviation from the marginals, of the three problems of all draws and between classes.
      iterations: most of the three problems.
      converged: whether all did.
    """

    value: float
    ci95: float
    each: np.ndarray
    error: float
    iterations: int
    converged: bool


def otdd(pool_a: Pool, pool_b: Pool, settings: Settings = DEFAULT) -> Distance:
    """The distance of two labelled sets of feature vectors; see `pairwise`.

    With relative regularisation it is that of this pair alone, so it differs a little from the pair's entry in the
    matrix of more sets, which share one.
    """
    both = pairwise([pool_a, pool_b], settings)
    return Distance(
        value=float(both.values[0, 1]),
        ci95=float(both.ci95[0, 1]),
        each=both.each[:, 0, 1],
        error=max(float(both.errors.max()), both.label_error),
        iterations=int(both.iterations.max()),
        converged=bool(both.converged.all()) and not both.label_failed,
    )


def pairwise(
    pools: Sequence[Pool],
    settings: Settings = DEFAULT,
    *,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Distances:
    """The distances of all pairs of labelled sets of feature vectors.

    Args:
      pools: with `x` float `[n, D]`, all of one width; every class with two items or more.
      settings: definition and solver.
      cache_dir: folder of finished matrices, made if need be; None keeps none. Their key is the content of the pools
        (features, labels) and the settings.
      progress: called with what is being done, how much is done and how much there is.

    Returns:
      See `Distances`. Where a solver did not converge, that is said in it and by the warning `NotConverged`.

    Raises:
      ValueError: for pools that do not fit, naming the pool, and the row or class in it.
    """
    _check(pools)
    names, domains = tuple(p.name for p in pools), tuple(p.domain for p in pools)
    path = None if cache_dir is None else pathlib.Path(cache_dir) / f"otdd-{_key(pools, settings)[:32]}.npz"
    arrays = load_arrays(path) if path is not None else None
    if arrays is None:
        arrays = _computed(pools, settings, progress or (lambda what, done, total: None))
        if path is not None:
            save_arrays(path, arrays)
    each = arrays["each"]
    count = len(each)
    spread = each.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(each.shape[1:], np.nan)
    found = Distances(
        names,
        domains,
        values=each.mean(axis=0),
        ci95=spread * stdtrit(max(count - 1, 1), 0.975),
        label_error=float(arrays["label_error"]),
        label_failed=int(arrays["label_failed"]),
        **{name: arrays[name] for name in ("each", "errors", "iterations", "converged", "epsilons")},
    )
    _say_if_not_converged(found, settings)
    return found


def _check(pools: Sequence[Pool]) -> None:
    if len(pools) < 2:
        raise ValueError(f"{len(pools)} pools have no distance; give two or more.")
    for pool in pools:
        x = pool.x
        shape = tuple(np.shape(x))
        if len(shape) != 2 or not len(pool) or not np.issubdtype(getattr(x, "dtype", object), np.floating):
            raise ValueError(
                f"{pool.name} holds {getattr(x, 'dtype', type(x).__name__)} {shape}; a distance takes float features "
                "[n, D] with n > 0. Embed images first (metaicl.features.cache.embed_pools)."
            )
        if shape[1] != pools[0].x.shape[1]:
            raise ValueError(
                f"{pool.name} has {shape[1]} features and {pools[0].name} has {pools[0].x.shape[1]}; embed all pools "
                "with one backbone."
            )
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"{pool.name}: row {row} has features that are not finite. Leave it out, or embed it anew."
            )
        if np.any(pool.counts == 1):
            name = pool.classes[int(np.argmax(pool.counts == 1))]
            raise ValueError(
                f"{pool.name}: class {name!r} has one item, which has no covariance. Leave it out "
                "(metaicl.data.splits.drop_small_classes)."
            )


def _key(pools: Sequence[Pool], settings: Settings) -> str:
    """SHA-256 (hex) of all that the distances depend on."""
    parts = [CODE_VERSION, str(jnp.result_type(float)), dataclasses.asdict(settings)]
    parts += [array_digest({"x": np.asarray(p.x), "labels": p.labels}) for p in pools]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _computed(pools: Sequence[Pool], settings: Settings, progress: Progress) -> dict[str, np.ndarray]:
    """The arrays of `Distances`, by name."""
    classes: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    for pool in pools:
        present = np.flatnonzero(pool.counts)
        ids.append(len(classes) + np.searchsorted(present, pool.labels))
        classes += [np.asarray(pool.x[pool.labels == c]) for c in present]
    labels = LabelDistances(np.zeros((len(classes), len(classes))))
    if settings.label_weight:
        labels = label_distances(classes, settings, functools.partial(progress, "classes"))
    columns: dict[str, list] = {
        name: [] for name in ("each", "errors", "iterations", "converged", "epsilons")
    }
    for number in range(settings.seeds):
        rows = [subsample(pool, settings.samples, settings.seed + number) for pool in pools]
        sets = [(np.asarray(p.x)[r], k[r]) for p, k, r in zip(pools, ids, rows, strict=True)]
        what = "data sets" if settings.seeds == 1 else f"data sets, draw {number + 1} of {settings.seeds}"
        drawn = matrix_of_draw(sets, labels.cost, settings, functools.partial(progress, what))
        for name, values in drawn.items():
            columns[name].append(values)
        if all(len(r) == len(p) for r, p in zip(rows, pools, strict=True)):  # other draws would be the same
            columns = {name: values * settings.seeds for name, values in columns.items()}
            break
    whole = {"label_error": np.array(labels.error), "label_failed": np.array(labels.failed)}
    return {name: np.array(values) for name, values in columns.items()} | whole


def _say_if_not_converged(found: Distances, settings: Settings) -> None:
    told = []
    if not found.converged.all():
        worst = np.unravel_index(np.argmax(np.where(found.converged, -1.0, found.errors)), found.errors.shape)
        failed = sum(int(np.sum(np.triu(~matrix))) for matrix in found.converged)
        told.append(
            (
                f"{failed} between sets",
                f"{found.names[worst[1]]} to {found.names[worst[2]]}",
                found.errors[worst],
            )
        )
    if found.label_failed:
        told.append((f"{found.label_failed} between classes", "one", found.label_error))
    for which, worst_pair, error in told:
        warnings.warn(
            f"Transport problems that did not converge in {settings.max_iterations} iterations: {which}. The worst, "
            f"{worst_pair}, has marginals off by {error:.1e} of 1 (threshold {settings.threshold:g}). Raise "
            "max_iterations, the regularisation or the threshold.",
            NotConverged,
            stacklevel=3,
        )
