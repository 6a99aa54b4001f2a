# SPDX-License-Identifier: Apache-2.0
"""Distances between data sets: the optimal transport data set distance (OTDD) of arXiv 2002.02923.

Two labelled sets are near where their items can be moved onto each other at little cost; moving an item costs the
distance of the features and the Wasserstein distance between the class it leaves and the class it arrives in.

    otdd(pool_a, pool_b, settings)         one distance, with its convergence
    pairwise(pools, settings, progress=)   the matrix of all pairs
    Settings, reference                    what can be chosen; the conventions of the published code
"""

import importlib
from typing import Any

from metaicl.distances.settings import Settings, reference

__all__ = ["Distance", "Distances", "NotConverged", "Settings", "otdd", "pairwise", "reference"]


def __getattr__(name: str) -> Any:
    """Loads what computes, and with it jax and ott, only when it is asked for: `--help` should answer at once."""
    if name in __all__:
        return getattr(importlib.import_module("metaicl.distances.pairs"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
