"""Weights in several safetensors files, and the index that says which tensor is in which of them.

Index and file format: huggingface.co/docs/safetensors, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from linnaeus.errors import UserError, refuse_unreadable

INDEX = "model.safetensors.index.json"
BUFFER = 16 << 20  # bytes copied at a time
ALIGNED = {"64": 8, "32": 4, "16": 2}  # digits of a data type -> bytes of an element


def is_index(path: Path) -> bool:
    """Whether a file is an index of shards, by its name."""
    return path.name.endswith(".safetensors.index.json")


def weights_in(folder: Path) -> Path:
    """The weights in a folder: `model.safetensors`, or the index of shards where there is only that."""
    whole = folder / "model.safetensors"
    return folder / INDEX if (folder / INDEX).is_file() and not whole.is_file() else whole


def shard_files(index: bytes, name: str) -> list[str]:
    """The files that an index names. Raises UserError, which begins with `name`, if it is damaged."""
    return sorted(set(_weight_map(index, name).values()))


def _weight_map(index: bytes, name: str) -> dict[str, str]:
    """Tensor -> file. A file has to be beside the index: its name holds no path."""
    try:
        files = json.loads(index)["weight_map"]
        valid = bool(files) and all(re.fullmatch(r"[\w.-]+\.safetensors", file) for file in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise UserError(f"{name}: does not say which tensor is in which .safetensors file; get a fresh copy")
    return dict(files)


def open_shards(index: Path) -> dict[str, Any]:
    """Tensor -> the open file that holds it, as the index says.

    Raises UserError, which names the file, if one is missing or damaged, or lacks a tensor.
    """
    weight_map = _weight_map(index.read_bytes(), str(index))
    files: dict[str, Any] = {}
    for name in shard_files(index.read_bytes(), str(index)):
        path = index.with_name(name)
        if not path.is_file():
            raise UserError(f"{path}: is missing, and {index.name} names it; bring all files of the weights")
        refuse_unreadable(path)
        try:
            files[name] = safe_open(path, framework="pt")
            held = set(files[name].keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error}); download it again") from None
        lacking = sorted(tensor for tensor, file in weight_map.items() if file == name and tensor not in held)
        if lacking:
            raise UserError(f"{path}: lacks {lacking[0]}, which {index.name} says it holds; download both again")
    return {tensor: files[file] for tensor, file in weight_map.items()}


@dataclass(frozen=True)
class _StoredTensor:
    """The bytes of a tensor in a shard."""

    name: str
    about: dict[str, Any]
    path: Path
    start: int
    size: int

    @property
    def alignment(self) -> int:
        bits = re.search(r"\d+", self.about["dtype"])
        return ALIGNED.get(bits[0], 1) if bits else 1


def merge_shards(index: Path, target: Path) -> None:
    """Write the tensors of all shards into one safetensors file, without holding them in memory.

    Raises UserError as `open_shards`.
    """
    wanted = set(open_shards(index))
    tensors = []
    for file in shard_files(index.read_bytes(), str(index)):
        path = index.with_name(file)
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name in wanted & header.keys():
            wanted.remove(name)
            begin, end = header[name]["data_offsets"]
            tensors.append(_StoredTensor(name, header[name], path, 8 + length + begin, end - begin))
    tensors.sort(key=lambda tensor: (-tensor.alignment, tensor.name))  # wide numbers first, so that all stay aligned
    merged: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        merged[tensor.name] = tensor.about | {"data_offsets": [offset, offset + tensor.size]}
        offset += tensor.size
    text = json.dumps(merged).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as output:
        output.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            _copy(tensor, output)


def _copy(tensor: _StoredTensor, output: Any) -> None:
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.size
        while left:
            content = stream.read(min(left, BUFFER))
            if not content:
                raise UserError(f"{tensor.path}: was cut short while it was copied; download it again")
            output.write(content)
            left -= len(content)


def copy_weights(source: Path, target: Path) -> None:
    """Copy a file of weights, or merge the shards of an index."""
    if is_index(source):
        merge_shards(source, target)
    else:
        shutil.copyfile(source, target)
