# SPDX-License-Identifier: Apache-2.0
"""Small training runs without a config, shared by the tests of the loop."""

from __future__ import annotations

import jax
import numpy as np
import optax
from synthetic import VECTORS, episode

from metaicl import sharding
from metaicl.checkpoint import Checkpoints
from metaicl.data.pipeline import open_batches
from metaicl.episode import Episode, Examples, Source, Stage
from metaicl.learners import make_learner
from metaicl.train import Hooks, Schedule, listed, train
from metaicl.writer import Writer

BATCH = 8
SETTINGS = {
    "in_context": dict(encoder="identity", image_width=8, layers=1, heads=2, mlp=16),
    "prototypes": dict(encoder="mlp", encoder_settings=dict(hidden=(8,))),
    "maml": dict(encoder="mlp", encoder_settings=dict(hidden=(8,)), inner_steps=2),
}
LEARNERS = {kind: make_learner(kind, VECTORS, **settings) for kind, settings in SETTINGS.items()}
COUNTED = []  # one entry per compilation of `counting_build`


def counting_build(consts, batch, key):
    """Episodes straight from the host batch."""
    del key
    COUNTED.append(batch)
    parts = (Examples(*(batch[f"{part}_{name}"] for name in "xym")) for part in ("support", "query"))
    support, query = parts
    return Episode(support.replace(x=consts["scale"] * support.x), query), {}


def source_of(seed: int, scale: float = 1.0, bad_from: int | None = None) -> Source:
    """Random episodes; from batch `bad_from` on they are not numbers."""

    def indices(i):
        one = episode(np.random.default_rng([seed, i]), VECTORS)
        if bad_from is not None and i >= bad_from * BATCH:
            one.support.x[:] = np.nan
        parts = {"support": one.support, "query": one.query}
        return {
            f"{part}_{name}": value
            for part, of in parts.items()
            for name, value in zip("xym", (of.x, of.y, of.mask), strict=True)
        }

    return Source(indices, {"scale": np.float32(scale)}, counting_build)


def fit(
    learner,
    stages,
    *,
    batch=BATCH,
    devices=None,
    seeds=(0,),
    replicas=None,
    optimizer=None,
    folder=None,
    **rest,
):
    """Trains without a bar; `folder` is for the log and the checkpoints."""
    schedule = Schedule(batch, **rest.pop("schedule", {}))
    return train(
        learner,
        listed(stages) if isinstance(stages, list) else stages,
        optimizer or optax.sgd(0.1),
        seeds=seeds,
        replicas=replicas,
        schedule=schedule,
        hooks=Hooks(lambda source, batch: open_batches(source, batch, threads=0), **rest),
        mesh=sharding.make_mesh(devices or jax.devices()[:1]),
        writer=Writer(folder, total=None, title="", quiet=True),
        checkpoints=Checkpoints(folder / "checkpoints") if folder else None,
    )


def one_stage(steps: int, source: Source | None = None, **settings) -> list[Stage]:
    return [Stage("main", source or source_of(1), steps, **settings)]
