"""export_onnx(): write a model file as ONNX, after a comparison with the original on real images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from linnaeus.console import Console, counted
from linnaeus.device import machine
from linnaeus.export import int8
from linnaeus.export.distance import check_distance, with_distance
from linnaeus.export.gate import Comparison, why_not_float, why_not_int8
from linnaeus.export.int8 import CALIBRATION_IMAGES, quantized
from linnaeus.export.onnx_file import network_graph, open_runner, require, two_images, with_preprocessing, write
from linnaeus.export.reference_model import ReferenceModel
from linnaeus.export.sample_images import SampleImages, collect_samples, split_calibration
from linnaeus.files import check_output
from linnaeus.inference.classifier import Classifier
from linnaeus.modelfile.agreement import FEW, Agreement, why_not_by_default
from linnaeus.modelfile.exports import Verified, note
from linnaeus.modelfile.onnx import KINDS, file_digest
from linnaeus.modelfile.safetensors import MODEL, versions
from linnaeus.text import percent


@dataclass(frozen=True)
class Attempt:
    """One candidate export and its comparison with the original."""

    scheme: str
    prepared: Comparison  # on images that Linnaeus resized
    # On images of full size, which the graph resizes; None if the candidate was rejected before.
    raw: Comparison | None = None
    speed: dict[str, float] | None = None  # speed as a multiple of the original's, by batch size
    refused: str | None = None  # reason for rejecting the candidate; None if it passed

    def to_dict(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme,
            "same_pixels": self.prepared.to_dict(),
            "raw_pixels": None if self.raw is None else self.raw.to_dict(),
            "speed": self.speed,
            "refused": self.refused,
        }


@dataclass(frozen=True)
class GateResult:
    """All candidates, the images they were compared on, and the candidate that passed."""

    kind: str
    reference: ReferenceModel
    attempts: list[Attempt]
    chosen: int | None  # index in `attempts` of the candidate to write; None if none passed

    @property
    def samples(self) -> SampleImages:
        return self.reference.samples

    @property
    def passed(self) -> Attempt | None:
        return None if self.chosen is None else self.attempts[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the metadata of the file."""
        draft = self.reference.draft_effect
        return {
            "kind": self.kind,
            "images": {"source": Path(self.samples.source).name, "split": self.samples.images.split},
            "n": len(self.samples),
            "tried": [attempt.to_dict() for attempt in self.attempts],
            "chosen": self.chosen,
            "draft": None if draft is None else asdict(draft),
            "machine": machine(),
            "threads": torch.get_num_threads(),
        }

    def warnings(self) -> list[str]:
        """Warnings about a passing export: few images, not used by default, or slower than the original."""
        warnings = []
        if self.passed is not None and len(self.samples) < FEW:
            others = ", and those that measure the ranges," if self.kind == "onnx-int8" else ""
            warnings.append(
                f"compared on only {counted(len(self.samples), 'image')}, because training images{others} are left "
                f"out; pass {FEW} or more other images with --data"
            )
        reason = None if self.passed is None else why_not_by_default(self.kind, Agreement.of_record(self.to_dict()))
        if reason:
            warnings.append(f"predict and serve use the file only with --use {self.kind}: {reason}")
        speed = {} if self.passed is None else self.passed.speed or {}
        slow = [f"{ratio:.2f} times in batches of {size}" for size, ratio in speed.items() if ratio < 1]
        if slow:
            warnings.append(f"slower than the original on this machine: {', '.join(slow)}; others may differ")
        return warnings

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
) -> tuple[Path | None, GateResult]:
    """Write `classifier` as ONNX of `kind` if it passes the gate, which compares both on the CPU.

    Without `out` the file lies beside the model file. Returns its path, or None if no candidate passed and nothing was
    written, and the result of the gate. Raises UserError if packages or images are missing, or the network cannot be
    exported.
    """
    require(kind)
    # Both sides compute on the CPU, since the export is meant for machines without a GPU.
    classifier = classifier.on_cpu()
    path = out or classifier.path.with_name(KINDS[kind])
    check_output(path, lambda file: file_digest(file) is not None)  # before the work; every export has one
    samples = collect_samples(classifier.about, classifier.path, data, split)
    calibration = None
    # Images that set the ranges must not be those that evaluate the result.
    if kind == "onnx-int8":
        calibration, samples = split_calibration(samples, CALIBRATION_IMAGES)
    reference = ReferenceModel(classifier, samples, console)
    console.say(f"comparing on {counted(len(samples), 'image')}, {samples.images.split} of {samples.source}")
    network = network_graph(classifier, two_images(next(samples.squares())))
    if calibration is None:
        result, graph = _try_float(reference, network)
    else:
        result, graph = _try_int8(reference, quantized(network, calibration, console), agree)
    if result.passed is None:
        return None, result
    record = result.to_dict() | {"made": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
    model = with_preprocessing(graph, classifier)
    if classifier.detector is not None and classifier.detector.references is not None:
        model, record["distance"] = _with_distance(model, reference, kind, agree)
    checksum = write(path, model, classifier, record)
    # Only a file beside its model is recorded, because predict and serve look there.
    if classifier.path.name == MODEL and path.resolve().parent == classifier.path.resolve().parent:
        speed, gate = result.passed.speed or {}, agree if kind == "onnx-int8" else 1.0
        note(path, checksum, Verified(kind, classifier.about.digest, speed, Agreement.of_record(record), gate))
    return path, result


def _with_distance(model: Any, reference: ReferenceModel, kind: str, agree: float) -> tuple[Any, dict[str, Any] | None]:
    """The graph with the output `distance` and its comparison; the graph as it is, and None, where that fails."""
    detector, console = reference.classifier.detector, reference.console
    assert detector is not None
    assert detector.references is not None
    size = reference.classifier.preprocessing.size
    extended = with_distance(model, detector.references, detector.thumbnails, size)
    reason = "its logits come from no linear layer"
    if extended is not None:
        check = check_distance(extended, reference, kind)
        reason = check.refused(kind, agree) or ""
        if not reason:
            console.say(
                f"unknown   {check.differing} of {check.n} images become known or unknown by the file's own distances"
            )
            return extended, check.to_dict()
    console.warn(f"the export recognizes unknown images by their probability alone, without the distance: {reason}")
    return model, None


def _try_float(reference: ReferenceModel, network: bytes) -> tuple[GateResult, bytes]:
    """Compare the float graph with the original."""
    runner = open_runner(network, reference.classifier, "onnx")
    prepared, raw = reference.compare(runner), reference.compare_raw(runner)
    attempt = Attempt("float32", prepared, raw, reference.speed(runner), why_not_float(prepared, raw))
    return GateResult("onnx", reference, [attempt], None if attempt.refused else 0), network


def _try_int8(
    reference: ReferenceModel, candidates: Iterator[tuple[str, bytes]], agree: float
) -> tuple[GateResult, bytes]:
    """Compare every scheme on the same pixels, then choose the best one that also passes from raw pixels.

    The last resort is only built if none of SCHEMES passes.
    """
    classifier = reference.classifier
    attempts: list[Attempt] = []
    passing: dict[int, bytes] = {}
    for scheme, graph in candidates:
        prepared = reference.compare(open_runner(graph, classifier, "onnx-int8"))
        attempts.append(Attempt(scheme, prepared, refused=why_not_int8(prepared, agree)))
        reference.console.detail(f"{scheme}: {percent(prepared.agreement)} of {prepared.n} images get the same class")
        if attempts[-1].refused is None:
            passing[len(attempts) - 1] = graph
        if passing and len(attempts) == len(int8.SCHEMES):
            break
    chosen = None
    # Among schemes that change equally few answers the first wins: SCHEMES begins with the fastest arithmetic. Few
    # images hardly tell schemes apart by their answers; then the one that changes the probabilities least wins.
    few = len(reference.samples) < FEW
    compared = [attempt.prepared for attempt in attempts]
    for i in sorted(passing, key=lambda i: (compared[i].differing, compared[i].largest if few else 0.0, i)):
        runner = open_runner(passing[i], classifier, "onnx-int8")
        raw = reference.compare_raw(runner)
        refused = why_not_int8(raw, agree)
        attempts[i] = replace(attempts[i], raw=raw, refused=refused and f"at full size it {refused}")
        if refused is None:
            attempts[i] = replace(attempts[i], speed=reference.speed(runner))
            chosen = i
            break
    return GateResult("onnx-int8", reference, attempts, chosen), b"" if chosen is None else passing[chosen]
