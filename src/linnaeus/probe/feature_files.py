"""Files of features: NumPy's .npz, Parquet and safetensors, written row by row without holding all features."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from linnaeus.console import Advance
from linnaeus.data.table import Table
from linnaeus.errors import UserError, did_you_mean, install
from linnaeus.files import atomic, check_output
from linnaeus.probe.features import StoredFeatures

MOST_HEADER = 100_000_000  # bytes of the header that readers of safetensors accept

REPEATED = ["label", "split"]
"""Columns of a Parquet file that are stored as numbers of a dictionary; features do not repeat."""


@dataclass(frozen=True)
class FeatureFile:
    """What a file of features holds: one row for each readable image, in the order of the source."""

    table: Table
    features: StoredFeatures
    model: str
    advance: Advance

    def __len__(self) -> int:
        return len(self.features.indices)

    def columns(self) -> dict[str, list[str]]:
        """The texts of each image: `ids` as in predictions.csv, `paths`, `labels` and `splits` ("" where unknown).

        Several labels of an image are separated by |, as in split.csv.
        """
        table, indices = self.table, self.features.indices.tolist()
        return {
            "ids": [table.sample_id(i) for i in indices],
            "paths": ["" if table.paths is None else table.paths[i] for i in indices],
            "labels": ["|".join(table.labels_of(i)) for i in indices],
            "splits": table.split[indices].tolist(),
        }

    def chunks(self) -> Iterator[np.ndarray]:
        """The features (N, width) float32, some rows at a time."""
        done = 0
        for rows in self.features.chunks():
            yield np.ascontiguousarray(rows, np.float32)
            done += len(rows)
            self.advance(done, len(self))


Writer = Callable[[Path, FeatureFile], None]


def writer_of(path: Path) -> Writer:
    """The function that writes the format of the path's suffix.

    Raises UserError without one, without pyarrow, and for an existing file that holds no features.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(
            f"--out {path}: features are written as {', '.join(WRITERS)}{did_you_mean(suffix, WRITERS)}; change the "
            "name"
        )
    check_output(path, _holds_features)
    if suffix == ".parquet":
        _pyarrow(path)
    return WRITERS[suffix]


def _holds_features(path: Path) -> bool:
    """Whether a file is one of those that are written here, and not a model, say, or a table of the user."""
    with path.open("rb") as file:
        head = file.read(200)
        if head[:4] == b"PAR1":  # the schema is at the end, before its length
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-min(length + 8, path.stat().st_size), os.SEEK_END)
            return b"features" in file.read(1000)
    if head[:4] == b"PK\x03\x04":
        return b"features.npy" in head
    return head[8:].startswith(b'{"__metadata__": {"model": ')


def _write_npz(path: Path, file: FeatureFile) -> None:
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            _npy_header(entry, np.dtype("<f4"), (len(file), file.features.width))
            for rows in file.chunks():
                entry.write(rows.tobytes())
        for name, texts in file.columns().items():
            array = np.array(texts, dtype=np.str_)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                _npy_header(entry, array.dtype, array.shape)
                for start in range(0, len(array), 65536):
                    entry.write(array[start : start + 65536].tobytes())


def _npy_header(entry: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(entry, {"descr": descr, "fortran_order": False, "shape": shape})


def _write_safetensors(path: Path, file: FeatureFile) -> None:
    """One tensor `features`; the texts are JSON lists in the metadata. Format: github.com/huggingface/safetensors."""
    n, width = len(file), file.features.width
    texts = {name: json.dumps(column, ensure_ascii=False) for name, column in file.columns().items()}
    header = {
        "__metadata__": {"model": file.model, **texts},
        "features": {"dtype": "F32", "shape": [n, width], "data_offsets": [0, 4 * n * width]},
    }
    encoded = json.dumps(header, ensure_ascii=False).encode()
    # Padded with spaces, which JSON ignores, so that the numbers are aligned in memory.
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MOST_HEADER:
        raise UserError(f"--out {path}: the names of {n:,} images are too long for this format; write .npz or .parquet")
    with atomic(path) as temporary, temporary.open("wb") as output:
        output.write(struct.pack("<Q", len(encoded)) + encoded)
        for rows in file.chunks():
            output.write(rows.tobytes())


def _write_parquet(path: Path, file: FeatureFile) -> None:
    """One row for each image; `features` is a list of fixed length."""
    pa, parquet = _pyarrow(path)
    width, columns = file.features.width, file.columns()
    names = {"id": "ids", "path": "paths", "label": "labels", "split": "splits"}
    fields = [*((name, pa.string()) for name in names), ("features", pa.list_(pa.float32(), width))]
    schema = pa.schema(fields, metadata={"model": file.model})
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema, use_dictionary=REPEATED) as output:
        start = 0
        for rows in file.chunks():
            part = slice(start, start + len(rows))
            values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)
            texts = [pa.array(columns[column][part], pa.string()) for column in names.values()]
            output.write_table(pa.Table.from_arrays([*texts, values], schema=schema))
            start += len(rows)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"--out {path}: needs pyarrow: {install('parquet')}; or write .npz") from None
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Writer] = {".npz": _write_npz, ".parquet": _write_parquet, ".safetensors": _write_safetensors}
