# SPDX-License-Identifier: Apache-2.0
"""A run that was killed and resumed leaves the same bytes as one that was not.

Run as a script, this file is the run that the tests kill.
"""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import ROOT, cache, tiny_config, tiny_sequence  # noqa: F401 (a fixture)

from metaicl.configuration import named

RUN = "held_out=cells"
RESULTS = ("config.json", "metrics.jsonl", "records.jsonl", "weights.safetensors")
SCHEDULE = {"train.steps": 12, "train.checkpoint_every": 4, "train.validate_every": 4, "train.log_every": 3}
SETTINGS = {
    "prototypes": {},
    "in_context": {},
    "maml": {},
    "reptile": {},  # carries Adam's moments from task to task
    "replicas": {"replicas": named({"seed=0": {"seed": 0}, "seed=1": {"seed": 1}})},
    "stages": {},
    "adaptive": {},
}
SEQUENCES = {
    "stages": "order=E2H,bounds=none,seeds=2,reset",
    "adaptive": "order=adaptive,bounds=none",  # what comes next depends on what was validated before
}


def write_run(workdir: pathlib.Path, cache: pathlib.Path, kind: str, point: str) -> None:  # noqa: F811
    """Does the run, up to the point where it dies; see `die_at`."""
    sys.modules["torch"] = None  # tensorboardX would import it, which takes seconds
    import jax

    from metaicl import sharding
    from metaicl.experiment import chosen_runs, make_run
    from metaicl.experiment.runs import execute

    jax.config.update("jax_compilation_cache_dir", str(cache / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    die_at(point)
    if kind in SEQUENCES:  # three stages of four steps: steps 3, 6 and 9 are inside of one
        config = tiny_sequence(SEQUENCES[kind], cache, {"train.checkpoint_every": 3})
    else:
        learner = "prototypes" if kind == "replicas" else kind
        config = tiny_config(f"held_out=cells,learner={learner}", cache, SCHEDULE)
    with config.unlocked():
        config.update(SETTINGS[kind])
    ((_, own),) = chosen_runs(config, None).items()
    execute(make_run(RUN, own, workdir / RUN, sharding.make_mesh()))


def die_at(point: str) -> None:
    """Arranges for SIGKILL: `step 7` dies in step 7; `save 8 3` before the third change to the files of
    checkpoint 8, `save 8 -1` before the last, which makes it whole; `never` lives.
    """
    match point.split():
        case ["step", number]:
            from metaicl.writer import Writer

            advance = Writer.advance

            def advance_or_die(self, step, **shown):
                if step == int(number):
                    os.kill(os.getpid(), signal.SIGKILL)
                advance(self, step, **shown)

            Writer.advance = advance_or_die
        case ["save", number, change]:
            seen = [0]

            def watch(event, arguments):
                if event not in ("open", "os.mkdir", "os.rename"):
                    return
                paths = [str(a) for a in arguments]
                if not any(f"checkpoints/{number}.orbax-checkpoint-tmp" in path for path in paths):
                    return
                seen[0] += 1
                last = event == "os.rename" and paths[1].endswith(f"checkpoints/{number}")
                if seen[0] == int(change) or (last and change == "-1"):
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)


def start(workdir, cache, kind, point) -> subprocess.Popen:  # noqa: F811
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(workdir), str(cache), kind, point]
    return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def run(workdir, cache, kind, point="never") -> str:  # noqa: F811
    """Runs to the end, or to the point where the run dies; returns what it said."""
    with start(workdir, cache, kind, point) as job:
        said = job.communicate(timeout=280)[1]
    assert job.returncode == (0 if point == "never" else -signal.SIGKILL), said[-3000:]
    return said


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints that have their final name."""
    folder = workdir / RUN / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def damage(workdir: pathlib.Path, step: int) -> None:
    """Truncates the largest file of a checkpoint."""
    files = [p for p in (workdir / RUN / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def left_behind(workdir: pathlib.Path) -> set[str]:
    """The files of the run and of its stages; those of checkpoints and events hold times."""
    folder = workdir / RUN
    return {str(p.relative_to(folder)) for p in [*folder.glob("*"), *folder.glob("stages/*")] if p.is_file()}


def same_bytes(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    expected = left_behind(reference)
    assert {*RESULTS[:3]} <= expected
    assert left_behind(workdir) == expected
    for name in expected:
        assert (workdir / RUN / name).read_bytes() == (reference / RUN / name).read_bytes(), f"{name} differs"


@pytest.mark.slow
def test_killed_again_and_again_and_resumed(tmp_path, cache):  # noqa: F811
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, cache, "prototypes")
    assert checkpoints(whole) == [8, 12]

    run(killed, cache, "prototypes", "save 4 6")  # before there is any checkpoint
    assert checkpoints(killed) == []
    run(killed, cache, "prototypes", "step 11")
    assert checkpoints(killed) == [4, 8]
    damage(killed, 8)
    said = run(killed, cache, "prototypes", "save 12 -1")
    assert "CheckpointWarning" in said and "checkpoints/8 is damaged" in said
    assert checkpoints(killed) == [4, 8]
    assert not (killed / RUN / "records.jsonl").exists()
    said = run(killed, cache, "prototypes")
    assert "CheckpointWarning" not in said
    assert checkpoints(killed) == [8, 12]
    same_bytes(killed, whole)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_stage_and_at_its_end(tmp_path, cache):  # noqa: F811
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, cache, "stages")
    assert {f"stages/00{k}.npz" for k in range(4)} | {"stages.json", "ease.json"} <= left_behind(whole)

    run(killed, cache, "stages", "step 7")
    assert checkpoints(killed) == [4, 6]  # the second is inside the second stage
    assert "stages/002.npz" not in left_behind(killed)
    run(killed, cache, "stages", "save 8 -1")
    assert checkpoints(killed) == [4, 6] and "stages/002.npz" in left_behind(killed)
    run(killed, cache, "stages")
    assert checkpoints(killed) == [9, 12]
    same_bytes(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_killed_at_random_points(kind, tmp_path, cache):  # noqa: F811
    rng = random.Random(kind)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, cache, kind)
    for number in (4, 8, 12):
        run(killed, cache, kind, f"step {number - rng.randrange(3)}")
        if rng.random() < 0.5 and checkpoints(killed):
            damage(killed, checkpoints(killed)[-1])
        run(killed, cache, kind, f"save {number} {rng.randrange(1, 15)}")
    run(killed, cache, kind)
    same_bytes(killed, whole)


@pytest.mark.slow
def test_killed_from_outside_at_any_time(tmp_path, cache):  # noqa: F811
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, cache, "prototypes")
    for _ in range(6):
        with start(killed, cache, "prototypes", "never") as job:
            until = time.monotonic() + 60
            while not (killed / RUN / "config.json").exists() and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 3))
            job.kill()
            job.communicate()
        for rest in (killed / RUN).glob("*.partial"):
            rest.unlink()
    run(killed, cache, "prototypes")
    same_bytes(killed, whole)


@pytest.mark.slow
def test_a_finished_training_is_only_evaluated_again(tmp_path, cache):  # noqa: F811
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(whole, cache, "prototypes")
    shutil.copytree(whole, again)
    for name in ("records.jsonl", "weights.safetensors"):
        (again / RUN / name).unlink()
    with open(again / RUN / "metrics.jsonl", "a") as log:
        log.write('{"step": 13, "split": "train"}\n{"step": 1')
    run(again, cache, "prototypes", "never")
    same_bytes(again, whole)


if __name__ == "__main__":
    workdir, album, *rest = sys.argv[1:]
    write_run(pathlib.Path(workdir), pathlib.Path(album), *rest)
