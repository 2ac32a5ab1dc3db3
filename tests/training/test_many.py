"""Several processes train like one: the same losses, every sample once, one run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import check_same, contents, dying, train
from reference import torchvision
from several import several
from tiny import mini, phase, phase_run, samples, stream, write_idx, write_recipe
from torch import nn

import linnaeus
from linnaeus.data.batches import Partition, Sampling
from linnaeus.data.order import part_of
from linnaeus.device import available_cores
from linnaeus.distributed import launch as launcher
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.environment import ProcessInfo, process_info, slurm_address
from linnaeus.distributed.launch import MOST_PROCESSES, launch
from linnaeus.distributed.sync_batchnorm import CpuSyncBatchNorm, synced_batchnorm
from linnaeus.errors import UserError
from linnaeus.inference.forward import answer
from linnaeus.models import Network, create, wrap
from linnaeus.recipe import load_recipe
from linnaeus.training.loop import fit
from linnaeus.training.optim import freeze, training_stages
from linnaeus.training.phase import Stream
from linnaeus.training.step import Optimization

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # number of samples (in batches of 16), phase
    "an odd number, a short last batch": (45, {}),
    "a last batch without samples for one process": (35, {"optimizer": "sgd", "lr": 0.05}),
    "mixup and cutmix": (45, {"mixup": 0.2, "cutmix": 1.0}),
    "class weights and smoothing": (45, {"class_weights": "balanced", "label_smoothing": 0.1}),
    "moving average and clipping": (45, {"ema": 0.8, "clip": 0.5}),
    "accumulation": (45, {"micro_batch": 3, "optimizer": "sgd", "lr": 0.05}),
    "accumulation, a process without samples": (35, {"micro_batch": 2, "mixup": 0.4}),
    "synchronized": (45, {"norms": "synced", "lr": 1e-2}),
    "synchronized, micro-batches, a process without samples": (35, {"norms": "synced", "lr": 1e-2, "micro_batch": 16}),
}


def curve(case: str, rank: int = 0, world: int = 1) -> list[list[float]]:
    """(training loss, validation loss, correct validation samples) of two epochs in float64."""
    n, change = CASES[case]
    spec = phase(epochs=2, **change)
    images, labels = samples(n)
    labels = np.where(np.arange(n) < 9, 0, labels)  # unequal classes
    partners = spec.mixup > 0 or spec.cutmix > 0
    train = doubled(stream(images, labels, sampling=Sampling(shuffle=True), partition=Partition(rank, world, partners)))
    valid = doubled(stream(*samples(11, seed=3), partition=Partition(rank, world)))
    torch.manual_seed(0)
    model = normed() if "synchronized" in case else mini()
    freeze(model.double(), training_stages(model, spec.train))
    micro = -(-spec.micro_batch // (world if spec.norms == "synced" else 1)) or None
    engine = Engine("cpu", "32")
    epochs: list[list[float]] = []

    def run() -> None:
        for epoch in fit(phase_run(model, spec, train, valid, micro_batch=micro), engine):
            epochs.append([epoch.train_loss, epoch.valid.loss, epoch.valid.correct])

    if spec.norms == "synced" and world > 1:
        with synced_batchnorm(model):
            run()
        assert not any(isinstance(module, CpuSyncBatchNorm) for module in model.modules())
    else:
        run()
    return epochs


def normed() -> Network:
    """A network with BatchNorm before and after the average over positions."""
    return wrap(
        nn.Sequential(
            nn.Conv2d(1, 6, 5, stride=3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.BatchNorm1d(24, momentum=None),
            nn.Linear(24, 3),
        ),
        3,
        1,
    )


def doubled(data: Stream) -> Stream:
    return Stream(data.batches, lambda batch, epoch: data.prepare(batch, epoch).double())


def test_two_processes_have_the_losses_of_one():
    """In float64, for networks without BatchNorm or with synchronized BatchNorm."""
    results = several(2, lambda rank: {case: curve(case, rank, 2) for case in CASES})
    assert results[0] == results[1], "the processes disagree"
    for case, losses in results[0].items():
        assert np.allclose(losses, curve(case), rtol=0, atol=1e-7), case


def test_synchronized_norms_of_timm_keep_their_activation():
    """Its norms include the activation. Two processes with half of the images each compute what one computes."""
    torchvision()  # which timm imports
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = create("timm/mobilenetv3_small_050", 3).double().train()
    names, x = [*network.state_dict()], torch.randn(8, 3, 64, 64, dtype=torch.float64)

    def logits(rank: int) -> Any:
        Engine("cpu", "32")  # joins the processes
        with synced_batchnorm(network), torch.no_grad():
            assert [*network.state_dict()] == names
            return network(x[rank::2]).tolist()

    with torch.no_grad():
        expected = network(x).numpy()
    for rank, computed in enumerate(several(2, logits)):
        assert np.allclose(computed, expected[rank::2], rtol=0, atol=1e-9)


def test_a_norm_that_computes_something_else_is_not_synchronized():
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    refused = pytest.raises(UserError, match=r'Doubled: computes more than BatchNorm.*phase\.norms at "train"')
    with refused, synced_batchnorm(nn.Sequential(Doubled(3))):
        pass


def test_batchnorm_that_is_not_synchronized_has_the_same_statistics_in_all_processes():
    """Each process sees different images, but one network is evaluated and saved."""

    def work(rank: int) -> list[Any]:
        model = normed()
        data = stream(*samples(35), sampling=Sampling(shuffle=True), partition=Partition(rank, 2))
        for _ in fit(phase_run(model, phase(), data), Engine("cpu", "32")):
            pass
        return [tensor.tolist() for tensor in model.state_dict().values()]

    one, other = several(2, work)
    assert one == other
    assert np.isfinite(np.concatenate([np.ravel(value) for value in one])).all()


def test_no_process_has_a_single_sample():
    """Each sample belongs to one process. BatchNorm cannot be trained on one sample, unless the batch has only one."""
    for n in range(1, 40):
        for world in (1, 2, 3, 5, 8):
            parts = [list(range(n))[part_of(n, rank, world)] for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(n))
            assert parts[0]
            assert n == 1 or 1 not in map(len, parts)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_evaluation_counts_every_sample_once(n: int):
    """Also with fewer samples than processes."""

    def work(rank: int) -> list[list[float]]:
        engine = Engine("cpu", "32")
        data = stream(*samples(n), batch=4, partition=Partition(rank, 3))
        out = answer(mini(), data.batches, lambda b: data.prepare(b, 0), engine, engine.autocast)
        return [out.labels.tolist(), out.logits.argmax(1).tolist()]

    alone = stream(*samples(n))
    expected = answer(mini(), alone.batches, lambda b: alone.prepare(b, 0))
    assert several(3, work) == [[expected.labels.tolist(), expected.predicted.tolist()]] * 3


# Plain SGD with small steps: the weights are then a smooth function of the gradients, whose last bits depend on the
# number of processes. Adam's first steps are their signs. The head of separable classes is solved last, because its
# large weights multiply any difference.
SMOOTH: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0}
PHASES: list[dict[str, Any]] = [
    {"epochs": 2, "lr": "auto", "mixup": 0.2, "ema": 0.8, "augment": {"rotate": 20, "hflip": 0.5}} | SMOOTH,
    {"train": ["block3", "head"], "epochs": 2, "lr": 1e-2, "views": 2, "augment": {"hflip": 0.5}} | SMOOTH,
    {"train": ["head"], "head": "auto", "epochs": 1},
]


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """63 training images of 70: 4 steps of 16 per epoch."""
    return write_idx(tmp_path / "idx", train=70, test=13)


def rows(run: Path) -> list[list[float]]:
    """history.csv as numbers, without the durations."""
    lines = [line.split(",")[:-1] for line in (run / "history.csv").read_text().splitlines()[1:]]
    return [[float(cell or 0) for cell in line] for line in lines]


@pytest.mark.usefixtures("undrawn_runs")
def test_two_processes_leave_one_run_folder_as_one_does(
    idx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With a range test, a solved head and stored activations; only rank 0 prints."""
    recipe = write_recipe(tmp_path / "r.toml", *PHASES, precision="32")
    one, two = tmp_path / "one", tmp_path / "two"
    train(idx, recipe, one)
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache of two"))

    def work(rank: int) -> list[Any]:
        run = linnaeus.train(idx, str(recipe), out=two, device="cpu")
        return [run.valid.accuracy, str(run.selection), run.trust]

    one_result, other_result = several(2, work)
    assert one_result == other_result
    assert "on validation" in one_result[1], "among several epochs"
    rates = [load_recipe(str(run)).phase[0].lr for run in (one, two)]
    assert rates[0] == rates[1]  # rank 0 tests the whole batches, as a single process does
    assert np.allclose(rows(one), rows(two), atol=1e-3)
    (weights, _, metrics), (expected, _, others) = contents(two), contents(one)
    assert weights.keys() == expected.keys()
    assert metrics["valid"]["n"] == others["valid"]["n"] == 7
    assert metrics["test"]["correct"] == others["test"]["correct"]
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    assert len((two / "predictions.csv").read_text().splitlines()) == 1 + 7 + 13
    output = capfd.readouterr()
    assert output.out.count("epoch 1/2") == 2  # one for each phase that is trained
    # Which penalty of the solved head is best depends on rounding, where the classes are separable.
    assert [line for line in output.err.splitlines() if "the penalty" not in line] == []
    assert output.err.count("the penalty") <= 2  # once for each run


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_process_that_dies_ends_the_others_and_the_run_can_be_resumed(
    world: int, idx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """kill -9 of rank 1; the resumed run has the same bits as an uninterrupted one."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3, "ema": 0.8, "mixup": 0.3}, {"train": ["head"]})

    def work(rank: int, out: str, dies: bool) -> str:
        if dies and rank == 1:
            dying(Optimization, "step", 7)
        return str(train(idx, recipe, tmp_path / out, resume=True).path)

    assert several(world, lambda rank: work(rank, "cut", True)) == [70, -signal.SIGKILL, 70][:world]
    assert "another process of this run has ended; --resume continues" in capfd.readouterr().err
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    assert several(world, lambda rank: work(rank, "cut", False)) == [str(tmp_path / "cut")] * world
    assert several(world, lambda rank: work(rank, "whole", False)) == [str(tmp_path / "whole")] * world
    check_same(tmp_path / "cut", tmp_path / "whole")
    capfd.readouterr()
    train(idx, recipe, tmp_path / "alone", resume=True)
    assert f"resumed on another machine (processes: {world} → none): the last bits may differ" in capfd.readouterr().err
    assert np.allclose(rows(tmp_path / "alone"), rows(tmp_path / "whole"), atol=1e-3)


@pytest.mark.usefixtures("undrawn_runs")
def test_sigterm_to_one_process_stops_all_after_the_same_step(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3})
    out = tmp_path / "cut"

    def work(rank: int) -> None:
        real, calls = Optimization.step, 0

        def take(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if rank == 1 and calls == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        Optimization.step = take  # type: ignore
        train(idx, recipe, out, every="1000steps")

    assert several(2, work) == [143, 143]
    state = json.loads((out / "checkpoint" / "checkpoint.json").read_text().partition("\n")[2])
    assert (state["fit"]["epoch"], state["fit"]["step"]) == (1, 2)


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_that_comes_while_they_agree_is_not_lost(world: int, idx: Path, tmp_path: Path):
    """The signal arrives right after a process has reported that it has none: all end one step later."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3})
    out = tmp_path / "cut"

    def work(rank: int) -> None:
        real, calls = Engine.all_reduce_max, 0

        def ask(self: Engine, number: int | None) -> int | None:
            nonlocal calls
            result = real(self, number)
            calls += 1
            if rank == world - 1 and calls == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        Engine.all_reduce_max = ask  # type: ignore
        train(idx, recipe, out, every="1000steps")

    assert several(world, work) == [143] * world
    state = json.loads((out / "checkpoint" / "checkpoint.json").read_text().partition("\n")[2])
    assert (state["fit"]["epoch"], state["fit"]["step"]) == (0, 3)


def test_wrong_input_is_reported_once(idx: Path, tmp_path: Path):
    """All processes raise the error, and only rank 0 prints it. An error of another rank names that rank."""
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["nothing"]})

    def work(rank: int) -> list[Any]:
        with pytest.raises(UserError, match="'nothing' is not a stage") as caught:
            train(idx, recipe, tmp_path / "run")
        engine = Engine("cpu", "32")

        def part() -> None:
            with engine.propagate_errors():
                if rank == 1:
                    raise UserError("no room")

        with pytest.raises(UserError) as other:
            part()
        return [caught.value.told, str(other.value), other.value.told]

    assert several(2, work) == [[False, "process 1: no room", False], [True, "no room", True]]
    assert not (tmp_path / "run").exists()


def test_rank_and_world_size_come_from_the_environment():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert process_info({}) == ProcessInfo()
    assert process_info(torchrun) == ProcessInfo(5, 8, 1, 4)
    assert process_info(torchrun).nodes == 2
    slurm = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert process_info(slurm) == ProcessInfo()  # a batch job that does not use srun
    assert process_info({**slurm, "SLURM_STEP_NUM_TASKS": "4"}) == ProcessInfo(3, 4, 1, 2, slurm=True)
    with pytest.raises(UserError, match="--ntasks-per-node"):
        process_info({"SLURM_STEP_NUM_TASKS": "4"})
    with pytest.raises(UserError, match="not a multiple"):
        process_info({**torchrun, "WORLD_SIZE": "7"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("node[03-05,09],gpu1", "node03"), ("node[7,9]-ib", "node7-ib")],
)
def test_processes_of_slurm_meet_at_the_first_machine(nodes: str, host: str):
    assert slurm_address({"SLURM_NODELIST": nodes, "SLURM_JOB_ID": "1234567"}) == (host, "19567")
    step = {"SLURM_NODELIST": "other[1-9]", "SLURM_STEP_NODELIST": nodes}
    assert slurm_address(step) == (host, "15000")  # a step may use a part of the machines of its job
    assert slurm_address({**step, "MASTER_ADDR": "head", "MASTER_PORT": "29500"}) == ("head", "29500")


def test_devices_from_python_is_rejected_with_advice(idx: Path, tmp_path: Path):
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        linnaeus.train(idx, device="cpu", devices=2, out=tmp_path / "run")


def test_the_launcher_returns_the_status_of_its_processes(capfd: pytest.CaptureFixture[str]):
    assert launch(2, ["--version"], "") == 0
    assert capfd.readouterr().out.count("linnaeus, version") == 1
    assert launch(2, ["train"], "") == 2
    assert capfd.readouterr().err.count("Missing argument 'SOURCE'") == 1


@pytest.mark.parametrize("nth", [0, 1])
def test_a_signal_while_the_processes_are_started_ends_the_command(nth: int, monkeypatch: pytest.MonkeyPatch):
    """Also one that arrives before there is a process to pass it on to."""
    start, started = launcher._start, []

    def interrupted(rank: int, *more: Any) -> launcher.Child:
        child = start(rank, *more)
        started.append(child.process)
        if rank == nth:
            signal.raise_signal(signal.SIGTERM)
        return child

    monkeypatch.setattr(launcher, "_start", interrupted)
    assert launch(3, ["env"], "") == 143
    assert [process.returncode for process in started] == [-signal.SIGTERM] * (nth + 1)


def test_processes_that_would_exhaust_the_machine_are_not_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("linnaeus.distributed.launch._start", lambda *a: pytest.fail("a process was started"))
    count = 10 * max(MOST_PROCESSES, available_cores())
    with pytest.raises(UserError, match=f"--devices {count}: at most .* processes run on this machine; give"):
        launch(count, ["train"], "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_ctrl_z_stops_all_processes_and_a_signal_reaches_stopped_ones():
    waits = [sys.executable, "-c", "import signal, time; signal.signal(15, lambda *_: exit(5)); time.sleep(60)"]
    program = "from linnaeus.distributed import launch; import sys; launch._start = lambda *_: launch.Child("
    program += f"launch.subprocess.Popen({waits!r}, start_new_session=True), None); sys.exit(launch.launch(2, [], ''))"
    launcher = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)

    def states() -> list[str]:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in (launcher.pid, *children)
        ]

    def wait_for(expected: list[str]) -> None:
        until = time.monotonic() + 60
        while states() != expected:
            assert time.monotonic() < until, states()
            time.sleep(0.05)

    wait_for(["S", "S", "S"])
    time.sleep(1)  # until they handle the signal
    os.kill(launcher.pid, signal.SIGTSTP)
    wait_for(["T", "T", "T"])
    os.kill(launcher.pid, signal.SIGCONT)
    wait_for(["S", "S", "S"])
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGSTOP)
    wait_for(["S", "T", "T"])
    os.kill(launcher.pid, signal.SIGTERM)
    assert launcher.wait(60) == 5


@pytest.mark.long
def test_a_killed_process_of_the_command_ends_it(idx: Path, tmp_path: Path):
    """--devices 2, and the second process is killed during training: the command ends and can be resumed."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 400})
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "linnaeus",
        "train",
        str(idx),
        "--recipe",
        str(recipe),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--devices",
        "2",
        "--checkpoint-every",
        "2steps",
        "--resume",
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (out / "checkpoint" / "checkpoint.json").exists():
        assert running.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    started = time.monotonic()
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert running.returncode == 1
    assert "another process of this run has ended; --resume continues" in errors
    assert "process 1 of 2 was ended by SIGKILL" in errors
    again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while "resumed   in phase 1" not in (line := again.stdout.readline() if again.stdout else ""):
        assert line
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 143
