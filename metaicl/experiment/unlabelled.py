# SPDX-License-Identifier: Apache-2.0
"""Training on pseudo-tasks: what `task.pseudo` of a config asks for, in place of labelled episodes to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metaicl.configuration import ConfigError
from metaicl.data.pool import Pool
from metaicl.data.pseudo_tasks import pseudo_tasks
from metaicl.data.sampler import Store
from metaicl.episode import Source
from metaicl.models.squeezenet import Backbone


def wanted(task) -> bool:
    """Whether training is on pseudo-tasks, whose images have no labels."""
    return bool(task.get("pseudo", {}).get("draw_from", ""))


def check(data, task) -> None:
    """Refuses what pseudo-tasks cannot be, before an album is read.

    Raises:
      ConfigError: for other data than an album, a supervised split, and settings that need labels or vary.
    """
    if not wanted(task):
        return
    if data.kind != "album" or data.split == "supervised":
        split = f", data.split={data.split!r}" if "split" in data else ""
        raise ConfigError(
            f"task.pseudo is of episodes of an album, and data.kind is {data.kind!r}{split}: set "
            "task.pseudo.draw_from to ''."
        )
    if not (isinstance(task.ways, int) and isinstance(task.shots, int)):
        raise ConfigError(
            f"task.ways is {task.ways} and task.shots {task.shots}: pseudo-tasks have one number of each."
        )
    keep = data.get("keep", {"classes": 1.0, "items_of_class": 0})
    if data.get("merge", False) or keep["classes"] != 1 or keep["items_of_class"]:
        raise ConfigError(
            "data.merge and data.keep are of the classes of training, and pseudo-tasks have none. Leave them as they "
            "are (task.pseudo.draw_from='pool' takes all images as one)."
        )
    if task.label_noise:
        raise ConfigError(
            f"task.label_noise is {task.label_noise}, and pseudo-tasks have no labels to be wrong: set it to 0."
        )


def training(
    store: Store, pools: Sequence[Pool], task, frozen: tuple[Backbone, Any] | None
) -> Callable[..., Source]:
    """What a problem trains on: `(seed, names of data sets) -> Source`, of these alone where any are named.

    Args:
      store: of the images, whether or not there are features of them.
      pools: the parts of the data sets to train on; images or features, their rows say which.
      task: of the config.
      frozen: a backbone and its parameters on the devices, or None.

    Raises:
      ConfigError: for settings out of range, and data sets of too few images.
    """
    p = task.pseudo

    def train(seed: int, datasets: Sequence[str] = ()) -> Source:
        chosen = [pool for pool in pools if not datasets or pool.name in datasets]
        try:
            return pseudo_tasks(
                store,
                chosen,
                seed=seed,
                ways=task.ways,
                shots=task.shots,
                queries=task.queries,
                weighting=task.weighting,
                draw_from=p.draw_from,
                mode=p.mode,
                mixing=tuple(p.mixing),
                encode=frozen[0].apply if frozen else None,
                params=frozen[1] if frozen else None,
            )
        except ValueError as error:
            raise ConfigError(f"task.pseudo: {error}") from error

    train(0)  # refuses what does not fit now, not after the first evaluation
    return train
