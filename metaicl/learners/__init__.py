# SPDX-License-Identifier: Apache-2.0
"""Learners by name. Adding one means adding a file and a line here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, answer
from metaicl.learners.bayes_mixture import bayes_mixture
from metaicl.learners.causal import causal
from metaicl.learners.closed_form import closed_form
from metaicl.learners.greedy_tree import greedy_tree
from metaicl.learners.implicit import implicit_maml
from metaicl.learners.in_context import geom, in_context
from metaicl.learners.lasso import lasso
from metaicl.learners.least_squares import averaging, least_squares
from metaicl.learners.maml import maml
from metaicl.learners.prototypes import prototypes
from metaicl.learners.reptile import reptile
from metaicl.learners.scratch import scratch
from metaicl.learners.supervised import supervised

__all__ = ["LEARNERS", "Learner", "Meta", "answer", "make_learner"]

LEARNERS: dict[str, Callable[..., Learner]] = {
    "averaging": averaging,
    "bayes_mixture": bayes_mixture,
    "causal": causal,
    "closed_form": closed_form,
    "geom": geom,
    "greedy_tree": greedy_tree,
    "implicit_maml": implicit_maml,
    "in_context": in_context,
    "lasso": lasso,
    "least_squares": least_squares,
    "maml": maml,
    "prototypes": prototypes,
    "reptile": reptile,
    "scratch": scratch,
    "supervised": supervised,
}


def make_learner(kind: str, spec: TaskSpec, **settings) -> Learner:
    """Builds the learner called `kind`.

    Raises:
      ValueError: for an unknown kind or setting, naming the nearest known one.
    """
    if kind not in LEARNERS:
        raise ValueError(f"Unknown learner {kind!r}{_nearest(kind, LEARNERS)}. Known: {', '.join(LEARNERS)}.")
    parameters = inspect.signature(LEARNERS[kind]).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in settings:
        if name not in known and not open_ended:
            raise ValueError(
                f"Learner {kind!r} has no setting {name!r}{_nearest(name, known)}. Known: {', '.join(known)}."
            )
    return LEARNERS[kind](spec, **settings)


def _nearest(name, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
