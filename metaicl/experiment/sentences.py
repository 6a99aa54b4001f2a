# SPDX-License-Identifier: Apache-2.0
"""A classifier of sentences: the learner, encoder and tokenizer of a run or a config, fitted on sentences of one's own.

    few = classifier_of_run("runs/text/held_out=banking,learner=fomaml")
    few.fit(["where is my card", ...], ["card", ...]).predict_proba(["my card is lost"])

`python -m metaicl.predict` is its command line.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, as_json, overridden
from metaicl.data.text import token_rows
from metaicl.estimator import CHUNK, FewShotClassifier, in_chunks
from metaicl.experiment.runs import constructor_settings, training_of
from metaicl.experiment.texts import checked_tokenizer, frozen_encoder
from metaicl.files import given_path


class SentenceClassifier(FewShotClassifier):
    """A `FewShotClassifier` whose items are strings."""

    def __init__(self, data: ConfigDict, learner: str = "logistic", **options: Any):
        """Loads the tokenizer, and the frozen encoder if there is one.

        Args:
          data: that part of a config, which says how sentences become token ids or vectors.
          learner: and `options`, as those of `FewShotClassifier`.
        """
        super().__init__(learner, **options)
        self.data = data
        self._tokenizer = checked_tokenizer(data)
        self._embed = None
        if data.backbone != "none":
            backbone = frozen_encoder(data, self._tokenizer, data.longest)
            params, apply = jax.jit(backbone.init)(jax.random.key(0)), jax.jit(backbone.apply)
            self._embed = lambda rows, mask: apply(params, rows)

    def _items(self, x: Sequence[str]) -> np.ndarray:
        """Token ids `int32 [n, T]`, or vectors `float32 [n, D]`; a warning counts sentences that are cut."""
        if isinstance(x, str) or not len(x):
            raise ValueError(f"Give a list of one sentence or more, not {x!r}.")
        for i, text in enumerate(x):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"Sentence {i} is {text!r}: give a string with words in it.")
        sizes = dict(longest=self.data.longest, buckets=self.data.buckets)
        rows = token_rows(x, self._tokenizer, name="sentences", **sizes)
        return rows if self._embed is None else in_chunks(self._embed, rows, CHUNK)


def classifier_of_run(
    folder: str | os.PathLike, *, replica: str = "", weights: str = "", folds: int = 5
) -> SentenceClassifier:
    """What a finished run on sentences has learned, to be fitted on sentences and labels of one's own.

    Args:
      folder: of the run, `WORKDIR/RUN`.
      replica: whose weights, where the run trained several side by side; the first if empty.
      weights: where the pretrained encoder is, if not where it was in training.
      folds: see `FewShotClassifier`.

    Raises:
      FileNotFoundError: for a folder without a run, or a run without weights. ConfigError: for a run of other data.
    """
    folder = given_path(folder)
    config = _config_of_run(folder)
    names = list(config.get("replicas", {}))
    if replica and replica not in names:
        raise ConfigError(
            f"Run {folder} has no replica {replica!r}; there are: {', '.join(names) or 'none'}."
        )
    chosen = replica or (names[0] if names else "")
    if chosen:
        config = overridden(config, config.replicas[chosen])
    path = folder / f"weights{f'-{chosen}' if chosen else ''}.safetensors"
    if not training_of(config, config.learner).steps:  # as it began: nothing of it depends on the run
        return classifier_of_config(config, weights=weights, folds=folds)
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {path.name}: its run has not finished. Give the command that began it again."
        )
    return _classifier(_with_encoder(config, weights), folds, weights=path, ways=_ways(config))


def classifier_of_config(config: ConfigDict, *, weights: str = "", folds: int = 5) -> SentenceClassifier:
    """The learner of a run's config as it begins, without any training; arguments as `classifier_of_run`."""
    _check_text(config, "The config")
    return _classifier(_with_encoder(config, weights), folds)


def _classifier(config: ConfigDict, folds: int, **trained: Any) -> SentenceClassifier:
    entry = as_json(config.learners[config.learner])
    kind, settings = entry["kind"], constructor_settings(entry)
    options = dict(settings=settings, test=entry.get("test", {}), folds=folds, seed=config.seed)
    return SentenceClassifier(config.data, kind, **options, **trained)


def _config_of_run(folder: pathlib.Path) -> ConfigDict:
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f" It holds the runs {', '.join(inside[:5])}: give one of them." if inside else ""
        raise FileNotFoundError(f"{folder} is no folder of a run: it has no config.json.{hint}")
    config = ConfigDict(json.loads(path.read_text()))
    _check_text(config, f"The run {folder}")
    with config.unlocked():
        config.data.cache = ""  # which config.json leaves out
    return config


def _check_text(config: ConfigDict, what: str) -> None:
    kind = config.data.get("kind") if "data" in config else None
    if kind != "text" or "learner" not in config:
        raise ConfigError(
            f"{what} is of {kind or 'no'} data, not of sentences with a learner: give one of configs/text.py."
        )


def _with_encoder(config: ConfigDict, weights: str) -> ConfigDict:
    """The config with its pretrained encoder elsewhere."""
    if not weights:
        return config
    if not config.data.weights:
        raise ConfigError(
            f"weights={weights!r}: the encoder was trained from random weights. Leave them out."
        )
    changes = {"data.weights": weights}
    key = f"learners.{config.learner}.encoder_settings"
    if "weights" in config.learners[config.learner].get("encoder_settings", {}):
        changes[f"{key}.weights"] = weights
    return overridden(config, changes)


def _ways(config: ConfigDict) -> int:
    """The number of outputs that a run's learner was trained with."""
    ways = config.task.ways
    return int(ways if isinstance(ways, int) else ways[1])
