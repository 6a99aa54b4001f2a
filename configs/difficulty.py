# SPDX-License-Identifier: Apache-2.0
"""How hard is each data set of an album? One fixed recipe of plain supervised learning on every one.

Every class is in training and in test, its images are shared out 80 to 20, and the test accuracy of a classifier over
all classes of the data set says how easy it is (E2H and H2E of GEOM-S, arXiv 2507.05019, are by fine-tuning, whose
recipe is not told: ours are below). Beside it stands the cheap form by which `sequence.order` goes, ridge regression
on at most 20 classes, and the rank correlation of both.

    python -m metaicl.main --config=configs/difficulty.py                    a small network on 30 embedded data sets
    python -m metaicl.main --config=configs/difficulty.py:quick              six of them
    python -m metaicl.main --config=configs/difficulty.py:recipe=probe       a linear probe on their pixels
    python -m metaicl.main --config=configs/difficulty.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3
    python -m metaicl.main --config=configs/difficulty.py:album=PATH,backbone=squeezenet,weights=PATH,recipe=finetune

`recipe=probe` is a linear probe on the frozen features of the backbone (the default where there is one), or on pixels.
`recipe=finetune` trains the whole backbone from its pretrained weights, on images of `image_size` pixels; without a
backbone, a small convolutional network from scratch. Nothing is chosen by test images: all data sets take the same
steps.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

DEFAULTS = defaults.ALBUM | dict(
    recipe="",
    seeds=1,
    steps=0,
)
FEW = ("shrubs", "flowers", "leaves", "gears", "flanges", "circuit_parts")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    from metaicl.experiment.problems import album_names  # heavy: only where a config is asked for

    arg = parse_argument(argument, DEFAULTS)
    frozen = arg.backbone != "none"
    recipe = arg.recipe or ("probe" if frozen else "finetune")
    if recipe not in ("probe", "finetune"):
        raise ConfigError(f"recipe={recipe!r} is not one of probe, finetune.")
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg, features=frozen and recipe == "probe")
    config.task = dict(queries=128 if recipe == "probe" else 32, test_queries=100)
    config.learners = separate(learners(arg.backbone, arg.weights))
    config.learner = "probe" if recipe == "probe" else "fine_tuned" if frozen else "network"
    config.baselines = ()
    steps = arg.steps or (2000 if arg.full else 100 if arg.quick else 300)
    config.train = defaults.training(
        steps=steps,
        learning_rate=3e-4 if config.learner == "fine_tuned" else 2e-3,
        warmup=steps // 10,
        decay="cosine",
        clip=1.0,
        checkpoint_every=max(steps // 2, 1),
    )
    config.evaluate = defaults.evaluation(episodes=10, batch=1)
    ridge = defaults.small_learners(frozen)["ridge"]
    config.measure = dict(kind="", probe=dict(classes=20, images=40, learner=ridge))
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(
        {"ease": {"measure.kind": "ease", **features(arg, frozen)}}
        | {f"dataset={name}": {"data.datasets": (name,)} for name in album_names(config.data)}
    )
    return config


def data(arg: ConfigDict, features: bool) -> dict:
    """What is read: images, or the features of the backbone."""
    smaller = 64 if arg.backbone != "none" else 32
    size = arg.image_size or (defaults.image_size(arg.backbone) if features else smaller)
    own = dict(image_size=size) if features else dict(image_size=size, backbone="none")
    split = dict(split="supervised", fractions=(0.8, 0.0, 0.2))
    return defaults.chosen_album(arg, few=FEW if arg.quick else (), **own, **split)


def features(arg: ConfigDict, frozen: bool) -> dict:
    """Where there is a backbone the cheap form looks at its features, whatever the recipe."""
    size = defaults.image_size(arg.backbone)
    return {"data.backbone": arg.backbone, "data.image_size": size} if frozen else {}


def learners(backbone: str, weights: str) -> dict:
    """The classifiers of both recipes, with and without a backbone."""
    conv = dict(filters=(16, 32, 32, 32), downsample="stride", pool="flatten", norm="group")
    found = {
        "probe": dict(kind="supervised", encoder="identity", encoder_settings=dict(normalize="sqrt_unit")),
        "network": dict(kind="supervised", encoder="conv", encoder_settings=conv),
    }
    if backbone != "none":
        whole = defaults.trained_backbone(backbone, weights, normalize="sqrt_unit")
        found["fine_tuned"] = dict(kind="supervised", **whole)
    return found
