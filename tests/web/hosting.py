"""A small npm registry and static host on the loopback interface, for the tests of this folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from linnaeus.web import runtime


class _Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and notes the paths that were asked for."""

    def log_message(self, format: str, *arguments: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


class Host(ThreadingHTTPServer):
    """A static host of a folder."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hosted(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    thread = threading.Thread(target=host.serve_forever)
    thread.start()
    try:
        yield host
    finally:
        host.shutdown()
        host.server_close()
        thread.join()


def write_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry's folder with a small package in place of the real one, whose checksum is expected from now on."""
    path = folder / "onnxruntime-web" / "-" / runtime.ARCHIVE
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for member in runtime.MEMBERS.values():
            entry = tarfile.TarInfo(f"package/dist/{member}")
            entry.size = len(member)
            archive.addfile(entry, io.BytesIO(member.encode()))
    monkeypatch.setattr(runtime, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(runtime, "SIZE", path.stat().st_size)
    return path
