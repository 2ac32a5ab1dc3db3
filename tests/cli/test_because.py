"""`linnaeus explain RUN IMAGE --because`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from tiny import settings, write_label_sets, write_recipe, write_tiny_model

from linnaeus.training.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_change_classes import HEAD, VIEWS, make_run


@pytest.mark.parametrize("phase", [HEAD, VIEWS], ids=["center", "views"])
def test_the_images_that_pull_an_answer(say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, phase)
    monkeypatch.chdir(tmp_path)
    image = "images/1/1 0.png"
    for _ in range(2):  # its own files are replaced
        said = say("explain", run, "--because", image, "--top", "3", "--json", "why.json", "--csv", "why.csv")
        assert said.status == 0, said.err
    (record,) = json.loads(Path("why.json").read_text())
    because = record["because"]
    assert [len(because[way]) for way in ("towards", "away")] == [3, 3]
    assert all(
        pull["pull"] > 0 and pull["probability_without"] < record["explained"]["probability"]
        for pull in because["towards"]
    )
    assert all(pull["pull"] < 0 for pull in because["away"])
    assert image.removeprefix("images/") not in {pull["path"] for way in because.values() for pull in way}
    pulls = [pull for way in because.values() for pull in way]
    with Path("why.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["training_image"] for row in rows] == [pull["path"] for pull in pulls]
    assert float(rows[0]["pull"]) == pytest.approx(pulls[0]["pull"], rel=1e-6)
    assert f"{pulls[0]['pull']:+.3f}" in said.out
    assert "computed again" not in said.err


def test_images_with_several_labels(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    table = write_label_sets(tmp_path / "sets", 60, 3)
    recipe = write_recipe(tmp_path / "m.toml", HEAD, data={**settings()["data"], "split": {"valid": 0.3}})
    train(table, str(recipe), weights=str(tmp_path / "w.safetensors"), out=tmp_path / "several", draw=False)
    said = say("explain", "several", "sets/1.png", "--class", "p1", "--because", "--json", "why.json")
    assert said.status == 0, said.err
    because = json.loads(Path("why.json").read_text())[0]["because"]
    assert all("p1" in pull["class"].split("|") for pull in because["towards"][:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--csv", "a.csv"), "--because"), (("--top", "3"), "--because"), (("--because",), "split.csv")],
)
def test_what_cannot_be_explained(say, tmp_path: Path, options: tuple[str, ...], message: str):
    write_tiny_model(tmp_path / "m.safetensors")
    make_image = write_label_sets(tmp_path / "sets", 2)
    said = say("explain", tmp_path / "m.safetensors", make_image.parent / "0.png", *options)
    assert said.status == 2, said
    assert message in said.err
    assert said.err.count("\n") == 1
