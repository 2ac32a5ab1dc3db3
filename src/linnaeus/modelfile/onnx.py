"""model.onnx: the whole classifier as one graph, with the metadata of the model file that it was made from.

Input `images` (N, H, W, 3 or 1) uint8, of any height and width; outputs `probabilities` (N, classes) float32,
calibrated, and `logits` (N, classes) float32, uncalibrated. Opset 18. Every metadata entry is a text:

    format, arch, classes, names, preprocessing, calibration, metrics, data, recipe, versions
                    as JSON, as in the model file
    unknown         as JSON, as in the model file, if it has the entry
    task            the same: where images may have several labels, probabilities are independent
    threshold       the probability below which the model is unsure; above 1 if it is unsure about every image
    model_sha256    `sha256` of the model file that was exported
    export          as JSON: kind (onnx or onnx-int8), versions, machine, and the figures of the comparison with the
                    model file on real images, if there was one
    sha256          of the file's own bytes, with zeros in place of these 64 digits
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.errors import UserError, first_line, install, no_model, not_read
from linnaeus.modelfile.safetensors import ModelFile, check_format, describe, parse

KINDS = {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}  # export kind -> file name in the run folder

INPUT, PROBABILITIES, LOGITS, DISTANCE = "images", "probabilities", "logits", "distance"
UNSEALED = "0" * 64
RECORD = b"\x0a\x06export\x12"  # what precedes the length and the text of the entry `export`
SEAL = re.compile(rb"\x0a\x06sha256\x12\x40([0-9a-f]{64})")  # an entry of the metadata, as protobuf writes it
OURS = ("format", "arch", "classes", "names", "preprocessing", "calibration", "metrics", "data", "recipe", "versions")
OPTIONAL = ("unknown", "task")  # entries that files of models without them lack


def metadata(about: ModelFile, threshold: float, export: dict[str, Any]) -> dict[str, str]:
    """The entries of the metadata, with zeros in place of the checksum."""
    description = describe(about)
    # Only `evaluate` needs them, which reads the model file.
    description["data"] = {key: value for key, value in about.data.items() if key != "perceptual"}
    ours = [key for key in (*OURS, *OPTIONAL) if description.get(key) is not None or key in OURS]
    entries = {key: json.dumps(description[key], ensure_ascii=False, allow_nan=False) for key in ours}
    return entries | {
        "threshold": json.dumps(threshold),
        "model_sha256": about.digest,
        "export": json.dumps(export, ensure_ascii=False, allow_nan=False),
        "sha256": UNSEALED,
    }


def seal(raw: bytes) -> bytes:
    """The bytes of a file with the checksum filled in."""
    (placeholder,) = SEAL.finditer(raw)
    assert placeholder[1] == UNSEALED.encode()
    return raw[: placeholder.start(1)] + hashlib.sha256(raw).hexdigest().encode() + raw[placeholder.end(1) :]


def checksum(path: Path, raw: bytes) -> str:
    """The file's checksum. Raises UserError unless the bytes are those that were written."""
    seals = [*SEAL.finditer(raw)]
    if not seals:
        raise UserError(
            f"{path}: cut short, or not an ONNX file that linnaeus wrote; get a fresh copy, or export again"
        )
    at = seals[-1]
    # The checksum was computed while its own place held a placeholder.
    digest = hashlib.sha256(raw[: at.start(1)])
    digest.update(UNSEALED.encode())
    digest.update(memoryview(raw)[at.end(1) :])
    if digest.hexdigest() != at[1].decode():
        raise UserError(f"{path}: does not match its checksum, so it was cut short or altered; get a fresh copy")
    return at[1].decode()


def file_digest(path: Path) -> str | None:
    """The checksum in the metadata of a file, not verified; None where there is none.

    The metadata is at the end of the file, so usually only the last MB is read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for tail in (1 << 20, size):
                file.seek(max(0, size - tail))
                if seals := [*SEAL.finditer(file.read())]:
                    return seals[-1][1].decode()
    except OSError:
        return None
    return None


def read_record(path: Path) -> Any:
    """What a file says of its export, not verified and without ONNX Runtime; None where it cannot be read."""
    try:
        raw = path.read_bytes()
        at = raw.rindex(RECORD) + len(RECORD)
        length = shift = 0
        while True:  # a protobuf varint: seven bits a byte, the lowest first
            length |= (raw[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if raw[at - 1] < 0x80:
                return json.loads(raw[at : at + length])
    except (OSError, ValueError, IndexError, OverflowError, RecursionError):
        return None


def has_runtime() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def read_onnx(path: Path) -> tuple[Any, ModelFile, dict[str, Any]]:
    """An ONNX Runtime session, what the file says of the model, and of its export.

    Raises UserError, naming the file, if it is not such a file, cut short, altered, of an unknown format, or if ONNX
    Runtime is not installed. Nothing reads the file before its checksum has been seen to hold.
    """
    if not path.is_file():
        raise no_model(path)
    if not has_runtime():
        raise UserError(f"{path}: needs ONNX Runtime, which is not installed: {install('onnx')}")
    from linnaeus.models.onnx_graph import inference_session

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise not_read(path, error) from None
    checksum(path, raw)
    try:
        opened = inference_session(raw)
        entries = opened.get_modelmeta().custom_metadata_map
        header = {key: json.loads(entries[key]) for key in (*OURS, *OPTIONAL) if key not in OPTIONAL or key in entries}
        export = dict(json.loads(entries["export"]))
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise UserError(f"{path}: cannot be opened ({first_line(error)}); export it again") from None
    # The format first: a newer file may have entries that the schema rejects.
    check_format(path, header)
    about = parse(path, header | {"sha256": entries.get("model_sha256", "")})
    if export.get("kind") not in KINDS:
        raise UserError(f"{path}: its export has the kind {str(export.get('kind'))[:60]!r}, not {' or '.join(KINDS)}")
    _check_output(path, opened, about)
    return opened, about, export


def input_name(session: Any) -> str:
    """`images`; files that were written before this name was chosen call their input `pictures`."""
    return str(session.get_inputs()[0].name)


def _check_output(path: Path, opened: Any, about: ModelFile) -> None:
    """Raise UserError unless an image of the file's size becomes one logit per class."""
    side, channels = about.preprocessing.resize, about.preprocessing.channels
    try:
        (logits,) = opened.run([LOGITS], {input_name(opened): np.zeros((1, side, side, channels), np.uint8)})
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise UserError(
            f"{path}: does not take images of {side} pixels ({first_line(error)}); export it again"
        ) from None
    if logits.shape != (1, len(about.classes)):
        raise UserError(f"{path}: gives {logits.shape} for an image, not (1, {len(about.classes)}); export it again")
