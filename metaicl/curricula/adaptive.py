# SPDX-License-Identifier: Apache-2.0
"""Which data set comes next, from what training on each has gained so far: a bandit whose arms are data sets.

The choice is a pure function of the history of gains (and a seed), so nothing but the history has to be kept, and the
same history gives the same choice again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Gain = tuple[int, float]  # the position of a stage's data set, and what it changed the validation score by


def choose(
    kind: str, history: Sequence[tuple[int, float]], names: Sequence[str], *, seed: int = 0, rate: float
) -> int:
    """Position of the next data set.

    Args:
      kind: a key of `BANDITS`.
      history: `(position, gain)` of every stage so far.
      names: of the data sets.
      seed: of the draws.
      rate: how much is explored: see the functions in `BANDITS`.

    Raises:
      ValueError: for an unknown kind, a gain that is not finite, or one of a data set that there is not.
    """
    if kind not in BANDITS:
        raise ValueError(f"Unknown bandit {kind!r}; there are {', '.join(BANDITS)}.")
    gains = [(int(arm), float(gain)) for arm, gain in history]
    for number, (arm, gain) in enumerate(gains, 1):
        if not 0 <= arm < len(names) or not np.isfinite(gain):
            raise ValueError(
                f"Stage {number} of the history, {(arm, gain)}, is no gain of {len(names)} sets."
            )
    return BANDITS[kind](gains, len(names), seed, rate)


def ucb(gains: Sequence[Gain], arms: int, seed: int, rate: float) -> int:
    """UCB1 (Auer et al. 2002): every arm once, in an order drawn from the seed, then the largest upper bound.

    The bound is the mean gain of an arm, scaled to [0, 1] by the history, plus
    `rate * sqrt(2 ln t / n)` after t stages, n of them its own.
    """
    tried = {arm for arm, _ in gains}
    untried = [int(k) for k in np.random.default_rng(seed).permutation(arms) if k not in tried]
    if untried:
        return untried[0]
    rewards, own = _scaled(gains), np.array([arm for arm, _ in gains])
    counts = np.bincount(own, minlength=arms)
    means = np.bincount(own, weights=rewards, minlength=arms) / counts
    return int(np.argmax(means + rate * np.sqrt(2 * np.log(len(gains)) / counts)))


def exp3(gains: Sequence[Gain], arms: int, seed: int, rate: float) -> int:
    """Exp3 (Auer et al. 2002): drawn from weights that grow with the gain over the probability it was drawn with.

    `rate` is gamma, the share of uniform draws, in (0, 1]. Each gain counts as it stands among those up to then.
    """
    return int(np.random.default_rng([seed, len(gains)]).choice(arms, p=exp3_chances(gains, arms, rate)))


def exp3_chances(gains: Sequence[Gain], arms: int, rate: float) -> np.ndarray:
    """`[arms]`: the probabilities of the next draw, replayed from the history."""
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; for exp3 it is a share above 0 and at most 1.")
    logits = np.zeros(arms)
    for t, (arm, _) in enumerate(gains):
        chance = _chances(logits, rate)[arm]
        logits[arm] += rate * _scaled(gains[: t + 1])[-1] / (chance * arms)
    return _chances(logits, rate)


def _chances(logits: np.ndarray, rate: float) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return (1 - rate) * weights / weights.sum() + rate / len(logits)


def _scaled(gains: Sequence[Gain]) -> np.ndarray:
    """`[t]` in [0, 1]: the gains between their 20th and 80th percentile; one half where these are equal.

    As Graves et al. 2017 (arXiv 1704.03003) scale theirs, so that the large gain of the first stages does not make
    all that follow look alike.
    """
    values = np.array([gain for _, gain in gains])
    low, high = np.quantile(values, [0.2, 0.8])
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(len(values), 0.5)


BANDITS: dict[str, Callable[[Sequence[Gain], int, int, float], int]] = {"ucb": ucb, "exp3": exp3}
