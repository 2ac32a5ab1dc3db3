"""int8 for a network's graph: static quantization with ONNX Runtime.

Weights become int8 with a scale for each channel, activations uint8 with one scale each, measured on real images
(Jacob et al. 2018, arXiv:1712.05877, section 2). It rounds, so it is never chosen unasked.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> the least and the largest value that it is rounded to."""


def quantize(
    graph: bytes,
    images: Iterable[np.ndarray],
    *,
    name: str = "x",
    ranges: Ranges | None = None,
    in_float: Collection[str] = (),
    wide: bool = False,
) -> bytes:
    """An ONNX graph in float32 -> the same graph with quantize and dequantize nodes (QDQ) around what can be int8.

    `images` are batches for the graph's input `name`, which show the range of every activation; `ranges`, where
    given, count instead. The nodes named in `in_float` stay as they are.

    Weights keep 7 of 8 bits: processors without VNNI add two products of 8 bits in 16, and full weights overflow there
    (measured on ResNet-50 with AVX2: the output was 43 % off with 8 bits and 13 % with 7). `wide` weights keep all 8,
    as uint8 around 128, for which ONNX Runtime has kernels that add in 32 bits: more exact there, and slower.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: np.ascontiguousarray(batch)}

    extra: dict[str, Any] = {}
    if ranges is not None:
        extra["TensorQuantOverrides"] = {
            tensor: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for tensor, (low, high) in ranges.items()
        }
    if wide:
        extra["WeightSymmetric"] = True
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that has been done: BatchNorms are fused
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            given.write_bytes(graph)
            quantize_static(
                given, made, Reader(), per_channel=True, reduce_range=not wide, quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8 if wide else QuantType.QInt8,
                nodes_to_exclude=list(in_float), extra_options=extra,
            )  # fmt: skip
            return made.read_bytes()
    finally:
        root.setLevel(level)
