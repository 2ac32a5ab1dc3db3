"""`linnaeus explain RUN IMAGE --influence`."""

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
def test_the_most_influential_images(say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, phase)
    monkeypatch.chdir(tmp_path)
    image = "images/1/1 0.png"
    for _ in range(2):  # its own files are replaced
        said = say("explain", run, "--influence", image, "--top", "3", "--json", "why.json", "--csv", "why.csv")
        assert said.status == 0, said.err
    (record,) = json.loads(Path("why.json").read_text())
    influential = record["influence"]
    assert [len(influential[role]) for role in ("proponents", "opponents")] == [3, 3]
    assert all(
        image["influence"] > 0 and image["probability_without"] < record["explained"]["probability"]
        for image in influential["proponents"]
    )
    assert all(image["influence"] < 0 for image in influential["opponents"])
    shown = [image for images in influential.values() for image in images]
    assert image.removeprefix("images/") not in {image["path"] for image in shown}
    with Path("why.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["training_image"] for row in rows] == [image["path"] for image in shown]
    assert float(rows[0]["influence"]) == pytest.approx(shown[0]["influence"], rel=1e-6)
    assert [row["role"] for row in rows] == ["proponent"] * 3 + ["opponent"] * 3
    assert f"{shown[0]['influence']:+.3f}" in said.out
    assert "computed again" not in said.err


def test_images_with_several_labels(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    table = write_label_sets(tmp_path / "sets", 60, 3)
    recipe = write_recipe(tmp_path / "m.toml", HEAD, data={**settings()["data"], "split": {"valid": 0.3}})
    train(table, str(recipe), weights=str(tmp_path / "w.safetensors"), out=tmp_path / "several", draw=False)
    said = say("explain", "several", "sets/1.png", "--class", "p1", "--influence", "--json", "why.json")
    assert said.status == 0, said.err
    influential = json.loads(Path("why.json").read_text())[0]["influence"]
    assert all("p1" in image["class"].split("|") for image in influential["proponents"][:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--csv", "a.csv"), "--influence"), (("--top", "3"), "--influence"), (("--influence",), "split.csv")],
)
def test_what_cannot_be_explained(say, tmp_path: Path, options: tuple[str, ...], message: str):
    write_tiny_model(tmp_path / "m.safetensors")
    make_image = write_label_sets(tmp_path / "sets", 2)
    said = say("explain", tmp_path / "m.safetensors", make_image.parent / "0.png", *options)
    assert said.status == 2, said
    assert message in said.err
    assert said.err.count("\n") == 1
