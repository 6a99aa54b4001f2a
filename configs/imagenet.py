# SPDX-License-Identifier: Apache-2.0
"""Training on one big data set (GEOM-IN), or on many small ones: which transfers better, and where?

    python -m metaicl.main --config=configs/imagenet.py                          the embedded album, no download
    python -m metaicl.main --config=configs/imagenet.py:quick
    python -m metaicl.main --config=configs/imagenet.py:album=PATH,backbone=squeezenet,weights=PATH,big=PATH
    python -m metaicl.main --config=configs/imagenet.py:album=PATH,big=NAME+NAME,seeds=3

`big` is a folder with a folder of images for each class, as ImageNet has it (arXiv 2507.05019 trains on its 1,000), or
some of the album's data sets that stand in for one (`NAME+NAME`; by default creatures of the embedded album). They are
pooled; nine tenths of their classes train, one tenth validates, and all other data sets are tested. Beside it `geom`
trains on the other domains and tests on one after another, as `configs/loo.py` does, whose arguments the others are.
Of a real album the report draws accuracy beside the share of classes that ImageNet's 1,000 have too.
"""

import os

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, leaves, load_config_file, named
from metaicl.files import given_path

loo = load_config_file("loo", beside=__file__)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument, big="")
    config = loo.get_config(loo.with_one_learner(argument, arg, without=("big",)))
    first = dict(leaves(next(iter(config.runs.values()))))
    defaults.varied(config, {"geom": {}})
    own = {"data.split": "one_set", "data.held_out": "", "label": "one big set"}
    if os.sep in arg.big or (arg.big and given_path(arg.big).is_dir()):
        if arg.album == "embedded":
            raise ConfigError(f"big={arg.big} is a folder of images: give an album=PATH to test on too.")
        own |= {"data.big_set": arg.big, "data.train_on": (given_path(arg.big).resolve().name,)}
    else:
        own |= {"data.train_on": stand_in(arg.big, config.data)}
    runs = {name: dict(leaves(run)) for name, run in config.runs.items()}
    runs["one_set"] = first | own | {"baselines": ()}
    if arg.album != "embedded":  # whose classes have no names
        config.measure = dict(kind="")
        runs["overlap"] = {"measure.kind": "overlap"}
    config.runs = named(runs)
    return config


def stand_in(big: str, data: ConfigDict) -> tuple[str, ...]:
    """The data sets of the album that stand for one big one."""
    from metaicl.data.procedural import EMBEDDED_DOMAINS
    from metaicl.experiment.problems import album_names  # heavy: only where a config is asked for

    names, known = tuple(big.split("+")) if big else tuple(EMBEDDED_DOMAINS["creatures"]), album_names(data)
    if not big and data.album != "embedded":
        raise ConfigError(
            f"Give big=PATH of a folder, or big=NAME+NAME of these data sets: {', '.join(known)}."
        )
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"big={unknown[0]!r} is no folder and no data set of the album: {', '.join(known)}."
        )
    return names
