# SPDX-License-Identifier: Apache-2.0
"""Tasks from single data sets (GEOM) or from all of them merged (GEOM-M): does keeping data sets apart help?

    python -m metaicl.main --config=configs/merged.py                            the embedded album, no download
    python -m metaicl.main --config=configs/merged.py:quick
    python -m metaicl.main --config=configs/merged.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3

Leaves one domain out as `configs/loo.py` does, whose arguments these are. `merged` trains on one pool of the classes of
all training data sets, so that the classes of a task come from several (arXiv 2507.05019, GEOM-M): classes of one name
are one class, those whose name the held-out or the validation domain has too are left out, and so are images, and near
copies of images, that those hold.

The study finds GEOM at or above GEOM-M in most held-out domains; its figures are not at hand.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import load_config_file

loo = load_config_file("loo", beside=__file__)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument)
    config = loo.get_config(loo.with_one_learner(argument, arg))
    defaults.varied(config, {"geom": {}, "merged": {"data.merge": True}})
    return config
