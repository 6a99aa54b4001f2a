# SPDX-License-Identifier: Apache-2.0
"""A backbone that needs no images: a small residual network learns to tell formulas apart.

Each class is a formula: an iterated function system (half of them), closed curves, waves or scattered shapes, see
`metaicl/data/formulas`. It is drawn 16 times with small changes; every step paints the drawings anew with palettes,
backgrounds, turns, parts, blur and noise. The network has four stages of group-normalised residual blocks (1.2 million
parameters); it and a linear head are trained by cross-entropy through the one train loop, by the learner `supervised`.
The last two drawings of each class are held out for the score.

    python -m metaicl.main --config=configs/formulas.py                  200 classes, 7,000 steps: as the package's
    python -m metaicl.main --config=configs/formulas.py:quick            20 classes, 300 steps
    python -m metaicl.main --config=configs/formulas.py:full             a thousand classes, 20,000 steps

The weights of the run (`main/weights.safetensors`) are a backbone for every config of an album:
`backbone=formulas,weights=runs/formulas/main/weights.safetensors`. Without `weights` those of the package are taken;
`metaicl/models/pretrained/formulas.json` says how these were made, `metaicl.models.small_resnet.export` made them.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(cache="", classes=0, image_size=32, steps=0), flags=("quick", "full"))
    config = ConfigDict()
    config.seed = 0
    classes = arg.classes or (20 if arg.quick else 1000 if arg.full else 200)
    config.data = defaults.formulas(cache=arg.cache, classes=classes, image_size=arg.image_size)
    config.task = dict(queries=64, test_queries=100)
    config.learners = {
        "network": dict(
            kind="supervised", encoder="small_resnet", encoder_settings=dict(pooled=2, normalize="standard")
        )
    }
    config.learner = "network"
    config.baselines = ()
    steps = arg.steps or (300 if arg.quick else 20_000 if arg.full else 7000)
    config.train = defaults.training(
        steps=steps,
        learning_rate=1e-3,
        warmup=max(steps // 20, 1),
        decay="cosine",
        clip=1.0,
        weight_decay=0.0,
        checkpoint_every=max(steps // 8, 1),
    )
    config.evaluate = defaults.evaluation(episodes=10, batch=1)
    config.replicas = {}
    config.runs = {}
    return config
