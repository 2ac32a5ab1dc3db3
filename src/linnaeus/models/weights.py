"""Published weights: which are at hand, download, import, verify, and load into a network."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import platformdirs
import torch

from linnaeus.errors import JobError, UserError
from linnaeus.files import atomic, write_text
from linnaeus.models import MODELS, create, did_you_mean
from linnaeus.models.adapt import Facts, dictated, facts_of, fitted, normalisation_for, read_weights
from linnaeus.models.layers import aligned
from linnaeus.models.network import Network
from linnaeus.models.published import IMAGENET_MEAN, IMAGENET_STD, PUBLISHED, Published

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None: the server does not say)


class Fetch(Protocol):
    """`linnaeus.data.download.fetch`, handed in by the caller: networks do not depend on how data is had."""

    def __call__(self, urls: str, destination: Path, *, sha256: str | None, progress: Progress | None) -> Path: ...


@dataclass
class Loaded:
    """A network with weights, and what must be known to use it."""

    model: Network
    source: str  # the name of published weights, or the file
    notes: list[str]  # one line each: what was adapted, and what nobody said
    normalisation: dict[str, Any]  # mean, std: a value a channel; resize, size, interpolation: as the weights know them


def folder() -> Path:
    """Where weights lie: `weights` in the cache folder, which is `LINNAEUS_CACHE` or the system's choice."""
    given = os.environ.get("LINNAEUS_CACHE")
    return (Path(given).expanduser().absolute() if given else Path(platformdirs.user_cache_dir("linnaeus"))) / "weights"


# What is at hand


def find(name: str) -> Path | None:
    """The file of published weights at hand, not verified; None if there is none.

    It bears its published name and is checked against the published hash; or it is `<name>.safetensors` or `.pth`, and
    `<name>.json` beside it, written when it came, has the hash.
    """
    published = lookup(name)
    candidates = (published.file, f"{name}.safetensors", f"{name}.pth")
    return next((folder() / file for file in candidates if (folder() / file).is_file()), None)


def at_hand() -> list[str]:
    """Names of the published weights that need no download."""
    return [name for name in PUBLISHED if find(name)]


def lookup(name: str) -> Published:
    """The table's entry of that name."""
    if name not in PUBLISHED:
        hint = did_you_mean(name, PUBLISHED)
        raise UserError(
            f"unknown weights {name!r}{hint}: `linnaeus weights list` shows the names, "
            "and `linnaeus weights import NAME FILE` takes a file in under one of them"
        )
    return PUBLISHED[name]


def list_weights() -> list[tuple[Published, Path | None]]:
    """Every set of published weights, and its file if it is at hand."""
    return [(published, find(name)) for name, published in PUBLISHED.items()]


def render_list() -> str:
    """`list_weights` as text in aligned columns."""
    cells = [("name", "model", "top-1", "at", "trained with", "license", "at hand")]
    for p, path in list_weights():
        arguments = ", ".join(f"{key} {value}" for key, value in p.arguments.items())
        where = str(path) if path else "no" if p.url else "no (import only)"
        cells.append((p.name, p.model, f"{p.top1:.2f} %", str(p.size), arguments, p.license, where))
    return aligned(cells, right=(2, 3))


# Getting them


def pull(name: str, *, fetch: Fetch, progress: Progress | None = None) -> Path:
    """Download published weights unless they are at hand, verified either way. Resumes, and is whole or not there.

    Raises UserError where the name is unknown or has no address, and where what was at hand is wrong and was deleted;
    JobError, with the way around, where the network fails.
    """
    published = lookup(name)
    path = find(name)
    if path:
        return verified(published, path)
    if not published.url:
        raise UserError(f"{name}: cannot be downloaded; bring the file and type: linnaeus weights import {name} FILE")
    url, digest, file = address(published)
    try:
        fetch(url, folder() / file, sha256=digest, progress=progress)
    except UserError as error:
        reason = getattr(error, "reason", str(error))
        raise JobError(
            f"{name} could not be downloaded ({reason}); fetch {published.url} by other means, "
            f"then type: linnaeus weights import {name} FILE"
        ) from None
    if file != published.file:
        remember(name, file, digest)
    return folder() / file


def address(published: Published) -> tuple[str, str, str]:
    """(URL, SHA-256 or its prefix, file name): of the safetensors on the hub where its client is installed.

    Weights that are also on the Hugging Face hub come from there by preference, since safetensors cannot hold code; the
    hub itself says their hash. Without the client, on a mirror, or when the hub does not answer, the `.pth` will do.
    """
    alone = os.environ.get("LINNAEUS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")
    if published.hub and not alone and not os.environ.get("LINNAEUS_MIRROR"):
        try:
            hub: Any = importlib.import_module("huggingface_hub")
            url = hub.hf_hub_url(published.hub, "model.safetensors")
            digest = hub.get_hf_file_metadata(url).etag or ""
        except Exception:  # no client, no network, or any of the client's many errors: there is another way
            digest = ""
        if len(digest) == 64:
            return url, digest, f"{published.name}.safetensors"
    return published.url, published.sha256, published.file


def import_file(name: str, path: Path) -> tuple[Path, list[str]]:
    """Take a file that the user brought as the published weights `name`; it is copied. Returns its place, and notes.

    The published bytes are recognized by their hash. Others, such as the same weights saved again, are taken if every
    tensor fits and nothing in their header contradicts the table, and a note says that nothing else vouches for them.
    """
    published = lookup(name)
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file to import as {name}")
    digest = sha256_of(path)
    notes = []
    recognized = digest.startswith(published.sha256)
    if recognized:
        target = folder() / published.file
    else:
        if path.name == published.file and published.url:
            raise UserError(
                f"{path}: its SHA-256 begins with {digest[:8]}, that of {name} with {published.sha256[:8]}: "
                "cut short or altered; fetch it again"
            )
        other = next((each.name for each in PUBLISHED.values() if each.sha256 and digest.startswith(each.sha256)), None)
        if other is not None:
            raise UserError(f"{path}: holds {other}, to the byte; linnaeus weights import {other} {path}")
        check_content(published, path)
        target = folder() / f"{name}{'.safetensors' if path.suffix == '.safetensors' else '.pth'}"
        notes.append(f"not the published bytes (SHA-256 {digest[:8]}…), but every tensor fits: taken on your word")
    for file in (published.file, f"{name}.safetensors", f"{name}.pth", f"{name}.json"):  # what was there goes
        if folder() / file not in (target, path.absolute()):
            (folder() / file).unlink(missing_ok=True)
    if path.absolute() != target:
        with atomic(target) as temporary:
            shutil.copyfile(path, temporary)
    if not recognized:
        remember(name, target.name, digest)
    return target, notes


def remember(name: str, file: str, digest: str) -> None:
    """Write down the hash of a file at hand that is not the published one's."""
    write_text(folder() / f"{name}.json", json.dumps({"file": file, "sha256": digest}))


def check_content(published: Published, path: Path) -> None:
    """Refuse a file whose header contradicts the table, or whose tensors are not those of the published network."""
    tensors, facts = read_weights(path)
    table = facts_of(published)
    said: list[tuple[str, Any, Any]] = [("arch", facts.model, table.model)]
    said += [(key, value, table.arguments.get(key)) for key, value in facts.arguments.items()]
    said += [("mean", facts.mean, table.mean), ("std", facts.std, table.std)]
    for key, value, wanted in said:
        if value is not None and wanted is not None and value != wanted:
            raise UserError(
                f"{path}: says {key} = {value}, and {published.name} has {wanted}; `weights list` shows all"
            )
    with torch.device("meta"):
        network = create(published.model, classes=1000, **published.arguments)
    if "fc.weight" not in tensors or len(tensors["fc.weight"]) != 1000:
        raise UserError(
            f"{path}: has no fc.weight for the 1000 classes of {published.name}; use it with --weights {path}"
        )
    fitted(tensors, network, str(path))


# Verifying them


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(published: Published, path: Path) -> str | None:
    """What is wrong with a file at hand; None if its hash is the one it came with, or the published one."""
    expected = published.sha256 if path.name == published.file else None
    try:
        came = json.loads((folder() / f"{published.name}.json").read_text(encoding="utf-8"))
        expected = came["sha256"] if came["file"] == path.name else expected
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it did not come by another way
    if not expected:
        return "nothing says which hash it should have"
    found = sha256_of(path)
    return None if found.startswith(expected) else f"its SHA-256 begins with {found[:8]} and should with {expected[:8]}"


def verified(published: Published, path: Path) -> Path:
    """The path, if the file is what it should be. A file that is not is deleted, and the error names it."""
    wrong = fault(published, path)
    if wrong is None:
        return path
    path.unlink()
    verb = f"pull {published.name}" if published.url else f"import {published.name} FILE"
    raise UserError(f"{path}: {wrong}, so it was deleted; type: linnaeus weights {verb}")


# Loading them


def load_weights(
    model_name: str,
    weights: str,
    *,
    classes: int,
    channels: int = 3,
    arguments: Mapping[str, Any] | None = None,
    fetch: Fetch | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """A network with trained weights.

    `weights` is "imagenet" (the preferred published set for the model, one at hand before one to download), a published
    name, or a file. Without `fetch` nothing is downloaded. `arguments` are those that the user chose; what the weights
    were trained with, such as the place of the stride, is added to them, and a contradiction is refused.
    """
    arguments = dict(arguments or {})
    if model_name not in MODELS:
        create(model_name, classes)  # says what was probably meant
    path, facts, source = resolve(model_name, weights, fetch, progress)
    tensors, said = read_weights(path)
    facts = facts if facts is not None else said
    if facts.model is not None and facts.model != model_name:
        raise UserError(f"{source}: these weights are for {facts.model}, not for {model_name}")
    notes = [f"{source}: {path}" if source != str(path) else source]
    arguments |= dictated(facts, tensors, model_name, arguments, source, notes)
    network = create(model_name, classes, channels, **arguments)
    tensors, changes = fitted(tensors, network, source)
    network.load_state_dict(tensors)
    notes += changes
    if facts.mean is None:
        notes.append("the file does not say how its images were normalised: ImageNet's mean and std are assumed")
        facts = replace(facts, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Loaded(network, source, notes, normalisation_for(channels, facts))


def resolve(
    model_name: str, weights: str, fetch: Fetch | None, progress: Progress | None
) -> tuple[Path, Facts | None, str]:
    """(file, facts of the table, its name) of what `weights` means; the facts are None where only the file can say."""
    file = Path(weights).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file  # a run folder
    if weights == "imagenet":
        weights = preferred(model_name)
    elif weights not in PUBLISHED and (file.is_file() or file.suffix in (".safetensors", ".pth", ".pt", ".bin")):
        return (file, *recognized(file))
    published = lookup(weights)
    if published.model != model_name:
        raise UserError(f"{weights}: these weights are for {published.model}, not for {model_name}")
    path = find(weights)
    if path:
        return verified(published, path), facts_of(published), weights
    if fetch is None or not published.url:
        verb = f"pull {weights}" if published.url else f"import {weights} FILE"
        raise UserError(f"{weights}: not at hand; type: linnaeus weights {verb}")
    return pull(weights, fetch=fetch, progress=progress), facts_of(published), weights


def preferred(model_name: str) -> str:
    """The published weights that "imagenet" means for a model: the first at hand, else the first."""
    names = [name for name, published in PUBLISHED.items() if published.model == model_name]
    if not names:
        models = ", ".join(dict.fromkeys(published.model for published in PUBLISHED.values()))
        raise UserError(f"{model_name}: there are no published weights for it, only for {models}; use weights = none")
    return next((name for name in names if find(name)), names[0])


def recognized(file: Path) -> tuple[Facts | None, str]:
    """The table's facts for a file that is, byte for byte, a published one; (None, the file) for any other."""
    if file.is_file():
        digest = sha256_of(file)
        for published in PUBLISHED.values():
            if digest.startswith(published.sha256):
                return facts_of(published), published.name
    return None, str(file)
