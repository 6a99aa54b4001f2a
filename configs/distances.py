# SPDX-License-Identifier: Apache-2.0
"""Does the distance between data sets predict how well learning on one serves another?

Measures OTDD between all data sets of an album, trains a learner on each of them alone (`source=`) and on all but
each (`without=`), and tests every one on unseen images of all data sets (classes are shared with training), beside
training on all and the untrained learner. The report has Spearman's rank correlations of the distance with what a
single source was worth for each target, and with what leaving a data set out cost, intervals by bootstrap over data
sets, and a permutation test (Mantel). Distances are between training images alone; nothing is chosen by test images.

    python -m metaicl.main --config=configs/distances.py                     twelve data sets of the embedded album
    python -m metaicl.main --config=configs/distances.py:quick               six data sets of two domains
    python -m metaicl.main --config=configs/distances.py:datasets=gears+flanges+leaves+flowers,learner=prototypes
    python -m metaicl.main --config=configs/distances.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3

About ten minutes of CPU time by default, three with `quick`. All runs take `steps` steps; `seeds` are trained side by
side. `full` takes all thirty data sets, larger images and more of everything, for a GPU. On fourteen real data sets
no correlation was told from 0 (`results/distance_transfer`).
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

DEFAULTS = defaults.ALBUM | dict(
    learner="in_context",
    seeds=1,
    steps=0,
    episodes=0,
)
TWO_DOMAINS = ("shrubs", "flowers", "leaves", "gears", "flanges", "circuit_parts")
FOUR_DOMAINS = (*TWO_DOMAINS, "blood_smears", "bacteria", "tissues", "farmland", "towns", "coasts")
LEAST = 4


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    from metaicl.experiment.problems import album_names  # heavy: only where a config is asked for

    arg = parse_argument(argument, DEFAULTS)
    frozen = arg.backbone != "none"
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg)
    names = album_names(config.data)
    if len(names) < LEAST:
        raise ConfigError(f"{len(names)} data sets ({', '.join(names)}) have no ranks: give {LEAST} or more.")
    config.task = defaults.classification(ways=5, shots=5, queries=3, test_queries=3)
    config.learners = separate(defaults.small_learners(frozen))
    if arg.learner == "ridge" or arg.learner not in config.learners:
        raise ConfigError(f"learner={arg.learner!r} is not one of in_context, prototypes, maml.")
    config.learner = arg.learner
    config.baselines = ()
    steps = arg.steps or (2000 if arg.full else 40 if arg.quick else 400 if frozen else 120)
    config.train = defaults.training(
        steps=steps, batch=16 if arg.full else 4, clip=1.0, checkpoint_every=max(steps // 2, 1)
    )
    episodes = arg.episodes or (600 if arg.full else 200 if frozen else 50)
    config.evaluate = defaults.evaluation(episodes=episodes, batch=25, select="last")
    config.measure = dict(kind="", distance=dict(inner="gaussian", samples=1000, root=True))
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(runs(names))
    return config


def data(arg: ConfigDict) -> dict:
    """What is read; every class's images are shared out between training and test."""
    few = () if arg.full else TWO_DOMAINS if arg.quick else FOUR_DOMAINS
    return defaults.chosen_album(arg, few=few, split="images", fractions=(0.6, 0.0, 0.4))


def runs(names: list[str]) -> dict:
    """The distances, the untrained learner, and training on all, on each and on all but each data set."""
    found: dict = {
        "distances": {"measure.kind": "distances"},
        "untrained": {"train.steps": 0},
        "all": {"baselines": ("ridge",)},
    }
    found |= {f"source={name}": {"data.train_on": (name,)} for name in names}
    return found | {
        f"without={name}": {"data.train_on": tuple(other for other in names if other != name)}
        for name in names
    }
