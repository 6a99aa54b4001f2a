# SPDX-License-Identifier: Apache-2.0
"""Every order of the data sets and both budgets, each against the order of domains: does a curriculum help?

`configs/sequential.py` with all its orders; see there for what they are and what is measured. In the table, `vs
domain` is the paired difference of each order's final accuracy to that of the order of domains with the same budget.

    python -m metaicl.main --config=configs/curricula.py                       10 data sets of the embedded album
    python -m metaicl.main --config=configs/curricula.py:quick                 6 data sets, one budget, four orders
    python -m metaicl.main --config=configs/curricula.py:seeds=3,episodes=100,steps=100,album=PATH

Arguments are those of `configs/sequential.py`; what is not given has the defaults below. Of GEOM-S (arXiv 2507.05019)
this tests three findings: transfer to earlier data sets is positive after the beginning, from hard to easy (H2E) is
better than from easy to hard, and going to the nearest data set next (E2E) is best.
"""

from ml_collections import ConfigDict

from metaicl.configuration import load_config_file

sequential = load_config_file("sequential", beside=__file__)

ORDERS = "domain+E2H+H2E+E2E+H2H+Switch+adaptive"
# Two data sets of each of five domains.
FEW = "shrubs+flowers+printed_letters+chalk_scripts+blood_smears+tissues+gears+flanges+beetles+fishes"


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    given = {part.partition("=")[0] for part in (argument or "").split(",")}
    own = {"order": ORDERS, "budget": "static+proportional"}
    if "quick" in given:
        own = {"order": "domain+E2H+H2E+E2E", "bounds": "joint"}
    elif not given & {"album", "full"}:
        own |= {"datasets": FEW}
    added = [f"{key}={value}" for key, value in own.items() if key not in given]
    return sequential.get_config(",".join(filter(None, [argument, *added])))
