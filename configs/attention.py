# SPDX-License-Identifier: Apache-2.0
"""Must an in-context learner of images be non-causal? The support as a set, as one sequence a query, or as a text.

    python -m metaicl.main --config=configs/attention.py                         the embedded album, no download
    python -m metaicl.main --config=configs/attention.py:quick
    python -m metaicl.main --config=configs/attention.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3

Leaves one domain out as `configs/loo.py` does, whose arguments these are. `non causal`: every support item sees all
others (`attention="packed"`). `causal`: it sees those before it, in random order, as in a language model. GEOM (arXiv
2507.05019) is non-causal and leaves the comparison open.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import load_config_file

loo = load_config_file("loo", beside=__file__)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument)
    config = loo.get_config(loo.with_one_learner(argument, arg))
    key = f"learners.{config.learner}.attention"
    defaults.varied(config, {"non causal": {key: "packed"}, "causal": {key: "causal"}})
    return config
