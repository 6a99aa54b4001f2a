# SPDX-License-Identifier: Apache-2.0
"""Figures of functions in context, from records with known means."""

from __future__ import annotations

import json

import numpy as np
import pytest

from metaicl.report import functions, style, write_report
from metaicl.report.reading import distance_records, load_runs, shot_records, sweep_records

MODELS = ("dense only", "mixture 0.5", "sparse only")
SHOTS = (0, 2, 4, 8)


def record(learner, dataset, evaluation, shots, values, **beside):
    return {
        "learner": learner,
        "trained": learner in MODELS or " to " in learner,
        "dataset": dataset,
        "domain": "functions",
        "replica": f"{learner.replace(' ', '-')},seed=0" if learner in MODELS else "",
        "evaluation": evaluation,
        "ways": 1,
        "shots": shots,
        "values": {k: [float(f"{x:.5g}") for x in column] for k, column in values.items()},
        **beside,
    }


def write_root(root):
    """One run: three models and least squares on two classes, over non-zeros, a distance, fits, a log."""
    rng, lines = np.random.default_rng(0), []
    for name in (*MODELS, "least_squares"):
        for dataset in ("dense", "sparse"):
            wrong = name.split()[0] in ("dense", "sparse") and not name.startswith(dataset)
            for k in SHOTS:
                error = (1 if wrong else 2.0**-k) * rng.gamma(4, 0.25, 200)
                found = {"error": error, "mse": 5 * error}
                lines.append(record(name, dataset, "shots", k, found))
                if k == SHOTS[-1]:
                    lines.append(record(name, dataset, "main", k, found))
        for s in (1, 2, 3, 5):
            error = s / 10 * rng.gamma(4, 0.25, 200)
            found = {"error": error, "mse": s * error}
            lines.append(record(name, "non-zeros", "sweep", 4, found, setting="nonzeros", value=s))
    for s in (1, 2, 3, 5):
        found = {"distance": 0.1 * s * rng.gamma(4, 0.25, 200)}
        lines.append(
            record(
                "mixture 0.5 to dense only", "non-zeros", "distance", 4, found, setting="nonzeros", value=s
            )
        )
    run = root / "dense_sparse"
    run.mkdir(parents=True)
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    x = rng.uniform(-5, 5, 30).tolist()
    fits = [
        dict(learner=name, dataset=dataset, episode=i, x=x, fit=np.sin(x).tolist(), truth=np.cos(x).tolist())
        | dict(support_x=[0.0, 1.0], support_y=[0.5, -0.5])
        for name in MODELS
        for dataset in ("line", "sine")
        for i in range(2)
    ]
    (run / "fits.json").write_text(json.dumps(fits))
    replicas = {f"{name.replace(' ', '-')},seed=0": {"label": name} for name in MODELS}
    (run / "config.json").write_text(json.dumps({"learner": "causal", "replicas": replicas}))
    log = [
        {"step": step, "split": "validation", "replica": replica, "loss": 1 / step}
        for replica in replicas
        for step in (100, 200, 300)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return root


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are made into pictures, in order."""
    figures = []
    keep = lambda figure: figures.append(figure) or b""
    monkeypatch.setattr(functions, "png_of", keep)
    return figures


def title_of(ax):
    """Wherever the style puts it: here it is not in force."""
    return ax.get_title(loc="left") or ax.get_title()


def lines_of(ax):
    """The y data of what is no reference line."""
    return [line.get_ydata() for line in ax.lines if line.get_linestyle() == "-"]


def test_lines_are_the_means_of_the_records(tmp_path, drawn):
    records = [r for run in load_runs(write_root(tmp_path)) for r in run.records]
    shots, sweeps, distances = shot_records(records), sweep_records(records), distance_records(records)
    assert functions.are_functions([*shots, *sweeps]) and not functions.are_functions([*shots, *distances])
    look = style.looks_of([], [*shots, *sweeps])
    functions.draw_examples(shots, look)
    functions.draw_settings(sweeps, look)
    functions.draw_distances(distances)
    examples, settings, apart = drawn
    assert [title_of(ax) for ax in examples.axes] == ["dense", "sparse"]
    for ax, dataset in zip(examples.axes, ("dense", "sparse"), strict=True):
        expected = [
            [np.mean(r["values"]["error"]) for k in SHOTS for r in shots
             if (r["learner"], r["dataset"], r["shots"]) == (name, dataset, k)]
            for name in ("least_squares", *MODELS)
        ]  # fmt: skip
        np.testing.assert_allclose(lines_of(ax), expected, rtol=1e-6)
        assert ax.get_yscale() == "log"
    assert len(settings.axes) == 1 and len(lines_of(settings.axes[0])) == 4
    (line,) = lines_of(apart.axes[0])
    np.testing.assert_allclose(line, [np.mean(r["values"]["distance"]) for r in distances], rtol=1e-6)
    assert apart.axes[0].get_yscale() == "linear"


def test_points_of_a_curve_over_pretraining_are_one_panel(drawn):
    """Every replica measured a data set of its own name, `all, pool 16`; the curve is over the pool."""
    records = [
        {**record("causal", f"all, pool {p}", "sweep", 10, {"error": [p / 1e4] * 5}, setting="pool", value=p)}
        for p in (16, 256, 4096)
    ]
    labelled = [
        {**r, "label": "causal", "run": "diversity", "split": "test", "seed": 0, "replica": "",
         "values": {k: np.asarray(v) for k, v in r["values"].items()}}
        for r in records
    ]  # fmt: skip
    functions.draw_settings(labelled, style.looks({"causal": True}))
    (figure,) = drawn
    (ax,) = figure.axes
    assert title_of(ax) == "all" and ax.get_xscale() == "log"
    np.testing.assert_allclose(lines_of(ax), [[0.0016, 0.0256, 0.4096]])


def test_report_of_functions(tmp_path):
    """All figures; the learners of the log and the tables are the labels of the replicas."""
    table = write_report(write_root(tmp_path))
    assert all(name in table for name in MODELS)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"shots", "settings", "distances", "curves", "learning", "training", "domains"} <= names
    assert not {"sweep", "fits_line"} & names
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    found = {(r["learner"], r["value"]) for r in rows if r["metric"] == "distance"}
    assert found == {("mixture 0.5 to dense only", s) for s in (1, 2, 3, 5)}
    assert {r["metric"] for r in rows} == {"error", "mse", "distance"}
