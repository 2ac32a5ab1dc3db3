"""torch.compile: what goes through it, when `auto` chooses it, and what a failure says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from linnaeus.console import Console
from linnaeus.data.batches import Batches, InMemoryRows
from linnaeus.distributed.engine import Engine
from linnaeus.errors import JobError
from linnaeus.models import create
from linnaeus.recipe import Phase, Recipe
from linnaeus.training.loop import fit
from linnaeus.training.phase import PhaseRun, Stream, TrainablePart
from linnaeus.training.recorder import Recorder
from linnaeus.training.tuning import compilation, tuning
from linnaeus.training.tuning.compilation import WORTH_TRYING, CompilationTrial, choose_compilation
from linnaeus.training.tuning.memory import SampleCost


@dataclass(eq=False)  # torch keeps it in a dict
class Compiler:
    """Stands in for torch.compile: notes the batches that go through the result."""

    batches: list[int] = field(default_factory=list)
    error: Exception | None = None

    def __call__(self, net: nn.Module, dynamic: bool) -> nn.Module:
        assert not dynamic

        def run(x: Tensor) -> Tensor:
            if self.error is not None:
                raise self.error
            self.batches.append(len(x))
            return net(x)

        return run  # type: ignore[return-value]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    return compiler


def phase_run(compiled: bool, n: int = 20, epochs: int = 2) -> PhaseRun:
    """A small network on random images; batches of 8, so that the last one has 4."""
    torch.manual_seed(0)
    images, labels = torch.rand(n, 1, 28, 28), np.arange(n) % 3
    batches = Batches(InMemoryRows(images), labels, batch=8, device=torch.device("cpu"))
    stream = Stream(batches, lambda batch, epoch: batch.pixels)
    phase = Phase.model_validate({"epochs": epochs, "batch": 8, "lr": 0.01})
    net = create("mini_resnet", 3, 1, widths=[4, 4, 4])
    return PhaseRun(phase, TrainablePart(net), stream, stream, 3, compiled=compiled)


def test_whole_batches_go_through_the_compiler_and_the_weights_keep_their_names(compiler: Compiler):
    usual, compiled = phase_run(False), phase_run(True)
    for run in (usual, compiled):
        list(fit(run, Engine("cpu", "32")))
    assert compiler.batches == [8, 8] * 2, "neither the last batch nor validation"
    expected = usual.net.model.state_dict()
    for name, tensor in compiled.net.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_failure_of_the_compiler_is_one_line_with_the_way_out(compiler: Compiler):
    compiler.error = RuntimeError("no C++ compiler\nand a long story")
    with pytest.raises(JobError) as error:
        list(fit(phase_run(True), Engine("cpu", "32")))
    assert "no C++ compiler" in str(error.value)
    assert "story" not in str(error.value)
    assert "compile=false" in str(error.value)


@pytest.mark.parametrize(
    ("usual", "compiled", "needed", "chosen"),
    [(1.0, 0.5, 30.0, True), (1.0, 0.99, 30.0, False), (1.0, 0.5, 400.0, False), (0.1, 0.05, 1.0, False)],
    ids=["pays", "is hardly faster", "takes too long", "is not needed"],
)
def test_auto_compiles_where_the_time_saved_repays_the_compiler(
    monkeypatch: pytest.MonkeyPatch, usual: float, compiled: float, needed: float, chosen: bool
):
    clock = iter([0.0, needed])
    monkeypatch.setattr(compilation.time, "perf_counter", lambda: next(clock))
    seconds = {False: usual, True: compiled}
    monkeypatch.setattr(compilation, "time_steps", lambda run, *rest: (seconds[run.compiled], 0.0))
    run = phase_run(False, n=800, epochs=5)  # 500 steps
    trial = choose_compilation(run, Engine("cpu", "32"), longest=1e9)
    assert trial.chosen == chosen
    assert not run.compiled, "the trial is made on copies"


def test_a_short_phase_is_not_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compilation, "time_steps", lambda *rest: pytest.fail("a trial of a short phase"))
    trial = choose_compilation(phase_run(False), Engine("cpu", "32"), longest=WORTH_TRYING / 2)
    assert trial == CompilationTrial(False)


def test_auto_goes_on_without_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch):
    def time_steps(run: PhaseRun, *rest: object) -> tuple[float, float]:
        if run.compiled:
            raise RuntimeError("no C++ compiler\nand a long story")
        return 10.0, 0.0

    monkeypatch.setattr(compilation, "time_steps", time_steps)
    trial = choose_compilation(phase_run(False, n=800), Engine("cpu", "32"), longest=1e9)
    assert not trial.chosen
    assert "no C++ compiler" in trial.reason
    assert "story" not in trial.reason


class OnGpu:
    """An engine on a GPU, as far as the choice can see."""

    device = torch.device("cuda")
    world_size = 1

    def alone(self) -> OnGpu:
        return self

    def broadcast(self, decide):
        return decide()


@pytest.mark.parametrize("value", [True, False])
def test_the_recipe_decides_without_a_trial(monkeypatch: pytest.MonkeyPatch, value: bool):
    monkeypatch.setattr(tuning, "choose_compilation", lambda *a: pytest.fail("a trial that nobody asked for"))
    assert chosen(Recorder(), value) == value


def test_a_choice_is_recorded_and_a_resumed_run_keeps_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "choose_compilation", lambda *a: CompilationTrial(True, "faster"))
    recorder = Recorder()
    assert chosen(recorder, "auto")
    assert recorder.tuned.compiled == {"1": True}
    monkeypatch.setattr(tuning, "choose_compilation", lambda *a: pytest.fail("measured again"))
    assert chosen(recorder, "auto", resumed=True)
    assert not chosen(Recorder(), "auto", resumed=True), "begun by a version that did not compile"


def chosen(recorder: Recorder, value: object, resumed: bool = False) -> bool:
    recipe = Recipe.model_validate({**tiny.settings(), "phase": [{"epochs": 1, "lr": 0.1}], "compile": value})
    chooser = tuning.Tuning(OnGpu(), recorder, Console(quiet=True), recipe)  # type: ignore[arg-type]
    return chooser._choose_compilation(phase_run(False), SampleCost(1, 1.0), resumed)


@pytest.mark.long
def test_the_real_compiler_gives_the_same_training(say, tmp_path: Path):
    """It needs a C++ compiler and takes a minute."""
    accuracies = []
    for name, value in (("usual", "false"), ("compiled", "true")):
        said = say(
            "train",
            "digits",
            "--recipe",
            "digits",
            "--epochs",
            1,
            "--set",
            f"compile={value}",
            "--out",
            tmp_path / name,
        )
        assert said.status == 0, said.err
        accuracies.append((tmp_path / name / "history.csv").read_text().splitlines()[1].split(",")[:4])
    assert accuracies[0][:3] == accuracies[1][:3]
    assert float(accuracies[0][3]) == pytest.approx(float(accuracies[1][3]), rel=0.01)
