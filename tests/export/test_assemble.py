"""The preprocessing inside the graph is that of training: sizes, rounding, cropping, channels, for any image."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from linnaeus.data.images.resize import MAX_ASPECT
from linnaeus.errors import UserError
from linnaeus.preprocess import Preprocessing

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from linnaeus.export.assemble import INPUT, IR, OPSET, Nodes, prepare  # noqa: E402 - after the packages it needs

SIZES = [
    (1, 1),
    (1, 50),
    (50, 1),
    (2, 3),
    (20, 300),
    (300, 20),
    (31, 31),
    (28, 28),
    (31, 40),
    (10, 10),
    (37, 53),
    (200, 150),
    (31, 124),
    (31, 125),
    (64, 257),
    (333, 77),
    (1, 4),
    (5, 1),
]


@cache
def graph(p: Preprocessing) -> Any:
    """Only the preprocessing: images -> x."""
    nodes = Nodes("preprocess")
    prepare(nodes, p)
    helper = onnx.helper
    given = helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["n", "h", "w", "c"])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", p.channels, p.size, p.size])
    made = helper.make_graph(nodes.nodes, "preprocess", [given], [x], initializer=nodes.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def preprocessing(channels: int = 3, **more) -> Preprocessing:
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 0.4)[:channels]
    given: dict[str, Any] = {"resize": 31, "size": 28, "channels": channels, "mean": mean, "std": std}
    return Preprocessing(**given | more)


def levels(p: Preprocessing, image: np.ndarray) -> np.ndarray:
    """How many of 255 levels the graph is off, (C, size, size)."""
    batch = image[None] if image.ndim == 3 else image[None, :, :, None]
    found = graph(p).run(None, {INPUT: np.ascontiguousarray(batch)})[0][0]
    expected = p.normalize(torch.from_numpy(p.load(image))[None])[0].numpy()
    assert found.shape == expected.shape
    return np.abs(found - expected) * 255 * np.array(p.std).reshape(-1, 1, 1)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(height * 1000 + width).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_within_a_level_of_pillow(fit: str, channels: int, size: tuple[int, int]):
    """Noise is the worst case: a shift by one pixel would be off by a hundred levels."""
    off = levels(preprocessing(channels, fit=fit), noise(*size))
    assert off.max() < 1.01


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_gray_images_for_a_network_of_colors_and_the_reverse(fit: str):
    gray = noise(40, 60, channels=1)
    assert levels(preprocessing(3, fit=fit), gray).max() < 1.01
    assert levels(preprocessing(1, fit=fit), gray).max() < 1.01
    same = np.stack([gray] * 3, axis=-1)
    assert levels(preprocessing(1, fit=fit), same).max() < 1.01


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("resize", "size"), [(28, 28), (29, 28), (30, 28), (31, 28), (32, 27), (33, 5)])
def test_the_crop_is_rounded_as_in_training_for_every_parity(fit: str, resize: int, size: int):
    """Rows that need no resizing: the output must be the same to the bit."""
    p = preprocessing(resize=resize, size=size, fit=fit)
    for long in range(resize, resize + 8) if fit == "crop" else (resize,):
        assert levels(p, noise(resize, long)).max() < 1e-3
        assert levels(p, noise(long, resize)).max() < 1e-3


@pytest.mark.parametrize("long", [31 * MAX_ASPECT - 1, 31 * MAX_ASPECT, 31 * MAX_ASPECT + 1, 31 * MAX_ASPECT + 2, 999])
def test_very_long_images_are_cut_to_four_to_one(long: int):
    assert levels(preprocessing(), noise(31, long)).max() < 1.01
    assert levels(preprocessing(), noise(long, 31)).max() < 1.01


@pytest.mark.parametrize(("interpolation", "most"), [("nearest", 0.01), ("bicubic", 8.0)])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_other_filters(fit: str, interpolation: str, most: float):
    p = preprocessing(fit=fit, interpolation=interpolation)
    for size in ((40, 61), (12, 17), (31, 31), (100, 30)):
        off = levels(p, noise(*size))
        assert off.max() < most
        assert off.mean() < 1


def test_a_filter_that_onnx_lacks_is_refused():
    with pytest.raises(UserError, match=r"interpolation = 'lanczos': ONNX has no such .* nearest, bilinear, bicubic"):
        prepare(Nodes("p"), preprocessing(interpolation="lanczos"))


def test_a_batch_gives_the_results_of_its_images():
    p = preprocessing()
    batch = np.stack([noise(50, 70), noise(70, 50).transpose(1, 0, 2)])
    both = graph(p).run(None, {INPUT: batch})[0]
    for i, image in enumerate(batch):
        assert np.array_equal(both[i], graph(p).run(None, {INPUT: image[None]})[0][0])
