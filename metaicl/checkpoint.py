# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: training state, data position and history together, under one digest; Orbax is only here."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import warnings
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from metaicl.files import write_bytes


class CheckpointWarning(UserWarning):
    """A checkpoint was damaged and passed over."""


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds `state` (a pytree of arrays) and `notes` (anything JSON can hold: history, data
    position), and a SHA-256 digest over both: Orbax restores a flipped byte without a word.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        """Keeps the newest `keep` checkpoints under `directory`; at least 2, so that one may be damaged."""
        import orbax.checkpoint as ocp  # slow to import

        self._ocp = ocp
        self._directory = pathlib.Path(os.path.abspath(directory))
        self._keep = max(keep, 2)
        self._manager: Any = None

    def save(self, step: int, state: Any, notes: dict) -> None:
        """Writes the checkpoint of `step`; an interrupted write leaves the older ones as they are.

        Every process of a job calls it with the same replicated state, and the first one writes.
        """
        if jax.process_index() != 0:
            return
        state = jax.device_get(state)
        notes = json.loads(json.dumps(notes))  # what will be read back: tuples become lists
        manifest = {"step": step, "digest": digest(state, notes), "notes": notes}
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), manifest=self._ocp.args.JsonSave(manifest)
        )
        self._open().save(step, args=items)
        self._manager.wait_until_finished()

    def restore_latest(self, template: Any) -> tuple[int, Any, dict] | None:
        """The newest checkpoint that is whole: `(step, state, notes)`, or None if there is none.

        Damaged ones (truncated, changed, empty) are deleted with a `CheckpointWarning`, so that their steps
        can be written again. In a job of several processes the first one reads, and gives it to the others:
        they need not see its disk.
        """
        found = self._newest_whole(template) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            found = _from_first_process(found, template)
        if found is None:
            return None
        step, state, notes = found
        return step, jax.tree.map(_placed_like, template, state), notes

    def latest_step(self) -> int | None:
        """The newest step on disk, whole or not."""
        return max(self._steps(), default=None)

    def close(self) -> None:
        """Releases Orbax's threads."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _steps(self):
        if not self._directory.is_dir():
            return []
        return [int(p.name) for p in self._directory.iterdir() if p.is_dir() and p.name.isdigit()]

    def _open(self):
        """Orbax's manager. It knows of this process only, whatever the number of processes of the job."""
        if self._manager is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            alone = self._ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="metaicl"
            )
            options = self._ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            )
            self._manager = self._ocp.CheckpointManager(self._directory, options=options)
        return self._manager

    def _newest_whole(self, template):
        for step in sorted(self._steps(), reverse=True):
            try:
                state, manifest = self._restore(step, template)
                if manifest["digest"] != digest(state, manifest["notes"]):
                    raise ValueError("its contents do not match its digest")
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                warnings.warn(
                    f"Checkpoint {self._directory / str(step)} is damaged ({reason}); using the one before.",
                    CheckpointWarning,
                    stacklevel=3,
                )
                self._discard(step)
                continue
            return step, state, manifest["notes"]
        return None

    def _restore(self, step, template):
        arrays = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), template)
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(arrays), manifest=self._ocp.args.JsonRestore()
        )
        restored = self._open().restore(step, args=items)
        return restored["state"], restored["manifest"]

    def _discard(self, step):
        self.close()  # the manager remembers the steps it saw
        shutil.rmtree(self._directory / str(step), ignore_errors=True)


def _placed_like(like: Any, value: np.ndarray) -> Any:
    """The value where `like` is: on its devices, or on the host."""
    if not isinstance(like, jax.Array):
        return value
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: np.asarray(value[part]))


def _from_first_process(found: tuple[int, Any, dict] | None, template: Any) -> tuple[int, Any, dict] | None:
    """What process 0 found, in every process; bytes are sent, so that every bit arrives."""
    send = multihost_utils.broadcast_one_to_all
    nothing = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), template)
    step, state, notes = found or (-1, nothing, {})
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    step, length = (int(n) for n in send(np.asarray([step, len(text)], np.int32)))
    if step < 0:
        return None
    notes = json.loads(send(np.resize(text, length)).tobytes())

    def sent(a):
        return send(np.frombuffer(a.tobytes(), np.uint8)).view(a.dtype).reshape(a.shape)

    return step, jax.tree.map(sent, state), notes


def digest(state: Any, notes: dict) -> str:
    """SHA-256 over the bytes, shapes, dtypes and names of a pytree of arrays, and over the notes."""
    result = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(jax.device_get(leaf))
        result.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


def save_weights(path: str | os.PathLike, tree: Any, *, dtype: str | None = None) -> None:
    """Writes a pytree of arrays as one safetensors file, atomically; floats as `dtype` if given."""
    from safetensors.numpy import save

    def array(leaf):
        value = np.asarray(jax.device_get(leaf))
        value = value.astype(dtype) if dtype and value.dtype.kind == "f" else value
        return np.ascontiguousarray(value).reshape(value.shape)  # which makes scalars one-dimensional

    named = {jax.tree_util.keystr(p): array(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    write_bytes(path, save(named))


def load_weights(path: str | os.PathLike, template: Any) -> Any:
    """Reads what `save_weights` wrote into the structure and dtypes of `template`.

    Raises:
      ValueError: naming the first tensor that is missing or has another shape.
    """
    from safetensors.numpy import load_file

    stored = load_file(path)

    def leaf(key_path, like):
        name = jax.tree_util.keystr(key_path)
        if name not in stored:
            raise ValueError(f"{path} has no tensor {name!r}: it was written by a learner of other settings.")
        if stored[name].shape != like.shape:
            raise ValueError(
                f"{path}: {name!r} has shape {stored[name].shape}, the learner needs {like.shape}."
            )
        return stored[name].astype(like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, template)
