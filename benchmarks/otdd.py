# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of all OTDD distances of an album, against the published algorithm in NumPy and POT.

    python -m benchmarks.otdd --json             all of it
    python -m benchmarks.otdd --json --quick     four data sets, three rounds, no scaling

The album is the real one (METAICL_DATA, else ../shared/data: 14 data sets, 359 classes, 91 pairs) on SqueezeNet
features of 512 numbers; where there is none, random features of its shapes, and the output says so. Gaussian
distances between classes, all items; 1,000 items of each set transported; regularisation of 5 % of the mean cost.

The peer (`otdd_peers`) does the same computation. It takes about half an hour over the classes alone, so it is timed
on random classes and pairs of classes (`--pairs`; 0 for all) and multiplied up. It goes through pairs in turn with
threaded BLAS, and side by side in threads; the faster way counts. Its transport is timed in full, on the label
distances of ours, which are compared with its own on those pairs. Ours is timed whole, without its cache, compile time
apart. Values must agree to 1 %.

`--figure=PATH` draws how the label distances grow with classes, items of a class and features.
"""

from __future__ import annotations

import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import otdd_peers as peers
from benchmarks.timing import alternate, at_most, command_of, compared, median, options_of, tell
from metaicl.data.pool import Pool
from metaicl.distances import Settings, pairwise
from metaicl.distances.labels import label_distances
from metaicl.distances.matrix import subsample
from metaicl.files import write_bytes

TARGETS = {"label_distances": 150.0, "matrix": 40.0}
TARGET_GIB, TOLERANCE = 4.0, 0.01
POT_TOLERANCE = 1e-4  # of a 2-norm; our threshold is 1e-3 of a 1-norm
SHAPES = {  # classes and items of a class of the real album
    "TLA": (29, 40), "TSA": (25, 40), "TVC": (16, 40), "CPL": (15, 40), "FL5": (5, 40), "PLD": (10, 40),
    "PBC": (8, 40), "RSS": (7, 40), "CRS": (80, 39), "NEU": (6, 40), "MTD": (6, 39), "SPT": (22, 40),
    "SGN": (10, 40), "OMN": (120, 20),
}  # fmt: skip
CLASSES, ITEMS, WIDTHS = (40, 80, 160, 320), (10, 20, 40, 80), (128, 256, 512, 1024)


def random_pool(name: str, classes: int, items: int, width: int = 512) -> Pool:
    """Random features that are not negative and whose classes have few directions each."""
    rng = np.random.default_rng([len(name), *name.encode(), classes, items])
    parts = [
        np.maximum(rng.normal(size=width) + rng.normal(size=(items, 8)) @ rng.normal(size=(8, width)) / 3
                   + 0.3 * rng.normal(size=(items, width)), 0)
        for _ in range(classes)
    ]  # fmt: skip
    x = np.concatenate(parts).astype(np.float32)
    labels = np.repeat(np.arange(classes, dtype=np.int32), items)
    return Pool(name, "random", tuple(map(str, range(classes))), labels, x, np.zeros(len(x), "S64"))


def album() -> tuple[list[Pool], str]:
    """The data sets, and what they are."""
    place = pathlib.Path(
        os.environ.get("METAICL_DATA") or pathlib.Path(__file__).parents[2] / "shared" / "data"
    )
    if not (place / "album").is_dir():
        return [
            random_pool(name, *shape) for name, shape in SHAPES.items()
        ], "random, of the shapes of the real album"
    from metaicl.experiment.problems import album_pools

    data = dict(
        album=str(place / "album"), datasets=(), image_size=128, skip_bad=False, backbone="squeezenet"
    )
    data |= dict(weights=str(place / "weights" / "squeezenet_imagenet.safetensors"), cache="", embedded={})
    return album_pools(ConfigDict(data)), "SqueezeNet, of the real album"


def classes_of(pools: list[Pool]) -> list[np.ndarray]:
    """The items of every class, pools in order."""
    return [pool.x[pool.labels == c] for pool in pools for c in range(len(pool.classes))]


def silent(done: int, total: int) -> None:
    """Progress that nobody sees."""


class PeerLabels:
    """The peer on a sample of classes and pairs of classes; `seconds_of_all` multiplies up."""

    def __init__(self, classes: list[np.ndarray], pairs: int):
        """Draws the sample; 0 pairs means all."""
        every = np.stack(np.triu_indices(len(classes), 1), axis=1)
        rng = np.random.default_rng(0)
        self.pairs = rng.permutation(every)[: pairs or None]
        self.all_pairs, self.classes = len(every), classes
        self.moments = {c: peers.moments(classes[c]) for c in np.unique(self.pairs)}
        self.sample = list(self.moments)[: max(1, pairs // 10) if pairs else None]
        self.values: np.ndarray | None = None

    def roots(self) -> None:
        """Moments and roots of the sampled classes."""
        for c in self.sample:
            peers.moments(self.classes[c])

    def work(self) -> dict[str, Callable[[], None]]:
        """The two ways to go through the sampled pairs, and the roots, which both need."""
        several = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

        def distances(workers):
            self.values = peers.label_distances(self.moments, self.pairs, workers)

        return {
            "peer_pairs": lambda: distances(1),
            "peer_pairs_in_threads": lambda: distances(max(2, several)),
            "peer_roots": self.roots,
        }

    def seconds_of_all(self, medians: dict[str, float]) -> float:
        """Seconds of all classes and pairs, from those of the sample, the faster way."""
        roots, distances = medians["peer_roots"], min(medians["peer_pairs"], medians["peer_pairs_in_threads"])
        return roots * len(self.classes) / len(self.sample) + distances * self.all_pairs / len(self.pairs)


def compare(pools: list[Pool], pairs: int, rounds: int) -> dict[str, Any]:
    """Checks, then times, label distances and the whole matrix."""
    settings = Settings()
    start = time.perf_counter()
    found = pairwise(pools, settings)
    first = time.perf_counter() - start
    memory = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )  # KiB on Linux; before the peer allocates
    classes = classes_of(pools)
    table = label_distances(classes, settings, silent).cost
    peer = PeerLabels(classes, pairs)
    firsts = np.cumsum([0, *(len(pool.classes) for pool in pools)])
    rows = [subsample(pool, settings.samples, settings.seed) for pool in pools]
    sets = [
        (pool.x[r].astype(np.float64), pool.labels[r] + at)
        for pool, r, at in zip(pools, rows, firsts, strict=False)
    ]
    theirs: dict[str, np.ndarray] = {}

    def transport():
        theirs["matrix"] = peers.matrix(sets, table, float(found.epsilons[0]), POT_TOLERANCE)

    work = {
        "ours_labels": lambda: label_distances(classes, settings, silent),
        "ours_matrix": lambda: pairwise(pools, settings),
        "peer_transport": transport,
        **peer.work(),
    }
    seconds = alternate(work, rounds)
    off = ~np.eye(len(pools), dtype=bool)
    differences = {
        "label_distances": np.max(np.abs(table[tuple(peer.pairs.T)] / peer.values - 1)),
        "matrix": np.max(np.abs(found.values[off] / theirs["matrix"][off] - 1)),
    }
    if not max(differences.values()) <= TOLERANCE:
        raise SystemExit(f"Ours and the peer's values differ by {differences}: not the same computation.")
    medians = {name: median(times) for name, times in seconds.items()}
    labels = peer.seconds_of_all(medians)
    return {
        **compared("label_distances", labels, medians["ours_labels"], TARGETS["label_distances"]),
        **compared("matrix", labels + medians["peer_transport"], medians["ours_matrix"], TARGETS["matrix"]),
        **at_most("memory_gib", memory, TARGET_GIB),
        "seconds": {
            "ours_label_distances": round(medians["ours_labels"], 3),
            "ours_matrix": round(medians["ours_matrix"], 3),
            "peer_label_distances": round(labels, 1),
            "peer_transport": round(medians["peer_transport"], 3),
        },
        "compile_s": round(first - medians["ours_matrix"], 2),
        "largest_relative_difference": {name: float(f"{d:.2g}") for name, d in differences.items()},
        "data_sets": len(pools),
        "classes": len(classes),
        "class_pairs": peer.all_pairs,
        "class_pairs_timed_of_peer": len(peer.pairs),
        "classes_timed_of_peer": len(peer.sample),
        "peer_label_distances_are": "measured" if len(peer.pairs) == peer.all_pairs else "extrapolated",
        "raw_seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
    }


def scaling(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of all label distances, of ours and, from four pairs, of the peer, as one size at a time grows."""
    sizes = {"classes": CLASSES, "items": ITEMS, "features": WIDTHS}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in sizes.items():
        found[name] = {}
        for value in values:
            shape = {"classes": 80, "items": 40, "features": 512} | {name: value}
            classes = classes_of(
                [random_pool("scaling", shape["classes"], shape["items"], shape["features"])]
            )
            peer = PeerLabels(classes, 4)
            ours = {"ours": lambda classes=classes: label_distances(classes, Settings(), silent)}
            medians = {who: median(times) for who, times in alternate(ours | peer.work(), rounds).items()}
            both = {"ours": medians["ours"], "peer": peer.seconds_of_all(medians)}
            found[name][str(value)] = {who: float(f"{t:.3g}") for who, t in both.items()}
    return found


def draw(found: dict[str, dict[str, dict[str, float]]], path: str) -> None:
    """One panel for each size, both axes logarithmic."""
    import matplotlib

    from metaicl.report.style import MARKERS, MUTED, STYLE, TRAINED, canvas, png_of

    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(11, 3.6, len(found))
        for panel, (name, points) in zip(axes, found.items(), strict=True):
            x = [int(value) for value in points]
            for who, color, marker in (("peer", MUTED[0], MARKERS[1]), ("ours", TRAINED[0], MARKERS[0])):
                panel.loglog(
                    x, [p[who] for p in points.values()], color=color, marker=marker, lw=2, label=who
                )
            panel.set_xticks(x, [str(v) for v in x])
            panel.minorticks_off()
            panel.set_xlabel({"items": "items of a class"}.get(name, name))
        axes[0].set_ylabel("seconds")
        axes[0].set_title("All label distances (80 classes, 40 items, 512 features)")
        axes[-1].legend()
        write_bytes(path, png_of(figure))


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__, rounds=5, quick="four data sets, three rounds, 20 pairs, no scaling")
    parser.add_argument(
        "--pairs", type=int, default=200, help="pairs of classes that the peer is timed on; 0 for all"
    )
    parser.add_argument("--figure", default="", help="PNG of the scaling")
    options = parser.parse_args()
    pools, what = album()
    rounds, pairs = (3, 20) if options.quick else (options.rounds, options.pairs)
    if options.quick:
        pools = sorted(pools, key=lambda pool: len(pool.classes))[:4]
    figures: dict[str, Any] = {
        **command_of("otdd"),
        "features": what,
    }
    figures |= compare(pools, pairs, rounds)
    if not options.quick:
        figures["scaling_seconds"] = scaling(rounds)
        if options.figure:
            draw(figures["scaling_seconds"], options.figure)
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
