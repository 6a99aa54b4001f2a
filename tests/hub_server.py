# SPDX-License-Identifier: Apache-2.0
"""As much of the Hugging Face hub as fetching a model takes, on this machine alone."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _described(name: str) -> set[str]:
    """Where older and newer clients ask what a model has."""
    base = f"/api/models/{name}"
    return {base} | {f"{base}/{what}/{r}" for what in ("revision", "tree") for r in ("main", COMMIT)}


def _description(folder: pathlib.Path, name: str) -> dict:
    files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
    return {"id": name, "sha": COMMIT, "siblings": files}


def _listing(folder: pathlib.Path) -> list[dict]:
    size = lambda file: file.stat().st_size
    oid = lambda file: hashlib.sha1(file.read_bytes()).hexdigest()
    files = sorted(folder.iterdir())
    return [{"type": "file", "path": f.name, "size": size(f), "oid": oid(f)} for f in files]


@contextlib.contextmanager
def serve(folder: pathlib.Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Serves a folder as the model `name`; gives the address for `HF_ENDPOINT`, and the paths that are asked for."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._reply(body=True)

        def do_HEAD(self):
            self._reply(body=False)

        def log_message(self, *arguments):
            pass

        def _reply(self, body):
            asked.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            content, headers = None, {}
            if path in _described(name):
                told = _listing(folder) if "/tree/" in path else _description(folder, name)
                content, headers = json.dumps(told).encode(), {"Content-Type": "application/json"}
            elif path.startswith(f"/{name}/resolve/"):
                file = folder / path.rsplit("/", 1)[1]
                content = file.read_bytes() if file.is_file() else None
            if content is None:
                self.send_response(404)
                headers, content = {"X-Error-Code": "RepoNotFound"}, b""
            else:
                self.send_response(200)
                headers |= {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
