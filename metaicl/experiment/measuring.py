# SPDX-License-Identifier: Apache-2.0
"""Runs that train nothing: a quantity of learners or data sets is measured, and recorded as all else is."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from metaicl.analysis import taylor
from metaicl.configuration import ConfigError, as_json
from metaicl.data import functions
from metaicl.episode import TaskSpec
from metaicl.experiment import relating
from metaicl.experiment.recording import identity
from metaicl.files import write_text
from metaicl.learners.classifier import Classifier, make_classifier


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A named run of a config that says in `measure.kind` what to measure instead of training.

    Attributes:
      name: name of the run and of its folder.
      config: of the run, overrides applied.
      folder: where its outputs go.
      mesh: the devices.
    """

    name: str
    config: ConfigDict
    folder: pathlib.Path
    mesh: Mesh

    @property
    def finished(self) -> bool:
        """Whether its records are there: they are written last, at once."""
        return (self.folder / "records.jsonl").exists()


class _Kind(NamedTuple):
    """`check(run)` says at once what is wrong with a measurement; `lines(run)` makes it, for records.jsonl."""

    check: Callable[[Measurement], object]
    lines: Callable[[Measurement], list[dict[str, Any]]]


def measures(config: ConfigDict) -> bool:
    """Whether a run with this config is a measurement."""
    return bool("measure" in config and config.measure.kind)


def make_measurement(name: str, config: ConfigDict, folder: pathlib.Path, mesh: Mesh) -> Measurement:
    """Builds a measurement, and says at once what is wrong with it."""
    kind = config.measure.kind
    if kind not in _KINDS:
        raise ConfigError(f"measure.kind is {kind!r}; there are {', '.join(_KINDS)}.")
    run = Measurement(name, config, folder, mesh)
    _KINDS[kind].check(run)
    return run


def measure(run: Measurement) -> None:
    """Measures and records. It is short: an interrupted one begins again."""
    lines = _KINDS[run.config.measure.kind].lines(run)
    if jax.process_index() == 0:
        write_text(run.folder / "config.json", json.dumps(identity(run.config), indent=1, sort_keys=True))
        write_text(run.folder / "records.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _check_taylor(run: Measurement) -> None:
    m = run.config.measure
    if m.method not in taylor.METHODS:
        raise ConfigError(f"measure.method is {m.method!r}; there are {', '.join(taylor.METHODS)}.")
    if not m.minibatches or min(m.minibatches) < 2:
        raise ConfigError(f"measure.minibatches is {tuple(m.minibatches)}; each takes at least 2.")


def _taylor(run: Measurement) -> list[dict[str, Any]]:
    """Coefficients of the leading terms of one method's meta-gradients, for every number of minibatches."""
    m, lines, found = run.config.measure, [], {}
    network = make_classifier(TaskSpec("regress", (1,), "float64", 1), "mlp", as_json(m.network), "float64")
    with jax.enable_x64(True), tqdm(total=len(m.minibatches), desc=f"  {run.name}", file=sys.stderr) as bar:
        for k in m.minibatches:
            found[k] = [_taylor_at(m, network, k, seed) for seed in range(m.seeds)]
            bar.update()
    head = {"run": run.name, "domain": "sinusoids", "shots": m.batch, "seed": 0, "step": 0}
    for term, (part, name) in enumerate((("grad", "AvgGrad"), ("inner", "AvgGradInner"))):
        theory = {k: taylor.METHODS[m.method](k)[term] for k in found}
        measured = {k: [one[part] for one in each] for k, each in found.items()}
        error = [abs(value / theory[k] - 1) for k, values in measured.items() for value in values]
        # Measured lines are drawn in full colours, theory is pale.
        whole = {"learner": m.method, "dataset": name, "trained": True}
        lines.append(head | whole | {"evaluation": "main", "values": {"relative error": error}})
        for k in found:
            point = {"evaluation": "sweep", "dataset": name, "setting": "minibatches", "value": k}
            lines.append(head | whole | point | {"values": {"coefficient": measured[k]}})
            ideal = {"learner": f"{m.method} in theory", "values": {"coefficient": [theory[k]]}}
            lines.append(head | point | ideal | {"trained": False})
    return lines


def _taylor_at(m: ConfigDict, network: Classifier, k: int, seed: int) -> dict[str, float]:
    """One measurement: `m.tasks` sine curves, and initial weights, of a seed."""
    source = functions.sinusoids(seed=seed, points=k * m.batch, queries=1)
    episodes, _ = source.build(source.consts, {"index": np.arange(m.tasks)}, jax.random.key(0))
    tasks, params = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64), (episodes.support, network.init(jax.random.key(seed)))
    )
    return taylor.coefficients(network.support_loss, params, tasks, m.method, k, inner_lr=m.inner_lr)


_KINDS = {
    "taylor": _Kind(_check_taylor, _taylor),
    "distances": _Kind(relating.check_distances, relating.distances),
    "ease": _Kind(relating.check_ease, relating.ease),
    "overlap": _Kind(relating.check_overlap, relating.overlap),
}
