# SPDX-License-Identifier: Apache-2.0
"""From files of sentences to a file of answers."""

from __future__ import annotations

import collections
import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from metaicl import calibration, scope
from metaicl.configuration import ConfigError, load_config_file
from metaicl.data.text import Sentences, read_labelled, read_queries
from metaicl.experiment import chosen_runs
from metaicl.experiment.sentences import SentenceClassifier, classifier_of_config, classifier_of_run
from metaicl.files import given_path, writable_folder, write_text


class Scope(NamedTuple):
    """What decides whether a query belongs to any of the labels.

    Attributes:
      score: see `scope.SCORES`.
      accepted: share of in-scope sentences that are to be accepted.
      threshold: of the score; None: from the held-out sentences of the support.
    """

    score: str = "confidence"
    accepted: float = 0.95
    threshold: float | None = None


class Answers(NamedTuple):
    """Answers to Q queries.

    Attributes:
      texts, labels: of the queries; labels are None where the file has none.
      classes: N labels there are.
      probabilities: `[Q, N]`.
      scores, threshold: `[Q]`, and what a score needs to be in scope; None where nobody asked.
    """

    texts: list[str]
    labels: list[str] | None
    classes: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray | None = None
    threshold: float | None = None

    @property
    def predicted(self) -> np.ndarray:
        """`[Q]` the likeliest labels."""
        return self.classes[np.argmax(self.probabilities, axis=1)]


def predict_file(
    support: str,
    query: str,
    out: str,
    *,
    run: str = "",
    config: str = "",
    replica: str = "",
    weights: str = "",
    folds: int = 5,
    out_of_scope: Scope | None = None,
) -> str:
    """Adapts to labelled sentences, answers others and writes the answers.

    Args:
      support, query: files of sentences, with labels and without (or with: then the accuracy is told).
      out: the csv file to write.
      run: folder of a finished run; or
      config: a config file with its argument, `configs/text.py:learner=logistic`.
      replica, weights, folds: see `classifier_of_run`.
      out_of_scope: how to tell queries that belong to none of the labels; None: they all belong.

    Returns:
      What to tell of them.

    Raises:
      ConfigError, ValueError, OSError: for what is wrong with the files or the learner, before any long work.
    """
    path = _target(out, support, query)
    given = read_labelled(support)
    _check_support(given, support, out_of_scope, folds)
    texts, labels = read_queries(query)
    if run:
        few = classifier_of_run(run, replica=replica, weights=weights, folds=folds)
    else:
        few = classifier_of_config(read_config(config, support), weights=weights, folds=folds)
    few.fit(given.texts, given.labels)
    answers = _answered(few, texts, labels, out_of_scope)
    write_text(path, as_csv(answers))
    return "\n".join([_told_of_fit(few, given), *_told_of_answers(answers, out_of_scope), f"Written: {path}"])


def read_config(given: str, support: str) -> ConfigDict:
    """The config of the one learner that a config file and its argument name.

    Its own data set is not needed, only what it says of encoder and learner: the support set stands for it.
    """
    name, _, argument = given.partition(".py:")
    path = pathlib.Path(name.removesuffix(".py") + ".py")
    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {path}.")
    module = load_config_file(path.stem, beside=str(path))
    names = [part.partition("=")[0] for part in argument.split(",")]
    own = [] if "dataset" in names else [f"dataset={support}"]
    try:
        config = module.get_config(",".join([*filter(None, [argument]), *own]))
    except ConfigError as error:
        wrong = "'dataset'" in str(error)  # a config of other data has no such key
        raise ConfigError(f"{path} is no config of sentences ({error})" if wrong else str(error)) from error
    runs = list(chosen_runs(config, None).values())
    if len({own.learner for own in runs}) > 1:
        raise ConfigError(f"{given} names several learners: choose one, learner={runs[0].learner}.")
    return runs[0]


def _target(out: str, *inputs: str) -> pathlib.Path:
    """The path to write, once it is known that it can be written."""
    path = given_path(out).absolute()
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise ValueError(f"--out={out} has to be the path of a .csv file.")
    if path.resolve() in [given_path(name).resolve() for name in inputs]:
        raise ValueError(f"--out={out} is one of the files that are read: give another name.")
    writable_folder(path.parent, flag="out")
    return path


def _check_support(given: Sentences, path: str, wanted: Scope | None, folds: int) -> None:
    counts = collections.Counter(given.labels)
    rarest, fewest = min(counts.items(), key=lambda item: item[1])
    if len(counts) < 2:
        raise ValueError(f"{path} has the one label {rarest!r}: give sentences of two labels or more.")
    if wanted is None:
        return
    if wanted.score not in scope.SCORES or not 0 < wanted.accepted <= 1:
        raise ValueError(
            f"--score={wanted.score}, --accepted={wanted.accepted}: give {' or '.join(scope.SCORES)}, and a share "
            "above 0, up to 1."
        )
    if wanted.threshold is None and (fewest < 2 or folds < 2):
        lone = f"label {rarest!r} has one sentence" if fewest < 2 else f"--folds={folds}"
        raise ValueError(
            f"{path}: {lone}, and --out_of_scope finds its threshold on sentences that are held out. Give two or more "
            "of every label (and --folds of 2 or more), or --threshold."
        )


def _answered(
    few: SentenceClassifier, texts: list[str], labels: list[str] | None, wanted: Scope | None
) -> Answers:
    outputs = few.decision_function(texts)
    answers = Answers(texts, labels, few.classes_, calibration.probabilities(outputs, few.temperature_))
    if wanted is None:
        return answers
    threshold = wanted.threshold
    if threshold is None:
        threshold = few.scope_threshold(wanted.accepted, wanted.score)
    return answers._replace(scores=few.scope_score(outputs, wanted.score), threshold=threshold)


def as_csv(answers: Answers) -> str:
    """A row for each query: text, its own label if it has one, answer, probability, scope, all probabilities."""
    columns: dict[str, Sequence | np.ndarray] = {"text": answers.texts}
    if answers.labels is not None:
        columns["label"] = answers.labels
    columns["predicted"] = answers.predicted
    columns["probability"] = _short(answers.probabilities.max(axis=1))
    if answers.scores is not None:
        columns["score"] = _short(answers.scores)
        columns["in_scope"] = ["yes" if inside else "no" for inside in answers.scores >= answers.threshold]
    for label, column in zip(answers.classes, answers.probabilities.T, strict=True):
        columns[f"p({label})"] = _short(column)
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return target.getvalue()


def _short(numbers: np.ndarray) -> list[str]:
    return [f"{number:.6g}" for number in numbers]


def _told_of_fit(few: SentenceClassifier, given: Sentences) -> str:
    about = f"{len(given.texts)} sentences of {len(few.classes_)} labels; temperature {few.temperature_:.3g}"
    if few.held_out_ is None:
        why = "a label has one sentence only" if few.folds else "--folds=0"
        return f"{about}: not fitted, {why}."
    slots = np.array([few.classes_.tolist().index(label) for label in given.labels])
    before, after = (
        calibration.negative_log_likelihood(few.held_out_, slots, t) for t in (1.0, few.temperature_)
    )
    right = np.mean(np.argmax(few.held_out_, axis=1) == slots)
    return (
        f"{about} ({few.folds_} folds: accuracy {100 * right:.1f} %, negative log-likelihood {before:.3f} before and "
        f"{after:.3f} after)."
    )


def _told_of_answers(answers: Answers, wanted: Scope | None) -> list[str]:
    """How many queries were answered, and how well, as far as their labels say."""
    lines = [f"{len(answers.texts)} queries."]
    if answers.labels is None:
        known = np.zeros(0, bool)
    else:
        known = np.isin(answers.labels, answers.classes)
        right = answers.predicted == np.array(answers.labels)
        if known.any():
            lines.append(
                f"Accuracy {100 * right[known].mean():.1f} % of {known.sum()} with labels of the support."
            )
        if not known.all():
            lines.append(f"{(~known).sum()} queries have labels that the support does not have.")
    if wanted is None or answers.scores is None:
        return lines
    inside = answers.scores >= answers.threshold
    lines.append(
        f"In scope: {inside.sum()}, those of a score ({wanted.score}) of {answers.threshold:.4g} or more."
    )
    if len(known) and known.any() and not known.all():
        area = scope.auroc(jnp.asarray(answers.scores), jnp.asarray(known), jnp.ones(len(known)))
        accepted, wrongly = 100 * inside[known].mean(), 100 * inside[~known].mean()
        lines.append(
            f"Taking unknown labels as out of scope: AUROC {float(area):.3f}, accepted {accepted:.1f} % of those in "
            f"scope, and {wrongly:.1f} % of those out of scope."
        )
    return lines
