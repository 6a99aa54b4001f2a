# SPDX-License-Identifier: Apache-2.0
"""One data set after another is made in a folder: whole or not at all, and not again where it is there."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metaicl.data.images import DataWarning, Progress
from metaicl.data.listing import Listing, list_dataset
from metaicl.data.meta_album import pool_of
from metaicl.data.pool import Pool
from metaicl.data.prepared import Prepared, read_note, require_ours, write_note
from metaicl.data.unpack import safe_path
from metaicl.files import building, write_text

FORMATS = ("array_record", "files")
DOWNLOADS = ".downloads"  # below the folder of all outputs

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Work:
    """What all data sets of one command share.

    Attributes:
      out: folder of all outputs.
      format: of `FORMATS`.
      skip_bad: leave out images that do not decode.
      keep: what was downloaded, after it was converted.
      say: prints a line for the user.
      fetching, counting: progress in bytes, and in images or files.
    """

    out: Path
    format: str = "array_record"
    skip_bad: bool = False
    keep: bool = False
    say: Callable[[str], None] = print
    fetching: Progress | None = None
    counting: Progress | None = None

    @property
    def downloads(self) -> Path:
        """Where downloads are until they are converted."""
        return self.out / DOWNLOADS


class Made(NamedTuple):
    """What a task made: where it is from, and its counts."""

    source: str
    classes: int
    images: int


class Task(NamedTuple):
    """A data set to make.

    Attributes:
      name: of the data set.
      target: the folder that it becomes.
      make: fills an empty folder.
      cleanup: removes what was downloaded for it.
    """

    name: str
    target: Path
    make: Callable[[Path], Made]
    cleanup: Callable[[], None] = lambda: None


class Row(NamedTuple):
    """What became of a task: what is there now, or why there is nothing."""

    name: str
    target: Path
    result: Prepared | None
    fault: str = ""


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps a second process from preparing data in the same folder, as long as the block takes.

    Raises:
      OSError: if another process is at it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (out / ".prepare.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                f"Another process is preparing data in {out}. Wait for it, or give another --out."
            ) from error
        yield


def require_space(out: Path, needed: int) -> None:
    """Raises an OSError if there are not `needed` bytes left on the disk."""
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(
            f"Preparing this takes {human(needed)} on the disk of {out}, and {human(free)} are left. Free some space, "
            "choose fewer --datasets, or give another --out."
        )


def human(size: float) -> str:
    """A number of bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def do_tasks(tasks: Sequence[Task], work: Work) -> list[Row]:
    """Makes what is not there, and checks what is. What is wrong with one data set does not keep the others.

    Returns:
      What became of each.

    Raises:
      OSError: if the disk is full; everything that was whole before stays.
    """
    rows = []
    for number, task in enumerate(tasks, 1):
        work.say(f"[{number}/{len(tasks)}] {task.name}")
        try:
            rows.append(Row(task.name, task.target, _do(task, work)))
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise OSError(
                    f"The disk of {work.out} filled up ({human(shutil.disk_usage(work.out).free)} are left after "
                    "cleaning up). Free some space and give the same command again: it goes on where it stopped."
                ) from error
            if isinstance(
                error, (ValueError, FileNotFoundError)
            ):  # the content is at fault, and would be again
                task.cleanup()
            fault = " ".join(str(error).split())
            work.say(f"  failed: {fault}")
            rows.append(Row(task.name, task.target, None, fault))
    with contextlib.suppress(OSError):  # not empty: what may go on later
        work.downloads.rmdir()
    return rows


def _do(task: Task, work: Work) -> Prepared:
    if require_ours(task.target):
        result = read_note(task.target, work.counting)
        work.say("  finished before, and unchanged")
        return result
    with telling(work), building(task.target) as folder:
        made = task.make(folder)
        result = write_note(
            folder,
            name=task.name,
            source=made.source,
            classes=made.classes,
            images=made.images,
            progress=work.counting,
        )
    if not work.keep:
        task.cleanup()
    return result


@contextlib.contextmanager
def telling(work: Work) -> Iterator[None]:
    """Says what the block warns of in the data, once it is done."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        yield
    for warning in told:
        if issubclass(warning.category, DataWarning):
            work.say(f"  note: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def convert(listing: Listing, folder: Path, work: Work) -> Pool:
    """Writes a listed data set into a folder in the format asked for; every image is checked, and read again."""
    if work.format == "array_record":
        from metaicl.data.tfds_album import write_prepared

        return write_prepared(listing, folder, skip_bad=work.skip_bad, progress=work.counting)
    return _write_files(listing, folder, work)


def _write_files(listing: Listing, folder: Path, work: Work) -> Pool:
    """Writes Meta-Album's layout: `images/`, labels.csv and info.json."""
    pool = pool_of(listing, image_size=8, skip_bad=work.skip_bad, progress=work.counting)
    place = {name: i for i, name in enumerate(listing.places)}
    (folder / "images").mkdir()
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["FILE_NAME", "CATEGORY", "SUPER_CATEGORY"])
    for name in pool.x.names:
        i = place[name]
        inner = safe_path(listing.file_names[i])
        if inner is None:
            raise ValueError(
                f"{listing.place}: {listing.file_names[i]!r} is no name of a file inside a folder."
            )
        path = folder / "images" / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(listing.read(i))
        lines.writerow([inner, listing.categories[i], ""])
    write_text(folder / "labels.csv", text.getvalue())
    info = {"dataset_name": listing.name, "domain": pool.domain, "total_categories": len(pool.classes)}
    write_text(folder / "info.json", json.dumps(info, indent=2) + "\n")
    again = pool_of(list_dataset(folder), image_size=8, progress=work.counting)
    if again.digests.tolist() != pool.digests.tolist() or again.classes != pool.classes:
        raise OSError(
            f"{listing.name}: what was written to {folder} reads back as something else. Try again."
        )
    return pool


def table(rows: Sequence[Row]) -> str:
    """The rows as text: name, classes, images, size and place, and the sums."""
    lines: list[tuple[str, ...]] = [("data set", "classes", "images", "size", "where")]
    for row in rows:
        r = row.result
        counts = (f"{r.classes:,}", f"{r.images:,}", human(r.bytes)) if r else ("", "", "failed")
        lines.append((row.name, *counts, os.fspath(row.target) if r else row.fault[:60]))
    done = [row.result for row in rows if row.result]
    if len(done) > 1:
        sums = (sum(r.classes for r in done), sum(r.images for r in done))
        lines.append(
            (f"{len(done)} in all", *(f"{s:,}" for s in sums), human(sum(r.bytes for r in done)), "")
        )
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    shown = (
        f"{line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  {line[4]}"
        for line in lines
    )
    return "\n".join(text.rstrip() for text in shown)
