# SPDX-License-Identifier: Apache-2.0
"""How many classes, and how many images of each, should the training data sets have?

    python -m metaicl.main --config=configs/album_sizes.py                       the embedded album, no download
    python -m metaicl.main --config=configs/album_sizes.py:quick
    python -m metaicl.main --config=configs/album_sizes.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3

Leaves one domain out as `configs/loo.py` does, whose arguments these are, and trains on 5, 10, 20 or 40 images of a
quarter, half or all of the classes (but never fewer than a task has). What is kept of less is part of what is kept of
more. All are tested on the same tasks; with 5 images of a class training is 2-shot. Along a diagonal (20 images of all
classes, 40 of half) the number of images is about the same: what is best at a fixed budget.

Meta-Album's own sizes, Micro (20 classes), Mini (all, 40 images of each) and Extended (all images), are three albums
(`python -m metaicl.prepare meta_album --size=...`): give one after another as `album=`. The study (arXiv 2507.05019)
finds a large gain from Micro to Mini and a small one from Mini to Extended.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import load_config_file

loo = load_config_file("loo", beside=__file__)

CLASSES = {"quarter": 0.25, "half": 0.5, "all": 1.0}
IMAGES = (5, 10, 20, 40)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument)
    config = loo.get_config(loo.with_one_learner(argument, arg, domains=1))
    entry = config.learners[config.learner].to_dict()
    variants = {}
    for name, share in list(CLASSES.items())[:: 2 if arg.quick else 1]:
        config.learners[f"{name}_classes"] = entry  # a curve has the name of its learner
        for images in IMAGES[1::2] if arg.quick else IMAGES:
            variants[f"{images} images, {name} classes"] = {
                "learner": f"{name}_classes",
                "data.keep.classes": share,
                "data.keep.items_of_class": images,
                **shots_and_queries(images),
                "evaluate.point.setting": "images of a class",
                "evaluate.point.value": float(images),
            }
    config.task.test_shots = 5
    defaults.varied(config, variants)
    return config


def shots_and_queries(images: int) -> dict:
    """Five of each, or what so many images of a class allow."""
    shots = min(5, images // 2)
    return {"task.shots": shots, "task.queries": min(5, images - shots)}
