# SPDX-License-Identifier: Apache-2.0
"""Fetch and prepare data sets.

    python -m metaicl.prepare meta_album --size=mini                       all 30, from OpenML
    python -m metaicl.prepare meta_album --size=micro --datasets=BRD,DOG
    python -m metaicl.prepare meta_album --list
    python -m metaicl.prepare omniglot
    python -m metaicl.prepare cifar_fs
    python -m metaicl.prepare folder PATH      class folders of images, Meta-Album's layout, or an album of those
    python -m metaicl.prepare tfds NAME        labelled images of TensorFlow Datasets, such as oxford_flowers102

A broken download goes on where it stopped, also when the command is given again; what comes is checked against its
checksum, unpacked safely and counted. A data set appears when it is whole. One that is there is checked and left as it
is. Image data sets are written as array_record files, each image with the bytes that it came in, or, with
--format=files, as Meta-Album's images/, labels.csv and info.json.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from metaicl.command_line import exit_status, run_command

_DEFAULT_OUT = "$METAICL_DATA, else ~/data/metaicl"


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    given = _parser().parse_args(argv[1:])

    def work() -> int:
        if given.what == "meta_album" and given.list:
            return _print_table()
        return _prepare(given)

    return exit_status(
        work,
        debug=given.debug,
        interrupted="Give the same command again: it goes on where it stopped.",
    )


def _print_table() -> int:
    from metaicl.data.album_table import OFFICIAL

    row = "{:<9} {:<26} {:<15} {:>12} {:>14} {:>16}   {}".format
    print(row("id", "name", "domain", "micro", "mini", "extended", "OpenML"))
    for official in OFFICIAL.values():
        releases = (official.micro, official.mini, official.extended)
        counts = [f"{r.classes:,} / {r.images:,}" if r else "-" for r in releases]
        numbers = " ".join(str(r.openml) if r else "-" for r in releases)
        print(row(official.id, official.name, official.domain, *counts, numbers))
    print(
        "\nClasses / images. For research; every data set has its own licence, see https://meta-album.github.io."
    )
    return 0


def _prepare(given: argparse.Namespace) -> int:
    if given.what == "meta_album" and not given.size:
        raise ValueError("Give --size=micro, --size=mini or --size=extended.")
    from metaicl.files import given_path, writable_folder

    wanted = given.out or os.environ.get("METAICL_DATA") or "~/data/metaicl"
    out = writable_folder(given_path(wanted), flag="out")
    # Heavy: not before the arguments are right.
    from metaicl.data import sources
    from metaicl.data.openml import server_of
    from metaicl.data.preparing import Work, alone, do_tasks, table
    from metaicl.experiment.progress import ProgressBar

    say = lambda text: print(text, file=sys.stderr, flush=True)
    with alone(out), ProgressBar("B", scale=True) as fetching, ProgressBar(" files") as counting:
        work = Work(
            out,
            format=getattr(given, "format", "files"),
            skip_bad=getattr(given, "skip_bad", False),
            keep=getattr(given, "keep", False),
            say=say,
            fetching=fetching,
            counting=counting,
        )
        if given.what == "omniglot":
            rows = [sources.prepare_omniglot(work, given.server)]
        else:
            if given.what == "meta_album":
                names = [name.strip() for name in given.datasets.split(",") if name.strip()]
                tasks = sources.meta_album_tasks(work, given.size.lower(), names, server_of(given.server))
            elif given.what == "folder":
                tasks = sources.folder_tasks(work, given.path, given.domain or None)
            elif given.what == "tfds":
                tasks = sources.tfds_tasks(work, given.name, given.domain or None)
            else:
                tasks = sources.cifar_fs_tasks(work, given.server)
            rows = do_tasks(tasks, work)
    print(table(rows))
    failed = [row for row in rows if row.result is None]
    for row in failed:
        print(f"error: {row.name}: {row.fault}", file=sys.stderr)
    if failed:
        say(f"{len(failed)} of {len(rows)} failed. Give the same command again: only those are made.")
        return 1
    print(f"\nNext:\n  {_next_command(given.what, [os.fspath(row.target) for row in rows])}")
    return 0


def _next_command(what: str, places: list[str]) -> str:
    """What to do with what is there now."""
    place = os.path.dirname(places[0]) if len(places) > 1 or what == "meta_album" else places[0]
    many = len(places) > 2  # a domain to train on, one to choose on, one to test on
    config = {
        "omniglot": f"configs/omniglot.py:folder={place}",
        "cifar_fs": f"configs/mini_imagenet.py:5w1s,data=cifar_fs,folder={place}",
    }.get(
        what,
        f"configs/loo.py:album={place}"
        if many
        else f"configs/mini_imagenet.py:5w1s,data=album,folder={place}",
    )
    return f"python -m metaicl.main {shlex.quote(f'--config={config}')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaicl.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--out", default="", help=f"folder of all outputs (default {_DEFAULT_OUT})")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    images = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    images.add_argument(
        "--format", choices=("array_record", "files"), default="array_record", help="default array_record"
    )
    images.add_argument(
        "--skip_bad", action="store_true", help="leave out images that do not decode, and say how many"
    )
    kept = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    kept.add_argument("--keep", action="store_true", help="keep what was downloaded, in OUT/.downloads")
    domain = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    domain.add_argument("--domain", default="", help="of the data set, where nothing tells it")

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=f"{text}.", parents=[common, *parents], allow_abbrev=False
        )

    album = command("meta_album", "Meta-Album's data sets, from OpenML", images, kept)
    album.add_argument("--size", default="", help="micro, mini or extended")
    album.add_argument("--datasets", default="", help="ids, with commas between (default: all 30)")
    album.add_argument("--list", action="store_true", help="print the table of data sets and their sizes")
    album.add_argument(
        "--server",
        default="",
        help="OpenML or a mirror (default METAICL_OPENML, else https://www.openml.org)",
    )
    characters = command("omniglot", "Omniglot's two zip files")
    cifar = command("cifar_fs", "CIFAR-FS, made of CIFAR-100", kept)
    for fetched in (characters, cifar):
        fetched.add_argument("--server", default="", help="address of the folder that holds the files")
    command("folder", "a folder of your own, or an album", images, domain).add_argument(
        "path", metavar="PATH"
    )
    named = command("tfds", "a data set of TensorFlow Datasets", images, kept, domain)
    named.add_argument("name", metavar="NAME")
    return parser


if __name__ == "__main__":
    run_command(main)
