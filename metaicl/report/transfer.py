# SPDX-License-Identifier: Apache-2.0
"""What training in stages does to data sets seen before and still to come: pure functions of accuracies.

`accuracy [T + 1, P, ...]` holds what is known of P data sets: row 0 of the untrained learner, row t after stage t.
Axes behind the second (seeds, episodes) are carried along. `own [P]` is the stage that trained each data set first,
0 for one that was never trained. Results `[P, ...]` are NaN for data sets that a quantity leaves out; `domain_mean`
averages them. GEM is Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), whose tasks are our data sets.
"""

from collections.abc import Sequence

import numpy as np


def own_stages(trained: np.ndarray) -> np.ndarray:
    """`own [P]` from `bool [T + 1, P]`: what each stage trained on, row 0 nothing."""
    return np.where(trained.any(axis=0), trained.argmax(axis=0), 0)


def domain_stages(own: np.ndarray, domains: Sequence[str]) -> np.ndarray:
    """`[P]`: the stage with which the domain of each data set was first complete; 0 where it never was."""
    complete = np.zeros(len(own), int)
    for domain in set(domains):
        inside = np.array([d == domain for d in domains])
        complete[inside] = own[inside].max() if (own[inside] > 0).all() else 0
    return complete


def domain_mean(values: np.ndarray, domains: Sequence[str]) -> np.ndarray:
    """Mean over domains of the mean over their data sets, NaN left out: `[P, ...] -> [...]`; NaN if all are."""
    means = []
    for domain in sorted(set(domains)):
        kept = [v for v, d in zip(values, domains, strict=True) if d == domain and not np.isnan(v).any()]
        means += [np.mean(kept, axis=0)] if kept else []
    return np.mean(means, axis=0) if means else np.full(np.shape(values)[1:], np.nan)


def change(accuracy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """What each stage has changed since a reference stage: `[T + 1, P, ...]`, NaN before it.

    Args:
      accuracy: see the module.
      reference: `[P]`, the stage to compare with: `own_stages` or `domain_stages`; 0 leaves a data set out.
    """
    since = accuracy - _at(accuracy, reference)[None]
    rows = np.arange(len(accuracy))[:, None]
    known = (reference[None] > 0) & (rows >= reference[None])  # [T + 1, P]
    return np.where(known.reshape(known.shape + (1,) * (accuracy.ndim - 2)), since, np.nan)


def backward(accuracy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """What the stages after the reference stage did to each data set: `R[T, i] - R[reference of i, i]`.

    With `own_stages` its mean is GEM's backward transfer; with `domain_stages` the comparison begins when the domain
    was first complete, so that what related data sets do to each other is left out. Both leave out data sets whose
    reference is the last stage, of which nothing could be said but 0 (as GEM leaves out its last task), and those
    without a reference. Averaged by `domain_mean` they are the transfer at the level of domains. GEOM
    (arXiv 2507.05019) shows one such quantity without its formula.
    """
    return change(np.asarray(accuracy), _before_last(accuracy, reference))[-1]


def forward(accuracy: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What earlier stages did for each data set before its own: `R[own - 1, i] - R[0, i]`, GEM's forward transfer.

    The comparison is with the untrained learner. The data set of the first stage, which nothing came before, is left
    out, and so are those that were never trained.
    """
    return _masked(_at(accuracy, np.maximum(own - 1, 0)) - accuracy[0], own > 1)


def learned(accuracy: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What its own stage did for each data set: `R[own, i] - R[own - 1, i]`."""
    return _masked(_at(accuracy, own) - _at(accuracy, np.maximum(own - 1, 0)), own > 0)


def forgetting(accuracy: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How far each data set has fallen from its best: `max over t < T of R[t, i]`, minus `R[T, i]`.

    As Chaudhry et al. 2018 (arXiv 1801.10112, equation 3), over the stages before the last, the untrained learner not
    among them; negative where the last stage is the best. Data sets that only the last stage trained, or none, are
    left out. The best stage is that of the mean over the axes behind the second.
    """
    own = _before_last(accuracy, own)
    if len(accuracy) < 3:
        return np.full(np.shape(accuracy)[1:], np.nan)
    means = accuracy.reshape(*accuracy.shape[:2], -1).mean(-1)
    best = 1 + means[1:-1].argmax(axis=0)  # [P]
    return _masked(_at(accuracy, best) - accuracy[-1], own > 0)


def _before_last(accuracy: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """The stages, 0 for the last one."""
    return np.where(stages < len(accuracy) - 1, stages, 0)


def _at(accuracy: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each data set at a row of its own: `[P, ...]`."""
    return accuracy[rows, np.arange(accuracy.shape[1])]


def _masked(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept.reshape(kept.shape + (1,) * (values.ndim - 1)), values, np.nan)
