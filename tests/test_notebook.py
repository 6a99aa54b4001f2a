# SPDX-License-Identifier: Apache-2.0
"""The notebook: both of its files agree, it holds no outputs, and it runs from top to bottom."""

from __future__ import annotations

import base64
import importlib.util
import os
import pathlib
import re

import jupytext
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_every_text_has_its_notebook():
    assert NOTEBOOKS and sorted(path.stem for path in FOLDER.glob("*.py")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_text_and_notebook_agree(name):
    text = jupytext.read(FOLDER / f"{name}.py")
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(stored)
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (text, stored)]
    assert cells[0] == cells[1], f"run jupytext --sync notebooks/{name}.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_outputs(name):
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "clear the outputs before storing"


def executed(name, tmp_path, monkeypatch):
    """The notebook's outputs, run from top to bottom in its short form."""
    from nbclient import NotebookClient

    monkeypatch.setenv("METAICL_NOTEBOOK_FAST", "1")
    monkeypatch.setenv("METAICL_WORKDIR", str(tmp_path / "work"))
    monkeypatch.setenv("METAICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a reader has
    monkeypatch.delenv("MPLBACKEND")  # the kernel draws into the notebook
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    keep = os.environ.get("METAICL_KEEP_NOTEBOOK")
    if keep:
        nbformat.write(notebook, keep)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
def test_reptile_and_joint_training_runs(tmp_path, monkeypatch):
    outputs = executed("reptile_is_not_joint_training", tmp_path, monkeypatch)
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "  1   0.90909   0.90909" in text and "  1   1.0000000" in text
    cosines = [float(line.split()[1]) for line in re.findall(r"^ *(?:2|5|20|100)   0\.\d{7}$", text, re.M)]
    assert len(cosines) == 4 and cosines == sorted(cosines, reverse=True)


@pytest.mark.slow
def test_maml_on_bert_runs(tmp_path, monkeypatch):
    """Without CLINC150, so that it is the same everywhere."""
    monkeypatch.setenv("METAICL_DATA", str(tmp_path))
    outputs = executed("maml_on_bert", tmp_path, monkeypatch)
    text = "".join(output.text for output in outputs if output.output_type == "stream")

    def number(pattern):
        return float(re.search(pattern, text, re.M)[1])

    if importlib.util.find_spec("torch"):
        assert "0.weight.grad is None" in text and "moved the weights by 0.0." in text
    else:
        assert "PyTorch is not installed" in text
    assert number(r"^ *second order +(\S+)$") < 1e-6 and number(r"^ *first order +(\S+)$") > 0.01
    assert number(r"^ *deepcopy +(\S+)$") == 1.0
    assert number(r"same key on both sides: .* relative error (\S+)") < 1e-6
    assert "2.0e-05 to 2.0e-05" in text and number(r"Adam, new.* (\S+)\n") > 0.99

    accuracy = {
        (labels, when): float(value)
        for labels, when, value in re.findall(
            r"labels (fixed|dealt anew) +seen domains +(before|after) +the step: +(\S+)%", text
        )
    }
    # By heart there is nothing to adapt to; with numbers dealt anew there is nothing to know beforehand.
    assert accuracy["fixed", "before"] > 50 > 35 > accuracy["dealt anew", "before"]
    assert accuracy["dealt anew", "after"] > accuracy["dealt anew", "before"] + 10
    assert len(re.findall(r"^accuracy, 5-way 5-shot, test", text, re.M)) >= 2  # the tables of both test sets
    assert len(re.findall(r"^(?:please|my|where|a|how) .*(?:right|wrong: \w+)$", text, re.M)) == 5
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4 and all(len(base64.b64decode(picture)) > 5000 for picture in pictures)


@pytest.mark.slow
def test_quickstart_runs(tmp_path, monkeypatch):
    outputs = executed("quickstart", tmp_path, monkeypatch)
    text = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert "in context" in text and re.search(r"\d+% of 35 images are right; guessing gives 20%", text)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 6 and all(len(base64.b64decode(picture)) > 5000 for picture in pictures)
    assert (tmp_path / "work" / "report.html").exists()
