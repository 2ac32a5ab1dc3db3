"""The files of weights in a repository of the Hugging Face hub: one, or several shards that an index lists."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from linnaeus.errors import UserError
from linnaeus.files import atomic, disk_errors, locked
from linnaeus.models.backbones.hub import TIMEOUT, client, endpoint, refusal
from linnaeus.models.weights.sharded import INDEX, merge_shards, shard_files

WHOLE, PICKLED = "model.safetensors", "pytorch_model.bin"
"""Names of the weights in one file. safetensors, also in shards, comes first, because it cannot hold code."""

Progress = Callable[[int, int | None], None]
"""Callback(bytes done, total bytes); the total is None if the server does not state it."""


class Fetch(Protocol):
    """The download function, `linnaeus.data.download.fetch`; passed in because models do not import `data`."""

    def __call__(self, urls: str, destination: Path, *, sha256: str | None, progress: Progress | None) -> Path: ...


@dataclass(frozen=True)
class RemoteFile:
    """Weights on the hub, or one shard of them."""

    url: str
    sha256: str  # empty if the hub does not state it
    file: str  # its name in the local folder
    size: int | None = None
    token: str | None = None  # what the host of `url` has to be sent; None for other hosts


@dataclass(frozen=True)
class RemoteShards:
    """Weights on the hub that are divided into several files."""

    index: bytes  # content of model.safetensors.index.json
    shards: tuple[RemoteFile, ...]
    file: str  # the name of the whole in the local folder
    sha256: str = ""  # of the whole: the hub states only those of the shards


def weights_file(name: str, repo: str, key: str) -> RemoteFile | RemoteShards:
    """The weights of a repository on the hub, to be stored as KEY.safetensors or KEY.pth.

    Raises UserError, with the next step, if they cannot be had.
    """
    whole = remote_file(name, repo, WHOLE, f"{key}.safetensors")
    if whole is not None:
        return whole
    index = _index(name, repo)
    if index is not None:
        return _shards(name, repo, index, f"{key}.safetensors")
    pickled = remote_file(name, repo, PICKLED, f"{key}.pth")
    if pickled is not None:
        return pickled
    raise UserError(
        f"{name}: has no {WHOLE}, {INDEX} or {PICKLED}; look at {endpoint()}/{repo}, save the weights as {WHOLE}, then "
        f"run: linnaeus weights import {name} FOLDER/{WHOLE}"
    )


def remote_file(name: str, repo: str, file: str, local: str, revision: str | None = None) -> RemoteFile | None:
    """A file of a repository, None if there is none. Raises UserError if it cannot be asked for."""
    hub = client(name)
    try:
        url = hub.hf_hub_url(repo, file, revision=revision, endpoint=endpoint())
        about = hub.get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=endpoint())
    except Exception as error:  # the client has many exceptions of its own
        if isinstance(error, hub.errors.RemoteEntryNotFoundError):
            return None
        raise refusal(name, repo, error) from None
    checksum = about.etag if about.etag and re.fullmatch(r"[0-9a-f]{64}", about.etag) else ""
    # The redirect to the hub's storage is signed; the token is for the hub alone.
    same_host = about.location.startswith(f"{endpoint()}/")
    return RemoteFile(about.location, checksum, local, about.size, hub.get_token() if same_host else None)


def _index(name: str, repo: str) -> bytes | None:
    """The index of the shards; None if there is none."""
    hub: Any = client(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = hub.hf_hub_download(repo, INDEX, local_dir=folder, endpoint=endpoint(), etag_timeout=TIMEOUT)
        except hub.errors.RemoteEntryNotFoundError:
            return None
        except Exception as error:
            raise refusal(name, repo, error) from None
        return Path(path).read_bytes()


def _shards(name: str, repo: str, index: bytes, local: str) -> RemoteShards:
    shards = []
    for file in shard_files(index, f"{name}: {INDEX}"):
        shard = remote_file(name, repo, file, file)
        if shard is None:
            raise UserError(f"{name}: {INDEX} names {file}, which the repository lacks; look at {endpoint()}/{repo}")
        shards.append(shard)
    return RemoteShards(index, tuple(shards), local)


def download(source: RemoteFile | RemoteShards, target: Path, fetch: Fetch, progress: Progress | None) -> None:
    """Download weights to `target`; shards become one file. An interrupted download is resumed.

    Raises UserError if that is impossible.
    """
    if isinstance(source, RemoteFile):
        options: dict[str, Any] = {} if source.size is None else {"size": source.size}
        if source.token:
            options["token"] = source.token
        fetch(source.url, target, sha256=source.sha256 or None, progress=progress, **options)
        return
    folder = target.with_suffix(".shards")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "merge"):
        if target.is_file():  # another process was faster
            return
        sizes = [shard.size or 0 for shard in source.shards]
        for k, shard in enumerate(source.shards):
            step = None if progress is None else _step(progress, sum(sizes[:k]), sum(sizes))
            download(shard, folder / shard.file, fetch, step)
        (folder / INDEX).write_bytes(source.index)
        with atomic(target) as temporary:
            merge_shards(folder / INDEX, temporary)
    shutil.rmtree(folder, ignore_errors=True)


def _step(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
