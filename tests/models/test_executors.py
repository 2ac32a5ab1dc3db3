"""Executors of a frozen part: the same numbers as the plain network, and the choice is remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from linnaeus.errors import UserError
from linnaeus.models import create, executors, wrap
from linnaeus.models.executors import Executor, FrozenPart, choose_executor
from linnaeus.models.onnx_graph import fuse_batchnorms


def trained(name: str, **arguments):
    """A network whose BatchNorms have statistics of their own, as after training."""
    torch.manual_seed(0)
    network = create(name, 7, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("name", "stop"), [("resnet18", "layer4"), ("resnet50", "head"), ("inception_v1", "head")])
def test_fused_is_the_same_and_has_no_norms_left(name: str, stop: str):
    network = trained(name)
    x = torch.randn(3, 3, 64, 64)
    front = FrozenPart(network, stop).eval()
    fused = fuse_batchnorms(front, x)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), front(x), rtol=1e-3, atol=1e-4)
    below = network.stages[: network.stages.index(stop)]
    modules = fused.get_submodule("network").named_modules()
    assert not any(isinstance(m, nn.BatchNorm2d) for name, m in modules if name and network.stage_of(name) in below)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the network itself must stay as it was"


def test_pooled_vectors_are_stored_where_the_head_comes_next():
    """Storing the maps, which the head averages anyway, would take 49 times the space."""
    network = trained("resnet18")
    x = torch.randn(2, 3, 64, 64)
    executor = choose_executor(FrozenPart(network, "head"), x, images=10)
    vectors = executor(x)
    assert vectors.shape == (2, 512)
    assert not vectors.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(network.run(vectors, start="head"), network(x), rtol=1e-3, atol=1e-4)


def test_the_training_mode_of_the_network_does_not_matter():
    network = trained("resnet18").train()
    before = network.bn1.running_mean.clone()
    x = torch.randn(2, 3, 64, 64)
    executor = choose_executor(FrozenPart(network, "layer4"), x, images=10)
    expected = network.eval().run(x, stop="layer4")
    torch.testing.assert_close(executor(x), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(before, network.bn1.running_mean)


def test_onnxruntime_gives_the_same_for_any_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where it is chosen (here by force), recorded, and chosen again without a trial."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(executors, "WORTH_TRYING", 0.0)
    monkeypatch.setattr(executors, "FASTER", 1e9)
    network = trained("resnet18")
    x = torch.randn(2, 3, 64, 64)
    record = tmp_path / "executors.json"
    executor = choose_executor(FrozenPart(network, "layer3"), x, 1000, record=record)
    assert executor.name == "onnxruntime"
    more = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(executor(more), network.run(more, stop="layer3"), rtol=1e-3, atol=1e-3)
    assert list(json.loads(record.read_text()).values()) == ["onnxruntime"]
    monkeypatch.setattr(executors, "FASTER", 0.0)
    assert choose_executor(FrozenPart(network, "layer3"), x, 1, record=record).name == "onnxruntime", (
        "as recorded, not as measured"
    )


@pytest.mark.parametrize("traced", ["as it is", "with other outputs", "not at all"])
def test_what_the_fast_exporter_gets_wrong_is_exported_again(traced: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)).eval()
    trace, export, exported = executors.trace_graph, executors.export_graph, []

    def tracing(module: nn.Module, sample: torch.Tensor) -> bytes:
        if traced == "not at all":
            raise RuntimeError("unsupported")
        return trace(module if traced == "as it is" else nn.Sequential(module, nn.Softmax(1)), sample)

    def exporting(module: nn.Module, sample: torch.Tensor) -> bytes:
        exported.append(module)
        return export(module, sample)

    monkeypatch.setattr(executors, "trace_graph", tracing)
    monkeypatch.setattr(executors, "export_graph", exporting)
    x = torch.randn(2, 3, 8, 8)
    executor = executors._onnx_executor(layers, x, layers(x).detach())
    assert executor is not None
    assert bool(exported) is (traced != "as it is")
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(executor(more), layers(more).detach())


def test_the_trial_passes_few_images_through_the_network(monkeypatch: pytest.MonkeyPatch):
    """Outputs are compared for a few images; all of the sample are needed for the time only."""
    images: list[int] = []
    forward = FrozenPart.forward

    def counting(part: FrozenPart, x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        return forward(part, x)

    monkeypatch.setattr(FrozenPart, "forward", counting)
    monkeypatch.setattr(executors, "LONG", 0.0)  # two runs are timed
    assert choose_executor(FrozenPart(trained("resnet18"), "layer2"), torch.randn(16, 3, 64, 64), 10).name == "fused"
    assert sum(images) <= 2 * 16 + 2 * executors.COMPARED + 2


def test_the_first_run_does_not_count_alone(monkeypatch: pytest.MonkeyPatch):
    """It allocates memory and prepares kernels, which makes whoever is timed first look slow."""
    clock = iter([0.0, 10.0, 10.0, 11.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert executors._timed("fused", lambda x: x, torch.zeros(2, 3), nullcontext).seconds == 0.5


def test_a_recorded_choice_is_not_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = trained("resnet18")
    x = torch.randn(2, 3, 64, 64)
    record = tmp_path / "executors.json"
    record.write_text(json.dumps({executors._record_key(FrozenPart(network, "layer3"), x): "fused"}))
    monkeypatch.setattr(executors, "_onnx_executor", lambda *_: pytest.fail("tried again"))
    assert choose_executor(FrozenPart(network, "layer3"), x, 10**9, record=record).name == "fused"
    record.write_text("{torn")
    monkeypatch.setattr(executors, "_onnx_executor", lambda *_: None)
    assert choose_executor(FrozenPart(network, "layer3"), x, 10**9, record=record).name == "fused"


def test_for_few_images_no_graph_is_exported_even_where_it_is_the_known_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    part, x, record = FrozenPart(trained("resnet18"), "layer3"), torch.randn(2, 3, 64, 64), tmp_path / "executors.json"
    record.write_text(json.dumps({executors._record_key(part, x): "onnxruntime"}))
    exported: list[nn.Module] = []
    export = executors._onnx_executor

    def counting(fused: nn.Module, *rest, **more) -> Executor | None:
        exported.append(fused)
        return export(fused, *rest, **more)

    monkeypatch.setattr(executors, "_onnx_executor", counting)
    assert choose_executor(part, x, executors.FEW - 1, record=record).name == "fused"
    assert exported == []
    assert choose_executor(part, x, executors.FEW, record=record).name == "onnxruntime"
    assert choose_executor(part, x, 1, record=record, required="onnxruntime").name == "onnxruntime"


def test_norms_are_merged_without_importing_the_compiler():
    code = """
import sys, torch
from linnaeus.models import create
from linnaeus.models.onnx_graph import fuse_batchnorms, trace_graph
x = torch.zeros(2, 3, 32, 32)
trace_graph(fuse_batchnorms(create("resnet18", 3, 3).eval(), x), x)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


class Two(nn.Module):
    """A norm after a convolution whose output is also used without it, or which is `shared` by another input."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.shared = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), shared
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        return self.norm(y) + (self.convolution(x.flip(3)) if self.shared else y)


@pytest.mark.parametrize(("shared", "name"), [(True, "plain"), (False, "fused")])
def test_a_norm_that_cannot_be_merged(shared: bool, name: str):
    """It is not merged if the output of its convolution is read twice; parts that cannot be fused run as they are."""
    torch.manual_seed(0)
    layers = nn.Sequential(Two(shared), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network = wrap(nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), 2)
    x = torch.randn(2, 3, 16, 16)
    executor = choose_executor(FrozenPart(network, network.stages[1]), x, images=10)
    assert executor.name == name
    with torch.inference_mode():
        torch.testing.assert_close(executor(x), network.eval().run(x, stop=network.stages[1]))
    norms = [m for m in fuse_batchnorms(layers.eval(), x).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (0 if shared else 1)


def test_bf16_is_chosen_where_it_is_faster_and_followed_where_it_is_required(monkeypatch: pytest.MonkeyPatch):
    network = trained("resnet18")
    x = torch.randn(4, 3, 64, 64)
    part = FrozenPart(network, "layer4")
    expected = network.run(x, stop="layer4").detach()
    took = {"bf16": 1.0, "fused": 2.0}

    def timed(name: str, run, sample: torch.Tensor, autocast, runs: int = 1) -> Executor:
        return replace(measured(name, run, sample, autocast, runs), seconds=took[name])

    measured = executors._timed
    monkeypatch.setattr(executors, "_timed", timed)
    chosen = choose_executor(part, x, images=10, bf16=True)
    assert chosen.name == "bf16"
    assert chosen(x).dtype == torch.float32
    error = float((chosen(x) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert 1e-4 < error < executors.BF16_TOLERANCE, "in bfloat16, and close"
    assert choose_executor(part, x, images=10).name == "fused", "only on request"
    took["bf16"] = 3.0
    assert choose_executor(part, x, images=10, bf16=True).name == "fused"
    assert choose_executor(part, x, images=10, bf16=True, required="bf16").name == "bf16"
    took["bf16"] = 0.5
    assert choose_executor(part, x, images=10, bf16=True, required="fused").name == "fused", "a resumed run"


def test_bf16_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executors, "BF16_TOLERANCE", 1e-6)
    with pytest.raises(UserError, match="changes the outputs of the network"):
        choose_executor(FrozenPart(trained("resnet18"), "layer2"), torch.randn(4, 3, 64, 64), images=10, bf16=True)
