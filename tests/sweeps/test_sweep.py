"""Sweeps: proposing, pruning and resuming trials, several processes, and the best recipe."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import write_idx, write_images, write_recipe

import linnaeus
from linnaeus.cache import Cache
from linnaeus.console import Console
from linnaeus.errors import JobError, UserError
from linnaeus.export.model_card import model_card
from linnaeus.files import SCRATCH
from linnaeus.recipe import load_recipe
from linnaeus.runs.parsing import read_metrics
from linnaeus.sweeps import run as sweeps
from linnaeus.sweeps.results import SweepFolder
from linnaeus.sweeps.space import Choices, Interval, Space
from linnaeus.sweeps.study import Study
from linnaeus.text import percent

QUIET = Console(quiet=True)


class Heard(Console):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


LR = {"phase.1.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
HEAD: dict[str, Any] = {"train": ["head"], "epochs": 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "source", train=30, test=6)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "tiny.toml", HEAD))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_end_to_end(source: Path, recipe: str, tmp_path: Path, say, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text(
        '"phase.1.lr" = { low = 1e-5, high = 1e-1, log = true }\n"phase.1.optimizer" = { choices = ["sgd", "adam"] }\n'
    )
    said = say("sweep", source, "--recipe", recipe, "--space", "space.toml", "--trials", 6, "--device", "cpu")
    assert said.status == 0, said.err
    folder = tmp_path / "runs" / "tiny-sweep-1"
    assert "so this score is optimistic" in said.out
    assert f"recipe    {Path('runs/tiny-sweep-1/best.toml')}" in said.out
    table = rows(folder)
    assert [row["trial"] for row in table] == [str(i) for i in range(6)]
    complete = [row for row in table if row["state"] == "complete"]
    best = max(complete, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
    head = (folder / "best.toml").read_text(encoding="utf-8")
    assert f"Validation accuracy {percent(float(best['accuracy']), 2)} ({best['correct']} of {best['n']}, " in head
    assert "selected among 6 on these same images" in head
    assert Image.open(folder / "sweep.png").size[0] > 1000
    assert not list((folder / "trials").glob(".*")), "the run folders of trials are removed"

    console = Heard()
    run = linnaeus.train(source, str(folder / "best.toml"), out="again", device="cpu", console=console)
    said = " sweep of 6 trials selected this recipe on these images, so the validation figures are optimistic"
    assert sum(said in line for line in console.warnings) == 1
    assert read_metrics(run.path)["sweep"] == {"trials": 6}
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count(said) == 1
    assert "a sweep of 6 trials selected the recipe on them" in model_card(run.load(), "f")
    assert run.best.figures is not None
    assert f"{run.best.figures.loss}" == best["loss"], "the best recipe reproduces the best trial, to the bit"
    assert run.best.epoch == int(best["epoch"])


def test_a_sweep_of_other_images_is_not_mentioned(tmp_path: Path):
    """And a sweep that begins with the result of another one records itself."""
    recipe = str(write_recipe(tmp_path / "tiny.toml", HEAD))
    first = write_images(tmp_path / "photos", each=12)
    found = sweeps.sweep(first, recipe, LR, trials=2, out=tmp_path / "sweep", device="cpu", console=QUIET)
    again = sweeps.sweep(first, str(found.recipe), LR, trials=1, out=tmp_path / "again", device="cpu", console=QUIET)
    records = [load_recipe(str(path)).sweep for path in (found.recipe, again.recipe)]
    assert [record and record.trials for record in records] == [2, 1]
    other = write_images(tmp_path / "others", each=10)
    console = Heard()
    run = linnaeus.train(other, str(found.recipe), out=tmp_path / "run", device="cpu", console=console)
    assert not any("sweep" in line for line in console.warnings)
    assert "sweep" not in read_metrics(run.path)
    assert "sweep" not in (run.path / "recipe.toml").read_text(encoding="utf-8")


def test_later_trials_decode_and_compute_nothing(tmp_path: Path, monkeypatch):
    from linnaeus.stores import decoding, distributed

    source = write_images(tmp_path / "photos", each=12)
    counts = {"decoded": 0, "computed": 0}
    after: list[dict[str, int]] = []
    load_row, build = decoding.load_row, distributed.build_activations

    def decoded(*given):
        counts["decoded"] += 1
        return load_row(*given)

    def computed(*given, **more):
        counts["computed"] += 1
        return build(*given, **more)

    monkeypatch.setattr(decoding, "load_row", decoded)
    monkeypatch.setattr(distributed, "build_activations", computed)
    finish = sweeps.Study.finish

    def finished(*given, **more):
        after.append(dict(counts))
        return finish(*given, **more)

    monkeypatch.setattr(sweeps.Study, "finish", finished)
    recipe = str(write_recipe(tmp_path / "tiny.toml", HEAD))
    sweeps.sweep(source, recipe, LR, trials=3, out=tmp_path / "out", device="cpu", console=QUIET)
    assert after[0] == {"decoded": 36, "computed": 2}
    assert after == [after[0]] * 3


@pytest.mark.long
def test_the_same_command_resumes(source: Path, recipe: str, tmp_path: Path):
    whole = sweeps.sweep(source, recipe, LR, trials=4, out=tmp_path / "whole", device="cpu", console=QUIET)
    for trials in (2, 4):
        parts = sweeps.sweep(source, recipe, LR, trials=trials, out=tmp_path / "parts", device="cpu", console=QUIET)
        assert len(parts.trials) == trials
    assert [t.figures for t in parts.trials] == [t.figures for t in whole.trials]


def run_study(folder: Path, seed: int, stops: tuple[int, ...], killed: int = -1) -> list[dict[str, Any]]:
    """The parameters that a study proposes if it is reopened after each of `stops` and loses the trial `killed`."""
    folder.mkdir()
    space: Space = {"phase.1.lr": Interval(1e-4, 1e-1, log=True), "phase.1.optimizer": Choices(("sgd", "adam"))}
    for total in stops:
        study = Study(folder, space, minimize=False, seed=seed, warmup=1)
        while (trial := study.claim(total)) is not None:
            if trial.number == killed:
                trial.release()
                break
            study.finish(trial, "complete", {}, -abs(trial.params["phase.1.lr"] - 0.02))
    return [t.drawn for t in study.trials()]


@pytest.mark.long
def test_an_interrupted_study_proposes_the_same_trials(tmp_path: Path):
    """Also beyond the first ten random trials, where the sampler depends on earlier results."""
    whole = run_study(tmp_path / "whole", 0, (12,))
    assert len({params["phase.1.lr"] for params in whole}) == 12
    assert run_study(tmp_path / "parts", 0, (3, 12)) == whole
    assert run_study(tmp_path / "killed", 0, (12, 12), killed=5) == whole
    assert run_study(tmp_path / "other", 1, (1,)) != whole[:1]


def test_a_folder_of_another_sweep_is_rejected(source: Path, recipe: str, tmp_path: Path):
    out = tmp_path / "out"
    sweeps.sweep(source, recipe, LR, trials=1, out=out, device="cpu", console=QUIET)
    changed = {"phase.1.lr": {"low": 1e-4, "high": 0.5, "log": True}}
    with pytest.raises(UserError, match=r"space\.phase\.1\.lr\.high: 0\.1 → 0\.5"):
        sweeps.sweep(source, recipe, changed, trials=2, out=out, device="cpu", console=QUIET)
    with pytest.raises(UserError, match=r"recipe\.phase\.1\.batch: 16 → 8"):
        sweeps.sweep(source, recipe, LR, settings={"phase.1.batch": 8}, out=out, device="cpu", console=QUIET)
    other = write_idx(tmp_path / "other", train=30, test=12)
    with pytest.raises(UserError, match=r"source\.fingerprint: .* → "):
        sweeps.sweep(other, recipe, LR, trials=2, out=out, device="cpu", console=QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds 'notes\.txt' but no sweep"):
        sweeps.sweep(source, recipe, LR, trials=1, out=tmp_path / "full", device="cpu", console=QUIET)


def test_what_a_killed_sweep_has_left_is_removed(tmp_path: Path):
    left = tmp_path / "out" / f"{SCRATCH}abcd1234"
    left.mkdir(parents=True)
    (left / "sweep.json").write_text("{")
    SweepFolder.create(left.parent, "tiny")
    assert not left.exists()


def test_a_failed_trial_does_not_end_the_sweep(source: Path, recipe: str, tmp_path: Path):
    space = {"phase.1.train": {"choices": [["head"], ["tail"], ["block3", "head"]]}, "seed": {"low": 0, "high": 1}}
    done = sweeps.sweep(source, recipe, space, trials=9, out=tmp_path / "out", device="cpu", console=QUIET)
    assert len(done.trials) == 6, "all combinations, each once"
    assert len({tuple(t.drawn.values()) for t in done.trials}) == 6
    failed = [t for t in done.trials if t.state == "failed"]
    assert {t.drawn["phase.1.train"] for t in failed} == {'["tail"]'}
    assert len(failed) == 2
    assert "tail" in failed[0].reason
    assert [row["reason"] for row in rows(tmp_path / "out") if row["reason"]] == [t.reason for t in failed]


def test_ctrl_c_before_the_first_trial_is_complete(source: Path, recipe: str, tmp_path: Path, monkeypatch, say):
    """It is no failure of the trials, and a script must see that the user has ended the sweep."""
    (tmp_path / "space.toml").write_text('"phase.1.lr" = { choices = [1e-3, 1e-2] }\n')
    command = ["sweep", source, "--recipe", recipe, "--space", tmp_path / "space.toml", "--out", tmp_path / "out"]

    def interrupted(*_: Any, **more: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "train", interrupted)
        said = say(*command)
    assert said.status == 130
    continues = f"the same command with --out {tmp_path / 'out'} continues"
    assert said.err.splitlines()[-1] == f"error: no trial was completed yet; {continues}"
    assert "2: 2 complete" in say(*command, "--device", "cpu").out


@pytest.mark.parametrize("change", ["removed", "added", "cache"])
def test_a_trial_that_the_machine_ended_is_repeated(
    change: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The images are gone for a while, or others, or the cache is on a full disk: the settings are not at fault."""
    source, out = write_images(tmp_path / "images", each=10), tmp_path / "sweep"
    moved, more = tmp_path / "moved", source / "0" / "more.png"
    real, calls, space = sweeps.train, 0, {"phase.1.lr": {"choices": [1e-3, 1e-2]}}

    def train(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if change == "cache" and calls == 2:
            Cache(tmp_path / "full", 1)._acquire("pixels-00000000", wait=True)
        run = real(*arguments, **options)
        if change == "cache":
            return run
        source.rename(moved) if change == "removed" else more.write_bytes((source / "1" / "1 0.png").read_bytes())
        return run

    settings = {"data.split.valid": 0.3}
    monkeypatch.setattr(sweeps, "train", train)
    (tmp_path / "full").write_text("a file in the place of the cache")
    message = (
        "the cache cannot be written" if change == "cache" else "was changed or removed during the sweep; restore it"
    )
    with pytest.raises(JobError, match=message):
        sweeps.sweep(source, recipe, space, trials=2, out=out, settings=settings, device="cpu", console=QUIET)
    monkeypatch.setattr(sweeps, "train", real)
    moved.rename(source) if change == "removed" else more.unlink(missing_ok=True)
    result = sweeps.sweep(source, recipe, space, trials=2, out=out, settings=settings, device="cpu", console=QUIET)
    assert sorted(float(trial.drawn["phase.1.lr"]) for trial in result.trials if trial.state == "complete") == [
        1e-3,
        1e-2,
    ]
    assert [trial.state for trial in result.trials if trial.state == "failed"] == []


def test_repeated_failures_end_the_sweep(source: Path, recipe: str, tmp_path: Path):
    settings = {"phase.1.train": ["tail"]}
    with pytest.raises(JobError, match=r"5 trials in a row failed, the last one: .*tail"):
        sweeps.sweep(source, recipe, LR, settings=settings, out=tmp_path / "out", device="cpu", console=QUIET)


@pytest.mark.long
def test_bad_trials_are_pruned(source: Path, tmp_path: Path):
    """From the sixth trial on, a trial that does not learn ends before its last epoch."""
    recipe = str(write_recipe(tmp_path / "tiny.toml", {"epochs": 3, "batch": 8}))
    space = {"phase.1.lr": {"choices": [0.01, 0.008, 0.012, 0.009, 0.011, 1e-7, 2e-7, 3e-7]}}
    settings = {"best": "loss"}
    done = sweeps.sweep(
        source, recipe, space, trials=8, settings=settings, out=tmp_path / "out", device="cpu", console=QUIET
    )
    assert len(done.trials) == 8
    pruned = [t for t in done.trials if t.state == "pruned"]
    hopeless = [t for t in done.trials if t.number >= 5 and float(t.drawn["phase.1.lr"]) < 1e-3]
    assert hopeless
    assert set(map(id, hopeless)) <= set(map(id, pruned))
    assert all(t.number >= 5 and t.epochs < 3 for t in pruned)
    assert done.best.value == min(t.value for t in done.trials if t.state == "complete" and t.value is not None)


def test_equal_trials_run_once(source: Path, recipe: str, tmp_path: Path, monkeypatch):
    ran = []
    train = sweeps.train

    def counted(*given, **more):
        ran.append(1)
        return train(*given, **more)

    monkeypatch.setattr(sweeps, "train", counted)
    monkeypatch.setattr("linnaeus.sweeps.study.combinations", lambda space: None)  # sample, as from a large space
    space = {"phase.1.lr": {"choices": [0.01, 0.02]}}
    monkeypatch.setattr(sweeps, "combinations", lambda space: None)
    done = sweeps.sweep(source, recipe, space, trials=5, out=tmp_path / "out", device="cpu", console=QUIET)
    assert len(done.trials) == 5
    assert len(ran) == 2
    assert [t.same_as is None for t in done.trials].count(True) == 2
    first = {t.drawn["phase.1.lr"]: t.figures for t in reversed(done.trials)}
    assert all(t.figures == first[t.drawn["phase.1.lr"]] for t in done.trials)


def test_a_running_trial_is_left_alone_until_its_process_ends(tmp_path: Path):
    space: Space = {"phase.1.lr": Interval(1e-4, 1e-1, log=True)}
    one, two = (Study(tmp_path, space, minimize=False, seed=0, warmup=1) for _ in range(2))
    first, second = one.claim(2), two.claim(2)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)
    assert first.params != second.params
    assert two.claim(2) is None, "both are running"
    first.release()  # as if its process were killed
    third = two.claim(2)
    assert third is not None
    assert third.number == 2
    assert third.params == first.params
    two.finish(third, "complete", {}, 0.5)
    two.finish(second, "failed", {"reason": "why"})
    assert one.claim(2) is None
    assert [(t.number, t.state, t.reason) for t in one.trials()] == [(1, "failed", "why"), (2, "complete", "")]


@pytest.mark.long
def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(tmp_path: Path):
    """One of two processes is killed during a trial, which another one repeats."""
    source = write_idx(tmp_path / "source", train=200, test=12)
    recipe = write_recipe(tmp_path / "tiny.toml", {"epochs": 8, "batch": 8})
    space = tmp_path / "space.toml"
    space.write_text('"phase.1.lr" = { low = 1e-4, high = 1e-1, log = true }\n')
    command = [
        sys.executable,
        "-m",
        "linnaeus",
        "sweep",
        str(source),
        "--recipe",
        str(recipe),
        "--space",
        str(space),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--trials",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, "4"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    second = subprocess.Popen([*command, "4"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trials = tmp_path / "out" / "trials"
    end = time.monotonic() + 60
    while time.monotonic() < end and len(list(trials.glob(".*/history.csv"))) < 2:
        time.sleep(0.05)
    assert len(list(trials.glob(".*/history.csv"))) == 2, "two trials at once"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, out + err
    again = subprocess.run([*command, "4"], env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    table = rows(tmp_path / "out")
    assert len(table) == 4
    assert len({row["trial"] for row in table}) == 4, "numbers are unique"
    assert len({row["phase.1.lr"] for row in table}) == 4, "no two processes run the same trial"
    assert {row["state"] for row in table} <= {"complete", "pruned"}


def test_a_damaged_study_is_one_line(source: Path, recipe: str, tmp_path: Path):
    sweeps.sweep(source, recipe, LR, trials=1, out=tmp_path / "out", device="cpu", console=QUIET)
    (tmp_path / "out" / "study.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(JobError, match=r"study\.sqlite: cannot be used \(.*not a database"):
        sweeps.sweep(source, recipe, LR, trials=2, out=tmp_path / "out", device="cpu", console=QUIET)


@pytest.mark.parametrize("lost", [Path.unlink, lambda study: study.write_bytes(b"")], ids=["removed", "emptied"])
def test_trials_whose_study_is_lost_are_not_replaced(source: Path, recipe: str, tmp_path: Path, lost):
    out = tmp_path / "out"
    sweeps.sweep(source, recipe, LR, trials=2, out=out, device="cpu", console=QUIET)
    study, table = (out / "study.sqlite").read_bytes(), (out / "trials.csv").read_bytes()
    lost(out / "study.sqlite")
    for _ in range(2):
        with pytest.raises(UserError, match=r"study\.sqlite: lacks trials that trials\.csv lists.*restore it"):
            sweeps.sweep(source, recipe, LR, trials=1, out=out, device="cpu", console=QUIET)
    assert (out / "trials.csv").read_bytes() == table
    (out / "study.sqlite").write_bytes(study)
    assert len(sweeps.sweep(source, recipe, LR, trials=2, out=out, device="cpu", console=QUIET).trials) == 2


def test_a_kill_between_the_last_trial_and_its_files_costs_none_of_them(source: Path, recipe: str, tmp_path: Path):
    out = tmp_path / "out"
    sweeps.sweep(source, recipe, LR, trials=1, out=out, device="cpu", console=QUIET)
    old = {name: (out / name).read_bytes() for name in ("trials.csv", "best.toml")}
    sweeps.sweep(source, recipe, LR, trials=2, out=out, device="cpu", console=QUIET)
    for name, content in old.items():
        (out / name).write_bytes(content)
    sweep = sweeps.sweep(source, recipe, LR, trials=2, out=out, device="cpu", console=QUIET)
    assert len(rows(out)) == len(sweep.trials) == 2
    assert " of 2 trials (2 complete)" in sweep.recipe.read_text(encoding="utf-8")
    sweep.recipe.unlink()
    assert sweeps.sweep(source, recipe, LR, trials=2, out=out, device="cpu", console=QUIET).recipe.is_file()


def test_a_missing_recipe_of_the_best_trial_is_one_line(source: Path, recipe: str, tmp_path: Path):
    sweeps.sweep(source, recipe, LR, trials=1, out=tmp_path / "out", device="cpu", console=QUIET)
    (tmp_path / "out" / "trials" / "0.toml").unlink()
    with pytest.raises(UserError, match=r"0\.toml: cannot be read \(No such file.*best\.toml is made from it; restore"):
        sweeps.sweep(source, recipe, LR, trials=1, out=tmp_path / "out", device="cpu", console=QUIET)


def test_without_optuna_it_is_one_line(source: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        sweeps.sweep(source, recipe, LR, trials=1, out=tmp_path / "out", device="cpu", console=QUIET)


def test_the_plot_of_one_trial_and_of_many(tmp_path: Path):
    from linnaeus.report.sweep_plot import Slice, SweepImage, sweep_plot

    one = SweepImage("one $x$", "says", "loss", [0], [0.5], [False], 0, {}, [Slice("k", [1.0], (0, 2))])
    sweep_plot(one, tmp_path / "one.png")
    generator = np.random.default_rng(0)
    n = 40
    slices = [
        Slice("data.size", generator.integers(0, 9, n).tolist(), (0, 8), labels=[f"choice {i}" for i in range(9)]),
        Slice("phase.1.lr", (10.0 ** generator.uniform(-5, -1, n)).tolist(), (1e-5, 1e-1), log=True),
    ]
    many = SweepImage(
        "many",
        "",
        "accuracy",
        list(range(n)),
        generator.uniform(0, 1, n).tolist(),
        [i % 3 == 1 for i in range(n)],
        0,
        {"phase.1.lr": 0.9, "data.size": 0.1},
        slices,
    )
    assert many.limits[1] == 100.0, "no accuracy is above 100 %"
    assert one.limits[1] > 0.5
    sweep_plot(many, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").size == Image.open(tmp_path / "one.png").size
