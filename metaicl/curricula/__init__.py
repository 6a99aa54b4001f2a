# SPDX-License-Identifier: Apache-2.0
"""Orders over data sets: arrays in, a permutation out. What is measured of the data sets comes from elsewhere.

domain_order, by_ease, walk, shortest_path, random_order   orders that are fixed before training
choose                                                     the next data set, from what training gained so far
stage_steps                                                how many steps each data set gets
"""

from metaicl.curricula.adaptive import BANDITS, choose
from metaicl.curricula.budget import BUDGETS, stage_steps
from metaicl.curricula.orders import (
    FARTHEST,
    NEAREST,
    SWITCH,
    by_ease,
    check_order,
    domain_order,
    random_order,
    walk,
)
from metaicl.curricula.paths import exact_path, path_length, shortest_path, two_opt

__all__ = [
    "BANDITS",
    "BUDGETS",
    "FARTHEST",
    "NEAREST",
    "SWITCH",
    "by_ease",
    "check_order",
    "choose",
    "domain_order",
    "exact_path",
    "path_length",
    "random_order",
    "shortest_path",
    "stage_steps",
    "two_opt",
    "walk",
]
