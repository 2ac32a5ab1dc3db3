"""The report of a run whose images may have several labels."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tiny import settings, write_label_sets, write_recipe

from linnaeus.metrics.calibration import calibration_error
from linnaeus.report.label_sections import doubtful_labels, labels_together, set_sizes
from linnaeus.runs.reader import read_run
from linnaeus.text import typeset_percent
from linnaeus.training.run import train

NAMES = [f"p{k}" for k in range(4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, so that some labels are wrong."""
    root = tmp_path_factory.mktemp("labels")
    source = write_label_sets(root / "data", 160)
    recipe = write_recipe(root / "r.toml", {"epochs": 3, "lr": 5e-3, "optimizer": "adam"}, data=data())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINNAEUS_CACHE", str(root / "cache"))
        train(source, str(recipe), out=root / "run", device="cpu")
    return root / "run"


def data() -> dict:
    return {**settings()["data"], "split": {"valid": 0.25, "test": 0.4}}


def section(run: Path, name: str) -> str:
    page = unescape((run / "report.html").read_text(encoding="utf-8"))
    return re.search(f'<section id="{name}".*?</section>', page, re.DOTALL)[0]  # type: ignore[index]


def predictions(run: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, labels): true, given, probabilities."""
    with (run / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    true, given = ([[name in row[key].split("|") for name in NAMES] for row in rows] for key in ("true", "predicted"))
    probabilities = [[float(row[f"probability of {name}"]) for name in NAMES] for row in rows]
    return np.array(true), np.array(given), np.array(probabilities)


def test_the_page_has_the_figures_of_each_label(run: Path):
    true, given, probabilities = predictions(run, "test")
    text, stored = section(run, "labels"), json.loads((run / "metrics.json").read_text())["calibration"]
    for k, name in enumerate(NAMES):
        row = re.search(rf'<tr><th scope="row" data-v="{name}">.*?</tr>', text, re.DOTALL)[0]  # type: ignore[index]
        values = re.findall(r'data-v="([^"]+)"', row)[1:]
        precision = average_precision_score(true[:, k], probabilities[:, k])
        assert float(values[0]) == true[:, k].sum()
        assert float(values[1]) == pytest.approx(precision, abs=1e-6)
        assert typeset_percent(precision, 1) in row
        assert float(values[3]) == pytest.approx(stored["labels"][k]["threshold"], abs=1e-6)
        assert float(values[4]) == given[:, k].sum()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f'<p class="big">{typeset_percent(json.loads((run / "metrics.json").read_text())["test"]["map"], 1)}' in page
    assert "Mean average precision (mAP)" in section(run, "training")
    assert "Confusions" not in page


def test_labels_together_are_those_of_all_images(run: Path):
    with (run.parent / "data" / "all.csv").open(newline="") as file:
        labels = np.array([[int(row[name]) for name in NAMES] for row in csv.DictReader(file)])
    together, sizes = labels_together(read_run(run)), dict(set_sizes(read_run(run)))
    assert [[cell["n"] for cell in row["cells"]] for row in together["rows"]] == (labels.T @ labels).tolist()
    assert sizes["no label"] == (labels.sum(1) == 0).sum()
    assert sizes["2 labels"] == (labels.sum(1) == 2).sum()
    assert f">{(labels[:, 0] & labels[:, 1]).sum()}</td>" in section(run, "together")


def test_calibration_of_each_label(run: Path):
    true, _, probabilities = predictions(run, "test")
    evaluation = json.loads((run / "evaluation.json").read_text())["test"]
    text = section(run, "trust")
    for k, row in enumerate(evaluation["classes"]):
        assert row["ece"]["after"] == pytest.approx(calibration_error(probabilities[:, k], true[:, k]), abs=1e-6)
        assert typeset_percent(row["ece"]["before"], 1) in text
    after = evaluation["reliability"]["after"]
    assert sum(row["n"] for row in after) == true.size
    assert sum(row["correct"] for row in after) == true.sum()
    assert "one for each label, by the largest F1" in text


def test_doubtful_labels_are_ranked_by_how_improbable_they_are(run: Path):
    true, _, probabilities = predictions(run, "test")
    missing, improbable = doubtful_labels(read_run(run), most=1000)
    assert [row.probabilities[k] for row, k in missing] == sorted(
        probabilities[~true & (probabilities > 0.5)].tolist(), reverse=True
    )
    assert [row.probabilities[k] for row, k in improbable] == sorted(probabilities[true & (probabilities < 0.5)])
    assert len(missing) + len(improbable) > 0
    assert '<img src="data:image' in section(run, "mistakes")


def test_report_builds_the_page_again_with_and_without_the_images(run: Path, say, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    said = say("report", tmp_path / "run")
    assert (said.status, said.err) == (0, "")
    assert '<img src="data:image' in section(tmp_path / "run", "data")
    said = say("report", tmp_path / "run", "--source", write_label_sets(tmp_path / "other", 20))
    assert said.status == 2
    assert "differ from those of the run" in said.err
    # A run of an earlier version recorded no calibration of each label.
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for split in evaluation.values():
        del split["reliability"]
        for row in split["classes"]:
            del row["ece"], row["scale"], row["offset"]
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    assert say("report", tmp_path / "run").status == 0
    assert "Not recorded for this run." in section(tmp_path / "run", "trust")
