# SPDX-License-Identifier: Apache-2.0
"""`python -m metaicl.distances`: what it writes, keeps and says."""

import csv
import json
import sys

import numpy as np
import pytest
from tiny import no_album, write_album  # noqa: F401 (a fixture)

from metaicl.distances import NotConverged, Settings, pairs, pairwise
from metaicl.distances.__main__ import main
from metaicl.experiment import distances as experiment
from metaicl.experiment.problems import album_pools
from metaicl.files import write_text
from metaicl.report.distances import Matrix, classical_scaling, draw_distances, write_distance_report


def command(tmp_path, *more: str) -> int:
    return main(
        ["metaicl.distances", f"--workdir={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}", *more]
    )


def results_of(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_an_album_is_measured_and_drawn(tmp_path, capsys, monkeypatch):
    album = write_album(tmp_path / "album")
    arguments = (f"--album={album}", "--image_size=16", "--samples=20", "--seeds=2")
    given = []
    monkeypatch.setattr(experiment, "album_pools", lambda data: given.extend(album_pools(data)) or given)
    assert command(tmp_path, *arguments) == 0
    said = capsys.readouterr()
    results = results_of(tmp_path)
    assert [line.split()[0] for line in said.out.splitlines()[2:]] == ["BRD", "FLW", "APL"]  # by domain
    assert "3 pairs" in said.err and "warning" not in said.err
    assert results["converged"] and results["settings"]["samples"] == 20
    assert results["sets"][0].keys() == {"name", "domain", "classes", "items"}
    expected = pairwise([experiment.vectors(pool) for pool in given], Settings(samples=20, seeds=2))
    for row in results["rows"]:
        i, j = (expected.names.index(row[k]) for k in "ab")
        assert row["value"] == pytest.approx(expected.values[i, j], rel=1e-6) and row["ci95"] > 0
    with open(tmp_path / "out" / "distances.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [row["value"] for row in results["rows"]]
    figures = {path.name: path.read_bytes() for path in (tmp_path / "out" / "figures").iterdir()}
    assert set(figures) == {"distances.png", "dendrogram.png", "map.png"}
    assert all(png.startswith(b"\x89PNG") and len(png) > 10_000 for png in figures.values())
    given.clear()
    monkeypatch.setattr(pairs, "_computed", lambda *_: pytest.fail("computed again"))
    assert command(tmp_path, *arguments) == 0 and results_of(tmp_path)["rows"] == results["rows"]


def test_a_preset_with_changes_and_the_embedded_album(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        experiment, "measure_distances", lambda settings, workdir, **more: seen.append((settings, more))
    )
    assert command(tmp_path, "--preset=reference", "--regularisation=3", "--no-halved", "--datasets=a,b") == 0
    ((settings, more),) = seen
    assert settings.regularisation == 3 and not settings.halved and settings.unbiased_covariance
    assert more["album"] == "embedded" and more["datasets"] == ("a", "b") and more["backbone"] == "none"


def test_what_does_not_converge_is_said_and_written(tmp_path, capsys):
    album = write_album(tmp_path / "album", names=("BRD", "FLW"))
    arguments = (f"--album={album}", "--image_size=16", "--max_iterations=10", "--threshold=1e-9")
    assert command(tmp_path, *arguments, "--regularisation=0.001") == 0
    assert "warning: Transport problems that did not converge in 10 iterations" in capsys.readouterr().err
    assert not results_of(tmp_path)["converged"]
    assert [path.name for path in (tmp_path / "out" / "figures").iterdir()] == [
        "distances.png"
    ]  # of two sets
    assert issubclass(NotConverged, UserWarning)  # the kind that is shown


def test_errors_are_one_line_and_an_exit_status(tmp_path, capsys):
    assert command(tmp_path, f"--album={tmp_path / 'nowhere'}") == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert command(tmp_path, "--feature_weight=-1") == 1
    assert "must not be negative" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must not be negative"):
        command(tmp_path, "--feature_weight=-1", "--debug")
    with pytest.raises(SystemExit) as stopped:
        command(tmp_path, "--inner=gauss")
    assert stopped.value.code == 2 and "invalid choice: 'gauss'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and "metaicl.distances" in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone=resnet"], "data.backbone is 'resnet'"),
        (["--backbone=squeezenet"], "needs its pretrained weights: give weights=PATH.safetensors."),
        (["--backbone=squeezenet", "--weights=absent.safetensors"], "no weights file absent.safetensors"),
        (["--workdir=/dev/null/out"], "The workdir /dev/null/out cannot be written to"),
    ],
)
def test_errors_come_before_an_album_is_drawn(arguments, message, tmp_path, capsys, no_album):  # noqa: F811
    assert command(tmp_path, *arguments) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="an album is read"):
        command(tmp_path)


def test_the_map_keeps_distances_that_lie_in_a_plane(rng):
    points = rng.normal(size=(7, 2))
    lengths = np.linalg.norm(points[:, None] - points[None], axis=-1)
    places, share = classical_scaling(lengths)
    assert np.allclose(np.linalg.norm(places[:, None] - places[None], axis=-1), lengths)
    assert share == pytest.approx(1.0)


def test_figures_read_the_file_alone(tmp_path, rng):
    names = [f"set{k}" for k in range(24)]
    sets = [dict(name=n, domain=f"domain{k % 12}", classes=2, items=9) for k, n in enumerate(names)]
    rows = [
        dict(a=a, b=b, value=float(rng.uniform(1, 2))) for k, a in enumerate(names) for b in names[k + 1 :]
    ]
    text = json.dumps(dict(sets=sets, rows=rows, settings=dict(root=True, p=2)))
    write_text(tmp_path / "results.json", text)
    table = write_distance_report(tmp_path)
    assert len(table.splitlines()) == 26 and len(list((tmp_path / "figures").iterdir())) == 3
    pair = Matrix(["a", "b"], ["d", "d"], np.array([[0.0, 1.0], [1.0, 0.0]]))
    first, second = (draw_distances(pair)[0].png for _ in range(2))
    assert first == second
