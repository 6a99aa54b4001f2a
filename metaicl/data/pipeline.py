# SPDX-License-Identifier: Apache-2.0
"""Host batches through Grain, with a position that can be stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaicl.episode import Source, host_batch

_ENDLESS = 2**40


def open_batches(
    source: Source, batch: int, *, process: int = 0, processes: int = 1, threads: int = 1, prefetch: int = 16
) -> Any:
    """A Grain iterator over the host batches of this process; batch t holds episodes t B to (t + 1) B - 1.

    The episodes of a global batch do not depend on the number of processes. `get_state` and `set_state` of
    the iterator store and restore its position.

    Args:
      source: its `indices` are called on `threads` threads (one is the fastest for a sampler in NumPy: the
        threads share the interpreter lock; 0 for none).
      batch: global batch size B.
      process, processes: this process and their number.
      threads, prefetch: of Grain's reader.

    Raises:
      ValueError: if the processes cannot share a batch evenly.
    """
    import grain  # slow to import

    if batch % processes:
        raise ValueError(f"A batch of {batch} episodes cannot be shared by {processes} processes.")
    reader = grain.MapDataset.source(_HostBatches(source, batch, process, processes))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    return iter(reader.to_iter_dataset(options))


class _HostBatches:
    """Random access to the host batches of one process."""

    def __init__(self, source: Source, batch: int, process: int, processes: int):
        self._source, self._batch = source, batch
        self._size = batch // processes
        self._first = process * self._size

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, t: int) -> dict[str, np.ndarray]:
        start = t * self._batch
        own = range(start + self._first, start + self._first + self._size)
        return host_batch(self._source, range(start, start + self._batch), own)
