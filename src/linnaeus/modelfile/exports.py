"""The record of exports that passed verification, exports.json beside a model, and the choice of the fastest file."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.device import machine
from linnaeus.files import write_text
from linnaeus.modelfile.onnx import file_digest, has_runtime
from linnaeus.modelfile.safetensors import MODEL, read_header

EXPORTS = "exports.json"


@dataclass(frozen=True)
class Choice:
    """The file that predicts fastest, and a line that says why it was chosen."""

    path: Path
    said: str
    passed_over: list[str]
    """A line for each export that is not used, with the reason."""


def note(file: Path, kind: str, digest: str, model_digest: str, speed: dict[str, float]) -> None:
    """Record that an export passed verification, which model it was made from, and its speedup by batch size."""
    record = file.with_name(EXPORTS)
    entry = {"kind": kind, "sha256": digest, "model_sha256": model_digest, "speed": speed, "machine": machine()}
    write_text(record, json.dumps(_read(record) | {file.name: entry}, indent=2, ensure_ascii=False) + "\n")


def fastest(folder: Path, device: str) -> Choice:
    """The fastest file of a run: model.safetensors or a recorded export; on a GPU always model.safetensors.

    An export is used only if it was made from this model, is unchanged, and was measured on this kind of machine.
    """
    model = folder / MODEL
    noted = _read(folder / EXPORTS)
    if not noted or device not in ("auto", "cpu") or (device == "auto" and _has_gpu()):
        return Choice(model, "", [])
    digest, here = read_header(model).digest, machine()
    passed_over, usable = [], []
    for name, entry in noted.items():
        if Path(name).name != name:  # not beside the record: nothing that `note` wrote
            continue
        reason = _unusable(folder / name, entry, digest, here)
        if reason:
            passed_over.append(f"{folder / name}: passed over, {reason}")
        else:
            usable.append((_ratio(entry), name, str(entry["kind"])))
    ratio, name, kind = max(usable, default=(0.0, MODEL, "torch"))
    if ratio <= 1:
        return Choice(model, "", passed_over)
    return Choice(folder / name, f"{kind}: {folder / name}, {ratio:.1f} times as fast as {MODEL} here", passed_over)


def _unusable(file: Path, entry: Any, digest: str, here: dict[str, Any]) -> str | None:
    """Why an export cannot be used; None if it can."""
    if not isinstance(entry, dict) or Path(file.name).suffix != ".onnx" or not file.is_file():
        return "the file is not there"
    if entry.get("model_sha256") != digest:
        return f"it was made of another {MODEL}; export again"
    if not has_runtime():
        return "ONNX Runtime is not installed"
    if entry.get("machine") != here:
        return "it was measured on another machine, or other versions; export again to use it here"
    if entry.get("sha256") != file_digest(file):
        return "it is not the file that passed the gate; export again"
    return None


def _ratio(entry: dict[str, Any]) -> float:
    """Speedup over the torch network at the largest measured batch."""
    speed = {int(size): float(ratio) for size, ratio in dict(entry.get("speed") or {}).items()}
    return speed[max(speed)] if speed else 0.0


def _has_gpu() -> bool:
    from linnaeus.device import choose_device

    return choose_device("auto").type != "cpu"


def _read(record: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(record.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
