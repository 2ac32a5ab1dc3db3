"""The commands on a simulated GPU: no tensor is made on the other device.

Each test forks, because the simulation patches torch for the rest of its process. The simulation uses internals of
torch: where another version than that of constraints.txt lacks them, the tests are skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import run_command
from killing import in_child
from simulated_gpu import GPU, GpuTensor, simulated_gpu
from tiny import settings, write_images, write_label_sets, write_recipe

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


def on_gpu(work: Callable[[], None]) -> None:
    """Run `work` in a fork that has a GPU."""

    def child() -> None:
        with simulated_gpu():
            work()

    assert in_child(child) == 0


def run(*arguments: object) -> None:
    """Run a command in this process, and check that it succeeds."""
    assert run_command(*arguments) == 0, arguments


def check_simulation() -> None:
    """A layer computes and learns on the simulated GPU, and refuses what is not there."""
    layer = torch.nn.Conv2d(1, 2, 3).to("cuda")
    x = torch.zeros(1, 1, 4, 4)
    assert isinstance(layer.weight, GpuTensor)
    assert layer(x.to(layer.weight.device)).device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        layer(x)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match="numpy"):
        layer.weight.detach().numpy()
    layer(x.to(GPU)).sum().backward()
    assert isinstance(layer.weight.grad, GpuTensor)


@pytest.fixture(scope="module", autouse=True)
def _simulation_works() -> None:
    """Skips the tests where another version of torch cannot be simulated; with the one of constraints.txt they fail."""

    def child() -> None:
        with simulated_gpu():
            check_simulation()

    pinned = re.search(r"^torch==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert pinned is not None
    if in_child(child) != 0 and torch.__version__.partition("+")[0] != pinned[1]:
        pytest.skip(f"torch {torch.__version__} has other internals than torch {pinned[1]}: no GPU can be simulated")


def test_the_simulation_refuses_mixed_devices():
    on_gpu(check_simulation)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", each=8)


HEAD = {"train": ["head"], "head": "auto", "epochs": 1}
SPLIT = {"split": {"valid": 0.25}}


def test_training_runs_on_a_gpu(source: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, {"train": ["head"], "epochs": 1}, **settings(**SPLIT))

    def work() -> None:
        run("train", source, "--recipe", recipe, "--out", tmp_path / "run")

    on_gpu(work)
    assert '"gpu": "simulated GPU"' in (tmp_path / "run" / "metrics.json").read_text()


@pytest.mark.long
def test_what_reads_a_trained_model_runs_on_a_gpu(source: Path, tmp_path: Path):
    far = write_images(tmp_path / "far", ("x",), seed=9)
    recipe = write_recipe(tmp_path / "r.toml", HEAD, **settings(**SPLIT))
    trained = tmp_path / "run"

    def work() -> None:
        run("train", source, "--recipe", recipe, "--out", trained)
        run("evaluate", trained, source, "--tta", "--outside", far)
        run("predict", trained, source, "--out", tmp_path / "p.csv")
        for method in ("gradcam", "occlusion", "integrated-gradients"):
            image = source / "0" / "0 0.png"
            run("explain", trained, image, "--method", method, "--like", source, "--out", tmp_path / method)
        run("embed", trained, source, "--out", tmp_path / "e.npz")
        run("classes", trained, "--merge", "0,1=both", "--out", tmp_path / "merged")
        run("classes", trained, "--add", far / "x", "--out", tmp_path / "added")
        run("export", trained, "--to", "onnx")

    on_gpu(work)


@pytest.mark.long
@pytest.mark.parametrize(
    "phase",
    [
        {"mixup": 0.2, "cutmix": 1.0, "ema": 0.9, "clip": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"},
        {"train": ["head"], "views": 2, "augment": {"hflip": 0.5, "rotate": 10.0, "brightness": 0.2}},
        {"optimizer": "sgd", "momentum": 0.9, "augment": {"trivial_augment": True}, "lr": 1e-4},
    ],
)
def test_settings_of_a_phase_run_on_a_gpu(phase: dict[str, object], source: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1, **phase}, **settings(**SPLIT))
    on_gpu(lambda: run("train", source, "--recipe", recipe, "--out", tmp_path / "run"))


@pytest.mark.long
def test_several_labels_run_on_a_gpu(tmp_path: Path):
    source = write_label_sets(tmp_path / "labels", 40)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, HEAD, **settings(**SPLIT))

    def work() -> None:
        run("train", source, "--recipe", recipe, "--out", tmp_path / "run")
        run("evaluate", tmp_path / "run", source)
        run("explain", tmp_path / "run", tmp_path / "labels" / "1.png", "--out", tmp_path / "sheets")

    on_gpu(work)
