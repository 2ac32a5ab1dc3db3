"""Bias correction removes the mean error that rounded weights cause."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from linnaeus.models.bias_correction import correct_biases
from linnaeus.models.onnx_graph import export_graph, inference_session
from linnaeus.models.quantize import quantize

pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
onnx = pytest.importorskip("onnx", reason="pip install onnx")

CHANNELS = 16


def layers() -> dict[str, nn.Module]:
    return {
        "depthwise": nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        "grouped": nn.Conv2d(CHANNELS, 24, 3, groups=4),
        "linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)),
    }


@pytest.mark.parametrize("layer", layers())
def test_the_mean_of_each_channel_is_that_of_the_float_network(layer: str):
    torch.manual_seed(0)
    network = layers()[layer].eval()
    # All weights of a channel but one are rounded by the same amount, in one direction: the worst case for the mean.
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.fill_(1.4 / 64).flatten(1)[:, 0] = 1.0
    x = torch.rand(32, CHANNELS, 3, 3) + 1
    float_graph = export_graph(network, x[:2])
    batches = [x.numpy()]
    graph = quantize(float_graph, batches)
    model = onnx.load_model_from_string(float_graph)
    (tensor,) = {node.input[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    corrected = correct_biases(graph, float_graph, {tensor: x.numpy().mean((0, 2, 3))})

    def output(graph: bytes) -> np.ndarray:
        return inference_session(graph).run(None, {"x": x.numpy()})[0]

    exact = output(float_graph)
    axes = (0, *range(2, exact.ndim))
    before, after = (np.abs((output(each) - exact).mean(axes)).max() for each in (graph, corrected))
    step = (exact.max() - exact.min()) / 255
    assert before > 2 * step
    assert after < before / 4


def test_layers_in_float_stay_as_they_are():
    network = nn.Conv2d(CHANNELS, 8, 1).eval()
    x = torch.rand(4, CHANNELS, 3, 3)
    float_graph = export_graph(network, x[:2])
    (name,) = (node.name for node in onnx.load_model_from_string(float_graph).graph.node if node.op_type == "Conv")
    graph = quantize(float_graph, [x.numpy()], float_nodes=[name])
    means = {"x": x.numpy().mean((0, 2, 3))}
    same = [
        inference_session(each).run(None, {"x": x.numpy()})[0]
        for each in (graph, correct_biases(graph, float_graph, means))
    ]
    assert np.array_equal(*same)
