"""The record of exports that passed verification, exports.json beside a model, and the choice of the fastest file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.device import machine
from linnaeus.errors import UserError, install
from linnaeus.files import read_object, write_text
from linnaeus.modelfile.agreement import Agreement, why_not_by_default
from linnaeus.modelfile.onnx import file_digest, has_runtime, read_record
from linnaeus.modelfile.safetensors import MODEL, read_header

EXPORTS = "exports.json"


@dataclass(frozen=True)
class Choice:
    """The file that predicts fastest."""

    path: Path
    reason: str  # a line that says why; empty where there was no choice
    passed_over: list[str]  # a line for each export that is not used, with the reason


@dataclass(frozen=True)
class Verified:
    """What the gate found of an export that it let pass."""

    kind: str  # a key of `KINDS`
    model_digest: str  # the model that it was made from
    speed: dict[str, float]  # speedup by batch size
    agreement: Agreement | None = None
    gate: float | None = None  # the smallest agreement that was accepted, in 0..1


def note(file: Path, digest: str, verified: Verified) -> None:
    """Record that an export, of the checksum `digest`, passed verification."""
    record = file.with_name(EXPORTS)
    entry = {
        "kind": verified.kind,
        "sha256": digest,
        "model_sha256": verified.model_digest,
        "speed": verified.speed,
        "machine": machine(),
        "agreement": None if verified.agreement is None else verified.agreement.share,
        "n": None if verified.agreement is None else verified.agreement.n,
        "gate": verified.gate,
    }
    write_text(record, json.dumps(read_object(record) | {file.name: entry}, indent=2, ensure_ascii=False) + "\n")


def fastest(folder: Path, device: str) -> Choice:
    """The fastest file of a run: model.safetensors or a recorded export; on a GPU always model.safetensors.

    An export is used only if it was made from this model, is unchanged, was measured on this kind of machine, and
    agrees with the model as often as the gate requires by default. Records of earlier versions hold no agreement; it is
    then read from the export itself, which describes its comparison.
    """
    model = folder / MODEL
    noted = read_object(folder / EXPORTS)
    if not noted or device not in ("auto", "cpu") or (device == "auto" and _has_gpu()):
        return Choice(model, "", [])
    digest, here = read_header(model).digest, machine()
    passed_over, usable = [], []
    for name, entry in noted.items():
        if Path(name).name != name:  # not beside the record: nothing that `note` wrote
            continue
        reason = _unusable(folder / name, entry, digest) or _not_by_default(folder / name, entry, here)
        if reason:
            passed_over.append(f"{folder / name}: passed over, {reason}")
        else:
            usable.append((_ratio(entry), name, str(entry["kind"])))
    # Without a usable export the original has ratio 0 and is chosen.
    ratio, name, kind = max(usable, default=(0.0, MODEL, "torch"))
    if ratio <= 1:
        return Choice(model, "", passed_over)
    text = f"{kind}: {folder / name}, {ratio:.1f} times as fast as {MODEL} here"
    agreement = _agreement(folder / name, noted[name])
    return Choice(folder / name, text if agreement is None else f"{text}; {agreement}", passed_over)


def named(folder: Path, use: str) -> Choice:
    """The file of a run that `--use` names: `torch` or a key of `KINDS`. Raises UserError if it cannot be used."""
    model = folder / MODEL
    if use == "torch":
        return Choice(model, "", [])
    noted = read_object(folder / EXPORTS)
    names = [name for name, entry in noted.items() if isinstance(entry, dict) and entry.get("kind") == use]
    # A name with a path was not written by `note`.
    names = [name for name in names if Path(name).name == name]
    if not names:
        raise UserError(f"--use {use}: {folder} has no such export; linnaeus export {folder} --to {use} makes one")
    # The export made last.
    file = folder / names[-1]
    reason = _unusable(file, noted[file.name], read_header(model).digest)
    if reason:
        raise UserError(f"--use {use}: {file}: {reason}")
    agreement = _agreement(file, noted[file.name])
    return Choice(file, f"{use}: {file}" + ("" if agreement is None else f"; {agreement}"), [])


def _unusable(file: Path, entry: Any, digest: str) -> str | None:
    """Why an export cannot be used; None if it can."""
    if not isinstance(entry, dict) or Path(file.name).suffix != ".onnx" or not file.is_file():
        return "the file is not there"
    if entry.get("model_sha256") != digest:
        return f"it was made from another {MODEL}; export again"
    if not has_runtime():
        return f"it needs ONNX Runtime, which is not installed: {install('onnx')}"
    if entry.get("sha256") != file_digest(file):
        return "it is not the file that passed the gate; export again"
    return None


def _not_by_default(file: Path, entry: dict[str, Any], here: dict[str, Any]) -> str | None:
    """Why a usable export does not answer unless `--use` names it; None if it does."""
    if entry.get("machine") != here:
        return "it was measured on another machine, or other versions; export again to use it here"
    kind = str(entry.get("kind"))
    reason = why_not_by_default(kind, _agreement(file, entry))
    return reason and f"{reason}; --use {kind} uses it"


def _agreement(file: Path, entry: dict[str, Any]) -> Agreement | None:
    """The agreement of an export: from its record, else from the file itself; None where neither tells."""
    return Agreement.read(entry) or Agreement.of_record(read_record(file))


def _ratio(entry: dict[str, Any]) -> float:
    """Speedup over the torch network at the largest measured batch."""
    speed = {int(size): float(ratio) for size, ratio in dict(entry.get("speed") or {}).items()}
    return speed[max(speed)] if speed else 0.0


def _has_gpu() -> bool:
    from linnaeus.device import choose_device

    return choose_device("auto").type != "cpu"
