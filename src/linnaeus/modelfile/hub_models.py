"""Model files on the Hugging Face hub: `hf:OWNER/NAME`, which `linnaeus push` writes, as a file in the cache folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from linnaeus.data.download import Progress, fetch
from linnaeus.environment import cache_dir, offline
from linnaeus.errors import UserError
from linnaeus.files import read_object, write_text
from linnaeus.models.backbones.hub import MODEL_PREFIX
from linnaeus.models.backbones.hub_files import download, remote_file

FILE = "model.safetensors"
NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
SEEN = "revisions.json"  # revision -> checksum of its model, for use without a network


def parse_repository(name: str) -> tuple[str, str]:
    """'hf:ana/flowers@v2' -> ('ana/flowers', 'v2'); without a revision it is 'main'. Raises UserError."""
    match = NAME.fullmatch(name.removeprefix(MODEL_PREFIX))
    if match is None or ".." in name or "--" in match[1]:
        raise UserError(f"{name}: not a repository of the hub; write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    return match[1], match[2] or "main"


def fetch_model(name: str, progress: Progress | None = None) -> Path:
    """The model file of `hf:OWNER/NAME[@REVISION]`, downloaded and verified unless this version is in the cache.

    Raises UserError, with the next step, if the repository is unknown, gated, out of reach, or holds no model.
    """
    repository, revision = parse_repository(name)
    folder = cache_dir() / "hub" / repository.replace("/", "--")
    seen = read_object(folder / SEEN)
    if offline():
        path = _path(folder, repository, str(seen.get(revision, "")))
        if not path.is_file():
            raise UserError(
                f"{name}: not on this machine, and LINNAEUS_OFFLINE is set; copy its {FILE} here and give its path"
            )
        return path
    remote = remote_file(name, repository, FILE, FILE, revision)
    if remote is None:
        raise UserError(f"{name}: holds no {FILE}; `linnaeus push MODEL {repository}` puts one there")
    if not remote.sha256:
        raise UserError(f"{name}: the hub states no checksum of its {FILE}; was it pushed by `linnaeus push`?")
    path = _path(folder, repository, remote.sha256)
    download(remote, path, fetch, progress)
    write_text(folder / SEEN, json.dumps(seen | {revision: remote.sha256}, indent=2) + "\n")
    return path


def _path(folder: Path, repository: str, checksum: str) -> Path:
    """Where a version lies; its folder has the name of the repository, which is the name of the model."""
    return folder / (checksum[:16] or "none") / repository.rpartition("/")[2] / FILE
