# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server in this process that breaks off, knows or ignores ranges, and sends wrong bytes."""

import hashlib
import http.server
import itertools
import socket
import threading

import numpy as np
import pytest

from metaicl.data import download as downloads
from metaicl.data.download import DownloadError, download

BODY = np.random.default_rng(0).bytes(300_000)
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers every path with `body`; `stops` and `statuses` apply to one request each, in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.knows_ranges, self.tells_length = BODY, True, True
        self.shift = 0  # how far off a range begins
        self.stops: list[int] = []  # bytes of the answer's body after which the connection ends
        self.statuses: list[int] = []
        self.asked: list[str | None] = []  # the Range header of each request
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.knows_ranges else 0
        if start and start >= len(server.body):
            self.send_error(416)
            return
        start += server.shift if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        stop = server.stops.pop(0) if server.stops else len(server.body)
        self.wfile.write(server.body[start : start + stop])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_alone(server, tmp_path):
    steps = []
    path = tmp_path / "new" / "data.zip"
    assert (
        download(server.url, path, sha256=SHA256, md5=MD5.upper(), progress=lambda *s: steps.append(s))
        == path
    )
    assert path.read_bytes() == BODY and names(path.parent) == ["data.zip"]
    assert steps[-1] == ("data.zip", len(BODY), len(BODY)) and len(steps) > 1
    assert all(a[1] < b[1] for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_is_continued_or_started_again(server, tmp_path, knows_ranges):
    server.knows_ranges, server.stops = knows_ranges, [100_000, 50_000]
    path = download(server.url, tmp_path / "data.zip", backoff=0.001)
    assert path.read_bytes() == BODY and names(tmp_path) == ["data.zip"]
    second = 150_000 if knows_ranges else 50_000
    assert server.asked == [None, "bytes=100000-", f"bytes={second}-"]


def test_an_earlier_part_is_continued_only_with_a_checksum(server, tmp_path):
    part, path = tmp_path / "data.zip.part", tmp_path / "data.zip"
    part.write_bytes(BODY[:1000])
    assert download(server.url, path, md5=MD5).read_bytes() == BODY
    part.write_bytes(b"of another file")
    assert download(server.url, path).read_bytes() == BODY
    assert server.asked == ["bytes=1000-", None]


def test_a_part_that_is_already_whole_is_fetched_again(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(BODY)
    path = download(server.url, tmp_path / "data.zip", md5=MD5, backoff=0.001)
    assert path.read_bytes() == BODY and server.asked == [f"bytes={len(BODY)}-", None]


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    server.stops, server.shift = [1000], 7
    path = download(server.url, tmp_path / "data.zip", backoff=0.001)
    assert path.read_bytes() == BODY and server.asked == [None, "bytes=1000-", None]


def test_a_server_that_tells_no_length_is_believed(server, tmp_path):
    server.tells_length = False
    steps = []
    path = download(server.url, tmp_path / "data.zip", progress=lambda *step: steps.append(step))
    assert path.read_bytes() == BODY and steps[-1] == ("data.zip", len(BODY), len(BODY))


def test_wrong_bytes_are_deleted_and_the_old_file_is_kept(server, tmp_path):
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    path = tmp_path / "data.zip"
    path.write_bytes(b"old")
    for name, wanted in {"sha256": SHA256, "md5": MD5}.items():
        got = hashlib.new(name, server.body).hexdigest()
        with pytest.raises(DownloadError, match=f"{name} is {got} where {wanted} was expected") as caught:
            download(server.url, path, **{name: wanted})
        assert server.url in str(caught.value) and str(path) in str(caught.value)
        assert names(tmp_path) == ["data.zip"] and path.read_bytes() == b"old"


def test_a_connection_that_breaks_too_often_is_given_up_but_not_lost(server, tmp_path):
    server.stops = [10, 10]
    path = tmp_path / "data.zip"
    with pytest.raises(DownloadError, match=r"2 attempts .*after 20 of 300000 bytes.*by hand") as caught:
        download(server.url, path, md5=MD5, attempts=2, backoff=0.001)
    assert server.url in str(caught.value) and str(path) in str(caught.value)
    assert not path.exists()
    assert download(server.url, path, md5=MD5).read_bytes() == BODY and server.asked[-1] == "bytes=20-"


def test_busy_servers_are_asked_again_and_refusals_are_final(server, tmp_path):
    server.statuses = [503, 429]
    assert download(server.url, tmp_path / "data.zip", backoff=0.001).read_bytes() == BODY
    server.asked.clear()
    server.statuses = [404, 404]
    with pytest.raises(DownloadError, match=r"answers 404.*by hand and put it at .*data\.zip"):
        download(server.url, tmp_path / "data.zip", backoff=0.001)
    assert len(server.asked) == 1


def test_without_a_network_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/data.zip"
        with pytest.raises(
            DownloadError, match=r"no connection.*fetch http.* by hand and put it at .*x\.zip"
        ):
            download(url, tmp_path / "x.zip", attempts=4, backoff=1)
    assert waits == [1, 2, 4] and names(tmp_path) == []


def test_only_http_addresses_are_followed(tmp_path):
    with pytest.raises(ValueError, match="must begin with https"):
        download("file:///etc/hostname", tmp_path / "x")
