# SPDX-License-Identifier: Apache-2.0
"""What frozen backbones are worth: one closed-form learner on the features of each, and on the raw pixels.

5-way 5-shot episodes over all classes of every data set; a query goes to the nearest mean of its episode's classes.
Nothing is trained here, and every backbone answers the same episodes:

  pixels      the images at 32 px, no backbone
  untrained   the network of `formulas` with random weights
  formulas    learned from formulas, no photograph (`configs/formulas.py`); the package's own weights
  squeezenet  learned from ImageNet's photographs and their labels; needs `weights`

    python -m metaicl.main --config=configs/backbones.py                              the embedded album, no download
    python -m metaicl.main --config=configs/backbones.py:album=PATH,weights=PATH
    python -m metaicl.main --config=configs/backbones.py:quick

`weights` are SqueezeNet's; without them it is left out. `formulas=PATH` replaces the package's weights by those of a
run of `configs/formulas.py`. A real album of 14 data sets took 100 seconds beside other jobs, with the features of
SqueezeNet in the cache.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import named, parse_argument, separate

DEFAULTS = dict(album="embedded", datasets="", weights="", formulas="", cache="")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, DEFAULTS, flags=("quick",))
    few = ("flowers", "gears", "tissues", "printed_letters") if arg.quick and arg.album == "embedded" else ()
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.album(
        arg.album,
        datasets=tuple(arg.datasets.split("+")) if arg.datasets else few,
        cache=arg.cache,
        split="none",  # all of it is tested
    )
    config.task = defaults.classification(ways=5, shots=5, queries=5, test_queries=5)
    features = dict(encoder="identity", encoder_settings=dict(normalize="sqrt_unit"))
    centroid = dict(kind="closed_form", method="centroid", temperature=0.5, **features)
    backbones = chosen(arg)
    config.learners = separate(dict.fromkeys(backbones, centroid))
    config.learner = "untrained"
    config.baselines = ()
    config.train = defaults.training(steps=0)
    config.evaluate = defaults.evaluation(
        episodes=60 if arg.quick else 600,
        batch=25,
        shot_curve=() if arg.quick else (1, 2, 5),
        shot_curve_episodes=200,
    )
    config.replicas = {}
    config.runs = named({f"backbone={name}": {"learner": name} | own for name, own in backbones.items()})
    return config


def chosen(arg: ConfigDict) -> dict[str, dict]:
    """What each backbone reads, by the name of its learner."""
    size = defaults.image_size("formulas")
    found = {
        "pixels": {"data.backbone": "none", "data.image_size": 32},
        "untrained": {"data.backbone": "untrained", "data.image_size": size},
        "formulas": {"data.backbone": "formulas", "data.image_size": size, "data.weights": arg.formulas},
    }
    if arg.weights:
        found["squeezenet"] = {
            "data.backbone": "squeezenet",
            "data.image_size": 128,
            "data.weights": arg.weights,
        }
    return found
