# SPDX-License-Identifier: Apache-2.0
"""The distances between the data sets of an album: read, embed, measure, write and draw."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from metaicl import __version__, defaults, distances
from metaicl.configuration import ConfigError
from metaicl.data.pool import Pool
from metaicl.distances.settings import Settings
from metaicl.experiment.problems import album_names, album_pools
from metaicl.experiment.progress import ProgressBar, cache_folder
from metaicl.files import writable_folder, write_text
from metaicl.report.distances import write_distance_report
from metaicl.report.tables import rounded


def measure_distances(
    settings: Settings,
    workdir: str | os.PathLike,
    *,
    album: str = "embedded",
    datasets: Sequence[str] = (),
    backbone: str = "none",
    weights: str = "",
    image_size: int = 0,
    cache: str = "",
    command: Sequence[str] = (),
) -> str:
    """Measures all pairs of an album's data sets; writes `results.json`, `distances.csv` and `figures/*.png`.

    Args:
      settings: of the distance.
      workdir: folder of the outputs.
      album: `embedded`, or the path of an album's folder.
      datasets: names of data sets to use; all if empty.
      backbone: one of `backbones.BACKBONES`, or `none` for the pixels themselves, from 0 to 1.
      weights: of the backbone.
      image_size: side in pixels; by default the backbone's own, and 32 without one.
      cache: folder of cached features and matrices; see `cache_folder`.
      command: the command line, kept beside the results.

    Returns:
      A table of nearest and farthest sets.

    Raises:
      ConfigError, ValueError, OSError: for a backbone, an album, a workdir or settings that do not fit.
    """
    started = time.time()
    data = ConfigDict(
        defaults.album(
            album,
            datasets=tuple(datasets),
            image_size=image_size or defaults.image_size(backbone),
            backbone=backbone,
            weights=weights,
            cache=cache,
        )
    )
    album_names(data)  # refuses an album that is not there, before a folder is made for it
    root = writable_folder(workdir)
    pools = album_pools(data)
    found = all_pairs(pools, settings, cache_folder(cache) / "distances")
    rows = _rows(found)
    about = dict(experiment="distances", version=__version__, command=shlex.join(command), backbone=backbone)
    head = about | _of_all_pairs(found, settings)
    write_text(root / "results.json", _as_json(head, pools, rows))
    write_text(root / "distances.csv", _as_csv(rows))
    table = write_distance_report(root)
    print(
        f"{len(rows)} pairs in {time.time() - started:.0f} s. Results: {root / 'results.json'}",
        file=sys.stderr,
    )
    return table


def all_pairs(pools: Sequence[Pool], settings: Settings, cache: pathlib.Path) -> distances.Distances:
    """The distances between data sets of images or features; finished matrices are kept in `cache`.

    Solvers that did not converge are named on the terminal.
    """
    with ProgressBar("blocks") as bar, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = distances.pairwise(
            [vectors(pool) for pool in pools],
            settings,
            cache_dir=cache,
            progress=lambda what, done, total: bar(f"distances of {what}", done, total),
        )
    for warning in told:
        if issubclass(warning.category, UserWarning):  # ours; those of libraries are for developers
            print(f"warning: {warning.message}", file=sys.stderr)
    return found


def distance_settings(given: Mapping[str, Any], where: str) -> Settings:
    """The settings that a config gives; a ConfigError names `where` they stand."""
    try:
        return Settings(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def vectors(pool: Pool) -> Pool:
    """Images become vectors of their pixels, from 0 to 1; features stay."""
    if pool.x.dtype != np.uint8:
        return pool
    return dataclasses.replace(pool, x=np.asarray(pool.x).reshape(len(pool), -1).astype(np.float32) / 255)


def _of_all_pairs(found: distances.Distances, settings: distances.Settings) -> dict:
    """What `results.json` says of the whole matrix."""
    return dict(
        settings=dataclasses.asdict(settings),
        epsilons=found.epsilons.tolist(),
        converged=bool(found.converged.all()) and not found.label_failed,
        label_error=rounded(found.label_error, 3),
    )


def _rows(found: distances.Distances) -> list[dict]:
    """One row for every pair of different sets."""
    rows = []
    for i, j in zip(*np.triu_indices(len(found.names), 1), strict=True):
        rows.append(
            {
                "a": found.names[i],
                "b": found.names[j],
                "domain_a": found.domains[i],
                "domain_b": found.domains[j],
                "value": rounded(found.values[i, j], 8),
                "ci95": rounded(found.ci95[i, j], 4),
                "converged": bool(found.converged[:, i, j].all()),
                "error": rounded(found.errors[:, i, j].max(), 3),
                "iterations": int(found.iterations[:, i, j].max()),
            }
        )
    return rows


def _as_json(head: dict, pools: Sequence[Pool], rows: Sequence[dict]) -> str:
    """`results.json`, one set or pair a line so that a change shows as one line."""
    sets = [{"name": p.name, "domain": p.domain, "classes": len(p.classes), "items": len(p)} for p in pools]
    lines = lambda parts: "[\n  " + ",\n  ".join(json.dumps(part, allow_nan=False) for part in parts) + "\n]"
    return f'{json.dumps(head)[:-1]}, "sets": {lines(sets)}, "rows": {lines(rows)}}}\n'


def _as_csv(rows: Sequence[dict]) -> str:
    quoted = lambda value: "" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
    return "\n".join([",".join(rows[0]), *(",".join(map(quoted, row.values())) for row in rows)]) + "\n"
