"""The local folder of pretrained weights: list, download, import and verify its files."""

from __future__ import annotations

import re
from pathlib import Path

from linnaeus.environment import mirror, offline
from linnaeus.errors import DiskError, JobError, UnknownNameError, UserError
from linnaeus.files import atomic, disk_errors
from linnaeus.models.backbones import hub
from linnaeus.models.backbones.hub_files import (
    WHOLE,
    Fetch,
    Progress,
    RemoteFile,
    RemoteShards,
    download,
    remote_file,
    weights_file,
)
from linnaeus.models.backbones.libraries import LIBRARIES, library_of
from linnaeus.models.weights.adapt import check_importable
from linnaeus.models.weights.files import read_weights
from linnaeus.models.weights.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.models.weights.records import (
    key_of,
    read_record,
    remember,
    remembered,
    sha256_of,
    weights_dir,
    write_record,
)
from linnaeus.models.weights.sharded import copy_weights, is_index, weights_in
from linnaeus.network_names import did_you_mean_network
from linnaeus.text import align

# Finding and listing


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


def stored_backbones() -> dict[str, Path]:
    """Names of the networks of libraries, such as `timm/NAME`, whose weights are on this machine, with their files."""
    paths = {}
    for library in LIBRARIES:
        for path in sorted(weights_dir().glob(f"{key_of(library.prefix)}*")):
            if path.suffix in (".safetensors", ".pth"):
                paths[str(read_record(path.stem).get("name") or path.stem.replace("--", "/"))] = path
    return paths


def weights_at_hand() -> list[str]:
    """Names of all weights that need no download: ours, then those of libraries, of which the largest file is first."""
    stored = stored_backbones()
    return [*local_weights(), *sorted(stored, key=lambda name: -stored[name].stat().st_size)]


def local_backbones() -> dict[str, str]:
    """Network -> its pretrained weights, of all that need no download: the names of ours, "pretrained" for others."""
    ours = {PRETRAINED[name].model: name for name in reversed(local_weights())}
    return dict(reversed(ours.items())) | dict.fromkeys(stored_backbones(), "pretrained")


def lookup(name: str) -> PretrainedWeights:
    """The table's entry `name`. Raises UserError, with a suggestion, if there is none."""
    library = library_of(name)
    if library is not None:
        return library.weights(name, None)
    if name not in PRETRAINED:
        hint = did_you_mean_network(name, PRETRAINED)
        if re.match("imagenet|default$|pretrained$|true$", name.lower()):  # as torchvision and others have it
            hint = " (did you mean imagenet?)"
        raise UnknownNameError(
            f"unknown weights {name!r}{hint}: `linnaeus weights list` shows "
            "the names; `linnaeus weights import NAME FILE` stores a local file under one of them"
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
    for name, path in stored_backbones().items():
        license = read_record(path.stem).get("license") or "unknown"
        cells.append((name, "", "", "", "", license, str(path)))
    return "\n".join(align(cells, "<<>><<<", indent=""))


# Downloading


def pull(name: str, *, fetch: Fetch, progress: Progress | None = None) -> Path:
    """Download pretrained weights unless a local file exists; verify them either way.

    An interrupted download is resumed, and the file appears under its name only when it is complete.
    Raises UserError if the name is unknown or has no download address, or if the local file is damaged, which deletes
    it; JobError, with the manual alternative, if the download fails; DiskError if the file cannot be written.
    """
    entry = lookup(name)
    path = find(name)
    if path:
        return verify(entry, path)
    if not entry.url:
        raise UserError(f"{name}: has no download address; get the file and run: linnaeus weights import {name} FILE")
    source = remote_weights(entry)
    target = weights_dir() / source.file
    try:
        download(source, target, fetch, progress)
    except DiskError:  # which other means would meet, too
        raise
    except UserError as error:
        reason = getattr(error, "reason", str(error))
        raise JobError(
            f"{name}: could not be downloaded ({reason}); download {entry.url} by other means, "
            f"then run: linnaeus weights import {name} FILE"
        ) from None
    if source.file != entry.file or not entry.sha256:
        # No checksum is published for these weights, so the first download is trusted and later reads are compared.
        store_checksum(entry, source.file, source.sha256 or sha256_of(target))
    else:
        _remember(entry, target)
    return target


def remote_weights(entry: PretrainedWeights) -> RemoteFile | RemoteShards:
    """Where weights are downloaded from: the hub where it can be asked, else the published file.

    The hub states a checksum, and has our networks as safetensors, which cannot hold code. Raises UserError if a
    library's network, which is only there, cannot be had.
    """
    published, ours = RemoteFile(entry.url, entry.sha256, entry.file), library_of(entry.name) is None
    if not entry.hub or offline() or (ours and mirror()):
        return published  # offline the download says so
    try:
        if not ours:
            return weights_file(entry.name, entry.hub, entry.key)
        remote = remote_file(entry.name, entry.hub, WHOLE, f"{entry.key}.safetensors")
        return remote if remote is not None and remote.sha256 else published
    except UserError:
        if ours or mirror():
            return published
        raise


# Importing


def import_file(name: str, path: Path) -> tuple[Path, list[str]]:
    """Copy a file that the user has into the store as the pretrained weights `name`. Returns (stored path, notes).

    The published file is recognized by its checksum. Another one, such as the same weights saved again, is accepted if
    all tensors fit and the header does not contradict the table; a note says that the content is not verified.
    """
    path = path.expanduser()
    path = weights_in(path) if path.is_dir() else path
    if not path.is_file():
        reason = "not a regular file; copy its content to one" if path.exists() else "there is no such file"
        raise UserError(f"{path}: {reason} to import as {name}")
    # Some libraries take the name from the configuration beside the file.
    library = library_of(name)
    entry = lookup(name) if library is None else library.weights(name, path.parent)
    checksum = sha256_of(path)
    recognized = bool(entry.sha256) and checksum.startswith(entry.sha256)
    notes = []
    if recognized:
        target = weights_dir() / entry.file
    else:
        check_importable(entry, path, checksum)
        safe = path.suffix == ".safetensors" or is_index(path)
        target = weights_dir() / f"{entry.key}{'.safetensors' if safe else '.pth'}"
        reason = "not the published file" if entry.sha256 else "no checksum is published for these weights"
        notes.append(
            f"{reason} (its SHA-256 begins with {checksum[:8]}), but all tensors fit: imported without verification"
        )
    # The file may be in the store already, under its own name.
    if path.absolute() != target:
        with atomic(target) as temporary:
            copy_weights(path, temporary)
    if recognized:
        _remember(entry, target)
    else:
        store_checksum(entry, target.name, sha256_of(target) if is_index(path) else checksum)
    if library is not None:
        license = read_weights(target)[1].license or entry.license
        write_record(entry.key, {"license": license})
        if library.prefix == hub.PREFIX:
            hub.remember_repository(name, hub.repository(name, path.parent))
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
    expected, size = entry.sha256 if path.name == entry.file else "", None
    record = read_record(entry.key)
    # Weights without a published checksum are compared with that of their first use.
    if record.get("file") == path.name:
        expected, size = str(record.get("sha256", "")), record.get("size")
    elif expected:
        expected, size = remembered(path.name) or (expected, size)
    if not expected:
        return "there is no checksum to verify it against"
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"it has {actual:,} bytes instead of {size:,}"
    checksum = sha256_of(path)
    if not checksum.startswith(expected):
        shown = 16 if checksum[:8] == expected[:8] else 8
        return f"its SHA-256 begins with {checksum[:shown]} instead of {expected[:shown]}"
    # Remembered with size and time, so that the next start need not read the whole file.
    if record.get("file") != path.name:
        _remember(entry, path, checksum)
    return None


def _remember(entry: PretrainedWeights, path: Path, checksum: str = "") -> None:
    """Trust on first use: where only a part of the checksum is published, record all of it and the size."""
    if path.name == entry.file and 0 < len(entry.sha256) < 64 and remembered(path.name) is None:
        remember(path, checksum or sha256_of(path))


def store_checksum(entry: PretrainedWeights, file: str, checksum: str) -> None:
    """Record the checksum and the size of a local file that is not the published one, in NAME.json."""
    path = weights_dir() / file
    size = path.stat().st_size if path.is_file() else None
    record = {"name": entry.name, "file": file, "sha256": checksum, "size": size, "license": entry.license}
    write_record(entry.key, record)
