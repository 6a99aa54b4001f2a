# SPDX-License-Identifier: Apache-2.0
"""Mini-ImageNet, 5 ways, 1 or 5 shots: MAML, FOMAML, ANIL, MAML++ and Reptile with their published conv-4.

    python -m metaicl.main --config=configs/mini_imagenet.py                                 MAML, 1 shot
    python -m metaicl.main --config=configs/mini_imagenet.py:5w5s,folder=PATH,learner=maml+reptile
    python -m metaicl.main --config=configs/mini_imagenet.py:5w1s,folder=PATH,full           the published schedule
    python -m metaicl.main --config=configs/mini_imagenet.py:5w1s,data=cifar_fs,folder=PATH
    python -m metaicl.main --config=configs/mini_imagenet.py:5w1s,data=album,folder=embedded

`folder` (`$METAICL_DATA/mini_imagenet` unless given) holds `train.csv`, `val.csv` and `test.csv` (columns filename,
label; the split of Ravi and Larochelle) and `images/`. With `data=cifar_fs` it is a CIFAR-FS folder, 32 px; with
`data=album` an album (or `embedded`) at 84 px, the classes of every data set split into halves and quarters for
training, validation and test; `datasets=A+B` names those to use, of 20 classes or more.

Settings of the released code: four convolutions of 32 filters with batch norm. MAML 5 steps of 0.01 in training and
10 in test, 15 queries a class, meta-gradients clipped; Reptile 8 steps of Adam at 0.001 on 15 shots, 50 in test.
MAML's code clips each element of the meta-gradient at 10; here it is the global norm. The default and `quick`
shorten 60,000 outer steps to 300 and 60, for a CPU; only `full` is meant to reach the published accuracies.

Published, full schedule: MAML 48.70 / 63.11 (1 / 5 shots), Reptile 49.97 / 65.99, both transductive.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

SHAPES = {"5w1s": (5, 1), "5w5s": (5, 5)}
DEFAULTS = dict(
    shape="5w1s",
    learner="maml",
    data="mini_imagenet",
    folder="$METAICL_DATA/mini_imagenet",
    datasets="",
    seeds=1,
)
CONV = dict(
    filters=(32, 32, 32, 32), norm="batch", pool="flatten", pixels="unit", kernel_init="glorot_uniform"
)
COLUMNS = dict(non_transductive=dict(batch_norm="non_transductive"))


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, DEFAULTS, positional="shape")
    if arg.shape not in SHAPES:
        raise ConfigError(f"{arg.shape!r} is not one of {', '.join(SHAPES)}.")
    if arg.data not in ("mini_imagenet", "cifar_fs", "album"):
        raise ConfigError(f"data={arg.data!r} is not one of mini_imagenet, cifar_fs, album.")
    ways, shots = SHAPES[arg.shape]
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg)
    config.task = defaults.classification(
        ways=ways, shots=shots, test_shots=shots, queries=15, test_queries=15
    )
    config.learners = separate(learners(arg, shots))
    chosen = arg.learner.split("+")
    if unknown := [name for name in chosen if name not in config.learners]:
        raise ConfigError(f"learner={unknown[0]!r} is not one of {', '.join(config.learners)} (join with +).")
    config.learner = chosen[0]
    config.baselines = ()
    steps = 60_000 if arg.full else 60 if arg.quick else 300
    config.train = defaults.training(
        steps=steps,
        batch=4 if shots == 1 else 2,
        clip=10.0,
        log_every=10,
        checkpoint_every=max(steps // 10, 1),
        validate_every=max(steps // 5, 1),
    )
    config.evaluate = defaults.evaluation(
        episodes=600 if arg.full else 100, batch=4, validation_episodes=100 if arg.full else 20
    )
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named({f"{arg.shape},learner={name}": run(name) for name in chosen})
    return config


def data(arg: ConfigDict) -> dict:
    """What is read; an album's classes are split within each data set of 15 or more."""
    if arg.data == "album":
        names = tuple(filter(None, arg.datasets.split("+")))
        return defaults.album(arg.folder, datasets=names, image_size=84, split="within")
    mini = arg.data == "mini_imagenet"
    return dict(
        kind="published",
        reader="csv_splits" if mini else "cifar_fs",
        name="mini_imagenet",
        domain="objects",
        folder=arg.folder,
        image_size=84 if mini else 32,
        skip_bad=False,
    )


def learners(arg: ConfigDict, shots: int) -> dict:
    """Each with its network, its adaptation in training and in test, and its outer schedule."""
    valid = dict(encoder="conv", encoder_settings=dict(CONV, downsample="max_pool"), variants=COLUMNS)
    same = dict(encoder="conv", encoder_settings=dict(CONV, downsample="max_pool_same"), variants=COLUMNS)
    once = None if arg.full else 1  # on a CPU one task after another is the faster way
    maml = dict(
        valid, kind="maml", inner_steps=5, inner_lr=0.01, test=dict(inner_steps=10), tasks_at_once=once
    )
    steps = 60_000 if arg.full else 60 if arg.quick else 300
    plus = dict(rates="layer", multi_step_until=steps * 15 // 100, test=dict(inner_steps=5))
    return {
        "maml": maml,
        "fomaml": dict(maml, order="first"),
        "anil": dict(maml, adapted="head"),
        "mamlpp": dict(maml | plus),
        "reptile": dict(
            same,
            kind="reptile",
            moments="carried",
            inner_batch=10,
            inner_steps=8,
            inner_lr=1e-3,
            test=dict(inner_steps=50, inner_batch=5 if shots == 1 else 15),
            train=dict(
                batch=5,
                steps=100_000 if arg.full else steps,
                optimizer="sgd",
                learning_rate=1.0,
                decay="linear",
                clip=0.0,
            ),
        ),
    }


def run(name: str) -> dict:
    """One learner; Reptile trains with 15 shots whatever it is tested with, and a query a class to look at."""
    return {"learner": name} | ({"task.shots": 15, "task.queries": 1} if name == "reptile" else {})
