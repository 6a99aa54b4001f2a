# SPDX-License-Identifier: Apache-2.0
"""A trained learner on data sets from elsewhere: any run, any prepared data sets, no training.

    python -m metaicl.main --config=configs/ood.py:run=PATH,album=PATH
    python -m metaicl.main --config=configs/ood.py:run=runs/loo/held_out=plants,learner=matching,datasets=shrubs+flowers
    python -m metaicl.main --config=configs/ood.py                             a learner as it begins, embedded album

`run` is the folder of a finished run of any config of albums, commas and all; its learner, backbone and image size are
taken from there, and its weights tested as they are beside the closed-form learners on the same features. `album` is a
folder of prepared data sets (`python -m metaicl.prepare`; the study tests on CIFAR-FS, CUB, Aircraft, Meta-iNat,
EuroSAT and ISIC). Data sets that the run trained on are refused by name. Without `run` a small learner is tested as it
begins.
"""

import json
import pathlib

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, load_config_file, named, parse_argument, separate
from metaicl.files import given_path

loo = load_config_file("loo", beside=__file__)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse(argument)
    trained = config_of_run(arg) if arg.run else loo.get_config("quick")
    config = loo.get_config("quick" if arg.quick else None)
    config.evaluate = loo.evaluation(arg)
    config.learner = trained.learner
    untrained = loo.closed_form(trained.data.backbone != "none")
    config.baselines = tuple(name for name, entry in untrained.items() if not entry.get("train"))
    config.learners = separate(untrained | {trained.learner: trained.learners[trained.learner].to_dict()})
    config.data = defaults.album(
        arg.album,
        datasets=tuple(arg.datasets.split("+")) if arg.datasets else (),
        cache=arg.cache,
        split="none",
        **{key: trained.data[key] for key in ("image_size", "backbone", "weights", "embedded")},
    )
    config.task.update(ways=arg.ways, shots=arg.shots)
    config.start = str(weights_of_run(arg, trained)) if arg.run else ""
    config.train.steps = 0
    config.learners[config.learner].train = dict(steps=0)
    if arg.run:
        refuse_trained(arg, trained, config)
    config.runs = named({"test": {}})
    return config


def parse(argument: str | None) -> ConfigDict:
    """The argument; what stands behind a comma in the name of the run's folder is no argument of its own."""
    known = defaults.ALBUM | dict(run="", replica="", ways=5, shots=5)
    run, rest, inside = "", [], False
    for part in (argument or "").split(","):
        key, _, value = part.partition("=")
        if key == "run":
            run, inside = value, True
        elif inside and key not in (*known, "quick", "full"):
            run += f",{part}"
        else:
            rest, inside = [*rest, part], False
    return ConfigDict(parse_argument(",".join(rest), known).to_dict() | dict(run=run, tune=False))


def config_of_run(arg: ConfigDict) -> ConfigDict:
    """The config that a run of albums left behind, with the overrides of its replica."""
    path = given_path(arg.run) / "config.json"
    if not path.is_file():
        raise ConfigError(f"run={arg.run} is no folder of a run: it has no config.json.")
    config = ConfigDict(json.loads(path.read_text()))
    if config.data.get("kind") != "album" or "learner" not in config:
        raise ConfigError(f"run={arg.run} is not of an album with a learner: give a run of configs/loo.py.")
    names = list(config.get("replicas", {}))
    if arg.replica and arg.replica not in names:
        raise ConfigError(
            f"run={arg.run} has no replica {arg.replica!r}; there are {', '.join(names) or 'none'}."
        )
    return config


def weights_of_run(arg: ConfigDict, config: ConfigDict) -> pathlib.Path:
    """The file of what the run learned."""
    names = list(config.get("replicas", {}))
    replica = arg.replica or (names[0] if names else "")
    path = given_path(arg.run) / f"weights{f'-{replica}' if replica else ''}.safetensors"
    if not path.is_file():
        raise ConfigError(f"run={arg.run} has no {path.name}: it has not finished, or trained nothing.")
    return path


def refuse_trained(arg: ConfigDict, trained: ConfigDict, config: ConfigDict) -> None:
    """Refuses data sets that the run trained or validated on, as far as their names tell."""
    from metaicl.experiment.problems import album_names

    records = given_path(arg.run) / "records.jsonl"
    lines = map(json.loads, records.read_text().splitlines()) if records.is_file() else ()
    tested = {line["dataset"] for line in lines if line["split"] == "test"}
    try:
        known = set(album_names(trained.data))
    except FileNotFoundError:  # its album is elsewhere: what it was tested on is all that is known
        known = set(trained.data.train_on)
    if seen := sorted((known - tested) & set(album_names(config.data))):
        raise ConfigError(
            f"run={arg.run} trained or chose its weights on {', '.join(seen)}: leave them out with datasets=NAME+NAME."
        )
