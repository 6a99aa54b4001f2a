# SPDX-License-Identifier: Apache-2.0
"""One learner for any number of ways and shots: trained on 2 to 10 ways, tested on 3 to 20.

    python -m metaicl.main --config=configs/ways.py                              the embedded album, no download
    python -m metaicl.main --config=configs/ways.py:quick
    python -m metaicl.main --config=configs/ways.py:album=PATH,backbone=squeezenet,weights=PATH,datasets=NAME+NAME

Leaves one domain out as `configs/loo.py` does, whose arguments these are. `fixed` trains on 5-way 5-shot tasks,
`varied` draws 2 to 10 ways and 1 to 10 shots for each task (or as many as the data sets allow: name those with ten
classes or more). Both have labels="relation" and read their answer from the support, so that no parameter depends on
the number of ways. Data sets with fewer classes than the most ways of the test are left out of that curve.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, load_config_file

loo = load_config_file("loo", beside=__file__)

WAYS = (3, 5, 10, 15, 20)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument, test_ways="+".join(map(str, WAYS)))
    config = loo.get_config(loo.with_one_learner(argument, arg, without=("test_ways",)))
    if config.learners[config.learner].get("labels") != "relation":
        raise ConfigError(f"learner={config.learner} answers as many ways as it trains with: use another.")
    if wrong := [part for part in arg.test_ways.split("+") if not part.isdigit()]:
        raise ConfigError(f"test_ways={wrong[0]!r} is no number of ways (join several with +).")
    ways = tuple(map(int, arg.test_ways.split("+")))
    config.evaluate.update(ways=ways[:3] if arg.quick else ways)
    # Pairs, so that they may differ.
    config.task = ConfigDict(
        config.task.to_dict() | dict(ways=(5, 5), shots=(5, 5), test_ways=5, test_shots=5)
    )
    defaults.varied(config, {"fixed": {}, "varied": {"task.ways": (2, 10), "task.shots": (1, 10)}})
    return config
