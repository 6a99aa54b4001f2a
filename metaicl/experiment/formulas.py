# SPDX-License-Identifier: Apache-2.0
"""The problem of pictures of formulas: one classifier over all of them, tested on images it never saw."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from metaicl.configuration import ConfigError, as_json
from metaicl.episode import Source, TaskSpec
from metaicl.experiment.parts import Problem, TestSet
from metaicl.experiment.progress import ProgressBar, cache_folder


def formulas_problem(data, task, evaluation, place: Callable) -> Problem:
    """Batches of `task.queries` images with an empty support; the last `data.held_out` drawings of a class are tested.

    Nothing validates: there would be no drawings left that neither training nor the test has.

    Raises:
      ConfigError, ValueError: for numbers of images that do not fit, or an unknown setting of the painting.
    """
    given = as_json(data)
    if not 0 < data.held_out < data.images:
        raise ConfigError(
            f"data.held_out is {data.held_out} of {data.images} images of a class: leave some to train on, some out."
        )
    painting = _painting(given["painting"])
    consts = _stored(json.dumps({k: v for k, v in given.items() if k not in _VIEW}), place)
    kept = data.images - data.held_out

    def source(seed: int, of_class: tuple[int, int], items: int) -> Source:
        from metaicl.data.formulas.source import painted

        numbers = dict(classes=data.classes, images=data.images, of_class=of_class)
        return painted(consts, **numbers, seed=seed, items=items, side=data.image_size, painting=painting)

    drawn = source(evaluation.seed, (kept, data.images), task.test_queries)
    test = TestSet("formulas", "formulas", data.classes, "images", data.classes, 0, task.test_queries, drawn)
    spec = TaskSpec("classify", (data.image_size, data.image_size, 3), "uint8", data.classes)
    return Problem(spec, lambda seed: source(seed, (0, kept), task.queries), [], [test])


_VIEW = ("kind", "held_out", "image_size", "painting")  # what does not change the drawings


def _painting(settings: dict):
    from metaicl.data.formulas.painting import Painting

    try:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return Painting(**given)
    except TypeError as error:
        raise ConfigError(f"data.painting: {error}; there are {', '.join(Painting._fields)}.") from None


@functools.lru_cache(maxsize=2)
def _stored(settings: str, place: Callable) -> dict:
    """The drawings on the devices, once per process."""
    from metaicl.data.formulas import draw_formulas
    from metaicl.data.formulas.source import make_consts

    given = json.loads(settings)
    with ProgressBar("formulas") as bar:
        drawings = draw_formulas(
            seed=given["formulas_seed"],
            classes=given["classes"],
            images=given["images"],
            side=given["side"],
            cache_dir=cache_folder(given["cache"]),
            progress=lambda done, total: bar("drawing formulas", done, total),
        )
    return place(make_consts(drawings))
