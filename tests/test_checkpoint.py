# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or passed over, whatever happens to their files or to the process that writes them.

Run as a script, this file is the process that dies while it writes.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import warnings

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaicl import sharding
from metaicl.checkpoint import Checkpoints, CheckpointWarning, digest, load_weights, save_weights
from metaicl.learners.base import Meta

# Where one array cannot be read, Orbax closes its event loop before the reads of the others end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NOTES = {"history": [{"stage": "a", "steps": 3, "result": {"x": 0.1}}], "position": {"next_index": 4}}


@flax.struct.dataclass
class State:
    step: jax.Array
    meta: Meta
    nothing: tuple = ()


def state_of(step: int) -> State:
    """A state of several dtypes and shapes, other values at every step."""
    rng = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16),
        "odd": jnp.asarray([np.nan, np.inf, -0.0, 1e-45], jnp.float32),
        "empty": {},
    }
    return State(jnp.int32(step), Meta(params, (jnp.arange(3, dtype=jnp.uint32) + step,)))


def save_all(folder, steps=(4, 8)) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state_of(step), NOTES | {"saved": step})
    checkpoints.close()


def same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def restored(folder) -> tuple | None:
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore_latest(state_of(0))
    checkpoints.close()
    return found


def expect(found, step: int) -> None:
    assert found is not None and found[0] == step
    same_bits(found[1], state_of(step))
    assert found[2] == NOTES | {"saved": step}


def test_round_trip_keeps_every_bit_and_the_newest_two(tmp_path):
    save_all(tmp_path, (4, 8, 12))
    expect(restored(tmp_path), 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["12", "8"]
    assert Checkpoints(tmp_path).latest_step() == 12


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    assert restored(tmp_path / "absent") is None
    assert Checkpoints(tmp_path / "absent").latest_step() is None
    assert not (tmp_path / "absent").exists()


def test_arrays_come_back_to_the_devices_of_the_template(tmp_path, devices):
    mesh = sharding.make_mesh(devices)
    template = sharding.put_replicated(mesh, state_of(0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, sharding.put_replicated(mesh, state_of(4)), NOTES)
    _, state, _ = checkpoints.restore_latest(template)
    checkpoints.close()
    same_bits(state, state_of(4))
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
        assert leaf.sharding == like.sharding


def test_tuples_in_notes_come_back_as_lists_without_upsetting_the_digest(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1), {"history": [{"result": (1, 2)}], "position": None})
    found = checkpoints.restore_latest(state_of(0))
    checkpoints.close()
    assert found[2] == {"history": [{"result": [1, 2]}], "position": None}


def files_of(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def flip(path: pathlib.Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 16
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def falls_back(folder, step: int = 4) -> None:
    """The damaged newest checkpoint is passed over with a warning, and its step can be written again."""
    with pytest.warns(CheckpointWarning, match=r"8 is damaged .*using the one before") as said:
        expect(restored(folder), step)
    assert len(said) == 1
    save_all(folder, (8,))
    expect(restored(folder), 8)


def whole_or_refused(folder: pathlib.Path) -> bool:
    """Whether checkpoint 8 is refused; if not, then every bit of it is right (the damage was not in use)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = restored(folder)
    refused = found[0] != 8
    expect(found, 4 if refused else 8)
    assert [w.category for w in said] == refused * [CheckpointWarning]
    return refused


@pytest.mark.parametrize("harm", [truncate, *(functools.partial(flip, place=p) for p in (0.2, 0.5, 0.9))])
def test_no_damaged_file_changes_a_value(harm, tmp_path):
    save_all(tmp_path / "whole")
    refused = set()
    for number, path in enumerate(files_of(tmp_path / "whole" / "8")):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        name = path.relative_to(tmp_path / "whole" / "8")
        if path.stat().st_size:
            harm(folder / "8" / name)
        if whole_or_refused(folder):
            refused.add(name.parts[0])
    assert {"manifest", "state"} <= refused


def test_the_step_of_a_damaged_checkpoint_can_be_written_again(tmp_path):
    save_all(tmp_path)
    truncate(max(files_of(tmp_path / "8"), key=lambda p: p.stat().st_size))
    falls_back(tmp_path)


@pytest.mark.parametrize("lost", ["everything", "manifest", "state", "manifest/metadata"])
def test_missing_parts_are_noticed(lost, tmp_path):
    save_all(tmp_path)
    path = tmp_path / "8" / ("" if lost == "everything" else lost)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if lost == "everything":
        path.mkdir()
    falls_back(tmp_path)


def test_values_changed_behind_a_valid_file_are_noticed(tmp_path):
    """As by a flipped bit that Orbax's own format does not check."""
    save_all(tmp_path / "a")
    checkpoints = Checkpoints(tmp_path / "b")
    other = state_of(8)
    other.meta.params["kernel"] = other.meta.params["kernel"].at[3, 3].add(1e-7)
    checkpoints.save(8, other, NOTES | {"saved": 8})
    checkpoints.close()
    shutil.rmtree(tmp_path / "a" / "8" / "state")
    shutil.copytree(tmp_path / "b" / "8" / "state", tmp_path / "a" / "8" / "state")
    with pytest.warns(CheckpointWarning, match="do not match its digest"):
        expect(restored(tmp_path / "a"), 4)


def test_nothing_is_left_when_all_are_damaged(tmp_path):
    save_all(tmp_path)
    for step in ("4", "8"):
        for path in files_of(tmp_path / step):
            truncate(path)
    with pytest.warns(CheckpointWarning) as said:
        assert restored(tmp_path) is None
    assert len(said) == 2
    save_all(tmp_path)
    expect(restored(tmp_path), 8)


def test_a_state_of_other_shapes_is_not_restored(tmp_path):
    save_all(tmp_path, (4,))
    other = State(jnp.int32(0), Meta({"kernel": jnp.zeros((2, 2))}))
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(CheckpointWarning):
        assert checkpoints.restore_latest(other) is None
    checkpoints.close()


def test_the_digest_sees_every_change():
    tree = {"a": np.arange(4, dtype=np.float32), "b": np.zeros((2, 3), np.int32)}
    notes = {"position": {"next_index": 1}}
    reference = digest(tree, notes)
    assert reference == digest(jax.tree.map(jnp.asarray, tree), {"position": {"next_index": 1}})
    smallest = tree["a"].copy()
    smallest.view(np.uint32)[2] ^= 1
    others = [
        (tree | {"a": smallest}, notes),
        (tree | {"a": tree["a"].astype(np.float64)}, notes),
        (tree | {"b": tree["b"].reshape(3, 2)}, notes),
        (tree | {"b": tree["b"].view(np.float32)}, notes),
        ({"a": tree["a"], "c": tree["b"]}, notes),
        ({"a": tree["a"]}, notes),
        (tree | {"a": np.float32([-0.0, 1, 2, 3])}, notes),
        (tree, {"position": {"next_index": 2}}),
        (tree, {}),
    ]
    assert reference not in {digest(*other) for other in others}
    assert len({digest(*other) for other in others}) == len(others)


def test_weights_round_trip(tmp_path):
    tree = Meta({"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.float32(2)}, (jnp.arange(3),))
    save_weights(tmp_path / "w.safetensors", tree)
    same_bits(load_weights(tmp_path / "w.safetensors", tree), tree)
    save_weights(tmp_path / "half.safetensors", tree, dtype="float16")
    half = load_weights(tmp_path / "half.safetensors", tree)
    assert half.params["w"].dtype == np.float32 and half.carry[0].dtype == np.int32
    size = lambda name: (tmp_path / name).stat().st_size
    assert size("half.safetensors") < size("w.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "w.safetensors"]


def test_weights_of_another_learner_are_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"net": {"w": np.zeros((2, 3), np.float32)}})
    with pytest.raises(ValueError, match=r"w\.safetensors: .*'net'.*'w'.* has shape \(2, 3\), .*\(3, 3\)"):
        load_weights(path, {"net": {"w": np.zeros((3, 3), np.float32)}})
    with pytest.raises(ValueError, match=r"no tensor .*'net'.*'bias'"):
        load_weights(path, {"net": {"bias": np.zeros(3, np.float32)}})


def write_until_killed(folder: pathlib.Path) -> None:
    """Forks a process for every change to the files of checkpoint 8, which dies before that change."""
    import orbax.checkpoint  # noqa: F401 (before the fork, once for all)

    for change in range(1, 100):
        child = os.fork()
        if not child:
            place = folder / str(change)
            save_all(place, (4,))
            seen = [0]

            def watch(event, arguments):
                if event in ("open", "os.mkdir", "os.rename", "os.remove") and any(
                    f"/{change}/8" in str(a) for a in arguments
                ):
                    seen[0] += 1
                    if seen[0] == change:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            save_all(place, (8,))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise AssertionError("a checkpoint has more files than expected")


@pytest.mark.slow
def test_killed_before_every_change_that_writing_makes(tmp_path):
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    changes = sorted(int(p.name) for p in tmp_path.iterdir())
    assert len(changes) > 10
    expect(restored(tmp_path / str(changes[-1])), 8)
    for change in changes[:-1]:
        folder = tmp_path / str(change)
        expect(restored(folder), 4)
        save_all(folder, (8,))
        expect(restored(folder), 8)


if __name__ == "__main__":
    write_until_killed(pathlib.Path(sys.argv[1]))
