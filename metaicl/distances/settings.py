# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about the distance between data sets."""

from __future__ import annotations

import dataclasses

INNER = ("gaussian", "diagonal", "means", "exact")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the distance is defined and solved.

    Moving an item x of class c onto an item x' of class c' costs
    `feature_weight * |x - x'|^p + label_weight * W(c, c')^p`, and half of that with `halved` (p = 2). The distance is
    the Sinkhorn divergence of that cost between uniformly weighted items, in the units of the cost.

    Attributes:
      inner: how W is taken between the features of two classes. `gaussian`: the 2-Wasserstein distance of normal
        distributions with their means and covariances, `diagonal` with variances alone, `means` with none.
        `exact`: between the items themselves, by a Sinkhorn divergence of `|x - x'|^p`.
      p: 1 or 2.
      feature_weight, label_weight: of the two parts of the cost, not negative.
      halved: half of the cost, as the published code takes it for p = 2.
      regularisation: entropic; a part of the mean cost over all pairs of different sets if `relative` (one number
        for the whole matrix, so that its entries compare), else in units of the cost.
      relative: see `regularisation`.
      inner_regularisation: the same for `exact`, in parts of the mean of `|x - x'|^p` over all pairs of classes if
        `relative`.
      debiased: subtract the mean of both sets' transport to themselves, without which a set has a distance to itself.
      inner_debiased: the same between classes, for `exact`; the other ways have no bias.
      unbiased_covariance: divide by n - 1 instead of n, as the published code does.
      samples: most items of a set that are transported, drawn in proportion to the classes. All items count for W.
      seeds: number of such draws, over which intervals are taken; sets of at most `samples` items do not vary.
      seed: of the first draw.
      threshold: the sum of absolute deviations from the marginals at which a solver has converged.
      max_iterations: of a solver.
      root: the p-th root of the divergence, in the units of the features.
    """

    inner: str = "gaussian"
    p: int = 2
    feature_weight: float = 1.0
    label_weight: float = 1.0
    halved: bool = False
    regularisation: float = 0.05
    relative: bool = True
    inner_regularisation: float = 0.05
    debiased: bool = True
    inner_debiased: bool = True
    unbiased_covariance: bool = False
    samples: int = 1000
    seeds: int = 1
    seed: int = 0
    threshold: float = 1e-3
    max_iterations: int = 5000
    root: bool = False

    def __post_init__(self):
        """Refuses values that mean nothing, naming what would."""
        if self.inner not in INNER:
            raise ValueError(f"inner is {self.inner!r}; there are {', '.join(INNER)}.")
        if self.p not in (1, 2):
            raise ValueError(f"p is {self.p}; it must be 1 or 2.")
        if min(self.feature_weight, self.label_weight) < 0 or self.feature_weight + self.label_weight == 0:
            raise ValueError("feature_weight and label_weight must not be negative, nor both zero.")
        for name in (
            "regularisation",
            "inner_regularisation",
            "threshold",
            "samples",
            "seeds",
            "max_iterations",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        if self.halved and self.p != 2:
            raise ValueError("halved is for p=2 alone.")

    @property
    def factor(self) -> float:
        """What the whole cost is multiplied by."""
        return 0.5 if self.halved else 1.0


def reference(**changes) -> Settings:
    """The conventions and defaults of the published code (microsoft/otdd), with `changes`.

    Half the squared distances, covariances over n - 1, absolute regularisation of 0.1 at both levels, no bias
    correction inside, 10,000 samples, no root. Its solver lowers the regularisation in about twenty steps and stops
    there; this one goes on until it has converged, which with features of large norm takes thousands of iterations.
    """
    published = dict(
        halved=True,
        regularisation=0.1,
        relative=False,
        inner_regularisation=0.1,
        inner_debiased=False,
        unbiased_covariance=True,
        samples=10_000,
    )
    return Settings(**(published | changes))
