# SPDX-License-Identifier: Apache-2.0
"""The composer: from a config to sources, learners, training, evaluation and a report."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from metaicl import sharding
from metaicl.configuration import ConfigError, as_json, overridden, refuse_vain
from metaicl.experiment.measuring import Measurement, make_measurement, measure, measures
from metaicl.experiment.problems import make_problem
from metaicl.experiment.runs import Run, check_folder, execute, make_run
from metaicl.files import writable_folder, write_text
from metaicl.report import write_report

__all__ = ["make_problem", "make_run", "refuse_vain", "run_experiment"]


def run_experiment(
    config: ConfigDict, workdir: str | os.PathLike, *, only: str | None = None, command: Sequence[str] = ()
) -> str:
    """Does the runs of a config and writes the report.

    Args:
      config: see the files in `configs/`.
      workdir: root of all outputs.
      only: number (from 0) or name of the one run to do; None for all.
      command: the command line, kept beside the results.

    Returns:
      The headline table.

    Raises:
      ConfigError, ValueError, OSError: for what is wrong with config, data or workdir, before any long work.
    """
    started = time.time()
    root = writable_folder(workdir)
    sharding.check_same("configs", json.dumps(as_json(config), sort_keys=True).encode())
    mesh = sharding.make_mesh()
    first = jax.process_index() == 0
    runs = [make_any(name, part, root / name, mesh) for name, part in chosen_runs(config, only).items()]
    for run in runs:
        check_folder(run)
    if first and command:
        write_text(root / "command.txt", shlex.join(command) + "\n")
    for number, run in enumerate(runs, 1):
        finished = sharding.agreed(run.finished)  # else a slow process might find what a fast one just wrote
        if first:
            _say(f"[{number}/{len(runs)}] {run.name}" + (": finished before" if finished else ""))
        if not finished:
            measure(run) if isinstance(run, Measurement) else execute(run)
    if not first:
        return ""
    table = write_report(root)
    _say(f"{len(runs)} runs in {time.time() - started:.0f} s. Report: {root / 'report.html'}")
    return table


def make_any(name: str, config: ConfigDict, folder: pathlib.Path, mesh: Mesh) -> Run | Measurement:
    """A run that trains and evaluates learners, or one that measures something about them or the data."""
    make = make_measurement if measures(config) else make_run
    return make(name, config, folder, mesh)


def chosen_runs(config: ConfigDict, only: str | None) -> dict[str, ConfigDict]:
    """The configs of the runs by name, each with its overrides applied; `only` chooses one of them."""
    names = list(config.runs) or ["main"]
    if only is not None:
        if only.isdigit() and int(only) < len(names):
            names = [names[int(only)]]
        elif only in names:
            names = [only]
        else:
            listing = ", ".join(f"{i} {name}" for i, name in enumerate(names))
            raise ConfigError(f"There is no run {only!r}; the runs are: {listing}.")
    common = copy.deepcopy(config)  # once without the runs, which of a large table are most of it
    with common.unlocked():
        del common["runs"]
    return {name: _own_config(overridden(common, config.runs.get(name, {}))) for name in names}


def _own_config(config: ConfigDict) -> ConfigDict:
    """Without what the run does not use, so that it does not depend on other runs and their learners."""
    with config.unlocked():
        training = ("learners", "learner", "baselines", "train", "replicas")
        for part in training if measures(config) else ("measure",):
            if part in config:
                del config[part]
        if measures(config):
            return config
        used = {config.learner, *config.baselines}
        config.learners = ConfigDict({name: entry for name, entry in config.learners.items() if name in used})
    return config


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
