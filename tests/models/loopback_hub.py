"""A Hugging Face hub on this machine: repositories from folders, with redirects, headers and faults of a real one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


@dataclass
class Hub:
    """What the server offers and how it misbehaves. `requests` holds (method, path, Authorization)."""

    repositories: dict[str, Path]
    licenses: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_after: int | None = None
    """Bytes after which the next answer of the storage ends; once."""
    drip: bool = False
    """The storage sends a byte at a time."""
    damaged: bool = False
    """The storage sends other bytes than the hub states."""
    no_api: bool = False
    """A mirror that serves files alone."""
    refuse: tuple[str, int, bytes] | None = None
    """(part of a path, HTTP status, body): how requests that write are answered. Status 0 answers nothing."""
    large: bool = False
    """Model files are uploaded to the storage, as on the real hub."""
    agents: set[str] = field(default_factory=set)
    """The User-Agent of all requests."""
    uploads: Path = Path()
    """Where repositories that are created lie."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def asked(self, part: str) -> list[tuple[str, str, str]]:
        return [request for request in self.requests if part in request[1]]


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.address`, until the end of the block. Its storage has another host name."""

    class Handler(_Handler):
        offered = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    offered: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """What an upload needs: a repository, its files, and a commit of all of them at once."""
        authorization = self.headers.get("Authorization", "")
        self.offered.requests.append((self.command, self.path, authorization))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if self._refused(path):
            return None
        if path == "/verify":
            return self._send(200, b"{}")
        if authorization != f"Bearer {TOKEN}":
            return self._send(403, b'{"error": "this token may not write"}')
        if path == "/api/repos/create":
            about = json.loads(body)
            repo = f"{about['organization']}/{about['name']}"
            if repo not in self.offered.repositories:
                self.offered.repositories[repo] = self.offered.uploads / about["name"]
                self.offered.repositories[repo].mkdir(parents=True)
            return self._send(200, json.dumps({"url": f"{self.offered.address}/{repo}"}).encode())
        if path == "/api/validate-yaml":
            return self._send(200, b'{"errors": [], "warnings": []}')
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._send(200, json.dumps(self._places(json.loads(body))).encode())
        match = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
        if match is None:
            return self._send(404, b"{}")
        if match[2] == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": self._mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, json.dumps({"files": modes}).encode())
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                (self.offered.repositories[match[1]] / line["value"]["path"]).write_bytes(content)
        url = f"{self.offered.address}/{match[1]}/commit/{COMMIT}"
        self._send(200, json.dumps({"success": True, "commitOid": COMMIT, "commitUrl": url}).encode())

    def do_PUT(self) -> None:
        self.offered.requests.append((self.command, self.path, ""))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._refused(self.path):
            self._send(200, b"")

    def _refused(self, path: str) -> bool:
        self.offered.agents.add(self.headers.get("User-Agent", ""))
        if self.offered.refuse is None or self.offered.refuse[0] not in path:
            return False
        _, status, body = self.offered.refuse
        if status:
            self._send(status, body, {"Content-Type": "application/json"})
        else:
            threading.Event().wait(5)  # tests replace time.sleep
            self.close_connection = True
        return True

    def _mode(self, path: str) -> str:
        return "lfs" if self.offered.large and path.endswith(".safetensors") else "regular"

    def _places(self, about: dict[str, Any]) -> dict[str, Any]:
        """Where the files of an upload go, as Git LFS says it."""
        to = self.offered.address
        actions = {"upload": {"href": f"{to}/upload"}, "verify": {"href": f"{to}/verify"}}
        return {"transfer": "basic", "objects": [file | {"actions": actions} for file in about["objects"]]}

    def _answer(self) -> None:
        authorization = self.headers.get("Authorization", "")
        self.offered.requests.append((self.command, self.path, authorization))
        path, _, query = self.path.partition("?")
        if path == "/api/models":
            search = urllib.parse.parse_qs(query).get("search", [""])[0]
            found = [{"id": repo, "modelId": repo} for repo in self.offered.repositories if search in repo]
            return self._send(200, json.dumps(found).encode())
        if path.startswith("/api/models/") and not self.offered.no_api:
            return self._about(path.removeprefix("/api/models/").partition("/revision/")[0])
        match = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        if match:
            return self._resolve(match[1], match[3], authorization)
        if path.startswith("/storage/"):
            return self._storage(Path(urllib.parse.unquote(path.removeprefix("/storage"))))
        self._send(404, b"{}")

    def _about(self, repo: str) -> None:
        if repo not in self.offered.repositories:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        license = self.offered.licenses.get(repo, "apache-2.0")
        about: dict[str, Any] = {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "tags": [f"license:{license}"],
            "siblings": [],
        }
        about |= {"cardData": {"license": license}, "gated": "manual" if repo in self.offered.gated else False}
        self._send(200, json.dumps(about).encode())

    def _resolve(self, repo: str, name: str, authorization: str) -> None:
        folder = self.offered.repositories.get(repo)
        if folder is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repo in self.offered.gated and authorization != f"Bearer {TOKEN}":
            return self._send(403 if authorization else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        file = folder / name
        if not file.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if file.suffix == ".json":
            return self._send(200, content, headers)
        port = self.offered.address.rpartition(":")[2]
        headers |= {
            "Location": f"http://localhost:{port}/storage{urllib.parse.quote(str(file))}?signature=x",
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        self._send(302, b"", headers)

    def _storage(self, file: Path) -> None:
        content = file.read_bytes()
        if self.offered.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(re.sub(r"\D", "", self.headers.get("Range", "") or "0") or 0)
        headers = {"ETag": '"storage"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "application/octet-stream"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        storage = self.path.startswith("/storage/")
        with contextlib.suppress(OSError):
            if storage and self.offered.cut_after is not None:
                self.wfile.write(body[: self.offered.cut_after])
                self.offered.cut_after = None
                self.close_connection = True
            elif storage and self.offered.drip:
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(0.01)
            else:
                self.wfile.write(body)
