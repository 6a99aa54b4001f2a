# SPDX-License-Identifier: Apache-2.0
"""As much of OpenML as fetching a data set takes, on this machine alone: its API, its store, and their faults."""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.server
import io
import json
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np

TABLE = b"PAR1 the table of file names, which nobody reads"


def jpeg(seed: int) -> bytes:
    """A small picture."""
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))[
        1
    ].tobytes()


def album_files(name: str, classes: int, images: int) -> dict[str, bytes]:
    """The files of a data set in Meta-Album's layout, in one folder of its name, as equally large as can be."""
    stem = name.rsplit("_", 1)[0]
    names = [f"{stem}_{i:06d}.jpg" for i in range(images)]
    rows = [f"{file},class {i % classes:03d}," for i, file in enumerate(names)]
    labels = "\n".join(["FILE_NAME,CATEGORY,SUPER_CATEGORY", *rows]) + "\n"
    info = {"dataset_name": name, "total_categories": classes, "image_column_name": "FILE_NAME"}
    few = [jpeg(i) for i in range(97)]
    pictures = {f"{name}/images/{file}": few[i % 97] for i, file in enumerate(names)}
    return {
        f"{name}/labels.csv": labels.encode(),
        f"{name}/info.json": json.dumps(info).encode(),
        **pictures,
    }


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip file of these files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves data sets by number.

    Attributes:
      names: of the data sets, by number.
      objects: content of the store by key, and of other paths that are asked for.
      page: keys on a page of a listing.
      stops: bytes after which the connection of one download each ends, in order.
      whole: whether files were uploaded in one piece, so that their tags are checksums.
      damage: changes what is sent, but not what is told of it.
      at: bytes of a download after which `held` is set and nothing comes any more.
      asked: path, and the Range header or None, of each request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.names: dict[int, str] = {}
        self.objects: dict[str, bytes] = {}
        self.page, self.whole = 1000, True
        self.stops: list[int] = []
        self.damage: Callable[[bytes], bytes] = lambda data: data
        self.at: int | None = None
        self.held, self.released = threading.Event(), threading.Event()
        self.asked: list[tuple[str, str | None]] = []

    def add(self, number: int, name: str, archive: bytes, file: str = "") -> str:
        """Puts a data set there; returns the key of its archive."""
        prefix = f"{number // 10000:04d}/{number}/"
        key = f"{prefix}{file or name.removeprefix('Meta_Album_') + '.zip'}"
        self.names[number] = name
        self.objects |= {key: archive, f"{prefix}dataset_{number}.pq": TABLE}
        return key

    def tag(self, data: bytes) -> str:
        """What the store tells of a content."""
        return hashlib.md5(data).hexdigest() + ("" if self.whole else "-2")

    @property
    def downloads(self) -> list[tuple[str, str | None]]:
        """The requests for archives."""
        return [(path.rsplit("/", 1)[1], wanted) for path, wanted in self.asked if ".zip" in path]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, urllib.parse.urlsplit(self.path)
        server.asked.append((path.path, self.headers["Range"]))
        if path.path.startswith("/api/v1/json/data/"):
            self._describe(int(path.path.rsplit("/", 1)[1]))
        elif path.path == "/datasets":
            self._list(dict(urllib.parse.parse_qsl(path.query)))
        else:
            self._send(urllib.parse.unquote(path.path).removeprefix("/").removeprefix("datasets/"))

    def _reply(self, content: bytes, kind: str):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _describe(self, number: int):
        if number not in self.server.names:
            self.send_error(412)
            return
        place = f"{self.server.url}/datasets/{number // 10000:04d}/{number}/dataset_{number}.pq"
        told = {"id": str(number), "name": self.server.names[number], "version": "1", "format": "arff"}
        told |= {
            "url": place,
            "parquet_url": place,
            "md5_checksum": "0" * 32,
        }  # of the table, not of the images
        self._reply(json.dumps({"data_set_description": told}).encode(), "application/json")

    def _list(self, query: dict[str, str]):
        assert query["list-type"] == "2"
        keys = sorted(key for key in self.server.objects if key.startswith(query["prefix"]))
        keys = [key for key in keys if key > query.get("continuation-token", "")]
        rest, keys = keys[self.server.page :], keys[: self.server.page]
        items = "".join(
            f"<Contents><Key>{html.escape(key)}</Key><LastModified>2022-06-01T00:00:00.000Z</LastModified>"
            f"<ETag>&#34;{self.server.tag(self.server.objects[key])}&#34;</ETag>"
            f"<Size>{len(self.server.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys
        )
        more = f"<NextContinuationToken>{html.escape(keys[-1])}</NextContinuationToken>" if rest else ""
        self._reply(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>datasets</Name>'
            f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>{more}{items}</ListBucketResult>".encode(),
            "application/xml",
        )

    def _send(self, key: str):
        server, wanted = self.server, self.headers["Range"]
        if key not in server.objects:
            self.send_error(404)
            return
        data = server.damage(server.objects[key])
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.at is not None:
            self.wfile.write(data[start : server.at])
            self.wfile.flush()
            server.held.set()
            server.released.wait(60)
            return
        stop = server.stops.pop(0) if server.stops else len(data)
        self.wfile.write(data[start : start + stop])


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port, as long as the block takes."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.released.set()
            running.shutdown()
            thread.join()
