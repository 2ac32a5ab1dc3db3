"""export_onnx(): from a model file to an ONNX file, compared with its original on real images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from linnaeus.console import Console
from linnaeus.device import machine
from linnaeus.export import int8
from linnaeus.export.files import network_graph, open_runner, require, two, wrapped, write
from linnaeus.export.gate import FEW, Comparison, Original, why_not_float, why_not_int8
from linnaeus.export.int8 import SHOWN, quantized
from linnaeus.export.material import Material, collect, with_shown
from linnaeus.inference.classifier import Classifier
from linnaeus.modelfile.exports import note
from linnaeus.modelfile.onnx import KINDS
from linnaeus.modelfile.safetensors import MODEL, versions


@dataclass(frozen=True)
class Tried:
    """One candidate export and its comparison with the original."""

    scheme: str
    prepared: Comparison
    raw: Comparison | None = None
    speed: dict[str, float] | None = None
    """Times faster than the original, by images at once."""
    refused: str | None = None
    """Reason for rejecting the candidate; None if it passed."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme,
            "same_pixels": self.prepared.to_dict(),
            "raw_pixels": None if self.raw is None else self.raw.to_dict(),
            "speed": self.speed,
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Gate:
    """What was tried, on which images, and what passed."""

    kind: str
    original: Original
    tried: list[Tried]
    chosen: int | None
    """Index in `tried` of the candidate to write; None if none passed."""

    @property
    def material(self) -> Material:
        return self.original.material

    @property
    def passed(self) -> Tried | None:
        return None if self.chosen is None else self.tried[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and the metadata of the file."""
        drafted = self.original.drafted
        return {
            "kind": self.kind,
            "pictures": {"source": Path(self.material.source).name, "split": self.material.images.split},
            "n": len(self.material),
            "tried": [each.to_dict() for each in self.tried],
            "chosen": self.chosen,
            "draft": None if drafted is None else asdict(drafted),
            "machine": machine(),
            "threads": torch.get_num_threads(),
        }

    def warnings(self) -> list[str]:
        """Warnings about a passing export: few images, or slower than the original."""
        said = []
        if self.passed is not None and len(self.material) < FEW:
            said.append(f"compared on {len(self.material)} images, which shows little; give --data with {FEW} or more")
        speed = {} if self.passed is None else self.passed.speed or {}
        slow = [f"{ratio:.2f} times at {size}" for size, ratio in speed.items() if ratio < 1]
        if slow:
            said.append(f"slower than the original on this machine: {', '.join(slow)} at once; others may differ")
        return said

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def export_onnx(
    classifier: Classifier,
    kind: str,
    *,
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
    agree: float,
    console: Console,
) -> tuple[Path | None, Gate]:
    """Write `classifier`, a network on CPU, as ONNX of `kind`, if it passes the gate. Returns the file, and the gate.

    Without `out` it goes beside the model file. None where nothing passed: no file is written then.
    Raises UserError where packages or images are missing, or the network cannot be exported.
    """
    require(kind)
    material = collect(classifier.about, classifier.path, data, split)
    shown = None
    if kind == "onnx-int8":
        shown, material = with_shown(material, SHOWN)
    original = Original(classifier.run, classifier.temperature, material, console)
    console.say(f"comparing on {len(material)} images, {material.images.split} of {material.source}")
    network = network_graph(classifier, two(next(material.squares())))
    if shown is None:
        gate, chosen = _float(classifier, original, network)
    else:
        gate, chosen = _int8(classifier, original, quantized(network, shown, console), agree, console)
    if gate.passed is None:
        return None, gate
    path = out or classifier.path.with_name(KINDS[kind])
    said = gate.to_dict() | {"made": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
    checksum = write(path, wrapped(chosen, classifier), classifier, said)
    if classifier.path.name == MODEL and path.resolve().parent == classifier.path.resolve().parent:
        note(path, kind, checksum, classifier.about.digest, gate.passed.speed or {})
    return path, gate


def _float(classifier: Classifier, original: Original, network: bytes) -> tuple[Gate, bytes]:
    """The float graph, judged."""
    run = open_runner(network, classifier, "onnx")
    prepared, raw = original.compare(run), original.compare_raw(run)
    tried = Tried("float32", prepared, raw, original.speed(run), why_not_float(prepared, raw))
    return Gate("onnx", original, [tried], None if tried.refused else 0), network


def _int8(
    classifier: Classifier, original: Original, schemes: Iterator[tuple[str, bytes]], agree: float, console: Console
) -> tuple[Gate, bytes]:
    """All schemes on the same pixels, the last resort if none passes; then the best that agrees from raw pixels too."""
    tried: list[Tried] = []
    kept: dict[int, bytes] = {}
    for scheme, graph in schemes:
        prepared = original.compare(open_runner(graph, classifier, "onnx-int8"))
        tried.append(Tried(scheme, prepared, refused=why_not_int8(prepared, agree)))
        console.detail(f"{scheme}: {prepared.agreement:.1%} of {prepared.n} images get the same class")
        if tried[-1].refused is None:
            kept[len(tried) - 1] = graph
        if kept and len(tried) == len(int8.SCHEMES):
            break
    chosen = None
    # Of those that change as few answers the first: SCHEMES begins with what is fastest.
    for i in sorted(kept, key=lambda i: (tried[i].prepared.differing, i)):
        run = open_runner(kept[i], classifier, "onnx-int8")
        raw = original.compare_raw(run)
        refused = why_not_int8(raw, agree)
        tried[i] = replace(tried[i], raw=raw, refused=refused and f"from raw pixels it {refused}")
        if refused is None:
            tried[i] = replace(tried[i], speed=original.speed(run))
            chosen = i
            break
    return Gate("onnx-int8", original, tried, chosen), b"" if chosen is None else kept[chosen]
