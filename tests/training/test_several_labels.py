"""Runs on images with several labels: from the CSV to the files of the run, predictions and evaluation."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import phase, write_label_sets, write_recipe

import linnaeus
from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError
from linnaeus.export.gate import Comparison
from linnaeus.inference.evaluate import _figures
from linnaeus.metrics.multilabel import LabelFigures, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.safetensors import read_header
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import Problems, objective
from linnaeus.text import percent
from linnaeus.training.finish.label_evaluation import HEADLINE, LabelEvaluation
from linnaeus.training.loss import Criterion

pytestmark = pytest.mark.usefixtures("undrawn_runs")
CPU = ("--device", "cpu")
SOLVED: dict[str, Any] = {"train": ["head"], "head": "auto", "epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: three epochs of everything, then a solved head."""
    root = tmp_path_factory.mktemp("several")
    source = write_label_sets(root / "data", 180, patients=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINNAEUS_CACHE", str(root / "cache"))
        recipe = write_recipe(root / "r.toml", {"epochs": 5, "lr": 5e-3, "optimizer": "adam"}, SOLVED)
        split = {"data.split.groups": "patient", "data.split.valid": 0.25, "data.split.test": 0.15}
        linnaeus.train(source, str(recipe), out=root / "run", settings=split, device="cpu", draw=False)
    return root / "run"


def test_the_files_of_a_run(run: Path):
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    assert (recipe["data"]["task"], recipe["best"]) == ("multi-label", "map")
    metrics = json.loads((run / "metrics.json").read_text())
    header = read_header(run / "model.safetensors")
    assert header.task == metrics["task"] == "multi-label"
    assert header.calibration == metrics["calibration"]
    assert [set(label) for label in metrics["calibration"]["labels"]] == [{"scale", "offset", "threshold"}] * 4
    for split in ("valid", "test"):
        found = metrics[split]
        assert found["map"] > 0.97, split  # the squares are plain to see
        assert found["map_ci95"] is None or found["map_ci95"][0] <= found["map"] <= found["map_ci95"][1]
        assert found["groups"] < found["n"]
        assert header.metrics[split]["map"] == pytest.approx(found["map"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert [label["class"] for label in evaluation["valid"]["classes"]] == ["p0", "p1", "p2", "p3"]
    together = np.array(evaluation["valid"]["together"])
    assert (together == together.T).all()
    assert [label["support"] for label in evaluation["valid"]["classes"]] == np.diag(together).tolist()
    with (run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["valid_map"]) > 0.5 for row in rows] == [True] * 6
    with (run / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == metrics["valid"]["n"] + metrics["test"]["n"]


def test_train_prints_the_intervals_that_evaluate_has():
    rng = np.random.default_rng(0)
    labels = rng.random((80, 3)) < 0.4
    outputs = Outputs(labels, (labels + rng.normal(0, 1, (80, 3)) - 0.5).astype(np.float32))
    evaluation = LabelEvaluation({"valid": outputs}, ["a", "b", "c"], None)
    metrics = evaluation.assessments["valid"].metrics
    intervals = [metrics[name].ci95 or (0.0, 1.0) for name in HEADLINE]
    stated = [f"{percent(low)} to {percent(high)}" for low, high in intervals]
    line = "interval  valid, 95 %: mAP {}, macro F1 {}, all labels right {}"
    assert evaluation.lines()[0] == line.format(*stated)
    assert evaluation.lines()[-1].startswith("unknown   not recognized with several labels per image")


def test_figures_of_some_images_count_no_thresholds_that_they_chose_themselves():
    """Without leaks, or apart from unseen images: of noise, the best thresholds on the images themselves look good."""
    rng = np.random.default_rng(0)
    outputs = Outputs(rng.random((40, 4)) < 0.2, rng.normal(0, 1, (40, 4)).astype(np.float32))
    evaluation = LabelEvaluation({"valid": outputs}, list("abcd"), None)
    everything, calibration = np.ones(40, bool), evaluation.calibration
    whole = evaluation.assessments["valid"].figures
    flattering = label_figures(
        evaluation.calibrated["valid"], calibration.decide(calibration.apply(outputs).probabilities)
    )
    assert flattering.macro_f1 > whole.macro_f1 + 0.1
    assert evaluation.measure("valid", everything) == whole
    classifier = SimpleNamespace(label_calibration=calibration)
    assert _figures(cast(Any, classifier), outputs, True) == whole


def test_predict_and_evaluate_agree_with_the_run(run: Path, say, tmp_path: Path):
    with (run / "predictions.csv").open(newline="") as file:
        written = {row["sample"]: row for row in csv.DictReader(file)}
    folder = run.parent / "data"
    names = [*[name for name, row in written.items() if row["split"] == "test"][:3], "0.png", "1.png"]
    images = [str(folder / name) for name in names]
    lines = [json.loads(line) for line in say("predict", run, *images, "--format", "jsonl", *CPU).out.splitlines()]
    for name, line in zip(names[:3], lines, strict=False):
        assert sorted(line["labels"]) == sorted(filter(None, written[name]["predicted"].split("|")))
        for label in line["top"]:
            assert label["probability"] == pytest.approx(
                float(written[name][f"probability of {label['class']}"]), abs=1e-5
            )
    assert lines[3]["labels"] == []  # an image without any square
    assert sorted(lines[4]["labels"]) == ["p0", "p1", "p2", "p3"]
    assert sum(label["probability"] for label in lines[4]["top"]) > 2  # no softmax
    text = say("predict", run, *images, *CPU).out.splitlines()
    assert text[3].endswith("0.png  no label")
    assert text[4].count("%") == 4
    out = tmp_path / "p.csv"
    assert say("predict", run, *images, "--out", out, *CPU).status == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[4]["labels"].count("|") == 3
    assert say("predict", run, *images, "--out", out, *CPU).status == 0  # continued: nothing is predicted again
    evaluated = say("evaluate", run, folder / "all.csv", "--json", tmp_path / "e.json", *CPU)
    assert evaluated.status == 0, evaluated.err
    assert "mean average precision (mAP)" in evaluated.out
    found = json.loads((tmp_path / "e.json").read_text())
    (split,) = (name for name in found if name != "valid")
    metrics = json.loads((run / "metrics.json").read_text())
    assert found[split]["map"] == pytest.approx(metrics["test"]["map"])
    assert found[split]["macro_f1"] == pytest.approx(metrics["test"]["macro_f1"])
    refused = say("evaluate", run, folder / "all.csv", "--tta", *CPU)
    assert (refused.status, refused.err.count("error:")) == (2, 1)
    assert "--tta does not support" in refused.err
    refused = say("evaluate", run, folder / "all.csv", "--outside", folder, *CPU)
    assert "several labels, for which nothing is called unknown; leave out --outside" in refused.err


def test_labels_that_no_image_of_a_source_has_are_named(run: Path, say, tmp_path: Path):
    """Where only some of the labels were looked for, the figures over all labels are wrong."""
    source = write_label_sets(tmp_path / "data", 30, labels=2, seed=8)
    said = say("evaluate", run, source, *CPU)
    assert said.status == 0, said.err
    assert f"no image of {source} has the labels 'p2', 'p3': each counts as an image without; if nobody " in said.err
    assert "each counts as" not in say("evaluate", run, run.parent / "data" / "all.csv", *CPU).err


def test_thresholds_that_reach_a_precision(run: Path, tmp_path: Path):
    source = run.parent / "data" / "all.csv"
    recipe = write_recipe(tmp_path / "r.toml", SOLVED)
    found = linnaeus.train(source, str(recipe), out=tmp_path / "run", settings={"label_precision": 0.9}, draw=False)
    calibration = read_header(found.path / "model.safetensors").calibration
    assert calibration is not None
    assert calibration["precision"] == 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phase.1.cutmix": 1.0}, r"phase.1.cutmix = 1 needs one label per image.*use mixup"),
        ({"phase.1.sampling": "balanced"}, r'phase.1.sampling = "balanced" needs one label.*class_weights'),
        ({"best": "balanced_accuracy"}, r'best = "balanced_accuracy" needs one label'),
        (
            {"phase.1.schedule": {"name": "plateau", "monitor": "valid_accuracy"}},
            r"monitor = 'valid_accuracy' needs one",
        ),
        ({"data.task": "single-label", "data.split.groups": "patient"}, r"all.csv:2: .* exactly one class"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(run: Path, tmp_path: Path, settings, message):
    recipe = write_recipe(tmp_path / "r.toml")
    with pytest.raises(UserError, match=message) as error:
        linnaeus.train(
            run.parent / "data" / "all.csv", str(recipe), out=tmp_path / "run", settings=settings, draw=False
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"best": "map"}, {"label_precision": 0.9}])
def test_one_label_per_image_refuses_what_needs_several(idx: Path, tmp_path: Path, settings):
    with pytest.raises(UserError, match="needs images that may have several labels"):
        linnaeus.train(idx, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", settings=settings, draw=False)


def test_the_head_is_solved_as_independent_regressions():
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(120, 6)))
    labels = (x.numpy() @ generator.normal(size=(6, 3)) + generator.normal(size=(120, 3))) > 0.5
    y = torch.from_numpy(labels).double()
    weights = torch.tensor([[0.5, 1.0, 2.0], [3.0, 1.0, 0.7]], dtype=torch.float64)
    problems = Problems(x, y, torch.full((120, 1), 1 / 120, dtype=torch.float64), 3, weights)
    solution = torch.from_numpy(generator.normal(size=(1, 3, 7))).requires_grad_()
    z = x @ solution[0, :, :-1].T + solution[0, :, -1]
    of_pairs = torch.where(y > 0.5, weights[1], weights[0])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, of_pairs, reduction="sum") / 120
    loss = loss + 0.3 / 2 * solution[0, :, :-1].square().sum()
    loss.backward()
    value, gradient = objective(problems, 0.3, solution.detach())
    assert float(value) == pytest.approx(loss.item(), rel=1e-9)
    assert solution.grad is not None
    assert torch.allclose(gradient, solution.grad, atol=1e-12)
    head = fit_linear_probe(x.float().clone(), labels, 3)
    standardized = (x - x.mean(0)) / x.std(0, correction=0)
    for k in range(3):  # scikit-learn penalizes |w|^2 / 2 and multiplies the summed loss by C
        alone = LogisticRegression(C=1 / (120 * head.penalty), tol=1e-8).fit(standardized.numpy(), labels[:, k])
        z = x.numpy() @ head.weight[k].numpy() + float(head.bias[k])
        assert np.allclose(z, alone.decision_function(standardized.numpy()), atol=0.02)


def test_binary_cross_entropy_with_smoothing_and_balanced_weights():
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], bool)
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.5, 0.7], [0.2, 0.0]])
    criterion = Criterion(phase(class_weights="balanced", label_smoothing=0.2), labels, 2, torch.device("cpu"))
    p = torch.sigmoid(logits).numpy()
    target = labels * 0.8 + 0.1
    weight = np.where(labels, 4 / (2 * labels.sum(0)), 4 / (2 * (~labels).sum(0)))
    expected = -(weight * (target * np.log(p) + (1 - target) * np.log(1 - p))).sum()
    assert float(criterion(logits, torch.from_numpy(labels))) == pytest.approx(expected, rel=1e-5)


def test_mixup_smoothing_ema_and_weights_train(run: Path, tmp_path: Path):
    phase_ = {"epochs": 2, "mixup": 0.2, "label_smoothing": 0.1, "ema": 0.9, "class_weights": "balanced"}
    recipe = write_recipe(tmp_path / "r.toml", phase_)
    found = linnaeus.train(run.parent / "data" / "all.csv", str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    assert isinstance(found.valid, LabelFigures)
    assert found.valid.map > 0.4


def test_the_onnx_file_has_independent_probabilities_and_passes_the_gate(run: Path, say, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    source = run.parent / "data" / "all.csv"
    out = tmp_path / "model.onnx"
    said = say("export", run, "--to", "onnx", "--data", source, "--split", "all", "--out", out)
    assert said.status == 0, said.err
    images = [str(run.parent / "data" / name) for name in ("0.png", "1.png", "7.png")]
    ours, theirs = (linnaeus.load(path, device="cpu").predict(images) for path in (run, out))
    for a, b in zip(ours, theirs, strict=True):
        assert a.probabilities is not None
        assert b.probabilities is not None
        assert np.allclose(a.probabilities, b.probabilities, atol=1e-4)
        assert a.labels == b.labels
    assert ours[1].probabilities is not None
    assert ours[1].probabilities.sum() > 2
    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    pixels = np.zeros((1, 28, 28, 1), np.uint8)
    probabilities, logits = session.run(["probabilities", "logits"], {"images": pixels})
    calibration = linnaeus.load(run, device="cpu").label_calibration
    assert calibration is not None
    expected = 1 / (1 + np.exp(-(logits * calibration.scale + calibration.offset)))
    assert np.allclose(probabilities, expected, atol=1e-5)


def test_the_gate_compares_labels_at_their_thresholds():
    y = np.zeros((4, 2), bool)
    original = Outputs(y, np.array([[2.0, -2.0], [2.0, -2.0], [2.0, -2.0], [2.0, 0.01]]))
    export = Outputs(y, np.array([[2.0, -2.0], [2.0, 3.0], [2.0, -2.0], [2.0, -0.01]]))
    found = Comparison.of(original, export, np.array([0.5, 0.5]))
    assert (found.differing, found.clearly, found.n) == (2, 1, 4)
    assert found.unsure is None
    assert found.largest > 0.8


def test_one_map_for_each_label(run: Path, say, tmp_path: Path):
    image = run.parent / "data" / "1.png"
    said = say("explain", run, image, "--out", tmp_path / "x", "--json", tmp_path / "x.json", *CPU)
    assert said.status == 0, said.err
    records = json.loads((tmp_path / "x.json").read_text())
    assert sorted(record["explained"]["class"] for record in records) == ["p0", "p1", "p2", "p3"]
    assert len(list((tmp_path / "x").glob("*.png"))) == 4
    chosen = say("explain", run, image, "--class", "p2", "--out", tmp_path / "y", *CPU)
    assert "for p2" in chosen.out
    none = say("explain", run, run.parent / "data" / "0.png", "--out", tmp_path / "z", *CPU)
    assert none.out.startswith("no label")


def test_the_scikit_learn_estimator_takes_and_gives_an_indicator(run: Path, tmp_path: Path):
    from linnaeus.sklearn import ImageClassifier

    table = open_source(run.parent / "data" / "all.csv", labels=LabelFormat("multi-label"))
    assert table.paths is not None
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3, "lr": 5e-3, "optimizer": "adam"}, SOLVED)
    paths = list(table.paths)
    model = ImageClassifier(str(recipe), device="cpu").fit(paths, table.labels.astype(int))
    predicted, probabilities = model.predict(paths[:20]), model.predict_proba(paths[:20])
    assert predicted.shape == probabilities.shape == (20, 4)
    assert set(predicted.ravel().tolist()) <= {0, 1}
    assert probabilities.sum(1).max() > 1.1
    assert "map" in model.metrics_
    with pytest.raises(UserError, match="must be 0 or 1"):
        ImageClassifier(str(recipe), device="cpu").fit(paths, table.labels * 2)


def test_a_sweep_is_selected_by_map(run: Path, tmp_path: Path, say):
    pytest.importorskip("optuna")
    recipe, out = write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "s"
    space = tmp_path / "space.toml"
    space.write_text('"phase.1.lr" = { choices = [1e-3, 5e-3] }')
    source = run.parent / "data" / "all.csv"
    said = say("sweep", source, "--recipe", recipe, "--space", space, "--trials", 2, "--out", out, "--device", "cpu")
    assert said.status == 0, said.err
    best = (out / "best.toml").read_text()
    assert "best by mean average precision" in best
    assert 'best = "map"' in best
    assert re.search(r"^best      trial \d, validation mAP [\d.]+ % over 4 labels", said.out, re.M)


def test_shards_and_probe_refuse_several_labels(run: Path, say, tmp_path: Path):
    source = run.parent / "data" / "all.csv"
    for arguments in (
        ("data", "shard", source, "--out", tmp_path / "shards"),
        ("probe", source, "--backbones", "resnet18"),
    ):
        said = say(*arguments)
        assert said.status == 2, arguments
        assert "several labels" in said.err.splitlines()[-1], said.err


def test_check_counts_images_not_labels(run: Path, say, tmp_path: Path):
    said = say("check", run.parent / "data" / "all.csv", "--json", tmp_path / "check.json")
    assert "180 images of 4 classes (unsplit 180)" in said.out
    assert json.loads((tmp_path / "check.json").read_text())["splits"] == {"unsplit": 180}
