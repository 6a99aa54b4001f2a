# SPDX-License-Identifier: Apache-2.0
"""Probabilities that mean what they say: a temperature fitted to answers whose labels are known."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BOUNDS = (1e-3, 1e3)  # of a temperature


def probabilities(outputs: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of the outputs divided by a temperature: `[n, N] -> float64 [n, N]`."""
    return softmax(np.asarray(outputs, np.float64) / temperature, axis=1)


def negative_log_likelihood(outputs: np.ndarray, y: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over the answers `[n, N]` of -log p of their labels `int [n]`, in nats."""
    log_p = log_softmax(np.asarray(outputs, np.float64) / temperature, axis=1)
    return float(-np.mean(log_p[np.arange(len(y)), y]))


def fit_temperature(outputs: np.ndarray, y: np.ndarray) -> float:
    """The temperature that makes the labels likeliest (Guo et al. 2017, section 4.2).

    Where every answer is right no temperature is too low, so the labels are smoothed as in Platt (1999): the label
    itself counts (n + 1) / (n + 2), and the rest is spread over all N.

    Args:
      outputs: `[n, N]` answers to items that the learner has not adapted to.
      y: `int [n]` their labels.

    Raises:
      ValueError: for no answers, or answers that are not finite.
    """
    outputs = np.asarray(outputs, np.float64)
    if not outputs.size or not np.isfinite(outputs).all():
        raise ValueError("A temperature is fitted to one answer or more, and all of them finite.")
    n, classes = outputs.shape
    target = np.full((n, classes), 1 / (n + 2) / classes)
    target[np.arange(n), y] += (n + 1) / (n + 2)

    def loss(log_temperature):
        return -np.mean(np.sum(target * log_softmax(outputs / np.exp(log_temperature), axis=1), axis=1))

    # It is convex in the inverse of the temperature, so it has one minimum.
    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def assign_folds(y: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """A fold `int [n]` for every item, the items of a class spread over the folds as evenly as can be.

    Whatever fold is left out, every class keeps an item if it has two.

    Args:
      y: `int [n]` labels.
      folds: how many at most, 2 or more; with as many as the largest class has items, each leaves one item a class out.
      seed: of the order within a class.

    Raises:
      ValueError: if a class has one item, or for fewer than 2 folds.
    """
    counts = np.bincount(y)
    if folds < 2 or np.any(counts == 1):
        raise ValueError(f"{folds} folds: give 2 or more, and two items or more of every class.")
    folds = min(folds, int(counts.max()))
    rng, fold = np.random.default_rng(seed), np.zeros(len(y), np.int64)
    for number, c in enumerate(np.unique(y)):
        rows = rng.permutation(np.flatnonzero(y == c))
        fold[rows] = (np.arange(len(rows)) + number) % folds  # classes begin at different folds: equal sizes
    return fold
