# SPDX-License-Identifier: Apache-2.0
"""Distances between the data sets of an album.

    python -m metaicl.distances                                                      the embedded album
    python -m metaicl.distances --album=PATH --backbone=squeezenet --weights=PATH    a folder of data sets

Writes the matrix (results.json, distances.csv) and figures of it, a heat map, a dendrogram and a map, below
--workdir. Features and finished matrices are cached under METAICL_CACHE.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence

from metaicl.command_line import exit_status, run_command
from metaicl.distances.settings import Settings, reference

_PRESETS: dict[str, Callable[..., Settings]] = {"default": Settings, "reference": reference}
_CHOICES = {"inner": ("gaussian", "diagonal", "means", "exact"), "p": (1, 2)}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    given = vars(_parser().parse_args(argv[1:]))
    debug, preset = given.pop("debug"), given.pop("preset")
    names = {field.name for field in dataclasses.fields(Settings)}
    chosen = {name: given.pop(name) for name in list(given) if name in names}
    given["datasets"] = tuple(filter(None, given["datasets"].split(",")))

    def work() -> None:
        settings = _PRESETS[preset](**chosen)
        # Heavy: not before the arguments are right.
        from metaicl.experiment.distances import measure_distances

        command = ["python", "-m", "metaicl.distances", *argv[1:]]
        print(measure_distances(settings, given.pop("workdir"), **given, command=command))

    return exit_status(work, debug=debug, interrupted="What was embedded is cached.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaicl.distances",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--album", default="embedded", help="'embedded', or the folder of an album")
    parser.add_argument("--datasets", default="", help="names of some of its data sets, comma-separated")
    parser.add_argument(
        "--backbone",
        default="none",
        help="formulas, or with --weights squeezenet, resnet18, resnet34, resnet50; 'none' for the pixels themselves",
    )
    parser.add_argument("--weights", default="", help="file of the backbone's pretrained weights")
    parser.add_argument(
        "--image_size",
        type=int,
        default=0,
        help="pixels; 64 of formulas, 128 of squeezenet, 224 of a ResNet, else 32",
    )
    parser.add_argument("--cache", default="", help="folder of cached features; default METAICL_CACHE")
    parser.add_argument("--workdir", default=os.path.join("runs", "distances"), help="folder of all outputs")
    parser.add_argument("--preset", choices=_PRESETS, default="default", help="'reference': as published")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group = parser.add_argument_group("settings of the distance (see metaicl/distances/settings.py)")
    for field in dataclasses.fields(Settings):
        options: dict = dict(default=argparse.SUPPRESS, help=f"default {field.default}")
        if isinstance(field.default, bool):
            group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, **options)
        else:
            kind, choices = type(field.default), _CHOICES.get(field.name)
            group.add_argument(f"--{field.name}", type=kind, choices=choices, **options)
    return parser


if __name__ == "__main__":
    run_command(main)
