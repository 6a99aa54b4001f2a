# SPDX-License-Identifier: Apache-2.0
"""Two processes train what one does: the same parameters and answers, and only process 0 writes.

Run as a script, this file is one process of the job that the first test starts.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from metaicl import sharding
from metaicl.checkpoint import Checkpoints
from metaicl.data.functions import prompts
from metaicl.data.pipeline import open_batches
from metaicl.episode import Stage, TaskSpec
from metaicl.evaluate import evaluate
from metaicl.learners import make_learner
from metaicl.train import Hooks, Schedule, listed, train
from metaicl.writer import Writer

ROOT = pathlib.Path(__file__).parents[1]
LAUNCHER = ROOT / "launch" / "local.sh"
STEPS = 3


def train_and_answer(folder: pathlib.Path, mesh) -> dict[str, np.ndarray]:
    """Trains one stage, resumes from its checkpoint for another, and evaluates: arrays by name."""
    spec = TaskSpec("regress", (4,), "float32", 1)
    learner = make_learner("maml", spec, encoder="identity", inner_steps=1, order="first")
    dense = {"dense": {"kind": "dense_linear"}}
    source = prompts(seed=1, dimensions=4, points=6, queries=3, classes=dense, weights={"dense": 1.0})
    source = source._replace(consts=sharding.put_replicated(mesh, source.consts))
    optimizer = optax.sgd(0.05)

    def batches(source, batch):
        return open_batches(source, batch, process=jax.process_index(), processes=jax.process_count())

    for stages in (1, 2):
        state = train(
            learner,
            listed([Stage(f"stage {n}", source, STEPS) for n in range(stages)]),
            optimizer,
            seeds=[3],
            replicas=None,
            schedule=Schedule(batch=4, log_every=1, checkpoint_every=STEPS),
            hooks=Hooks(batches),
            mesh=mesh,
            writer=Writer(None, total=None, title=""),
            checkpoints=Checkpoints(folder / "checkpoints"),
        )
    assert int(state.step) == 2 * STEPS
    leaves = jax.tree_util.tree_leaves_with_path(state.meta.params)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays | evaluate(spec, learner, state.best, source, range(100, 106), batch=4)["values"]


def one_of_several(folder: pathlib.Path, coordinator: str, process: int, processes: int) -> None:
    """What the process of the given number does."""
    jax.distributed.initialize(coordinator, processes, process)
    assert jax.process_count() == processes and jax.process_index() == process
    assert sharding.agreed(10 + process) == 10
    mesh = sharding.make_mesh()
    sharding.check_same("files", b"same")
    with pytest.raises(ValueError, match="cannot be spread over 2 devices: set train"):
        sharding.fitting(mesh, 3)
    with pytest.raises(ValueError, match="different arrays"):
        sharding.put_replicated(mesh, {"x": np.full(3, process)})
    np.savez(folder / f"answers-{process}.npz", **train_and_answer(folder / f"process-{process}", mesh))


def environment() -> dict[str, str]:
    """The environment of a process with one CPU device, whatever this one has."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHON": sys.executable}
    return os.environ | settings | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles sooner


def test_two_processes_equal_one(tmp_path, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = []
    for process in range(2):
        command = [sys.executable, __file__, str(tmp_path), coordinator, str(process), "2"]
        with open(tmp_path / f"log-{process}", "w") as log:
            jobs.append(subprocess.Popen(command, env=environment(), stdout=log, stderr=log, cwd=ROOT))
    try:
        expected = train_and_answer(tmp_path / "alone", sharding.make_mesh(devices[:1]))
        for process, job in enumerate(jobs):
            assert job.wait(100) == 0, (tmp_path / f"log-{process}").read_text()[-3000:]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    for process in range(2):
        with np.load(tmp_path / f"answers-{process}.npz") as found:
            assert sorted(found) == sorted(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (tmp_path / "process-0" / "checkpoints" / str(2 * STEPS)).is_dir()
    assert not (tmp_path / "process-1").exists(), "only process 0 writes"


TINY = [
    "--config=configs/loo.py:backbone=none,held_out=cells,learner=prototypes",
    "--config.data.embedded.classes=6",
    "--config.data.embedded.images_per_class=16",
    "--config.data.datasets=('tissues','flowers','gears')",
    "--config.data.image_size=16",
    "--config.learners.prototypes.encoder_settings.filters=(8,8)",
    "--config.baselines=('ridge',)",
    "--config.train.optimizer=sgd",  # Adam makes large steps of the rounding errors of a zero gradient
    "--config.train.learning_rate=0.1",
    "--config.train.steps=8",
    "--config.train.warmup=2",
    "--config.train.log_every=2",
    "--config.train.checkpoint_every=4",
    "--config.train.validate_every=4",
    "--config.evaluate.batch=4",
    "--config.evaluate.episodes=6",
    "--config.evaluate.validation_episodes=5",
    "--config.evaluate.shot_curve=(1,)",
    "--config.evaluate.shot_curve_episodes=3",
]


def run(cache: pathlib.Path, *command: str) -> subprocess.CompletedProcess:
    """Runs a command in the repository's root, with the given cache of the embedded album."""
    env = environment() | {"METAICL_CACHE": str(cache)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def numbers(path: pathlib.Path) -> tuple[list, list[float]]:
    """A file of JSON lines as its text without numbers, and its numbers in order."""
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    text = path.read_text()
    return number.split(text), [float(n) for n in number.findall(text)]


def assert_same_results(one: pathlib.Path, two: pathlib.Path) -> None:
    """Same weights and numbers, up to the order of sums."""
    from safetensors.numpy import load_file

    expected, found = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for file in ("metrics.jsonl", "records.jsonl"):
        (expected_text, expected_numbers), (text, values) = numbers(one / file), numbers(two / file)
        assert text == expected_text
        np.testing.assert_allclose(values, expected_numbers, rtol=1e-3, atol=1e-3, err_msg=file)


@pytest.mark.slow
def test_the_launcher_trains_what_one_process_does_and_resumes(tmp_path):
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    run(cache, sys.executable, "-m", "metaicl.main", *TINY, f"--workdir={one}")
    launched = ["bash", str(LAUNCHER), "--processes", "2", "--logs", str(tmp_path / "logs"), "--"]
    done = run(cache, *launched, *TINY, f"--workdir={two}")
    assert "prototypes" in done.stdout and (two / "report.html").exists()
    assert "report" not in (tmp_path / "logs" / "process-1.log").read_text(), "only process 0 reports"
    (run_one,), (run_two,) = one.glob("held_out*"), two.glob("held_out*")
    assert_same_results(run_one, run_two)
    assert json.loads((run_one / "config.json").read_text()) == json.loads(
        (run_two / "config.json").read_text()
    )

    before = {
        f: (run_two / f).read_bytes() for f in ("weights.safetensors", "metrics.jsonl", "records.jsonl")
    }
    (run_two / "records.jsonl").unlink()
    shutil.rmtree(run_two / "checkpoints" / "8")
    run(cache, *launched, *TINY, f"--workdir={two}")
    for name, data in before.items():
        assert (run_two / name).read_bytes() == data, f"{name} differs after resuming from step 4"


if __name__ == "__main__":
    place, host, *which = sys.argv[1:]
    one_of_several(pathlib.Path(place), host, *map(int, which))
