"""Complete runs: the files of the folder, repeating a run, and how a run ends."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import mini, samples, settings, write_idx, write_images, write_recipe
from torch import nn

import linnaeus
from linnaeus.console import Console, duration
from linnaeus.errors import JobError, UserError
from linnaeus.inference.inputs import expand
from linnaeus.metrics.classification import Figures
from linnaeus.modelfile.safetensors import read_model
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row
from linnaeus.training.best import Best
from linnaeus.training.finish import finalize
from linnaeus.training.finish.finalize import Run
from linnaeus.training.timings import StepTimer

QUIET = Console(quiet=True)


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """120 training images, of which a tenth becomes validation, and 30 test images."""
    return write_idx(tmp_path / "idx")


def train(source: Path, recipe: Path | None, out: Path, **more: Any) -> Run:
    return linnaeus.train(source, str(recipe) if recipe else None, out=out, console=QUIET, device="cpu", **more)


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open(encoding="utf-8") as file:
        return [{k: float(v) if v else float("nan") for k, v in row.items()} for row in csv.DictReader(file)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_model(run / "model.safetensors")[0].state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_all_files_and_they_agree(tmp_path: Path):
    """Class names with Chinese characters, accents and spaces, which occur in paths, plots and tables."""
    names = ("rosa × alba", "玫瑰", "ñandú 3")
    source = write_images(tmp_path / "mit Wörtern 图", names, each=20)
    data = settings(split={"valid": 0.2, "test": 0.2})
    recipe = write_recipe(tmp_path / "my recipe.toml", {"epochs": 3, "lr": 0.01}, **data)
    run = train(source, recipe, tmp_path / "run ö")
    files = {file.name for file in run.path.iterdir()}
    assert files >= {
        "model.safetensors",
        "recipe.toml",
        "history.csv",
        "metrics.json",
        "bad_images.csv",
        "split.csv",
        "curves.png",
        "predictions.png",
        "confusion.png",
        "predictions.csv",
        "evaluation.json",
        "report.html",
    }
    assert not [name for name in files if name.startswith(".")]
    for name in ("curves.png", "predictions.png", "confusion.png"):
        assert Image.open(run.path / name).size > (200, 200)

    rows = history(run.path)
    assert [(row["phase"], row["epoch"]) for row in rows] == [(1, 1), (1, 2), (1, 3)]
    best = max(rows, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert (run.best.phase, run.best.epoch) == (best["phase"], best["epoch"])

    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["valid"]["accuracy"] == pytest.approx(best["valid_accuracy"], rel=1e-5)
    assert metrics["valid"]["calibration"]["before"]["loss"] == pytest.approx(best["valid_loss"], rel=1e-4)
    assert metrics["test"]["n"] == metrics["valid"]["n"] == 12
    assert metrics["epochs"] == 3
    assert metrics["seconds"]["total"] >= metrics["seconds"]["phase 1"]
    model = linnaeus.load(run.path, device="cpu")
    assert model.classes == ("rosa × alba", "ñandú 3", "玫瑰")
    for split in ("valid", "test"):
        stored = model.about.metrics[split]
        assert stored["n"] == 12
        for name, value in stored.items():
            assert metrics[split][name] == pytest.approx(value), name
    assert model.about.data["fingerprint"] == metrics["fingerprint"]
    check_predictions_add_up(run, model, metrics)
    again = model.evaluate(run.path / "split.csv", "test")  # split.csv can be used as a source
    assert (again.n, again.correct) == (12, metrics["test"]["correct"])
    assert again.loss == pytest.approx(metrics["test"]["loss"], abs=1e-6)


def check_predictions_add_up(run: Run, model: linnaeus.Classifier, metrics: dict[str, Any]) -> None:
    """Predicting the image files gives as many correct images as metrics.json."""
    with (run.path / "split.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for split in ("valid", "test"):
        of_split = [row for row in rows if row["split"] == split]
        found = model.predict([row["path"] for row in of_split])
        right = sum(model.classes[p.index] == row["label"] for p, row in zip(found, of_split, strict=True))
        assert (len(of_split), right) == (metrics[split]["n"], metrics[split]["correct"])
        likely = [
            (p.probabilities if p.probabilities is not None else np.zeros(3))[model.classes.index(row["label"])]
            for p, row in zip(found, of_split, strict=True)
        ]
        loss = -np.log(likely).mean()
        assert loss == pytest.approx(metrics[split]["loss"], abs=1e-5)


@pytest.mark.usefixtures("undrawn_runs")
def test_a_run_is_repeated_to_the_bit_by_its_recipe(idx: Path, tmp_path: Path):
    """Its recipe.toml repeats it, with augmentation and mixup; another seed gives another result."""
    augment = {"rotate": 20, "hflip": 0.5, "erase": 0.3}
    recipe = write_recipe(
        tmp_path / "r.toml", {"augment": augment, "mixup": 0.2, "ema": 0.8}, {"train": ["head"], "epochs": 1}
    )
    first = train(idx, recipe, tmp_path / "one", seed=3)
    second = train(idx, first.path / "recipe.toml", tmp_path / "two")
    other = train(idx, recipe, tmp_path / "three", seed=4)
    assert (first.path / "recipe.toml").read_bytes() == (second.path / "recipe.toml").read_bytes()
    assert same(weights(first.path), weights(second.path))
    assert not same(weights(first.path), weights(other.path))

    def rows(run: Run) -> list[str]:  # without the durations
        return [line.rpartition(",")[0] for line in (run.path / "history.csv").read_text().splitlines()]

    assert rows(first) == rows(second)
    assert rows(first) != rows(other)
    assert first.figures == second.figures


def collected(monkeypatch: pytest.MonkeyPatch, valid: list[tuple[float, float, float]] | None = None) -> list:
    """Collect the state after each epoch; `valid` replaces the metrics (accuracy, balanced accuracy, loss)."""
    from linnaeus.training import loop, phases

    states: list[dict[str, torch.Tensor]] = []
    real_fit = loop.fit

    def fit(net, *args, **kwargs):
        for epoch in real_fit(net, *args, **kwargs):
            if valid is not None:
                accuracy, balanced, loss = valid[len(states)]
                epoch.valid = Figures(12, round(12 * accuracy), accuracy, (0, 1), None, balanced, loss)
            states.append({name: tensor.clone() for name, tensor in epoch.model.state_dict().items()})
            yield epoch

    monkeypatch.setattr(phases, "fit", fit)
    return states


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize(("by", "expected"), [("accuracy", 3), ("balanced_accuracy", 2), ("loss", 4)])
def test_the_file_holds_the_best_model_not_the_last(
    by: str, expected: int, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the metric of the recipe; ties go to the lower loss, then to the earlier epoch."""
    figures = [(0.5, 0.8, 0.9), (0.75, 0.9, 0.8), (0.75, 0.7, 0.5), (0.5, 0.5, 0.4), (0.75, 0.7, 0.5)]
    states = collected(monkeypatch, figures)
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 5, "lr": 1e-3}, best=by), tmp_path / "run")
    assert (run.best.phase, run.best.epoch) == (1, expected)
    assert same(weights(run.path), states[expected - 1])
    assert not same(weights(run.path), states[-1])


def test_ties():
    def figures(accuracy: float, loss: float) -> Figures:
        return Figures(10, round(10 * accuracy), accuracy, (0, 1), None, accuracy, loss)

    best = Best("accuracy")
    assert best.beaten_by(figures(0.0, 9.0))
    best.keep(figures(0.5, 1.0), 1, 1, mini(), ("head",))
    assert best.beaten_by(figures(0.6, 2.0))
    assert best.beaten_by(figures(0.5, 0.9))
    assert not best.beaten_by(figures(0.5, 1.0))
    assert not best.beaten_by(figures(0.4, 0.1))


@pytest.mark.usefixtures("undrawn_runs")
def test_each_phase_starts_from_the_best_so_far(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second phase trains only the head, so the blocks are those of the best epoch of the first phase."""
    figures = [(0.5, 0.5, 0.9), (0.9, 0.9, 0.5), (0.5, 0.5, 0.9), (1.0, 1.0, 0.1), (0.0, 0.0, 9.0)]
    states = collected(monkeypatch, figures)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, {"train": ["head"], "epochs": 2})
    run = train(idx, recipe, tmp_path / "run")
    assert (run.best.phase, run.best.epoch) == (2, 1)
    body = {name for name in states[0] if not name.startswith("fc.")}
    for name in body:
        assert torch.equal(states[3][name], states[1][name]), name
        assert not torch.equal(states[3][name], states[2][name]), name
    assert not torch.equal(states[3]["fc.weight"], states[1]["fc.weight"])
    assert same(weights(run.path), states[3])


@pytest.mark.usefixtures("undrawn_runs")
def test_auxiliary_heads_are_not_in_the_model_file(tmp_path: Path):
    idx = write_idx(tmp_path / "small", train=20, test=6)
    more = {"model": {"name": "inception_v1", "arguments": {"aux": True}}}
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}, **more), tmp_path / "run")
    assert not any("aux" in name for name in weights(run.path))
    about = linnaeus.load(run.path).about
    assert about.arch["arguments"]["aux"] is False
    assert about.recipe["model"]["arguments"]["aux"] is True  # the recipe repeats the run, with auxiliary heads


@pytest.mark.usefixtures("undrawn_runs")
def test_a_batch_above_the_number_of_images(idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = str(write_recipe(tmp_path / "r.toml", {"epochs": 1, "batch": 5000}))
    run = linnaeus.train(idx, recipe, out=tmp_path / "run", console=Console())
    said = capsys.readouterr().out
    assert "1 epoch of 1 step; batch (108, 1, 28, 28) float32; batch = 5,000 exceeds the 108 images, so each" in said
    assert "micro-batches" not in said
    assert json.loads((run.path / "metrics.json").read_text())["micro_batch"] == {"phase 1": 108}


def stopping(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after epoch `after` has been recorded."""
    add = RunFolder.add

    def stop(folder: RunFolder, row: Row) -> None:
        add(folder, row)
        if len(folder.rows) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "add", stop)


@pytest.mark.usefixtures("undrawn_runs")
def test_an_interrupted_run_keeps_the_best_so_far(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    states = collected(monkeypatch, [(0.9, 0.9, 0.5), (0.5, 0.5, 0.9), (1.0, 1.0, 0.1)])
    stopping(3, monkeypatch)
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 9}), tmp_path / "run")
    assert run.interrupted
    assert (run.best.phase, run.best.epoch) == (1, 1)
    assert same(weights(run.path), states[0])
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["interrupted"] is True
    assert len(history(run.path)) == 3


def test_a_run_stopped_before_its_first_epoch_is_an_error(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopping(1, monkeypatch)
    with pytest.raises(JobError, match="stopped before the end of the first epoch"):
        train(idx, write_recipe(tmp_path / "r.toml"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ctrl_c_ends_the_command_cleanly(times: int, tmp_path: Path):
    """A real signal to a real process: exit status 130, no traceback, and a model that loads."""
    idx = write_idx(tmp_path / "idx")
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 100_000})
    command = [sys.executable, "-m", "linnaeus", "train", str(idx), "--recipe", str(recipe)]
    command += ["--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            end = time.monotonic() + 60
            while not (tmp_path / "run" / "model.safetensors").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end, "no model within a minute"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            if times == 2:  # a second time, during the final evaluation
                assert process.stdout is not None
                while "Ctrl-C again" not in process.stdout.readline():
                    pass
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # otherwise a failure would wait for 100,000 epochs
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert times == 1 or err.splitlines()[-1] == "stopped"
    assert linnaeus.load(tmp_path / "run").predict(samples(1)[0][0]).error is None
    if times == 1:
        assert "the best model so far is kept" in out
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["interrupted"] is True


@pytest.mark.usefixtures("undrawn_runs")
def test_a_diverging_loss_keeps_the_best_model(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, {"optimizer": "sgd", "lr": 1e30})
    with pytest.raises(JobError, match=r"learning rate 1e\+30.*the best model so far \(phase 1, epoch 1\) is in .*run"):
        train(idx, recipe, tmp_path / "run")
    assert linnaeus.load(tmp_path / "run").about.metrics["valid"]["n"] == 12
    with pytest.raises(JobError, match="not finite"):
        train(idx, recipe, tmp_path / "two", settings={"phase.1.lr": 1e30, "phase.1.optimizer": "sgd"})
    assert not (tmp_path / "two" / "model.safetensors").exists()


def with_bad_images(folder: Path) -> Path:
    write_images(folder, each=12)
    good = (folder / "0" / "0 0.png").read_bytes()
    (folder / "0" / "cut.png").write_bytes(good[: len(good) // 2])
    Image.open(folder / "1" / "1 0.png").save(folder / "1" / "x.jpg")
    (folder / "1" / "cut ü.jpg").write_bytes((folder / "1" / "x.jpg").read_bytes()[:300])
    (folder / "2" / "words, 玫瑰.jpg").write_text("this is no image")
    return folder


@pytest.mark.usefixtures("undrawn_runs")
def test_unreadable_images_are_left_out_listed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = with_bad_images(tmp_path / "pictures")
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.2}))
    run = train(source, recipe, tmp_path / "run")
    with (run.path / "bad_images.csv").open(encoding="utf-8", newline="") as file:
        bad = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert bad.keys() == {"0/cut.png", "1/cut ü.jpg", "2/words, 玫瑰.jpg"}
    assert all(bad.values())
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["bad_images"] == 3
    counts = linnaeus.load(run.path).about.data["counts"]
    assert sum(counts.values()) == 3 * 12 + 1
    assert metrics["valid"]["n"] == counts["valid"]
    assert "3 unreadable images" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"3 unreadable images.*--strict"):
        train(source, recipe, tmp_path / "strict", strict=True)


def test_a_class_without_a_readable_image_is_named(tmp_path: Path):
    source = write_images(tmp_path / "pictures", each=6)
    for file in (source / "1").iterdir():
        file.write_text("no image")
    with pytest.raises(UserError, match="no readable training image of 1"):
        train(source, write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.4})), tmp_path / "run")


@pytest.mark.usefixtures("undrawn_runs")
def test_selecting_on_the_test_images_is_reported(idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}, **settings(valid="test")), tmp_path / "run")
    assert set(run.figures) == {"valid"}
    assert run.figures["valid"].n == 30
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["selected_on"] == "test"
    assert "selected on the test images" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn_runs")
def test_normalization_by_the_data(idx: Path, tmp_path: Path):
    """The model file holds mean and standard deviation of the training pixels only."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, **settings(normalize="data"))
    run = train(idx, recipe, tmp_path / "run")
    with (run.path / "split.csv").open() as file:
        split = [row["split"] for row in csv.DictReader(file)]
    training = samples(120, seed=1)[0][[part == "train" for part in split[:120]]] / 255
    found = linnaeus.load(run.path).preprocessing
    assert found.mean == pytest.approx((training.mean(),), abs=1e-4)
    assert found.std == pytest.approx((training.std(),), abs=1e-4)


def build(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784 * channels, 16), nn.ReLU(), nn.Linear(16, classes))


@pytest.mark.usefixtures("undrawn_runs")
def test_a_custom_network(idx: Path, tmp_path: Path):
    """As a module and as file.py:function; predicting with it needs its code."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3, "lr": 1e-3})
    code = tmp_path / "my nets" / "net.py"
    code.parent.mkdir()
    code.write_text(
        "from torch import nn\n\ndef build(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784 * channels, 16), nn.ReLU(), nn.Linear(16, classes))\n"
    )
    image = samples(1)[0][0]
    for out, given in (("module", build(3, 1)), ("file", f"{code}:build")):
        run = train(idx, recipe, tmp_path / out, model=given)
        assert run.valid.accuracy > 0.5
        with pytest.raises(UserError, match="your own code"):
            linnaeus.load(run.path)
        if isinstance(given, nn.Module):  # the module holds the best weights now
            x = torch.from_numpy(image / 255).float()[None, None]
            again = linnaeus.load(run.path, device="cpu", model=build(3, 1))
            expected = (given.eval()(x) / again.temperature).softmax(1)[0].detach().numpy()
            assert again.predict(image).probabilities == pytest.approx(expected, rel=1e-5)
    answers = tmp_path / "answers.jsonl"
    Image.fromarray(image).save(tmp_path / "a.png")
    from click.testing import CliRunner

    from linnaeus.cli.main import cli

    arguments = ["predict", str(tmp_path / "file"), str(tmp_path / "a.png"), "--model", f"{code}:build"]
    result = CliRunner().invoke(cli, [*arguments, "--format", "jsonl", "--out", str(answers)])
    assert result.exit_code == 0, result.output
    assert json.loads(answers.read_text())["error"] is None


@pytest.mark.usefixtures("undrawn_runs")
def test_wrong_input_is_found_before_anything_is_written(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "resnet5"}, "did you mean"),
        ({"settings": {"phase.1.train": ["heads"]}}, "'heads' is not a stage"),
        ({"settings": {"phase.1.norms": "frozen"}}, 'phase.norms = "frozen": mini_resnet has no BatchNorm'),
        ({"settings": {"data.sizes": 3}}, "unknown key"),
        ({"epochs": "3,4"}, "--epochs 3,4: .* has 1 phase"),
        ({"epochs": "x"}, "--epochs x"),
        ({"device": "tpu"}, "--device tpu"),
        ({"out": tmp_path / "there"}, "already exists"),
        ({"model": str(tmp_path / "no.py") + ":f"}, "there is no such file"),
        ({"weights": "imagenot"}, "imagenot"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            linnaeus.train(idx, str(recipe), **{"out": tmp_path / "new", "console": QUIET, "device": "cpu", **change})
        assert not (tmp_path / "new").exists(), change


@pytest.mark.usefixtures("undrawn_runs")
def test_training_images_may_be_larger_than_those_of_validation(tmp_path: Path):
    source = write_images(tmp_path / "pictures", each=10)
    data = settings(train_resize=36, split={"valid": 0.2})
    recipe = write_recipe(tmp_path / "r.toml", {"augment": {"crop_scale": [0.5, 1.0]}}, **data)
    run = train(source, recipe, tmp_path / "run")
    assert run.valid.n == 6
    assert linnaeus.load(run.path).preprocessing.resize == 28
    assert len(list(expand([str(source)]))) == 30


def test_final_figures_are_those_of_evaluate_in_any_precision(tmp_path: Path, idx: Path, undrawn_runs: None):
    """Training in bfloat16, whose loss differs from that of float32 in the third digit."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, precision="bf16-mixed", **settings())
    run = train(idx, recipe, tmp_path / "run")
    assert run.load().classes == linnaeus.load(run.path).classes
    assert f"run {run.path}" in run._repr_html_()
    assert len(repr(run)) < len(str(run.path)) + 120
    assert f"of {run.valid.n:,} images" in repr(run)
    assert len(repr(run.best)) < 60
    model = run.load()
    assert repr(model) == f"Classifier({str(model.path)!r}, {model.about.arch['name']}, {len(model.classes)} classes)"
    evaluated = linnaeus.load(run.path, device="cpu").evaluate(idx, split="test")
    assert run.test is not None
    assert run.test.loss == pytest.approx(evaluated.loss, rel=1e-6)


def test_the_duration_of_a_phase_is_estimated_after_the_warm_up(
    tmp_path: Path, idx: Path, undrawn_runs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first steps search for kernels: an estimate that counts them was 14 minutes for a run of 59 s. After the
    first epoch the model is written."""
    intervals = [500.0, 90.0, 20.0, *[13.0] * 4, 1000.0, *[13.0] * 6, 2000.0, *[99.0] * 13]
    now = itertools.accumulate(intervals)
    monkeypatch.setattr("linnaeus.training.phases.StepTimer", lambda: StepTimer(lambda: next(now)))
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 4}, **settings())
    linnaeus.train(idx, str(recipe), out=tmp_path / "run", device="cpu", console=Console(stream=sys.stdout))
    line = next(line for line in capsys.readouterr().out.splitlines() if "for this phase" in line)
    steps = 4 * 7
    assert line == f"  about {duration(13 * steps * (1 + 12 / (3 * 108)))} for this phase"


def test_the_figures_are_printed_before_plots_are_drawn(
    idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    printed: list[str] = []
    monkeypatch.setattr(finalize, "_draw_plots", lambda *rest: printed.append(capsys.readouterr().out))
    linnaeus.train(idx, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=Console())
    lines = printed[0].splitlines()
    assert any(line.startswith("valid  ") for line in lines)
    assert any(line.startswith("certainty ") for line in lines)


def test_a_run_without_a_report_has_the_figures_and_no_plots(idx: Path, say, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml")
    said = say("train", idx, "--recipe", recipe, "--no-report", "--out", tmp_path / "run")
    assert said.status == 0
    assert said.out.count("\nvalid  ") == 1
    files = {file.suffix for file in (tmp_path / "run").iterdir()}
    assert ".safetensors" in files
    assert not files & {".png", ".html"}


def test_the_report_does_not_read_the_model_file_again(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The final evaluation has read it: a second time takes 0.4 s with ResNet-50."""

    def read(*args: Any) -> None:
        raise AssertionError("reads the model file")

    monkeypatch.setattr("linnaeus.inference.classifier.read_model", read)
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run")
    assert (run.path / "report.html").is_file()
