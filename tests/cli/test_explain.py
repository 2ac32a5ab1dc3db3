"""`linnaeus explain`: what is printed, what is drawn, and the messages for wrong input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_main import here  # noqa: F401 - a fixture
from tiny import write_tiny_model

from linnaeus.models import load_module
from linnaeus.text import percent


def test_a_line_and_a_sheet_for_each_image(here: Path, say):  # noqa: F811
    said = say("explain", "m.safetensors", "pics", "--out", "why 图")
    assert (said.status, said.err) == (0, "6 sheets in why 图\n")
    lines = said.out.splitlines()
    assert len(lines) == 6
    sheets = []
    predicted = say("predict", "m.safetensors", "pics").out.splitlines()
    for line, other, (k, i) in zip(lines, predicted, ((k, i) for k in range(3) for i in range(2)), strict=True):
        sheet = f"why 图/{k} {i}-explained.png"
        assert line.startswith(other)  # probability, name and path
        assert line.endswith(f"pics/{k}/{k} {i}.png  -> {sheet}")
        sheets.append(np.asarray(Image.open(here / sheet)))
    assert min(sheets[0].shape[:2]) > 500
    assert len({sheet.tobytes() for sheet in sheets}) == 6


def test_sheets_do_not_overwrite_each_other_or_the_images(here: Path, say):  # noqa: F811
    for folder in ("a", "b"):
        (here / folder).mkdir()
        shutil.copy(here / "pics" / "0" / "0 0.png", here / folder / "X.png" if folder == "a" else here / "b" / "x.png")
    (here / "long").mkdir()
    long = here / "long" / ("n" * 240 + ".png")
    shutil.copy(here / "pics" / "0" / "0 0.png", long)
    before = (here / "a" / "X.png").read_bytes()
    said = say("explain", "m.safetensors", "a/X.png", "b", "a/X.png", "long", "--out", "a")
    assert said.status == 0, said
    made = ["X-explained.png", "x-2-explained.png", "X-3-explained.png", "n" * 80 + "-explained.png"]
    assert [line.rpartition("-> a/")[2] for line in said.out.splitlines()] == made
    assert sorted(path.name for path in (here / "a").iterdir()) == sorted([*made, "X.png"])
    assert (here / "a" / "X.png").read_bytes() == before


def test_all_stages_for_another_class_as_json(here: Path, say):  # noqa: F811
    said = say("explain", "m.safetensors", "pics/1", "--stage", "all", "--class", "name of 2", "--json", "why.json")
    assert said.status == 0, said
    told = json.loads((here / "why.json").read_text(encoding="utf-8"))
    predictions = say("predict", "m.safetensors", "pics/1", "--top", "3", "--format", "jsonl").out.splitlines()
    assert len(told) == 2
    for each, line, predicted in zip(told, said.out.splitlines(), map(json.loads, predictions), strict=True):
        assert {key: each[key] for key in predicted} == predicted
        by_class = {top["class"]: top["probability"] for top in predicted["top"]}
        assert each["explained"] == {"class": "2", "name": "name of 2", "probability": by_class["2"]}
        assert (each["method"], each["stages"]) == ("gradcam", ["block1", "block2"])
        assert (here / each["sheet"]).is_file()
        assert "like" not in each
        assert (f"for name of 2 ({percent(by_class['2'])})" in line) == (predicted["top"][0]["class"] != "2")


def test_similar_images_are_listed(here: Path, say):  # noqa: F811
    said = say("explain", "m.safetensors", "pics/1/1 0.png", "--like", "pics", "--top", "3", "--json", "why.json")
    assert said.status == 0, said
    assert said.err.startswith("warning: pics: not known to be the model's training data; comparing with 6 of its")
    first, *rest = said.out.splitlines()
    assert first.endswith("-> explained/1 0-explained.png")
    like = json.loads((here / "why.json").read_text(encoding="utf-8"))[0]["like"]
    assert len(rest) == len(like) == 3
    for line, each in zip(rest, like, strict=True):
        assert line.split()[0] == f"{each['similarity']:.3f}"
        assert line.endswith(each["path"])
        assert each["name"] in line
        assert each["path"] != "1/1 0.png"
    folder = say("explain", "m.safetensors", "pics/1", "--like", "pics", "--top", "3")
    assert len(folder.out.splitlines()) == 2
    assert folder.err.endswith("2 sheets in explained; -v lists the similar images\n")
    detailed = say("explain", "m.safetensors", "pics/1", "--like", "pics", "--top", "3", "-v")
    assert len(detailed.out.splitlines()) == 2 * (1 + 3)
    assert detailed.err.endswith("2 sheets in explained\n")
    plain = np.asarray(Image.open(here / "explained" / "1 0-explained.png"))
    say("explain", "m.safetensors", "pics/1/1 0.png")
    assert np.asarray(Image.open(here / "explained" / "1 0-explained.png")).shape[0] < plain.shape[0]


NET = """
from torch import nn

def build(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(inplace=True), nn.AvgPool2d(2),
                         nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)))
"""


def test_a_custom_network_is_explained(here: Path, say):  # noqa: F811
    """The children of a Sequential are its stages, named by number; the input of the last one is compared."""
    (here / "net.py").write_text(NET)
    write_tiny_model(here / "own.safetensors", load_module("net.py:build", 3, 1))
    said = say(
        "explain",
        "own.safetensors",
        "pics/2",
        "--model",
        "net.py:build",
        "--stage",
        "all",
        "--like",
        "pics",
        "--json",
        "o",
    )
    assert said.status == 0, said
    told = json.loads((here / "o").read_text(encoding="utf-8"))
    assert [each["stages"] for each in told] == [["0", "1", "2"]] * 2
    assert [len(each["like"]) for each in told] == [5, 5]
    assert say("explain", "own.safetensors", "pics/2").status == 2


def test_a_name_that_is_not_utf8(here: Path, say):  # noqa: F811
    odd = os.fsdecode(b"odd \xff.png")
    try:
        shutil.copy(here / "pics" / "0" / "0 0.png", here / odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    said = say("explain", "m.safetensors", odd, "--json", "why.json")
    assert said.status == 0, said
    assert (here / "explained" / os.fsdecode(b"odd \xff-explained.png")).is_file()
    assert json.loads((here / "why.json").read_text(encoding="utf-8"))[0]["path"] == odd


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients"])
def test_other_methods(method: str, here: Path, say):  # noqa: F811
    pytest.importorskip("captum")
    said = say("explain", "m.safetensors", "pics/0", "--method", method, "--json", "why.json")
    assert said.status == 0, said
    told = json.loads((here / "why.json").read_text(encoding="utf-8"))
    assert [each["method"] for each in told] == [method] * 2
    assert "stages" not in told[0]
    assert len(list((here / "explained").iterdir())) == 2


def test_unreadable_images_are_reported_and_do_not_stop_the_rest(here: Path, say):  # noqa: F811
    (here / "pics" / "1" / "1 0.png").write_bytes(b"no image")
    said = say("explain", "m.safetensors", "pics", "gone.png", "--json", "why.json")
    assert said.status == 1
    assert len(said.out.splitlines()) == 5
    lines = said.err.splitlines()
    assert lines[0].startswith("warning: pics/1/1 0.png: ")
    assert lines[1].startswith("warning: gone.png: ")
    assert lines[2] == "5 sheets in explained"
    assert lines[3] == "warning: 2 of 7 images could not be read"
    told = json.loads((here / "why.json").read_text(encoding="utf-8"))
    assert [each["error"] is None for each in told] == [True, True, False, True, True, True, False]
    assert "sheet" not in told[2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("pics --stage layer4", ["--stage layer4", "'block1', 'block2'"]),
        ("pics --stage block3", ["--stage block3", "no map at 28 pixels"]),
        ("pics --class rose", ["--class rose", "name of 0"]),
        ("pics --top 3", ["--top 3", "--like SOURCE"]),
        ("pics --stage all --method occlusion", ["--stage all", "only Grad-CAM"]),
        ("pics --method lime", ["lime", "gradcam"]),
        ("pics --like nowhere", ["nowhere", "no such file or folder"]),
        ("pics --out m.safetensors", ["m.safetensors", "cannot be written"]),
        ("nothing/*.png", ["nothing/*.png", "no file matches"]),
        ("pics --device tpu", ["--device tpu"]),
    ],
)
def test_wrong_input_is_one_line_that_names_it(arguments: str, named: list[str], here: Path, say):  # noqa: F811
    said = say("explain", "m.safetensors", *arguments.split(" "))
    assert (said.status, said.out) == (2, ""), said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    for piece in named:
        assert piece in lines[0]
    assert not (here / "explained").exists()
