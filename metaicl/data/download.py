# SPDX-License-Identifier: Apache-2.0
"""Fetching one file over HTTP: it goes on after a broken connection, and appears whole and checked or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from metaicl.data.images import Progress

_CHUNK = 1 << 16  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_T = TypeVar("_T")
_PASSING = (408, 425, 429)  # refusals that a later attempt may not meet, beside all from 500 on


class DownloadError(OSError):
    """A file could not be fetched, or is not what it should be; the text says what to do."""


class _Dropped(Exception):
    """An attempt that ended early; another one may go on from there."""


def _by_hand(url: str, path: Path | None) -> str:
    if path is None:
        return f"Check the connection and the address {url}, and try again."
    return f"Check the connection and try again, or fetch {url} by hand and put it at {path}."


def download(
    url: str,
    path: str | os.PathLike,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    same: bool = False,
    progress: Progress | None = None,
    attempts: int = 4,
    backoff: float = 0.5,
) -> Path:
    """Fetches `url` into the file `path`, which is replaced if it exists.

    The bytes go to `path` with `.part` appended, which becomes `path` only when it is whole and its checksum is
    right. An attempt that breaks off is continued by a Range request, or from the start where the server does
    not know those. A part that an earlier call left behind is continued only if there is a checksum to tell
    whether the halves belong together, or the caller knows that they do. One process at a time may fetch a file.

    Args:
      url: an http or https address.
      path: the file to write; its folder is made.
      sha256, md5: expected checksums (hex), or None.
      size: expected length in bytes, or None.
      same: whether a part that lies there is surely of this very file.
      progress: called as `progress(file name, bytes done, bytes in all)`; where the server does not tell the
        length, the last is the bytes so far.
      attempts: how often to try in all.
      backoff: seconds to wait before the second attempt, doubled before each further one.

    Returns:
      `path`.

    Raises:
      ValueError: if `url` is no http or https address.
      DownloadError: if there is no connection, it breaks once too often, the server refuses, or a checksum or
        the size does not match (the part is deleted then).
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url!r} is no address to download from; it must begin with https:// or http://.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if sha256 is None and md5 is None and not same:
        part.unlink(missing_ok=True)
    if same and size and part.exists() and part.stat().st_size >= size:
        part.unlink()  # a server refuses to go on behind the end
    _repeatedly(lambda: _continue(url, path, part, progress), url, path, attempts, backoff)
    _verify(url, path, part, {"sha256": sha256, "md5": md5}, size)
    os.replace(part, path)
    return path


def fetch(url: str, *, limit: int = 1 << 24, attempts: int = 4, backoff: float = 0.5) -> bytes:
    """The bytes at `url`, of which there may be `limit`; for small answers.

    Raises:
      DownloadError: if there is no connection, it breaks once too often, the server refuses, or sends more.
    """

    def once() -> bytes:
        with _open(url, None, None, 0) as response:
            content, length = b"", response.headers.get("Content-Length")
            while chunk := _read(response):
                content += chunk
                if len(content) > limit:
                    raise DownloadError(
                        f"{url} sends more than {limit} bytes; it is no answer to what was asked."
                    )
        if length and len(content) < int(length):
            raise _Dropped(f"the connection ended after {len(content)} of {length} bytes")
        return content

    return _repeatedly(once, url, None, attempts, backoff)


def checksum(path: str | os.PathLike, name: str) -> str:
    """The checksum (hex) of a file by the algorithm `name`, such as `"md5"`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _repeatedly(attempt: Callable[[], _T], url: str, path: Path | None, attempts: int, backoff: float) -> _T:
    """What the first attempt returns that is not dropped, after longer and longer waits."""
    fault = ""
    for number in range(attempts):
        if number:
            time.sleep(backoff * 2 ** (number - 1))
        try:
            return attempt()
        except _Dropped as dropped:
            fault = str(dropped)
    to = "" if path is None else f" to {path}"
    raise DownloadError(
        f"{url} could not be downloaded{to} in {attempts} attempts ({fault}). {_by_hand(url, path)}"
    )


def _open(url: str, path: Path | None, part: Path | None, start: int) -> http.client.HTTPResponse:
    """The server's answer to a request for the bytes from `start` on."""
    headers = {"User-Agent": "metaicl"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if (
            error.code == 416
        ):  # the part is as long as the file, or longer: it cannot be told from another file
            if part is not None:
                part.unlink(missing_ok=True)
        elif error.code not in _PASSING and error.code < 500:
            to = "" if path is None else f" to {path}"
            raise DownloadError(
                f"{url} cannot be downloaded{to}: the server answers {error.code} {error.reason}. {_by_hand(url, path)}"
            ) from error
        raise _Dropped(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"no connection: {getattr(error, 'reason', error)}") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"the connection broke: {error!r}") from error


def _continue(url: str, path: Path, part: Path, progress: Progress | None) -> None:
    """Appends to the part what is missing, or writes it anew; raises `_Dropped` if it is still not whole."""
    start = part.stat().st_size if part.exists() else 0
    with _open(url, path, part, start) as response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        ):
            part.unlink(missing_ok=True)
            raise _Dropped("the server sent another range than it was asked for")
        done = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(path.name, done, total or done)
    if total is not None and done < total:  # urllib takes an early end for the end
        raise _Dropped(f"the connection ended after {done} of {total} bytes")


def _verify(url: str, path: Path, part: Path, expected: dict[str, str | None], size: int | None) -> None:
    """Deletes the part and raises if its size or one of its checksums is not as expected."""
    if size is not None and (there := part.stat().st_size) != size:
        part.unlink()
        raise DownloadError(
            f"{url} was downloaded for {path}, but has {there} bytes where {size} were expected; what came was "
            "deleted. Try again; if it stays so, the file there has changed."
        )
    for name, wanted in expected.items():
        if wanted is None:
            continue
        digest = checksum(part, name)
        if digest != wanted.lower():
            part.unlink()
            raise DownloadError(
                f"{url} was downloaded for {path}, but its {name} is {digest} where {wanted} was expected; what "
                "came was deleted. Try again; if it stays so, the file there has changed or something on the "
                f"way replaces it: fetch it by hand from a source you trust and put it at {path}."
            )
