"""Fetching, against a server on the loopback interface that misbehaves in known ways."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from linnaeus.data import download
from linnaeus.data.archives import remote
from linnaeus.data.archives.remote import fetch_range
from linnaeus.data.catalog import KNOWN, Known, Remote
from linnaeus.data.download import FetchError, fetch
from linnaeus.data.readers.known_sources import pull as pull_data
from linnaeus.data.redirects import Redirects, RefusedError
from linnaeus.environment import cache_dir
from linnaeus.errors import DiskError, JobError, UserError
from linnaeus.models.weights.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.models.weights.store import pull as pull_weights

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; how each path behaves is in `ways`. `asked` records (path, range asked for)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ways: dict[str, set[str]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.left = 0  # connections still to be dropped
        self.tag = '"one"'
        self.headers: dict[str, str] = {}  # further ones to send

    def handle_error(self, *_: object) -> None:
        """Some tests hang up on purpose: that is no error to print."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int) -> None:
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        ways, wanted = self.server.ways.get(path, set()), self.headers.get("Range")
        self.server.asked.append((path, wanted))
        if "busy" in ways and self.server.left:
            self.server.left -= 1
            return self.answer(503)
        if "loop" in ways:
            self.server.headers["Location"] = self.path
            return self.answer(302)
        if path not in self.server.files:
            return self.send_error(404)
        body, start = self.server.files[path], 0
        changed = self.headers.get("If-Range") not in (None, self.server.tag)
        if wanted and "no ranges" not in ways and not changed:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            begin = start + ("wrong range" in ways)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        piece = body[start : start + 100_000 if "small pieces" in ways and start else None]
        self.send_header("Content-Type", "text/html" if "login page" in ways else "application/octet-stream")
        self.send_header("ETag", self.server.tag)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if "no length" not in ways:
            self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if "hangs" in ways:
            self.wfile.write(piece[:100])
            self.wfile.flush()
            time.sleep(1)
            return None
        if "drops" in ways and self.server.left:
            self.server.left -= 1
            piece = piece[: 300_000 if "stalls" not in ways else 0]
            if "changes" in ways:
                self.server.files[path], self.server.tag = body[::-1], '"two"'
        self.wfile.write(piece)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.delenv("LINNAEUS_OFFLINE", raising=False)
    monkeypatch.delenv("LINNAEUS_MIRROR", raising=False)
    server = Server()
    server.files["x.bin"] = BODY
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_fetches_whole_with_progress(server: Server, tmp_path: Path):
    steps: list[tuple[int, int | None]] = []
    path = fetch(
        server.url("x.bin"),
        tmp_path / "deep" / "x.bin",
        sha256=SHA,
        size=len(BODY),
        progress=lambda *s: steps.append(s),
    )
    assert path == tmp_path / "deep" / "x.bin"
    assert path.read_bytes() == BODY
    assert steps[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert [file.name for file in path.parent.iterdir()] == ["x.bin"]  # no .part is left
    assert fetch(server.url("x.bin"), path, sha256=SHA) == path
    assert len(server.asked) == 1  # what is there is not fetched again


@pytest.mark.parametrize("checksum", [SHA, SHA[:8], None])
def test_a_download_continues_after_every_dropped_connection(server: Server, tmp_path: Path, checksum: str | None):
    server.ways["x.bin"], server.left = {"drops"}, 3
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=checksum).read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_file_that_changes_meanwhile_is_not_mixed(server: Server, tmp_path: Path):
    server.ways["x.bin"], server.left = {"drops", "changes"}, 1
    assert fetch(server.url("x.bin"), tmp_path / "x.bin").read_bytes() == BODY[::-1]


def test_a_later_call_continues_the_download(server: Server, tmp_path: Path):
    (tmp_path / "x.bin.part").write_bytes(BODY[:500_000])
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    assert server.asked == [("x.bin", "bytes=500000-")]


@pytest.mark.parametrize("part", [b"stale" * 100, BODY + b"more", b"y" * len(BODY)])
def test_a_partial_download_of_another_file_is_deleted(server: Server, tmp_path: Path, part: bytes):
    (tmp_path / "x.bin.part").write_bytes(part)
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    assert not (tmp_path / "x.bin.part").exists()


def test_a_partial_download_is_not_used_without_a_checksum(server: Server, tmp_path: Path):
    (tmp_path / "x.bin.part").write_bytes(b"stale" * 100)
    assert fetch(server.url("x.bin"), tmp_path / "x.bin").read_bytes() == BODY


def test_a_complete_partial_file_is_kept(server: Server, tmp_path: Path):
    (tmp_path / "x.bin.part").write_bytes(BODY)
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    assert server.asked == [("x.bin", f"bytes={len(BODY)}-")]


@pytest.mark.parametrize("way", ["no ranges", "wrong range", "no length"])
def test_servers_without_proper_ranges(server: Server, tmp_path: Path, way: str):
    server.ways["x.bin"] = {way}
    if way != "wrong range":
        (tmp_path / "x.bin.part").write_bytes(BODY[:500_000])
        assert fetch(server.url("x.bin"), tmp_path / "x.bin", md5=hashlib.md5(BODY).hexdigest()).read_bytes() == BODY
        return
    (tmp_path / "x.bin.part").write_bytes(BODY[:500_000])
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    assert server.asked[-1] == ("x.bin", None)  # from the start


def test_a_wrong_checksum_moves_on_to_the_next_mirror(server: Server, tmp_path: Path):
    server.files["bad/x.bin"] = BODY[:-1] + b"?"
    path = fetch(
        [server.url("bad/x.bin"), server.url("none/x.bin"), server.url("x.bin")], tmp_path / "x.bin", sha256=SHA
    )
    assert path.read_bytes() == BODY
    with pytest.raises(FetchError) as error:
        fetch([server.url("bad/x.bin"), server.url("none/x.bin")], tmp_path / "y.bin", sha256=SHA)
    line = str(error.value)
    assert "127.0.0.1: sha256" in line
    assert "HTTP 404" in line
    assert f"fetch {server.url('bad/x.bin')} by other means and put it at {tmp_path / 'y.bin'}" in line
    assert not list(tmp_path.glob("y*"))  # neither the wrong file nor a part of it


def test_a_login_page_or_a_wrong_size_is_refused(server: Server, tmp_path: Path):
    server.ways["x.bin"] = {"login page"}
    with pytest.raises(FetchError, match="a web page"):
        fetch(server.url("x.bin"), tmp_path / "x.bin")
    server.ways["x.bin"] = set()
    with pytest.raises(FetchError, match="offers 1024000 bytes instead of 5"):
        fetch(server.url("x.bin"), tmp_path / "x.bin", size=5)
    server.ways["x.bin"] = {"no length"}
    with pytest.raises(FetchError, match="sends more than 5 bytes"):
        fetch(server.url("x.bin"), tmp_path / "x.bin", size=5)
    assert not list(tmp_path.iterdir())


def test_busy_servers_are_asked_again_and_dead_ones_are_given_up(server: Server, tmp_path: Path):
    server.ways["x.bin"], server.left = {"busy"}, 2
    assert fetch(server.url("x.bin"), tmp_path / "x.bin").read_bytes() == BODY
    server.ways["x.bin"], server.left = {"drops", "stalls"}, 100
    with pytest.raises(FetchError, match="the connection ended after 0 of 1024000 bytes"):
        fetch(server.url("x.bin"), tmp_path / "y.bin")
    assert server.left == 100 - download.STALLS


def test_nobody_listens(server: Server, tmp_path: Path):
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match="Connection refused"):
        fetch(server.url("x.bin"), tmp_path / "x.bin")
    with pytest.raises(FetchError, match=r"no http\(s\) address"):
        fetch("file:///etc/passwd", tmp_path / "x.bin")


def test_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        fetch(server.url("x.bin"), tmp_path / "x.bin")
    assert (
        f"LINNAEUS_OFFLINE is set); fetch {server.url('x.bin')} by other means and put it at {tmp_path / 'x.bin'}"
        in str(error.value)
    )
    assert not server.asked
    (tmp_path / "x.bin").write_bytes(BODY)
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA)  # by hand
    monkeypatch.setenv("LINNAEUS_OFFLINE", "0")
    assert fetch(server.url("x.bin"), tmp_path / "y.bin")


def test_a_wrong_file_is_kept_and_named(server: Server, tmp_path: Path):
    (tmp_path / "x.bin").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"x.bin: 4 bytes instead of 1024000; remove it to download it again"):
        fetch(server.url("x.bin"), tmp_path / "x.bin", size=len(BODY))
    assert (tmp_path / "x.bin").read_bytes() == b"mine"


def test_mirror_is_a_copy_of_the_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.files["copy/data/mnist/x y.gz"] = server.files["copy/data/mnist/x%20y.gz"] = BODY
    monkeypatch.setenv("LINNAEUS_MIRROR", server.url("copy/"))
    fetch(server.url("x.bin"), cache_dir() / "data/mnist/x y.gz", sha256=SHA)
    assert server.asked == [("copy/data/mnist/x%20y.gz", None)]
    fetch(server.url("x.bin"), tmp_path / "elsewhere.bin", sha256=SHA)
    assert [path for path, _ in server.asked[1:]] == [
        "copy/elsewhere.bin",
        "x.bin",
    ]  # what it lacks comes from the source


def test_two_simultaneous_calls_download_once(server: Server, tmp_path: Path):
    threads = [
        threading.Thread(target=fetch, args=(server.url("x.bin"), tmp_path / "x.bin"), kwargs={"sha256": SHA})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert len(server.asked) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    line = f"{tmp_path / 'x.bin'}: no space left on the disk; free some, or set LINNAEUS_CACHE to another folder"
    with pytest.raises(DiskError) as error:
        fetch(server.url("x.bin"), tmp_path / "x.bin")
    assert str(error.value) == line
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "link"):
        with pytest.raises(DiskError, match=rf"{place}: cannot be written \(.*\); set LINNAEUS_CACHE to another"):
            fetch(server.url("x.bin"), tmp_path / place / "x.bin")


@pytest.mark.parametrize("pull", ["weights", "data"])
def test_a_full_disk_is_not_called_a_failed_download(server: Server, monkeypatch: pytest.MonkeyPatch, pull: str):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    monkeypatch.setitem(PRETRAINED, "mine", PretrainedWeights("mine", "resnet18", server.url("x.bin"), SHA[:8]))
    monkeypatch.setitem(KNOWN, "mine", Known("mine", (Remote("x.bin", len(BODY), "", (server.url("")[:-1],)),)))
    with pytest.raises(DiskError, match=r"x\.bin: no space left on the disk; free some") as error:
        pull_weights("mine", fetch=fetch) if pull == "weights" else pull_data("mine")
    assert "other means" not in str(error.value)


def test_a_file_in_pieces_smaller_than_asked_for(server: Server, tmp_path: Path):
    """Without a checksum only the length that the server states tells that there is more."""
    server.ways["x.bin"], server.left = {"drops", "small pieces"}, 1
    assert fetch(server.url("x.bin"), tmp_path / "x.bin").read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={k}00000-" for k in range(3, 11))]


def test_a_compressed_answer_is_not_taken_for_the_file(server: Server, tmp_path: Path):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(FetchError, match=r"in another encoding \(gzip\) than asked for"):
        fetch(server.url("x.bin"), tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())
    server.files["x.gz"] = BODY  # Apache calls such files so
    assert fetch(server.url("x.gz"), tmp_path / "x.gz", sha256=SHA).read_bytes() == BODY


def test_a_busy_server_says_how_long_to_wait(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.ways["x.bin"], server.left, server.headers = {"busy"}, 2, {"Retry-After": "7"}
    assert fetch(server.url("x.bin"), tmp_path / "x.bin").read_bytes() == BODY
    assert [wait for wait in waits if wait] == [7, 7]
    server.left, server.headers = 2, {"Retry-After": "3600"}
    with pytest.raises(FetchError, match="HTTP 503, to be asked again in 3,600 seconds"):
        fetch(server.url("x.bin"), tmp_path / "y.bin")
    waits.clear()
    (tmp_path / "z.bin.part").write_bytes(b"wrong")
    server.left, server.headers = 1, {"Retry-After": "7"}
    assert fetch(server.url("x.bin"), tmp_path / "z.bin", sha256=SHA).read_bytes() == BODY
    assert [wait for wait in waits if wait] == [7, 0.02], "what an earlier answer asked for is over"
    server.left, server.headers = 1, {"Retry-After": "3600"}
    with pytest.raises(JobError, match="HTTP 503, to be asked again in 3,600 seconds"):
        fetch_range(server.url("x.bin"), 0, 10)


def test_odd_headers(server: Server, tmp_path: Path):
    server.ways["x.bin"], server.headers = {"no length"}, {"Content-Length": "9" * 5000}
    assert fetch(server.url("x.bin"), tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    server.ways["x.bin"] = {"loop"}
    with pytest.raises(FetchError, match=r"HTTP 302 .* infinite loop") as error:
        fetch(server.url("x.bin"), tmp_path / "y.bin")
    assert r"\n" not in str(error.value)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("LINNAEUS_CACHE")
    assert cache_dir().name == "linnaeus"
    assert cache_dir().is_absolute()


def test_a_body_of_unknown_size_is_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "LIMIT", len(BODY) - 1)
    server.files["x"], server.ways["x"] = BODY, {"no length"}
    with pytest.raises(FetchError, match=f"sends more than {len(BODY) - 1} bytes"):
        fetch(server.url("x"), tmp_path / "x")
    assert not list(tmp_path.glob("*.part"))


def packed(kind: str) -> bytes:
    """A file of a format that tells where it ends."""
    numbers, stream = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), io.BytesIO()
    if kind in ("jpeg", "png"):
        Image.fromarray(numbers).save(stream, kind)
    elif kind == "safetensors":
        return save({"a": numbers, "b": numbers[:9].copy()})
    elif kind in ("gz", "bz2", "xz"):
        return {"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(numbers.tobytes())
    elif kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a", numbers.tobytes())
    elif kind == "parquet":
        table = pytest.importorskip("pyarrow").table({"a": numbers.ravel()})
        pytest.importorskip("pyarrow.parquet").write_table(table, stream)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz" if kind == "tgz" else "w") as tar:
            for name in "ab":
                member = tarfile.TarInfo(name)
                member.size = numbers.nbytes
                tar.addfile(member, io.BytesIO(numbers.tobytes()))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "safetensors", "gz", "bz2", "xz", "zip", "parquet", "tar", "tgz"])
def test_without_length_and_checksum_the_format_tells_that_an_answer_was_cut_short(
    kind: str, server: Server, tmp_path: Path
):
    whole = packed(kind)
    for k, share in enumerate((0.3, 0.6, 0.95)):
        name = f"{k}.{kind}"
        length = len(whole.rstrip(b"\0"))  # tar adds blocks that nobody needs
        server.files[name], server.ways[name] = whole[: int(share * length)], {"no length", "no ranges"}
        with pytest.raises(FetchError, match=r"the connection ended after \d+ bytes, in the middle of the file"):
            fetch(server.url(name), tmp_path / name)
        assert not (tmp_path / name).exists()
    server.files["x"], server.ways["x"] = whole, {"no length"}
    assert fetch(server.url("x"), tmp_path / "x").read_bytes() == whole


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"path,label\n", b"BZ is no archive", b'12345678{"a": 1}', BODY),
        *(b"\x08" + bytes(7) + text for text in (b'{"a": 1}', b'{"a"  1}', b'{"a":[]}')),
    ],
)
def test_a_format_without_an_end_is_taken_as_it_comes(text: bytes, server: Server, tmp_path: Path):
    server.files["x"], server.ways["x"] = text, {"no length"}
    assert fetch(server.url("x"), tmp_path / "x").read_bytes() == text


def test_a_few_bytes_before_each_silence_are_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A mirror that hangs after 100 bytes of each answer would take days; the next address has the file."""
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    monkeypatch.setattr(remote, "WAIT", 0.01)
    server.files["slow.bin"], server.ways["slow.bin"] = BODY, {"hangs"}
    assert fetch([server.url("slow.bin"), server.url("x.bin")], tmp_path / "x.bin", sha256=SHA).read_bytes() == BODY
    assert sum(path == "slow.bin" for path, _ in server.asked) == download.STALLS
    with pytest.raises(JobError, match="cannot be read"):
        fetch_range(server.url("slow.bin"), 0, len(BODY))
    assert len(server.asked) < 20


class Drip:
    """A response that sends a byte at a time."""

    def read1(self, _: int) -> bytes:
        time.sleep(0.01)
        return b"x"


def test_a_slow_drip_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr(download, "_read", lambda _: Drip().read1(1))
    server.files["x"] = BODY
    with pytest.raises(FetchError, match="sends less than 1024 bytes a second"):
        fetch(server.url("x"), tmp_path / "x")


@pytest.mark.parametrize("target", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"])
def test_a_redirect_away_from_https_is_refused(target: str):
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(RefusedError, match="not HTTPS"):
        Redirects().redirect_request(request, None, 302, "Found", {}, target)
    allowed = Redirects().redirect_request(request, None, 302, "Found", {}, "https://example.com/x")
    assert allowed.full_url == "https://example.com/x"
