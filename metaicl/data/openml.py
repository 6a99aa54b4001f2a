# SPDX-License-Identifier: Apache-2.0
"""OpenML: from the number of a data set to the files that lie beside its table, with their sizes and checksums.

OpenML describes a data set by its REST API and keeps its files in an S3 store, those of data set 44241 in the
bucket `datasets` below `0004/44241/`: the table (`dataset_44241.pq`) and, for Meta-Album, an archive of the images.
The store tells an MD5 of every file that was uploaded in one piece.
"""

from __future__ import annotations

import json
import os
import re
import urllib.parse
import xml.etree.ElementTree
from typing import Any, NamedTuple

from metaicl.data.download import DownloadError, fetch

API = "https://www.openml.org"
STORE = "https://data.openml.org"

_PAGES = 1000  # of a listing, at most


class Remote(NamedTuple):
    """A file at OpenML.

    Attributes:
      name: without folders.
      url: its address.
      size: bytes.
      tag: the store's mark of its content; another content has another tag.
    """

    name: str
    url: str
    size: int
    tag: str

    @property
    def md5(self) -> str | None:
        """Hex, or None for a file that was uploaded in several pieces."""
        return self.tag if re.fullmatch("[0-9a-f]{32}", self.tag) else None


def server_of(given: str = "") -> str:
    """The address of the server: what is given, else METAICL_OPENML, else OpenML's own.

    Raises:
      ValueError: if it is no http or https address.
    """
    server = (given or os.environ.get("METAICL_OPENML") or API).rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise ValueError(f"{server!r} is no address of a server; it must begin with https:// or http://.")
    return server


def describe(number: int, server: str = API) -> dict[str, Any]:
    """What OpenML tells about data set `number`: `name`, `version`, `url`, `parquet_url` and more.

    Raises:
      DownloadError: if it cannot be asked, or answers something else.
    """
    url = f"{server}/api/v1/json/data/{number}"
    try:
        description = json.loads(fetch(url))["data_set_description"]
        if int(description["id"]) != number or not isinstance(description["name"], str):
            raise ValueError("it describes another data set")
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{url} does not describe data set {number} ({error!r}). Is {server} an OpenML server? Try again later."
        ) from error
    return description


def list_files(number: int, description: dict[str, Any], server: str = API) -> list[Remote]:
    """The files of data set `number` in the store, sorted by name.

    Raises:
      DownloadError: if they cannot be listed, or the listing makes no sense.
    """
    store = _store_of(number, description, server)
    bucket, prefix = f"{store}/datasets", f"{number // 10000:04d}/{number}/"
    found: dict[str, Remote] = {}
    token = ""
    for _ in range(_PAGES):
        query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
        url = f"{bucket}?{urllib.parse.urlencode(query)}"
        page, token = _parse(fetch(url), url)
        for key, size, tag in page:
            name = key.removeprefix(prefix).rsplit("/", 1)[-1]
            if key.startswith(prefix) and name:
                found[key] = Remote(name, f"{bucket}/{urllib.parse.quote(key)}", size, tag)
        if not token:
            break
    return sorted(found.values())


def _store_of(number: int, description: dict[str, Any], server: str) -> str:
    """Where the files are: as the description tells if that is the server or OpenML itself, else as usual."""
    for key in ("parquet_url", "minio_url"):
        parts = urllib.parse.urlsplit(str(description.get(key) or ""))
        host = parts.hostname or ""
        ours = parts.netloc == urllib.parse.urlsplit(server).netloc
        theirs = parts.scheme == "https" and (host == "openml.org" or host.endswith(".openml.org"))
        if (
            ours or (theirs and server == API)
        ) and f"/datasets/{number // 10000:04d}/{number}/" in parts.path:
            return f"{parts.scheme}://{parts.netloc}{parts.path.split('/datasets/')[0]}"
    return STORE if server == API else server


def _parse(answer: bytes, url: str) -> tuple[list[tuple[str, int, str]], str]:
    """`(key, size, tag)` of each file on one page of a listing, and the token of the next page or nothing."""
    try:
        if b"<!DOCTYPE" in answer or b"<!ENTITY" in answer:
            raise ValueError("it defines entities")
        root = xml.etree.ElementTree.fromstring(answer)
        if root.tag.rpartition("}")[2] != "ListBucketResult":
            raise ValueError(f"it is a {root.tag.rpartition('}')[2]}")
        page = []
        for item in root.iterfind("{*}Contents"):
            size, tag = int(_text(item, "Size")), _text(item, "ETag").strip('"').lower()
            page.append((_text(item, "Key"), size, tag))
        more = (root.findtext("{*}IsTruncated") or "").strip() == "true"
        return page, _text(root, "NextContinuationToken") if more else ""
    except (ValueError, xml.etree.ElementTree.ParseError) as error:
        raise DownloadError(
            f"{url} is no listing of files ({' '.join(str(error).split())}). Try again later, or use a mirror: "
            "--server=URL."
        ) from error


def _text(element: xml.etree.ElementTree.Element, name: str) -> str:
    text = (element.findtext(f"{{*}}{name}") or "").strip()
    if not text:
        raise ValueError(f"a {name} is missing")
    return text
