"""The local folder of pretrained weights: list, download, import and verify its files."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import platformdirs
import torch

from linnaeus.errors import JobError, UserError, did_you_mean
from linnaeus.files import atomic, disk_errors, write_text
from linnaeus.models import create
from linnaeus.models.adapt import adapt_tensors
from linnaeus.models.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.models.timm_backbone import PREFIX, body_tensors, pretrained_weights
from linnaeus.models.weight_files import WeightsInfo, read_weights
from linnaeus.text import align

Progress = Callable[[int, int | None], None]
"""Callback(bytes done, total bytes); the total is None if the server does not state it."""


class Fetch(Protocol):
    """The download function, `linnaeus.data.download.fetch`; passed in because models do not import `data`."""

    def __call__(self, urls: str, destination: Path, *, sha256: str | None, progress: Progress | None) -> Path: ...


# Finding and listing


def weights_dir() -> Path:
    """The folder of the weights: `weights` in the cache, which is `LINNAEUS_CACHE` or the system's cache folder."""
    cache = os.environ.get("LINNAEUS_CACHE")
    return (Path(cache).expanduser().absolute() if cache else Path(platformdirs.user_cache_dir("linnaeus"))) / "weights"


def find(name: str) -> Path | None:
    """The local file of pretrained weights, not yet verified; None if there is none.

    Either the file has its published name and is verified against the published checksum; or it is named
    NAME.safetensors or NAME.pth, and NAME.json beside it has the checksum from the time when it was stored.
    """
    entry = lookup(name)
    candidates = (entry.file, f"{entry.key}.safetensors", f"{entry.key}.pth")
    return next((weights_dir() / file for file in candidates if (weights_dir() / file).is_file()), None)


def local_weights() -> list[str]:
    """Names of the pretrained weights that need no download."""
    return [name for name in PRETRAINED if find(name)]


def lookup(name: str) -> PretrainedWeights:
    """The table's entry `name`. Raises UserError, with a suggestion, if there is none."""
    if name.startswith(PREFIX):
        return pretrained_weights(name)
    if name not in PRETRAINED:
        raise UserError(
            f"unknown weights {name!r}{did_you_mean(name, PRETRAINED)}: `linnaeus weights list` shows the names; "
            "`linnaeus weights import NAME FILE` stores a local file under one of them"
        )
    return PRETRAINED[name]


def render_list() -> str:
    """All pretrained weights as a text table: accuracy, license, and the local file if there is one."""
    cells = [("name", "model", "top-1", "at", "trained with", "license", "file")]
    for entry in PRETRAINED.values():
        path = find(entry.name)
        arguments = ", ".join(f"{key} {value}" for key, value in entry.arguments.items())
        file = str(path) if path else "not downloaded" if entry.url else "not imported"
        cells.append((entry.name, entry.model, f"{entry.top1:.2f} %", str(entry.size), arguments, entry.license, file))
    return "\n".join(align(cells, "<<>><<<", indent=""))


# Downloading


def pull(name: str, *, fetch: Fetch, progress: Progress | None = None) -> Path:
    """Download pretrained weights unless a local file exists; verify them either way.

    An interrupted download is resumed, and the file appears under its name only when it is complete.
    Raises UserError if the name is unknown or has no download address, or if the local file is damaged, which deletes
    it; JobError, with the manual alternative, if the download fails.
    """
    entry = lookup(name)
    path = find(name)
    if path:
        return verify(entry, path)
    if not entry.url:
        raise UserError(f"{name}: has no download address; get the file and run: linnaeus weights import {name} FILE")
    url, checksum, file = download_address(entry)
    try:
        fetch(url, weights_dir() / file, sha256=checksum or None, progress=progress)
    except UserError as error:
        reason = getattr(error, "reason", str(error))
        raise JobError(
            f"{name}: could not be downloaded ({reason}); download {entry.url} by other means, "
            f"then run: linnaeus weights import {name} FILE"
        ) from None
    if file != entry.file or not checksum:
        # No checksum is published for these weights, so the first download is trusted and later reads are compared.
        store_checksum(entry, file, checksum or sha256_of(weights_dir() / file))
    return weights_dir() / file


def download_address(entry: PretrainedWeights) -> tuple[str, str, str]:
    """(URL, SHA-256 or its prefix, local file name) of a download.

    Weights that are also on the Hugging Face hub come from there, because safetensors cannot hold code; the hub states
    their checksum. Without the hub's client, with a mirror, or when the hub does not answer, it is the `.pth` file.
    """
    offline = os.environ.get("LINNAEUS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")
    if entry.hub and not offline and not os.environ.get("LINNAEUS_MIRROR"):
        try:
            hub: Any = importlib.import_module("huggingface_hub")
            url = hub.hf_hub_url(entry.hub, "model.safetensors")
            checksum = hub.get_hf_file_metadata(url).etag or ""
        except Exception:  # no client, no network, or one of the client's many exceptions: fall back to the .pth file
            checksum = ""
        if len(checksum) == 64:
            return url, checksum, f"{entry.key}.safetensors"
    return entry.url, entry.sha256, entry.file


# Importing


def import_file(name: str, path: Path) -> tuple[Path, list[str]]:
    """Copy a file that the user has into the store as the pretrained weights `name`. Returns (stored path, notes).

    The published file is recognized by its checksum. Another one, such as the same weights saved again, is accepted if
    all tensors fit and the header does not contradict the table; a note says that the content is not verified.
    """
    entry = lookup(name)
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file to import as {name}")
    checksum = sha256_of(path)
    recognized = bool(entry.sha256) and checksum.startswith(entry.sha256)
    notes = []
    if recognized:
        target = weights_dir() / entry.file
    else:
        _check_importable(entry, path, checksum)
        target = weights_dir() / f"{entry.key}{'.safetensors' if path.suffix == '.safetensors' else '.pth'}"
        what = "not the published file" if entry.sha256 else "no checksum is published for them"
        notes.append(
            f"{what} (its SHA-256 begins with {checksum[:8]}), but all tensors fit: imported without verification"
        )
    if path.absolute() != target:
        with atomic(target) as temporary:
            shutil.copyfile(path, temporary)
    if not recognized:
        store_checksum(entry, target.name, checksum)
    _remove_others(entry, (target, path.absolute()), keep_checksum=not recognized)
    return target, notes


def _remove_others(entry: PretrainedWeights, kept: tuple[Path, ...], *, keep_checksum: bool) -> None:
    """Remove earlier files of the same weights: last, so that a failure before loses none of them."""
    checksum = [] if keep_checksum else [f"{entry.key}.json"]
    for file in (entry.file, f"{entry.key}.safetensors", f"{entry.key}.pth", *checksum):
        path = weights_dir() / file
        if path not in kept:
            with disk_errors(path):
                path.unlink(missing_ok=True)


def _check_importable(entry: PretrainedWeights, path: Path, checksum: str) -> None:
    """Raise a UserError if a file with another checksum than the published one cannot be the weights of `entry`."""
    if path.name == entry.file and entry.url:
        raise UserError(
            f"{path}: its SHA-256 begins with {checksum[:8]}, but that of {entry.name} with {entry.sha256[:8]}; "
            "the file is incomplete or altered: download it again"
        )
    other = next((e.name for e in PRETRAINED.values() if e.sha256 and checksum.startswith(e.sha256)), None)
    if other is not None:
        raise UserError(f"{path}: is the published file of {other}; run: linnaeus weights import {other} {path}")
    tensors, info = read_weights(path)
    if entry.model.startswith(PREFIX):
        adapt_tensors(body_tensors(entry.model, tensors), create(entry.model, classes=2), str(path))
        return
    table = WeightsInfo.of(entry)
    claims: list[tuple[str, Any, Any]] = [("arch", info.model, table.model)]
    claims += [(key, value, table.arguments.get(key)) for key, value in info.arguments.items()]
    claims += [("mean", info.mean, table.mean), ("std", info.std, table.std)]
    for key, value, expected in claims:
        if value is not None and expected is not None and value != expected:
            raise UserError(
                f"{path}: its header says {key} = {value}, but {entry.name} has {expected}; "
                "`linnaeus weights list` shows all names"
            )
    with torch.device("meta"):
        network = create(entry.model, classes=1000, **entry.arguments)
    if "fc.weight" not in tensors or len(tensors["fc.weight"]) != 1000:
        raise UserError(
            f"{path}: has no fc.weight for the 1000 classes of {entry.name}; use the file with --weights {path}"
        )
    adapt_tensors(tensors, network, str(path))  # for its checks of names and shapes


# Verifying


def verify(entry: PretrainedWeights, path: Path) -> Path:
    """The path if the file has the right checksum. A damaged file is deleted, and a UserError names it."""
    problem = _checksum_problem(entry, path)
    if problem is None:
        return path
    path.unlink()
    command = f"pull {entry.name}" if entry.url else f"import {entry.name} FILE"
    raise UserError(f"{path}: {problem}, so it was deleted; run: linnaeus weights {command}")


def _checksum_problem(entry: PretrainedWeights, path: Path) -> str | None:
    """Why a local file cannot be trusted; None if it has the published checksum, or the one from when it was stored."""
    expected = entry.sha256 if path.name == entry.file else None
    try:
        stored = json.loads((weights_dir() / f"{entry.key}.json").read_text(encoding="utf-8"))
        expected = stored["sha256"] if stored["file"] == path.name else expected
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is no such record: the file is the published one, or unverifiable
    if not expected:
        return "there is no checksum to verify it against"
    checksum = sha256_of(path)
    if checksum.startswith(expected):
        return None
    return f"its SHA-256 begins with {checksum[:8]} instead of {expected[:8]}"


def store_checksum(entry: PretrainedWeights, file: str, checksum: str) -> None:
    """Record the checksum of a local file that is not the published one, in NAME.json."""
    write_text(weights_dir() / f"{entry.key}.json", json.dumps({"file": file, "sha256": checksum}))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
