# SPDX-License-Identifier: Apache-2.0
"""MAML, FOMAML, ANIL, Reptile, prototypes, in-context and fine-tuning on the same encoder, splits and budget.

`configs/text.py` with all its learners on several splits and sizes; see there for the learners and what they adapt.

    python -m metaicl.main --config=configs/text_table.py                                  everything; hours on a GPU
    python -m metaicl.main --config=configs/text_table.py:weights=PATH,learner=vectors,seeds=3
    python -m metaicl.main --config=configs/text_table.py:weights=PATH,size=5w1s,split=clinc150,fresh=2
    python -m metaicl.main --config=configs/text_table.py:quick            two learners, one domain, random weights

`split` is any of `clinc150` (three of its ten domains held out one after another; `full`: all), `clinc150_classes` (50
of its 150 intents, of all domains, in training, validation and test each) and `banking77` (a third of its 77 intents
each), joined with +. `size` is any of `5w1s`, `5w5s`, `15w5s`. `learner` is any of `configs/text.py`; `vectors` is
short for those on the cached vectors of the frozen encoder (minutes on a laptop), `encoder` for those that move it.
All other arguments are those of `configs/text.py`.

Not published: no comparison of these learners on one encoder, the same splits and budget was found.
"""

import re

from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, leaves, load_config_file, named, parse_argument

text = load_config_file("text", beside=__file__)

SPLITS = {
    "clinc150": "dataset=clinc150",
    "clinc150_classes": "dataset=clinc150,split=class",
    "banking77": "dataset=banking77",
}
ENCODER = ("maml", "fomaml", "protomaml", "anil", "reptile", "protonet", "finetune")
GROUPS = {"vectors": text.VECTORS, "encoder": ENCODER, "all": (*ENCODER, *text.VECTORS)}
# What differs between the splits and sizes, and so belongs to a run.
OF_A_RUN = (
    "data.dataset",
    "data.by",
    "data.split",
    "data.min_classes",
    "task.ways",
    "task.shots",
    "task.test_shots",
)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(
        argument, text.DEFAULTS | dict(learner="all", size="5w1s+5w5s+15w5s", split="+".join(SPLITS))
    )
    if arg.quick:
        given = {part.partition("=")[0] for part in (argument or "").split(",")}
        small = dict(learner="fomaml+centroid", size="5w5s", split="clinc150")
        arg.update({key: value for key, value in small.items() if key not in given})
    learners = sum((GROUPS.get(name, (name,)) for name in arg.learner.split("+")), ())
    config, runs = None, {}
    for split in arg.split.split("+"):
        if split not in SPLITS:
            raise ConfigError(f"split={split!r} is not one of {', '.join(SPLITS)} (join with +).")
        for size in arg.size.split("+"):
            own = text.get_config(f"{rest(arg)},{SPLITS[split]},{size_of(size)},learner={'+'.join(learners)}")
            config = config or own
            common = {key: value_at(own, key) for key in OF_A_RUN}
            for name, overrides in own.runs.items():
                runs[f"{split},{size},{name}"] = common | dict(leaves(overrides))
    config.runs = named(runs)
    return config


def rest(arg: ConfigDict) -> str:
    """The arguments that go on to `configs/text.py` as they are."""
    kept = {key: value for key, value in arg.items() if key in text.DEFAULTS and value != text.DEFAULTS[key]}
    for key in ("dataset", "split", "ways", "shots", "learner"):
        if key in kept and key not in ("split", "learner"):
            raise ConfigError(f"{key}= is chosen by split= and size= here.")
        kept.pop(key, None)
    words = [word for word in ("quick", "full") if arg[word]]
    return ",".join([*words, *(f"{key}={value}" for key, value in kept.items())])


def size_of(size: str) -> str:
    """`5w1s` in the words of `configs/text.py`."""
    found = re.fullmatch(r"([1-9]\d*)w([1-9]\d*)s", size)
    if not found:
        raise ConfigError(f"size={size!r} is not of the form 5w1s (join with +).")
    return f"ways={found[1]},shots={found[2]}"


def value_at(config: ConfigDict, key: str):
    """The value of a key with dots."""
    for part in key.split("."):
        config = config[part]
    return config
