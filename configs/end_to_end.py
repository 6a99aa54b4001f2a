# SPDX-License-Identifier: Apache-2.0
"""Should the encoder be trained with the in-context learner, or stay frozen?

    python -m metaicl.main --config=configs/end_to_end.py                        the embedded album, no download
    python -m metaicl.main --config=configs/end_to_end.py:quick
    python -m metaicl.main --config=configs/end_to_end.py:album=PATH,backbone=squeezenet,weights=PATH
    python -m metaicl.main --config=configs/end_to_end.py:album=PATH,backbone=resnet50,weights=PATH,image_size=224

Leaves one domain out as `configs/loo.py` does, whose arguments these are. `frozen` computes the features of a backbone
once, `end to end` trains its weights with everything else, from the same start, on the same images for as many steps.
Every step of it runs the encoder forwards and backwards: hence images of 64 pixels, 2 queries a class, and few steps.

The study (arXiv 2507.05019) has this ablation; its rates and figures are not at hand.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import load_config_file

loo = load_config_file("loo", beside=__file__)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument)
    encoder = defaults.trained_backbone(arg.backbone, arg.weights, normalize="sqrt_unit")
    config = loo.get_config(loo.with_one_learner(argument, arg, domains=2))
    config.data.image_size = arg.image_size or 64
    config.task.update(queries=2)
    config.learners["end_to_end"] = config.learners[config.learner].to_dict() | encoder
    steps = 40 if arg.quick else 20_000 if arg.full else 150
    own = dict(steps=steps, batch=2, learning_rate=3e-5, warmup=steps // 10)
    for name in (config.learner, "end_to_end"):
        config.learners[name].train = own
    config.train.validate_every = max(steps // 3, 1)
    config.evaluate.shot_curve = ()
    trained = {"learner": "end_to_end", "data.backbone": "none", "data.weights": ""}
    defaults.varied(config, {"frozen": {}, "end to end": trained})
    return config
