# SPDX-License-Identifier: Apache-2.0
"""Metrics out: JSON lines always, TensorBoard events, and a progress bar on the terminal.

`metrics.jsonl` holds no times, so that a run that was killed and resumed leaves the same bytes as one that
was not.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

from tqdm import tqdm

from metaicl.files import write_text


class Writer:
    """Writes the metrics of one run; `resume_at` cuts the log back to the checkpoint's step.

    Only the first process of a job should be given a directory; the others pass None and write nothing.
    """

    def __init__(
        self, directory: str | os.PathLike | None, *, total: int | None, title: str, quiet: bool = False
    ):
        """Opens nothing yet. `total` is the number of steps, if known; `title` stands before the bar."""
        self._directory = None if directory is None else pathlib.Path(directory)
        self._total, self._title, self._quiet = total, title, quiet or directory is None
        self._bar: Any = None
        self._lines: Any = None
        self._events: Any = None

    def resume_at(self, step: int) -> None:
        """Drops log lines later than `step` (0: all of them) and opens the log behind them."""
        if self._directory is not None:
            path = self._directory / "metrics.jsonl"
            kept = path.read_text().splitlines(keepends=True) if step and path.exists() else []
            kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))
            self._lines = open(path, "a")  # noqa: SIM115 (closed by close)
            self._events = _event_writer(self._directory / "events", step)
        if not self._quiet:
            self._bar = tqdm(
                total=self._total,
                initial=step,
                desc=self._title,
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def write(
        self, step: int, split: str, values: dict[str, float], *, replica: str = "", stage: str = ""
    ) -> None:
        """One line of metrics."""
        if self._lines is None:
            return
        line = {"step": step, "split": split, "replica": replica, "stage": stage}
        self._lines.write(json.dumps(line | {name: float(value) for name, value in values.items()}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar("/".join(filter(None, (split, replica, name))), value, step)

    def advance(self, step: int, **shown: float) -> None:
        """Moves the progress bar to `step` and shows the given numbers beside it."""
        if self._bar is not None:
            if shown:
                self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes files and the bar."""
        for part in (self._bar, self._lines, self._events):
            if part is not None:
                part.close()


def _event_writer(directory, step):
    from tensorboardX import SummaryWriter  # imports protobuf: half a second that --help need not pay

    # purge_step hides the events that a killed run wrote behind its last checkpoint.
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)
