"""A run stores a detector of unknown images, which prediction and commands use; older files have none."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import in_child
from tiny import mini, settings, write_idx, write_images, write_recipe, write_tiny_model
from torch import nn

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.inference.evaluate import evaluate_model
from linnaeus.inference.runners import Scores, network_scores
from linnaeus.metrics.ood import auroc
from linnaeus.metrics.reference_vectors import MOST_BYTES
from linnaeus.modelfile.safetensors import ModelFile, read_model, write_model
from linnaeus.modelfile.unknown import REFERENCES, THUMBNAILS
from linnaeus.models import Network
from linnaeus.models.weights.files import read_weights
from linnaeus.report.page import write_report
from linnaeus.runs.predictions import read_predictions
from linnaeus.runs.reader import read_run
from linnaeus.training.finish.leave_class_out import leave_classes_out
from linnaeus.training.finish.unknown import SAMPLE, balanced_sample, sample_size
from linnaeus.training.run import Run, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("unknown")
    write_idx(folder / "idx", train=300, test=60)
    recipe = write_recipe(folder / "r.toml", {"epochs": 3})
    return train(folder / "idx", str(recipe), out=folder / "run", draw=False)


def noise(n: int = 40) -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 2, (n, 28, 28), dtype=np.uint8) * 255)


def test_the_run_accepts_its_kind_and_rejects_another(run: Run):
    model = load(run.path)
    assert model.detector is not None
    thresholds = model.detector.thresholds
    assert 0.94 <= thresholds.accepted / thresholds.n <= 1
    found = model.predict(noise())
    assert np.mean([p.unknown for p in found]) > 0.9
    assert all(p.distance is not None and p.distance > 0 for p in found)
    metrics = json.loads((run.path / "metrics.json").read_text())["unknown"]
    assert metrics["known"]["test"]["n"] == 60
    assert metrics["known"]["test"]["share"] > 0.8
    assert metrics["left_out_classes"]["of"] == 3
    assert 0 <= metrics["left_out_classes"]["auroc"]["combined"] <= 1
    assert metrics["trained_features"] is True
    assert "trained_features" not in metrics["left_out_classes"], "stated once"


def test_every_count_is_of_the_same_procedure(tmp_path: Path):
    """Unknown first, then unsure, then a class: in the rule, in the figures, in `evaluate` and in the report."""
    write_idx(tmp_path / "idx", train=300, test=60)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, **settings(split={"valid": 0.4}))
    run = train(tmp_path / "idx", str(recipe), out=tmp_path / "run", draw=False)
    metrics = json.loads((run.path / "metrics.json").read_text())
    rule, known = metrics["calibration"]["abstention"], metrics["unknown"]["known"]["valid"]
    assert rule["n"] == known["accepted"] < known["n"] == rule["n"] + rule["unknown"]
    model = load(run.path)
    evaluation = evaluate_model(model, model.images(tmp_path / "idx", "test"), console=Console(silent=True))
    assert evaluation is not None
    assert evaluation.verdicts is not None
    counts = evaluation.verdicts.to_dict()
    here = metrics["test"]["abstention"]
    assert here["unknown"] == counts["unknown"]["n"] > 0
    point = here["measured"]["tested"] or here["measured"]["uncorrected"] or here["measured"]["estimated"]
    assert (point["answered"], point["wrong"]) == (
        counts["class"]["n"],
        counts["class"]["n"] - counts["class"]["correct"],
    )
    assert evaluation.assessment.to_dict()["abstention"]["measured"] == here["measured"]
    contents = read_run(run.path)
    found = Counter(contents.verdict(row) for row in contents.predictions["test"])
    assert found == Counter({"": counts["class"]["n"], "unsure": counts["unsure"]["n"], "unknown": here["unknown"]})
    frame = model.evaluate(tmp_path / "idx", "test").to_pandas()
    assert frame["unknown"].sum() == here["unknown"]
    line = next(line for line in run.trust if line.startswith("unknown "))
    assert line.endswith("; optimistic: the features were trained on all classes)")


def test_a_file_that_is_overwritten_does_not_change_the_model_that_was_loaded(run: Run, tmp_path: Path):
    """As by `cp` over the model of a server, which empties the file first."""
    file = Path(shutil.copy(run.path / "model.safetensors", tmp_path / "m.safetensors"))

    def work() -> None:
        model = load(file, device="cpu")
        os.truncate(file, 0)
        assert all(p.distance is not None and p.distance > 0 for p in model.predict(noise()))

    assert in_child(work) == 0


def test_the_thresholds_in_the_file_reproduce_what_validation_accepted(run: Run):
    """Distances are computed by different code after training and in prediction; both must agree."""
    model = load(run.path)
    images = model.images(run.path.parent / "idx", "valid")
    rows, shapes = images.rows.gather(np.arange(len(images.labels)))
    found = model.answers(model.preprocessing.crop(torch.from_numpy(rows), shapes).numpy())
    assert model.detector is not None
    t = model.detector.thresholds
    distance = np.array([answer.distance for answer in found])
    unknown = t.unknown(distance, np.array([answer.probabilities.max() for answer in found]))
    assert int((~unknown).sum()) == t.accepted
    assert len(found) == t.n


def test_small_images_pass_through_the_network_once_at_the_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batches: list[int] = []

    def counted(network: Network, references: np.ndarray | None, x: torch.Tensor, *more: Any) -> Scores:
        batches.append(len(x))
        return network_scores(network, references, x, *more)

    monkeypatch.setattr("linnaeus.training.finish.measuring.network_scores", counted)
    monkeypatch.setattr("linnaeus.training.finish.unknown.network_scores", counted, raising=False)
    again = train(run.path.parent / "idx", str(run.path / "recipe.toml"), out=tmp_path / "run", draw=False)
    detector = load(again.path).detector
    assert detector is not None
    assert detector.thumbnails is not None
    assert sum(batches) == again.valid.n + (again.test.n if again.test else 0)


def test_every_format_marks_unknown_images(run: Run, say, tmp_path: Path):
    from PIL import Image

    Image.fromarray(noise(1)[0]).save(tmp_path / "noise.png")
    assert "unknown (" in say("predict", run.path, tmp_path / "noise.png").out
    assert "noise.png  unknown" in say("predict", run.path, tmp_path / "noise.png", "--top", "2").out
    answer = json.loads(say("predict", run.path, tmp_path / "noise.png", "--format", "jsonl").out)
    assert answer["unknown"] is True
    assert answer["distance"] > 0
    (row,) = csv.DictReader(say("predict", run.path, tmp_path / "noise.png", "--format", "csv").out.splitlines())
    assert row["unknown"] == "1"
    assert float(row["distance"]) == pytest.approx(answer["distance"], abs=1e-5)


def test_a_csv_file_of_an_earlier_version_is_continued_with_its_columns(run: Run, say, tmp_path: Path):
    write_images(tmp_path / "images", ("0",), each=2)
    first, second = sorted((tmp_path / "images" / "0").iterdir())
    out = tmp_path / "out.csv"
    assert say("predict", run.path, first, "--out", out).status == 0
    lines = [line.rsplit(",", 2)[0] for line in out.read_text().splitlines()]
    out.write_text("\n".join(lines) + "\n")
    assert say("predict", run.path, first, second, "--out", out).status == 0
    rows = list(csv.reader(out.read_text().splitlines()))
    assert len(rows) == 3
    assert {len(row) for row in rows} == {6}


def test_a_model_without_a_detector_calls_nothing_unknown(tmp_path: Path):
    model = load(write_tiny_model(tmp_path / "model.safetensors"))
    prediction = model.predict(noise(1)[0])
    assert (prediction.unknown, prediction.distance, prediction.to_dict()["unknown"]) == (False, None, None)


def test_the_references_are_no_weights(run: Run, tmp_path: Path):
    weights, _ = read_weights(run.path / "model.safetensors")
    assert REFERENCES not in weights
    network, about = read_model(run.path / "model.safetensors")
    assert about.unknown_tensors[REFERENCES].dtype == torch.float16
    assert about.unknown is not None
    about.unknown = {**about.unknown, "references": about.unknown["references"] + 1}
    write_model(tmp_path / "m.safetensors", network.state_dict(), about)
    with pytest.raises(UserError, match=r"m\.safetensors: its tensors for unknown images"):
        read_model(tmp_path / "m.safetensors")


def test_references_of_other_features_are_refused(run: Run, tmp_path: Path):
    network, about = read_model(run.path / "model.safetensors")
    assert about.unknown is not None
    short = about.unknown_tensors[REFERENCES][:, :-1].contiguous()
    about.unknown = {**about.unknown, "features": short.shape[1]}
    about.unknown_tensors = {**about.unknown_tensors, REFERENCES: short}
    write_model(tmp_path / "m.safetensors", network.state_dict(), about)
    with pytest.raises(UserError, match="features"):
        load(tmp_path / "m.safetensors")


def test_thumbnails_are_stored_and_checked(run: Run, tmp_path: Path):
    network, about = read_model(run.path / "model.safetensors")
    assert about.unknown is not None
    assert about.unknown_tensors[THUMBNAILS].shape == (about.unknown["thumbnails"], 64)
    about.unknown = {**about.unknown, "thumbnails": 1}
    write_model(tmp_path / "m.safetensors", network.state_dict(), about)
    with pytest.raises(UserError, match=r"m\.safetensors: its tensors for unknown images"):
        read_model(tmp_path / "m.safetensors")


def test_a_network_of_one_piece_has_the_probability_alone(tmp_path: Path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(784, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    module = Whole()
    write_idx(tmp_path / "idx")
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1, "train": ["all"]})
    out = train(tmp_path / "idx", str(recipe), model=module, out=tmp_path / "run", draw=False).path
    model = load(out, model=Whole())
    assert model.detector is not None
    assert model.detector.thresholds.distance is None
    assert model.predict(noise(1)[0]).distance is None


def test_a_head_on_frozen_stages_uses_the_stored_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_idx(tmp_path / "idx")
    weights = mini(seed=3)
    write_model(
        tmp_path / "w.safetensors",
        weights.state_dict(),
        ModelFile(
            weights.arch,
            ("0", "1", "2"),
            ("a", "b", "c"),
            load(write_tiny_model(tmp_path / "t.safetensors")).preprocessing,
        ),
    )
    recipe = write_recipe(
        tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1, "views": 2, "augment": {"hflip": 0.5}}
    )
    calls: list[int] = []
    monkeypatch.setattr(Network, "pooled_features", lambda network, x: calls.append(1))
    run = train(
        tmp_path / "idx", str(recipe), weights=str(tmp_path / "w.safetensors"), out=tmp_path / "run", draw=False
    )
    assert not calls
    assert json.loads((run.path / "metrics.json").read_text())["unknown"]["trained_features"] is False


def test_a_class_that_is_unlike_the_others_is_recognized():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    apart = generator.normal(size=(160, 12)) * 0.3 + 4 * np.eye(12)[labels]
    alike = generator.normal(size=(160, 12))
    easy, hard = leave_classes_out(apart, labels), leave_classes_out(alike, labels)
    assert easy is not None
    assert hard is not None
    assert easy.combined.mean() > 0.95
    assert 0.35 < hard.combined.mean() < 0.65
    assert easy.known == 4 * 30
    # In words that need no curve: few images of the strange class pass, or as many as of the known ones.
    assert easy.accepted.mean() < 0.2 < 0.8 < hard.accepted.mean()
    assert easy.to_dict(("a", "b", "c", "d"))["accepted_by_class"] == easy.accepted.tolist()
    assert leave_classes_out(apart[:80], labels[:80]) is None, "two classes: nothing is left to choose between"


def test_a_left_out_class_is_not_compared_with_copies_of_the_references():
    """Ten patients a class with four images each that are nearly the same: known test images are of other patients."""
    generator = np.random.default_rng(0)
    labels, patients = np.repeat(np.arange(4), 40), np.repeat(np.arange(40), 4)
    features = generator.normal(size=(40, 12))[patients] + 0.05 * generator.normal(size=(160, 12))
    left, flattered = leave_classes_out(features, labels, patients), leave_classes_out(features, labels)
    assert left is not None
    assert flattered is not None
    assert flattered.combined.mean() > 0.95
    assert 0.3 < left.combined.mean() < 0.8, "no class is unlike the others"
    assert left.accepted.mean() > 0.7 > 0.2 > flattered.accepted.mean()
    assert leave_classes_out(features, labels, labels) is None, "a patient for each class: none can be held out"


def test_a_sample_holds_every_class():
    labels = np.r_[np.zeros(500, int), np.ones(2, int), np.full(30, 2)]
    chosen = balanced_sample(labels, 60)
    assert np.bincount(labels[chosen]).tolist() == [29, 2, 29]
    assert balanced_sample(labels, 1000).tolist() == list(range(532))


def test_features_of_any_width_fit_the_memory():
    """A head on unpooled maps has hundreds of thousands of features: 2,048 images of a million of them are 8 GB."""
    assert [sample_size(width) for width in (1, 96, 25088, 32768)] == [SAMPLE] * 4
    assert sample_size(131072) == SAMPLE // 4
    assert sample_size(MOST_BYTES // 2) == 64
    assert sample_size(MOST_BYTES // 2 + 1) == 0, "not one reference fits"


def test_images_of_no_class_are_measured_separately(run: Run, say, tmp_path: Path):
    from PIL import Image

    (tmp_path / "far").mkdir()
    for i, image in enumerate(noise()):
        Image.fromarray(image).save(tmp_path / "far" / f"{i}.png")
    (tmp_path / "far" / "broken.png").write_bytes(b"none")
    write_images(tmp_path / "same", each=10, seed=9)
    source, result = run.path.parent / "idx", tmp_path / "result.json"
    outside = ("--outside", tmp_path / "far", "--outside", tmp_path / "same")
    said = say("evaluate", run.path, source, *outside, "--json", result)
    assert said.status == 0, said.err
    assert "40 images of none of the classes, against 60 known ones" in said.out
    assert "broken.png" in said.err
    far, same = json.loads(result.read_text())["outside"]
    assert far["scores"]["combined"]["auroc"] > 0.95 > same["scores"]["combined"]["auroc"]
    low, high = far["scores"]["combined"]["auroc_ci95"]
    assert low <= far["scores"]["combined"]["auroc"] <= high
    assert (far["n"], far["known"]) == (40, 60)
    assert far["let_through"] <= 4 < same["let_through"]
    assert same["known_accepted"] / 60 > 0.8


def test_copies_of_outside_images_narrow_no_interval(run: Run, say, tmp_path: Path):
    """One image of noise in forty files is one image."""
    from PIL import Image

    (tmp_path / "far").mkdir()
    for i in range(40):
        Image.fromarray(noise(1)[0]).save(tmp_path / "far" / f"{i}.png")
    said = say("evaluate", run.path, run.path.parent / "idx", "--outside", tmp_path / "far", "--json", tmp_path / "r")
    assert said.status == 0, said.err
    assert f"{tmp_path / 'far'}: 39 of its 40 images repeat another one: intervals count each image once" in said.err
    (far,) = json.loads((tmp_path / "r").read_text())["outside"]
    assert (far["n"], far["let_through"], far["let_through_ci95"]) == (40, 0, [0.0, 1.0])
    assert far["scores"]["combined"]["auroc_ci95"][0] < 0.1


def test_groups_of_known_images_widen_the_interval_of_an_area():
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(size=60), generator.normal(1, size=60)
    apart, grouped = auroc(known, unknown), auroc(np.repeat(known, 5), unknown, np.repeat(np.arange(60), 5))
    assert grouped[0] == apart[0]
    assert grouped[1] == pytest.approx(apart[1], abs=0.01)
    ignored = auroc(np.repeat(known, 5), unknown)
    assert np.ptp(ignored[1]) < 0.9 * np.ptp(grouped[1])


def test_folders_of_outside_images_are_measured_apart(run: Run, say, tmp_path: Path):
    """Noise is recognized; images of the classes, passed as outside images, are let through and come first."""
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / "o" / split / "noise").mkdir(parents=True)
    for i, image in enumerate(noise(20)):
        Image.fromarray(image).save(tmp_path / "o" / ("train" if i % 2 else "test") / "noise" / f"{i}.png")
    write_images(tmp_path / "o" / "train", each=10, seed=9)
    said = say(
        "evaluate", run.path, run.path.parent / "idx", "--outside", tmp_path / "o", "--json", tmp_path / "r.json"
    )
    assert said.status == 0, said.err
    (measured,) = json.loads((tmp_path / "r.json").read_text())["outside"]
    kinds = measured["kinds"]
    assert {kind["kind"]: kind["n"] for kind in kinds}["noise"] == 20, "the folders of a name are one kind"
    assert kinds[-1]["kind"] == "noise"
    assert kinds[0]["let_through_share"] > 0.5 > kinds[-1]["let_through_share"]
    assert kinds[-1]["auroc"] > 0.95 > kinds[0]["auroc"]
    assert sum(kind["let_through"] for kind in kinds) == measured["let_through"]
    assert sum(kind["n"] for kind in kinds) == measured["n"]
    lines = said.out[said.out.index("folder by folder") :].splitlines()
    assert lines[2].split()[0] == kinds[0]["kind"]
    assert "near kinds, measured in training: 3 of 3 classes were left out, one at a time" in said.out
    assert "optimistic: the features were trained on all classes" in said.out
    share = json.loads((run.path / "metrics.json").read_text())["unknown"]["left_out_classes"]["accepted"]
    assert f"  let through  {100 * share:.1f} % of their images" in said.out
    assert (
        f"of a class that was left out of training, {100 * share:.0f} % of the images are accepted too" in run.trust[-2]
    )


def test_a_model_that_cannot_tell_refuses_to_measure_outside(say, tmp_path: Path):
    model = write_tiny_model(tmp_path / "model.safetensors")
    write_images(tmp_path / "d", each=2)
    said = say("evaluate", model, tmp_path / "d", "--outside", tmp_path / "d")
    assert said.status == 2
    assert "cannot recognize unknown images" in said.err


@pytest.mark.parametrize("kind", ["few images", "constant", "not finite"])
def test_leaving_classes_out_holds_for_any_features(kind: str):
    """60 images of 1,024 features: the scatter matrix has 965 eigenvalues 0, for which float32 does not converge."""
    features = np.random.default_rng(0).normal(size=(60, 1024)).astype(np.float32)
    if kind == "constant":
        features[:] = 1
    if kind == "not finite":
        features[3, 7] = np.nan
    left = leave_classes_out(features, np.arange(60) % 3)
    assert (left is None) == (kind == "not finite")
    assert left is None or np.isfinite(left.combined).all()


def test_the_run_folder_and_its_report_show_the_scores_that_the_model_gives(run: Run):
    model = load(run.path)
    assert model.detector is not None
    limits = model.detector.thresholds
    rows = [row for row in read_predictions(run.path / "predictions.csv") if row.split == "valid"]
    images = model.images(run.path.parent / "idx", "valid")
    pixels, shapes = images.rows.gather(np.arange(len(images.labels)))
    found = model.answers(model.preprocessing.crop(torch.from_numpy(pixels), shapes).numpy())
    assert [row.distance for row in rows] == pytest.approx([answer.distance for answer in found], abs=1e-6)
    page = write_report(run.path)[0].read_text(encoding="utf-8")
    section = page[page.index('<section id="unknown"') : page.index('<section id="mistakes"')]
    assert f"above <b>{limits.distance:.3g}</b>" in section
    assert f"({limits.accepted} of {limits.n})" in section
    assert section.count('class="prediction"') == 6 + min(6, limits.n - limits.accepted)
    assert section.count('<svg class="chart"') == 2
    assert section.count('<svg class="interval"') == 3, "one class after the other was left out"
    assert "The features were trained on all classes" in section
