# SPDX-License-Identifier: Apache-2.0
"""Fair timing: warmed up, in alternating order, medians of several rounds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping


def alternate(work: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of each piece of work in every round; the order turns round from one round to the next."""
    for run in work.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        names = list(work) if number % 2 == 0 else list(reversed(work))
        for name in names:
            start = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(seconds: list[float]) -> float:
    """The median."""
    return statistics.median(seconds)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    import jax

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }


def compared(name: str, peer: float, ours: float, target: float) -> dict[str, object]:
    """`<name>_ratio` (peer's figure over ours, as times), `<name>_target` and `<name>_met`."""
    ratio = peer / ours
    return {f"{name}_ratio": round(ratio, 3), f"{name}_target": target, f"{name}_met": ratio >= target}


def at_least(name: str, value: float, target: float) -> dict[str, object]:
    """`<name>`, `<name>_target` and `<name>_met` for a figure that should be large."""
    return {name: round(value, 1), f"{name}_target": target, f"{name}_met": value >= target}


def at_most(name: str, value: float, target: float) -> dict[str, object]:
    """`<name>`, `<name>_target` and `<name>_met` for a figure that should be small."""
    return {name: round(value, 3), f"{name}_target": target, f"{name}_met": value <= target}


def options_of(doc: str | None, *, rounds: int = 0, quick: str = "") -> argparse.ArgumentParser:
    """The options that benchmarks share: `--json`, `--rounds` and `--quick`; the latter where there is a text of it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    if rounds:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help="alternating rounds of every comparison"
        )
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def command_of(module: str) -> dict[str, object]:
    """The first figure: the command."""
    return {"command": " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]])}


def progress(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def tell(figures: dict[str, object], *, as_json: bool) -> None:
    """Prints the figures, at least as one line of JSON, which comes last."""
    if not as_json:
        for name, value in figures.items():
            print(f"{name}: {value}")
    print(json.dumps(figures | {"machine": machine()}))
