# SPDX-License-Identifier: Apache-2.0
"""A tiny experiment on a tiny album, and the command line in this process."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import warnings
from typing import Any
from unittest import mock

import cv2
import grain  # noqa: F401 (defines flags, which flagsaver would forget if it was imported later)
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

from metaicl import main, sharding
from metaicl.configuration import overridden
from metaicl.data import splits
from metaicl.data.pool import Pool
from metaicl.experiment import problems

ROOT = pathlib.Path(__file__).parents[1]
LOO = ROOT / "configs" / "loo.py"
SEQUENTIAL = ROOT / "configs" / "sequential.py"

# Three domains: tissues are cells, flowers are plants, gears are machines.
ALBUM = {
    "data.embedded.classes": 5,
    "data.embedded.images_per_class": 6,
    "data.datasets": ("tissues", "flowers", "gears"),
    "data.image_size": 16,
}
TASK = {"task.ways": 3, "task.shots": 2, "task.queries": 2, "task.test_queries": 3}
TRAIN = {
    "baselines": (),
    "train.steps": 4,
    "train.warmup": 1,
    "train.log_every": 3,
    "train.checkpoint_every": 4,
    "train.validate_every": 4,
    "evaluate.batch": 4,
    "evaluate.episodes": 6,
    "evaluate.validation_episodes": 4,
    "evaluate.shot_curve": (),
}
TOKENS = {"image_width": 16, "layers": 1, "heads": 2, "mlp": 16}
LEARNERS = {f"learners.in_context.{key}": value for key, value in TOKENS.items()} | {
    f"learners.{name}.encoder_settings.filters": (4, 4)
    for name in ("in_context", "prototypes", "maml", "fomaml", "reptile")
}
LEARNERS |= {"learners.reptile.inner_batch": 4}
TINY = ALBUM | TASK | TRAIN | LEARNERS
SEQUENCE = {
    **ALBUM,
    "data.embedded.images_per_class": 20,
    "data.datasets": ("tissues", "flowers", "leaves"),
    **TASK,
    "task.test_queries": 2,
    "baselines": (),
    "train.steps": 12,
    "train.log_every": 2,
    "evaluate.batch": 4,
    "evaluate.episodes": 6,
    "evaluate.validation_episodes": 4,
    "sequence.episodes": 5,
    "learners.prototypes.encoder_settings.filters": (4, 4),
}


def load_config(path: pathlib.Path, argument: str | None = None) -> ConfigDict:
    """What a file of `configs/` gives for an argument."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def tiny_config(argument: str, cache: pathlib.Path, overrides: dict[str, Any] | None = None) -> ConfigDict:
    """`configs/loo.py` in a size for tests, on pixels; the embedded album is kept in `cache`."""
    config = load_config(LOO, f"backbone=none,{argument},cache={cache}")
    return overridden(config, TINY | (overrides or {}))


def tiny_sequence(argument: str, cache: pathlib.Path, overrides: dict[str, Any] | None = None) -> ConfigDict:
    """`configs/sequential.py` in a size for tests: prototypes, three data sets of two domains."""
    config = load_config(SEQUENTIAL, f"{argument},learner=prototypes,cache={cache}")
    return overridden(config, SEQUENCE | (overrides or {}))


def flags_of(overrides: dict[str, Any]) -> list[str]:
    """Overrides as flags of the command line."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def command_line(*arguments: str, devices: int = 1) -> int:
    """Runs `metaicl.main` in this process, on some of its devices; returns the exit status."""
    argv = ["metaicl", *map(str, arguments)]
    mesh = sharding.make_mesh(jax.devices()[:devices])
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sharding, "make_mesh", lambda: mesh),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "the load_module.. method", DeprecationWarning)  # ml_collections'
        return main.main(argv)


def mesh():
    """Of one device."""
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> pathlib.Path:
    """Where the tests of a session keep the embedded album that they share."""
    return tmp_path_factory.getbasetemp() / "album-cache"


@pytest.fixture
def no_album(monkeypatch) -> None:
    """Fails a test that reads or draws an album."""
    for reader in ("_embedded_pools", "_read_pools"):
        monkeypatch.setattr(problems, reader, lambda data: pytest.fail("an album is read"))


def write_album(
    folder: pathlib.Path,
    names: tuple[str, ...] = ("BRD", "FLW", "APL"),
    classes: int = 5,
    images: int = 6,
    side: int = 16,
    seed: int = 0,
) -> pathlib.Path:
    """An album in Meta-Album's layout: data sets of known domains, a colour for each class, and noise."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name / "images").mkdir(parents=True)
        lines = ["FILE_NAME,CATEGORY,SUPER_CATEGORY"]
        for c in range(classes):
            colour = rng.integers(0, 256, 3)
            for i in range(images):
                noise = rng.integers(0, 256, (side, side, 3))
                file = f"{c}_{i}.png"
                cv2.imwrite(str(folder / name / "images" / file), ((colour + noise) // 2).astype(np.uint8))
                lines.append(f"{file},{name} {c},")
        (folder / name / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def small_split(data, progress) -> splits.Split:
    """Stands for what a reader of published splits returns: 25 classes of 20 images in every part."""
    del progress
    shape = (25 * 20, data.image_size, data.image_size, 1 if data.reader == "omniglot" else 3)
    names, labels = tuple(f"c{i:02}" for i in range(25)), np.repeat(np.arange(25, dtype=np.int32), 20)
    parts = [
        Pool(
            data.reader, "all", names, labels, np.zeros(shape, np.uint8), np.full(500, b"0", "S64"), None, at
        )
        for at in np.arange(1500).reshape(3, 500)
    ]
    return splits.Split(*([part] for part in parts))
