"""Reading parts of files on a server: slow answers and redirects have an end."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from linnaeus.data import download
from linnaeus.data.archives.remote import fetch_range, head
from linnaeus.errors import JobError, UserError

CONTENT = bytes(range(256)) * 4


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/file")
            self.end_headers()
            return
        start, _, end = self.headers.get("Range", "bytes=0-1023").removeprefix("bytes=").partition("-")
        part = CONTENT[int(start) : int(end) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path == "/slow":
            for i in range(len(part)):
                self.wfile.write(part[i : i + 1])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(part)


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_range(address: str):
    assert fetch_range(f"{address}/file", 10, 300) == CONTENT[10:310]


def test_a_slow_drip_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr(download, "SLOWEST", 1000)
    started = time.monotonic()
    with pytest.raises(JobError, match="sends less than 1000 bytes a second"):
        fetch_range(f"{address}/slow", 0, 1000)
    assert time.monotonic() - started < 5


def test_a_redirect_away_from_https_is_refused(address: str):
    for read in (lambda url: fetch_range(url, 0, 10), head):
        with pytest.raises(UserError, match=r"redirects to http://example\.invalid, which is not HTTPS"):
            read(f"{address}/away")
