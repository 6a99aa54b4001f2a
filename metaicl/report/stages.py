# SPDX-License-Identifier: Apache-2.0
"""What a run that trained in stages left behind: `stages.json` and one file of right answers for each stage."""

import json
import pathlib
from typing import NamedTuple

import numpy as np

from metaicl.files import load_arrays


class Stages(NamedTuple):
    """T stages, P data sets, R replicas, E episodes of every data set, the same after every stage.

    Attributes:
      learner, order, replay, budget: what was trained, in which order, whether it repeated earlier data sets, and how
        the steps were shared out.
      datasets, domains: of the data sets.
      units: `[R]` names of the seeds.
      episodes: seed and first index of the episodes.
      accuracy: `[T + 1, P, R, E]`, row 0 of the untrained learner.
      adds: `bool [T + 1, P]`, the data sets that each stage added.
    """

    learner: str
    order: str
    replay: bool
    budget: str
    datasets: list[str]
    domains: list[str]
    units: list[str]
    episodes: tuple[int, int]
    accuracy: np.ndarray
    adds: np.ndarray


def load_stages(folder: pathlib.Path) -> Stages | None:
    """The stages of a finished run; None for one that trained otherwise, or has not finished.

    Raises:
      ValueError: naming a row that is missing or damaged.
    """
    path = folder / "stages.json"
    if not path.exists():
        return None
    about = json.loads(path.read_text())
    rows = []
    for number in range(about["stages"] + 1):
        file = folder / "stages" / f"{number:03}.npz"
        row = load_arrays(file)
        if row is None:
            raise ValueError(f"{file} is missing or damaged, and {path} says it was written: run again.")
        rows.append(row)
    correct = np.stack([row["correct"] for row in rows])  # [T + 1, R, P, E]
    accuracy = correct / np.array(about["queries"], np.float64)[None, None, :, None]
    named = zip(about["replicas"], about["seeds"], strict=True)
    return Stages(
        about["learner"],
        about["order"],
        about["replay"],
        about["budget"],
        about["datasets"],
        about["domains"],
        [replica or f"seed={seed}" for replica, seed in named],
        (about["episodes"]["seed"], about["episodes"]["start"]),
        accuracy.transpose(0, 2, 1, 3),
        np.stack([row["adds"] for row in rows]),
    )
