# SPDX-License-Identifier: Apache-2.0
"""How many steps each data set gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BUDGETS = ("static", "proportional")


def stage_steps(kind: str, total: int, sizes: Sequence[int]) -> list[int]:
    """Shares `total` steps out over stages, to the last step.

    Args:
      kind: `static` (as equal as can be) or `proportional` to the sizes.
      total: steps of all stages together.
      sizes: items of the data set of each stage.

    Returns:
      Steps of each stage, 1 or more: whole parts first, then one each to the largest remainders.

    Raises:
      ValueError: for an unknown kind, or fewer steps than stages.
    """
    if kind not in BUDGETS:
        raise ValueError(f"Unknown budget {kind!r}; there are {', '.join(BUDGETS)}.")
    if total < len(sizes):
        raise ValueError(f"{total} steps are too few for {len(sizes)} stages: each takes at least 1.")
    weights = np.asarray(sizes if kind == "proportional" else [1] * len(sizes), np.float64)
    # One step each first, so that no share is empty; the rest makes up for it.
    wanted = np.maximum(total * weights / weights.sum() - 1, 0)
    wanted *= (total - len(sizes)) / max(wanted.sum(), 1e-12)
    steps = np.floor(wanted + 1e-9).astype(int)
    for k in np.argsort(steps - wanted, kind="stable")[: total - len(sizes) - steps.sum()]:
        steps[k] += 1
    return [int(n) + 1 for n in steps]
