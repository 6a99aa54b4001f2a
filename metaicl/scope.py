# SPDX-License-Identifier: Apache-2.0
"""Whether a query belongs to any of the classes: scores of answers, thresholds, and how well a score separates.

A query of no class has the label -1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import Array, Examples, TaskSpec

OUTSIDE = -1


def confidence(outputs: Array) -> Array:
    """The largest probability (Hendrycks and Gimpel 2017): `[Q, N] -> [Q]`."""
    return jnp.max(jax.nn.softmax(outputs), axis=-1)


def energy(outputs: Array) -> Array:
    """Minus the energy, the logarithm of the sum of exponentials (Liu et al. 2020): `[Q, N] -> [Q]`.

    It says nothing of learners whose outputs are logarithms of probabilities (`readout=matching`): their sum is 1.
    """
    return jax.nn.logsumexp(outputs, axis=-1)


SCORES = {"confidence": confidence, "energy": energy}  # larger: rather of one of the classes


def auroc(scores: Array, inside: Array, mask: Array) -> Array:
    """Area under the ROC curve: how often a query of a class scores higher than one of none, a tie counting half.

    Args:
      scores: `[Q]`. inside: `bool [Q]`, of a class. mask: `[Q]`, 1 for a real query.

    Returns:
      A scalar; NaN where there are no queries of one of the two kinds.
    """
    inside, outside = inside * mask, ~inside * mask
    others = jnp.sort(jnp.where(outside > 0, scores, jnp.inf))
    lower, not_higher = (jnp.searchsorted(others, scores, side=side) for side in ("left", "right"))
    return jnp.sum(inside * (lower + not_higher) / 2) / (jnp.sum(inside) * jnp.sum(outside))


def separation(spec: TaskSpec, outputs: Array, query: Examples) -> dict[str, dict[str, Array]]:
    """What `evaluate` measures of an episode with queries of no class: the area under the ROC curve of each score."""
    del spec
    inside = query.y != OUTSIDE
    areas = {
        f"auroc_{name}": auroc(score(outputs.astype(jnp.float32)), inside, query.mask)
        for name, score in SCORES.items()
    }
    return {"values": areas, "calibration": {}}


def threshold(scores: np.ndarray, accepted: float) -> float:
    """The highest threshold that at least the share `accepted` of the scores `[n]` of in-scope items reach.

    Raises:
      ValueError: for no scores, or a share outside (0, 1].
    """
    if not len(scores) or not 0 < accepted <= 1:
        raise ValueError(
            f"The accepted share is {accepted}, of {len(scores)} scores: give one above 0, up to 1."
        )
    rejected = int(np.floor((1 - accepted) * len(scores) + 1e-9))  # 0.05 of 20 is 1, whatever the rounding
    return float(np.sort(scores)[rejected])
