# SPDX-License-Identifier: Apache-2.0
"""A learner in scikit-learn's manner, for people with their own arrays: fit on a few labelled items, then predict.

    few = FewShotClassifier("logistic").fit(x, labels)  # [S, D] or [S, h, w, c], and S labels of any kind
    few.predict(queries), few.predict_proba(queries), few.temperature_

For sentences see `metaicl.experiment.sentences`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl import calibration, losses, scope
from metaicl.checkpoint import load_weights
from metaicl.episode import Examples, TaskSpec
from metaicl.learners import LEARNERS, Learner, Meta, make_learner

CHUNK = 64  # queries at a time; the last chunk is filled up, so that there is one program

# Short names of learners that need no training: kind and settings.
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    method: ("closed_form", {"method": method}) for method in ("centroid", "knn", "ridge", "logistic")
}


class FewShotClassifier:
    """Classifies like the labelled items it was fitted on; nothing but the learner's `adapt` happens in `fit`.

    Attributes after `fit`:
      classes_: `[N]` the labels, sorted where they can be.
      temperature_: what the outputs are divided by before they become probabilities.
      folds_: of the cross-validation that fitted it; 0 where none could be done, and the temperature is 1.
      held_out_: `[S, N]` outputs for the items that were fitted on, each from the folds it is not in; None without.
    """

    def __init__(
        self,
        learner: str = "logistic",
        settings: Mapping[str, Any] | None = None,
        *,
        test: Mapping[str, Any] | None = None,
        weights: str | os.PathLike | None = None,
        ways: int | None = None,
        folds: int = 5,
        seed: int = 0,
    ):
        """Stores its arguments as they are; `fit` checks them.

        Args:
          learner: a kind of `metaicl.learners`, or `centroid`, `knn`, `ridge`, `logistic`.
          settings: of its constructor.
          test: settings that differ from those that the weights were trained with (`inner_steps`).
          weights: file that a run wrote; None: as the learner begins.
          ways: number of outputs that the weights were trained with; None: as many as there are labels.
          folds: of the cross-validation that fits the temperature; 0: none, the temperature is 1.
          seed: of initial weights, of the learner's own randomness, and of the folds.
        """
        self.learner, self.settings, self.test = learner, settings, test
        self.weights, self.ways, self.folds, self.seed = weights, ways, folds, seed

    def fit(self, x: Any, y: Sequence[Hashable]) -> FewShotClassifier:
        """Adapts to labelled items and fits the temperature.

        Args:
          x: `[S, *x_shape]` numbers.
          y: S labels, of two or more classes.

        Raises:
          ValueError: for items or labels that do not fit together, settings, or weights of fewer outputs than there
            are labels. FloatingPointError: if the learner's answers are not finite.
        """
        items = self._items(x)
        classes, slots = _classes_of(y)
        if len(slots) != len(items):
            raise ValueError(f"{len(items)} items and {len(slots)} labels: give one label for each item.")
        if len(classes) < 2:
            raise ValueError(
                f"The labels are all {classes.tolist()[0]!r}: give items of two or more classes."
            )
        self._programs, self._meta = self._prepared(items, len(classes))
        self._support = Examples(*map(jnp.asarray, (items, slots, np.ones(len(items), np.float32))))
        self._state = self._adapted(self._support)
        self.classes_, self.temperature_, self.folds_, self.held_out_ = classes, 1.0, 0, None
        if self.folds and np.bincount(slots).min() > 1:
            self.held_out_ = self._cross_validated(slots)
            self.temperature_ = calibration.fit_temperature(self.held_out_, slots)
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        """Outputs of the learner, before the temperature: `[Q, *x_shape] -> [Q, N]`."""
        if not hasattr(self, "classes_"):
            raise ValueError(f"This {type(self).__name__} is not fitted: call fit(x, y) first.")
        return self._answers(self._state, self._support, self._items(x))

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities of `classes_`: `[Q, *x_shape] -> [Q, N]`."""
        return calibration.probabilities(self.decision_function(x), self.temperature_)

    def predict(self, x: Any) -> np.ndarray:
        """The likeliest labels: `[Q, *x_shape] -> [Q]`."""
        best = np.argmax(self.decision_function(x), axis=1)
        return self.classes_[best]

    def score(self, x: Any, y: Sequence[Hashable]) -> float:
        """Accuracy."""
        return float(np.mean([a == b for a, b in zip(self.predict(x), y, strict=True)]))

    def scope_score(self, outputs: np.ndarray, score: str = "confidence") -> np.ndarray:
        """How much outputs `[Q, N]` speak for any of the classes; see `scope.SCORES`."""
        if score not in scope.SCORES:
            raise ValueError(f"The score is {score!r}; there are {', '.join(scope.SCORES)}.")
        return np.asarray(scope.SCORES[score](jnp.asarray(outputs, jnp.float32) / self.temperature_))

    def scope_threshold(self, accepted: float = 0.95, score: str = "confidence") -> float:
        """The score that the share `accepted` of the fitted items reach when they are held out.

        Raises:
          ValueError: if they never were: `folds` is 0, or a label has one item.
        """
        if self.held_out_ is None:
            raise ValueError(
                "A threshold takes scores of items that were held out: give two items or more of every label, and "
                "folds of 2 or more."
            )
        return scope.threshold(self.scope_score(self.held_out_, score), accepted)

    def _items(self, x: Any) -> np.ndarray:
        """`[n, *x_shape]` in a type that learners take: bytes and int32 as they are, else float32."""
        items = np.asarray(x)
        if items.ndim < 2 or not len(items) or items.dtype.kind not in "fiub":
            raise ValueError(
                f"The items are {items.dtype} {items.shape}; give numbers [n, ...], n of 1 or more items."
            )
        if not np.isfinite(items).all():
            raise ValueError("Some items hold NaN or infinity: replace them.")
        return items if items.dtype in (np.uint8, np.int32) else items.astype(np.float32)

    def _prepared(self, items: np.ndarray, labels: int) -> tuple[_Programs, Meta]:
        """The learner for so many labels, compiled, and its parameters."""
        kind, settings = SHORT.get(self.learner, (self.learner, {}))
        settings = {**settings, **(self.settings or {})}
        if kind not in LEARNERS and self.learner not in SHORT:
            raise ValueError(f"Unknown learner {kind!r}; there are {', '.join([*SHORT, *LEARNERS])}.")
        ways = (self.weights is not None and self.ways) or labels
        make = lambda n, own: _programs(
            kind, TaskSpec("classify", items.shape[1:], str(items.dtype), n), json.dumps(own, sort_keys=True)
        )
        if labels > ways:
            _check_any_ways(make(ways, settings).learner, make(labels, settings).learner, ways, labels)
        # More labels than ways here means that no parameter depends on them.
        outputs = max(ways, labels)
        initial = make(outputs, settings).learner.init
        key = jax.random.key(self.seed)
        if self.weights is None:
            meta = jax.jit(initial)(key)
        else:
            meta = load_weights(self.weights, jax.eval_shape(initial, key))
        return make(outputs, settings | dict(self.test or {})), meta

    def _adapted(self, support: Examples) -> Any:
        return self._programs.adapt(self._meta, support, jax.random.key(self.seed))

    def _answers(self, state: Any, support: Examples, x: np.ndarray) -> np.ndarray:
        """`[n, N]` outputs of the classes, in chunks unless the answers depend on each other."""
        labels = int(support.y.max()) + 1
        size = CHUNK if self._programs.learner.independent else len(x)
        one = lambda part, mask: self._programs.answer(self._meta, state, support, part, mask)
        outputs = in_chunks(one, x, size)[:, :labels]
        if not np.isfinite(outputs).all():
            raise FloatingPointError(
                f"The answers of {self.learner!r} are not finite: if it adapts by gradient steps, lower inner_lr."
            )
        return outputs

    def _cross_validated(self, y: np.ndarray) -> np.ndarray:
        """Outputs for the support itself, each item answered by what was learned without its fold."""
        fold, items = calibration.assign_folds(y, self.folds, self.seed), np.asarray(self._support.x)
        self.folds_ = int(fold.max()) + 1
        found = np.zeros((len(y), int(y.max()) + 1), np.float32)
        for k in range(self.folds_):
            rows = fold == k
            # Masked and not left out, so that one program serves all folds.
            rest = dataclasses.replace(self._support, mask=jnp.asarray(~rows, jnp.float32))
            found[rows] = self._answers(self._adapted(rest), rest, items[rows])
        return found


def in_chunks(function: Callable[[Any, Any], Any], x: np.ndarray, size: int) -> np.ndarray:
    """`function(items [size, ...], mask [size]) -> [size, D]` over items `[n, ...]`, the last chunk filled up."""
    found = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        filled = np.concatenate([part, np.zeros((size - len(part), *x.shape[1:]), x.dtype)])
        mask = (np.arange(size) < len(part)).astype(np.float32)
        found.append(np.asarray(function(filled, mask), np.float32)[: len(part)])
    return np.concatenate(found)


class _Programs(NamedTuple):
    """A learner with its compiled functions: `answer` masks classes that the support does not show."""

    learner: Learner
    adapt: Callable[..., Any]
    answer: Callable[..., Any]


@functools.lru_cache(maxsize=32)
def _programs(kind: str, spec: TaskSpec, settings: str) -> _Programs:
    """Equal settings give the same object, so that classifiers share their compiled programs."""
    learner = make_learner(kind, spec, **json.loads(settings))

    @jax.jit
    def answer(meta, state, support, x, mask):
        return losses.mask_absent(spec, learner.predict(meta, state, x, mask), support)

    return _Programs(learner, jax.jit(learner.adapt), answer)


def _check_any_ways(trained: Learner, wanted: Learner, ways: int, labels: int) -> None:
    """Refuses a learner whose weights are made for fewer outputs than there are labels."""
    key = jax.random.key(0)
    alike = jax.eval_shape(trained.init, key) == jax.eval_shape(wanted.init, key)
    if not (alike and trained.relabelling):
        raise ValueError(
            f"There are {labels} labels, and the learner was trained to tell {ways} apart. Give {ways} labels or "
            "fewer, train it with more ways, or use a learner for any number: prototypes, centroid, logistic."
        )


def _classes_of(y: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The different labels, sorted where they can be, and the number of each item's: `[N]`, `int32 [S]`."""
    labels = y.tolist() if isinstance(y, np.ndarray) and y.ndim == 1 else list(y)
    if not all(isinstance(label, Hashable) for label in labels):
        raise ValueError(f"Labels have to be hashable, such as strings or numbers; {labels[0]!r} is not.")
    found = list(dict.fromkeys(labels))
    with contextlib.suppress(TypeError):  # of several kinds: in order of appearance
        found.sort()  # type: ignore[call-arg]
    number = {label: i for i, label in enumerate(found)}
    plain = len({type(label) for label in found}) == 1 and isinstance(
        found[0], str | int | float | np.generic
    )
    classes = np.array(found) if plain else np.empty(len(found), object)
    for i, label in enumerate(found):  # one by one: NumPy would make a second axis of tuples
        classes[i] = label
    return classes, np.array([number[label] for label in labels], np.int32)
