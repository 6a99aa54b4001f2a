# SPDX-License-Identifier: Apache-2.0
"""Plain supervised learning through the same loop: one classifier over the classes of one domain.

Every class is in training and in test, its images are shared out 80 to 20. The support set is empty. How well
a domain is learned this way is the usual measure of how hard it is.

    python -m metaicl.main --config=configs/supervised.py                         the machines of the embedded album
    python -m metaicl.main --config=configs/supervised.py:datasets=gears+flanges,quick
    python -m metaicl.main --config=configs/supervised.py:album=PATH,backbone=squeezenet,weights=PATH,datasets=...

Without a backbone a small convolutional network is trained; with one, a linear probe on its features.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    known = dict(
        album="embedded",
        backbone="none",
        weights="",
        datasets="gears+flanges+circuit_parts",
        cache="",
        image_size=0,
    )
    arg = parse_argument(argument, known)
    frozen = arg.backbone != "none"
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.album(
        arg.album,
        datasets=tuple(arg.datasets.split("+")),
        image_size=arg.image_size or defaults.image_size(arg.backbone),
        backbone=arg.backbone,
        weights=arg.weights,
        cache=arg.cache,
        split="supervised",
        fractions=(0.8, 0.0, 0.2),
    )
    config.task = dict(queries=128, test_queries=100)
    conv = dict(filters=(32, 64, 64, 64), downsample="stride", pool="flatten", norm="group")
    config.learners = {
        "probe": dict(kind="supervised", encoder="identity", encoder_settings=dict(normalize="sqrt_unit")),
        "network": dict(kind="supervised", encoder="conv", encoder_settings=conv),
    }
    config.learner = "probe" if frozen else "network"
    config.baselines = ()
    steps = 150 if arg.quick else 2000 if arg.full else 500
    config.train = defaults.training(
        steps=steps,
        learning_rate=2e-3,
        warmup=steps // 10,
        decay="cosine",
        clip=1.0,
        checkpoint_every=max(steps // 2, 1),
    )
    config.evaluate = defaults.evaluation(episodes=10, batch=1)
    config.replicas = {}
    config.runs = {}
    return config
