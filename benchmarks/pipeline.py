# SPDX-License-Identifier: Apache-2.0
"""Speed of the data pipeline, start-up time of the command line, and memory of the default job.

    python -m benchmarks.pipeline --json             episodes, start-up, and the memory of a shortened default job
    python -m benchmarks.pipeline --json --episodes  episodes only

Episodes: 5-way 5-shot with 25 queries, from 30 data sets of 512-dimensional features, through Grain, up to host
batches of 32. The peer is what people write with PyTorch: an episodic `Dataset` whose item is an episode, its
features gathered on the host, served by a `DataLoader` (the faster of no worker and two workers). Ours hands
over rows and gathers on the device, so its time includes that gather: both end with features where the learner
takes them. Before timing, one of our episodes is compared with the host's gather of the same rows.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import numpy as np

from benchmarks.timing import alternate, at_least, at_most, compared, median, options_of, tell
from metaicl.data import sampler
from metaicl.data.pipeline import open_batches
from metaicl.data.pool import Pool

WAYS, SHOTS, QUERIES, BATCH, BATCHES = 5, 5, 5, 32, 60
TARGET_EPISODES, TARGET_HELP_SECONDS, TARGET_GIB = 5000.0, 3.0, 4.0


def make_pools(datasets: int = 30, classes: int = 20, images: int = 40, width: int = 512) -> list[Pool]:
    """Random features in the shape of Meta-Album Micro."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images).astype(np.int32)
    names = tuple(map(str, range(classes)))
    n = len(labels)
    return [
        Pool(
            f"set{i}",
            f"domain{i}",
            names,
            labels,
            rng.normal(size=(n, width)).astype(np.float32),
            np.full(n, b""),
        )
        for i in range(datasets)
    ]


def our_reader(pools: list[Pool]):
    """A function that makes `BATCHES` batches with their features on the device."""
    store = sampler.make_store(pools, jax.device_put)
    source = sampler.episodes(store, pools, seed=0, ways=WAYS, shots=SHOTS, queries=QUERIES)
    build = jax.jit(source.build)
    batches = open_batches(source, BATCH)
    key = jax.random.key(0)
    batch = next(batches)
    episode, _ = build(store.consts, batch, key)
    on_host = np.concatenate([p.x for p in pools])[batch["support_rows"]]
    np.testing.assert_array_equal(np.asarray(episode.support.x), on_host)

    def run():
        for _ in range(BATCHES):
            episode, _ = build(store.consts, next(batches), key)
        jax.block_until_ready(episode)

    return run


class TorchEpisodes:
    """An episodic map-style dataset as PyTorch users write it: an item is an episode, gathered on the host."""

    def __init__(self, pools: list[Pool]):
        """Keeps the features of all data sets as tensors."""
        import torch

        self.features = [torch.from_numpy(p.x) for p in pools]
        self.counts = [p.counts for p in pools]
        self.starts = [np.cumsum(c) - c for c in self.counts]

    def __len__(self):
        """Episodes of one round."""
        return BATCH * BATCHES

    def __getitem__(self, i):
        """Support features and labels, query features and labels of episode i."""
        import torch

        rng = np.random.default_rng((0, i))
        d = rng.integers(len(self.features))
        classes = rng.choice(len(self.counts[d]), WAYS, replace=False)
        each = SHOTS + QUERIES
        rows = [self.starts[d][c] + rng.choice(self.counts[d][c], each, replace=False) for c in classes]
        x = self.features[d][torch.from_numpy(np.stack(rows))]
        y = torch.arange(WAYS)[:, None].expand(WAYS, each)
        order = torch.from_numpy(rng.permutation(WAYS * SHOTS))
        support = x[:, :SHOTS].reshape(-1, x.shape[-1])[order], y[:, :SHOTS].reshape(-1)[order]
        return *support, x[:, SHOTS:].reshape(-1, x.shape[-1]), y[:, SHOTS:].reshape(-1)


def torch_reader(pools: list[Pool], workers: int):
    """The peer: an episodic dataset behind a DataLoader."""
    import torch

    torch.set_num_threads(1)  # gathers this small lose more by sharing than they win

    keep = {"persistent_workers": True, "multiprocessing_context": "forkserver"} if workers else {}
    loader = torch.utils.data.DataLoader(TorchEpisodes(pools), batch_size=BATCH, num_workers=workers, **keep)

    def run():
        return [None for _ in loader]

    return run


def episodes() -> dict[str, object]:
    """Episodes a second, ours and the peer's."""
    pools = make_pools()
    work = {"ours": our_reader(pools)}
    try:
        import torch  # noqa: F401

        work |= {f"torch_{w}_workers": torch_reader(pools, w) for w in (0, 2)}
    except ImportError:
        print("PyTorch is not installed: no peer.", file=sys.stderr)
    seconds = alternate(work)
    number = BATCH * BATCHES
    rates = {f"{name}_episodes_per_s": round(number / median(s), 1) for name, s in seconds.items()}
    figures = rates | at_least("episodes_per_s", number / median(seconds["ours"]), TARGET_EPISODES)
    peers = [median(s) for name, s in seconds.items() if name != "ours"]
    if peers:
        figures |= compared("pipeline", min(peers), median(seconds["ours"]), 1.0)
    return figures | {"raw_seconds": {name: [round(t, 4) for t in s] for name, s in seconds.items()}}


def start_up(rounds: int = 5) -> dict[str, object]:
    """Seconds that `--help` takes, as a whole process."""
    command = [sys.executable, "-m", "metaicl.main", "--help"]
    quiet = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return at_most("help_s", median(alternate({"help": quiet}, rounds)["help"]), TARGET_HELP_SECONDS)


def memory() -> dict[str, object]:
    """Peak resident memory of one run of the default job: every run of it uses the same arrays and programs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("/usr/bin/env", "python3", "-c", _MEASURED),
            *(
                sys.executable,
                "-m",
                "metaicl.main",
                "--config=configs/loo.py",
                "--run=0",
                f"--workdir={folder}",
            ),
        ]
        root = pathlib.Path(__file__).parent.parent
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ
        )
    kib = int(re.findall(r"peak_kib=(\d+)", done.stdout)[-1])
    return at_most("default_job_peak_gib", kib / 2**20, TARGET_GIB)


_MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(f"peak_kib={resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
"""


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__)
    parser.add_argument("--episodes", action="store_true", help="episodes only")
    options = parser.parse_args()
    figures = episodes()
    if not options.episodes:
        figures |= start_up() | memory()
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
