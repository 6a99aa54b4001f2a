# SPDX-License-Identifier: Apache-2.0
"""A model is fetched by its name from a hub, here one on this machine, and only the files that are read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub_server import serve
from text_data import cut_up, tiny_tensors, write_model

FETCH = """
from metaicl.models.bert_weights import weights_folder
print(weights_folder("someone/tiny-bert"))
try:
    weights_folder("someone/else")
except FileNotFoundError as error:
    print(error)
"""


def test_a_name_is_fetched_from_the_hub(tmp_path, rng):
    """In a process of its own, for the client reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub")
    tensors = tiny_tensors(rng)
    model = write_model(tmp_path / "model", tensors)
    cut_up(model, tensors)
    for left in ("pytorch_model.bin", "README.md"):
        (model / left).write_text("not to be fetched")
    with serve(model, "someone/tiny-bert") as (address, asked):
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        command = [sys.executable, "-c", FETCH]
        done = subprocess.run(command, env=clean | home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    place, refusal = done.stdout.strip().splitlines()[:2]
    assert place.startswith(str(tmp_path / "home"))
    wanted = {path.name for path in model.iterdir()} - {"pytorch_model.bin", "README.md"}
    assert set(os.listdir(place)) == wanted and "model.safetensors.index.json" in wanted
    for name in wanted:
        with open(os.path.join(place, name), "rb") as file:
            assert file.read() == (model / name).read_bytes()
    assert refusal.startswith("'someone/else' is no folder, and the Hugging Face hub did not give it")
    assert not any("README" in path or "pytorch_model" in path for path in asked)
