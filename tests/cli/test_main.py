"""The command line: what is printed where, with which exit status, and how fast."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import draw, mini, samples, write_idx, write_images, write_recipe, write_tiny_model

import linnaeus
from linnaeus.cli.main import SECTIONS, cli
from linnaeus.files import claimed
from linnaeus.inference.resume import read_existing
from linnaeus.modelfile.safetensors import read_model, write_model
from linnaeus.text import percent

LINNAEUS = [sys.executable, "-m", "linnaeus"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: data `idx`, a recipe `r.toml`, a model `m.safetensors` and images `pics`."""
    write_idx(tmp_path / "idx")
    write_recipe(tmp_path / "r.toml")
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    write_tiny_model(tmp_path / "m.safetensors", network)
    write_images(tmp_path / "pics", each=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_begins_with_training_and_states_what_is_chosen_without_an_option(say):
    listed = say("--help").out.partition("Train:")[2].split()
    assert listed[0] == "train"
    for command in cli.commands.values():
        for option in command.params:
            text = getattr(option, "help", None) or ""
            if isinstance(option.type, click.IntRange | click.FloatRange) and option.name != "resize":
                stated = (
                    getattr(option, "show_default", False)
                    or "[default: " in text
                    or "recipe" in text
                    or command.name == "models"
                )
                assert stated, (command.name, option.name)


def test_help_needs_neither_torch_nor_pydantic():
    """--help is instant because nothing heavy is imported for it, in any command."""
    code = """
import sys
from click.testing import CliRunner
from linnaeus.cli.main import cli
for command in (
    [], ["train"], ["predict"], ["explain"], ["check"], ["evaluate"], ["compare"], ["models"], ["recipes"],
    ["weights"], ["data"],
):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output, result.output
assert CliRunner().invoke(cli, ["--version"]).output == f"linnaeus, version {sys.modules['linnaeus'].__version__}\\n"
heavy = {"torch", "pydantic", "numpy", "PIL", "matplotlib", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_module_and_the_entry_point_are_the_same():
    result = subprocess.run([*LINNAEUS, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == linnaeus.__version__


def test_every_command_is_in_one_section_of_the_help():
    names = [str(command.name) for section in SECTIONS.values() for command in section]
    assert sorted(names) == sorted(cli.commands)


def write_list(path: Path, lines: str) -> None:
    path.write_text(lines, encoding="utf-8")


def make_wrong_inputs(here: Path) -> None:
    (here / "empty").mkdir()
    write_images(here / "one", ("only",), each=3)
    write_images(here / "other", ("0", "x"), each=2)
    write_list(here / "list.txt", "pics/0/0 0.png 0\npics/1/1 0.png\n\npics/2/2 0.png 2\n")
    (here / "lists").mkdir()
    write_list(here / "lists" / "train.txt", "nolabel\n")
    write_idx(here / "cut")
    images = here / "cut" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:5000])
    write_list(here / "bad.toml", (here / "r.toml").read_text().replace("epochs", "epoch"))
    write_list(here / "words.txt", "this is no model")
    (here / "there").mkdir()
    (here / "there" / "x").touch()
    write_list(here / "net.py", "import nosuchmodule\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("train nowhere", ["nowhere", "no such file or folder"]),
        ("train empty", ["empty: an empty folder"]),
        ("train one", ["one", "'only'", "two or more"]),
        ("train list.txt --recipe r.toml", ["list.txt:2: 'pics/1/1' does not exist"]),
        ("train lists --recipe r.toml", ["train.txt:1", "nolabel"]),
        ("train cut --recipe r.toml", ["train-images-idx3-ubyte", "5000 bytes", "cut short"]),
        ("train idx --recipe bad.toml", ["bad.toml", "phase.1.epoch", "unknown key", "did you mean epochs"]),
        ("train idx --recipe r.toml --set data.sze=3", ["data.sze", "unknown key", "size"]),
        ("train idx --recipe digts", ["digts", "did you mean digits"]),
        ("train idx --recipe r.toml --model resnet5O", ["resnet5O", "did you mean", "resnet50"]),
        ("train idx --recipe r.toml --out there", ["there", "already exists"]),
        ("train idx --recipe r.toml --set lr", ["lr", "KEY=VALUE"]),
        ("train idx --recipe r.toml --set phase.3.lr=1", ["phase.3.lr", "phases 1 to 1"]),
        ("train idx --recipe r.toml --set phase.1.lr=fast", ["phase.1.lr", "'fast'"]),
        ("train idx --recipe r.toml --set phase.1.lr=inf", ["phase.1.lr", "inf"]),
        ("train idx --recipe r.toml --set phase.1.train=[]", ["phase.1.train"]),
        ("train idx --recipe r.toml --set phase.1.train=['heads']", ["'heads'", "did you mean head"]),
        ("train idx --recipe r.toml --epochs two", ["--epochs two", "5,2"]),
        ("train idx --recipe r.toml --epochs 5,2", ["--epochs 5,2", "1 phase"]),
        ("train idx --recipe r.toml --epochs 0", ["--epochs 0"]),
        ("train idx --recipe r.toml --device gpu", ["--device gpu", "cuda"]),
        ("train idx --recipe r.toml --seed -1", ["--seed", "-1"]),
        ("train idx --recipe r.toml --model net.py:build", ["net.py", "nosuchmodule"]),
        ("train idx --recipe r.toml --model gone.py:build", ["gone.py"]),
        ("train", ["SOURCE", "linnaeus train --help"]),
        ("trian idx", ["trian"]),
        ("predict nowhere pics", ["nowhere", "no such model file"]),
        ("predict pics pics", ["pics", "holds no model.safetensors"]),
        ("predict words.txt pics", ["words.txt", "not a model file"]),
        ("predict m.safetensors empty", ["empty", "no images"]),
        ("predict m.safetensors *.gif", ["*.gif", "no file matches"]),
        ("predict m.safetensors pics --grid a.gif", ["a.gif", ".png"]),
        ("predict m.safetensors pics --out gone/a.csv", ["gone/a.csv", "cannot be written"]),
        ("predict m.safetensors pics --grid words.txt/a.png", ["words.txt/a.png", "cannot be written"]),
        ("predict m.safetensors pics --top 0", ["--top"]),
        ("predict m.safetensors pics --format xml", ["xml", "jsonl"]),
        ("evaluate m.safetensors nowhere", ["nowhere"]),
        ("evaluate m.safetensors pics --split valid", ["pics", "'valid'"]),
        ("evaluate m.safetensors pics --error 0", ["--error", "0"]),
        ("evaluate m.safetensors pics --error 2", ["--error", "2"]),
        (
            "evaluate m.safetensors other",
            ["other", "does not know 'x'", "the source lacks '1', '2', which the model knows"],
        ),
        ("evaluate m.safetensors pics --error nan", ["--error", "'nan' is not a finite number"]),
        ("export m.safetensors --to onnx-int8 --data pics --agree nan", ["--agree", "'nan' is not a finite number"]),
        ("serve m.safetensors --max-megapixels nan", ["--max-megapixels", "'nan' is not a finite number"]),
        ("serve m.safetensors --body-seconds inf", ["--body-seconds", "'inf' is not a finite number"]),
        ("train idx --recipe r.toml --batch 8 --set batch=16", ["--batch 8 and --set batch=16 contradict each other"]),
        ("train idx --recipe r.toml --set lr=1 --set lr=2", ["--set lr=1 and --set lr=2 contradict each other"]),
        ("train idx --recipe r.toml --seed 1 --set seed=2", ["--seed 1 and --set seed=2 contradict each other"]),
        ("train idx --recipe r.toml --epochs 1 --set phase.1.epochs=2", ["--epochs 1 and --set phase.1.epochs=2"]),
        ("train idx --weights none --set model.weights=m.safetensors", ["--weights none and --set model.weights=m"]),
        ("train idx --model resnet18 --set model.name=resnet34", ["--model resnet18 and --set model.name=resnet34"]),
        ("compare pics", ["pics", "at least two runs"]),
        ("models --size 64", ["--size: is for one network; name it"]),
        ("models --set stem=small", ["--set: is for one network; name it"]),
        ("compare pics nowhere", ["pics", "no predictions.csv"]),
        ("models resnet51", ["resnet51", "did you mean"]),
        ("recipes digts", ["digts", "did you mean digits"]),
        ("weights pull imagenot", ["imagenot"]),
        ("data pull mnits", ["mnits"]),
    ],
)
def test_wrong_input_is_one_line_that_names_it(arguments: str, named: list[str], here: Path, say):
    make_wrong_inputs(here)
    said = say(*arguments.split(" "))
    assert said.status == 2, said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    for piece in named:
        assert piece in lines[0]
    assert not (here / "runs").exists()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_does_not_exist(device: str, here: Path, say, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    said = say("train", "idx", "--recipe", "r.toml", "--device", device)
    assert said.status == 2
    assert said.err.startswith(f"error: --device {device}: ")
    assert "use --device cpu" in said.err
    assert said.err.count("\n") == 1


def test_a_recipe_as_text_is_no_file_name(here: Path, say):
    said = say("train", "idx", "--recipe", (here / "r.toml").read_text())
    assert said.status == 2
    assert len(said.err.splitlines()) == 1


def test_a_single_table_in_place_of_phases(here: Path, say):
    text = '[model]\nname = "mini_resnet"\n[data]\nresize = 28\nsize = 28\n[phase]\nepochs = 2\nlr = 0.1\n'
    (here / "single.toml").write_text(text)
    for more in ([], ["--epochs", "3"], ["--epochs", "1,2,3"]):
        said = say("train", "idx", "--recipe", "single.toml", *more)
        assert said.status == 2, said
        assert "phase" in said.err
        assert len(said.err.splitlines()) == 1


def test_training_and_what_it_prints(here: Path, say):
    """Plain lines without a terminal: a header, a line for each epoch, the figures."""
    said = say("train", "idx", "--recipe", "r.toml", "--out", "run 一", "--set", "log_every=4", "--epochs", "2")
    assert said.status == 0, said
    assert said.err == ""
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    for piece in (
        "run run 一",
        "source idx (idx): train 108, valid 12, test 30",
        "classes 3: 0, 1, 2",
        "network mini_resnet",
        "images short side scaled to 28, center 28 x 28 cut out",
        "trained parameters, 2 epochs of 7 steps",
        "batch (16, 1, 28, 28) float32",
        "epoch 1 step 4 of 7 loss",
        "epoch 1/2 lr",
        "epoch 2/2 lr",
        "valid ",
        "test ",
        "best phase 1, epoch",
        "run 一/curves.png",
        "run 一/predictions.png",
        "run 一/confusion.png",
        "next linnaeus predict 'run 一' IMAGE, or linnaeus serve 'run 一'",
    ):
        assert any(piece in line for line in lines), (piece, said.out)
    metrics = json.loads((here / "run 一" / "metrics.json").read_text())
    for split in ("valid", "test"):
        share = metrics[split]["accuracy"]
        line = next(line for line in lines if line.startswith(split))
        assert f"{percent(share, 2)} ({metrics[split]['correct']} of {metrics[split]['n']}" in line
    assert "\x1b" not in said.out


def test_quiet_says_nothing(here: Path, say):
    said = say("train", "idx", "--recipe", "r.toml", "--out", "run", "-q", "--epochs", "1")
    assert (said.status, said.out, said.err) == (0, "", "")


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_predictions_on_standard_output(form: str, here: Path, say):
    said = say("predict", "m.safetensors", "pics", "--format", form, "--top", "9")
    assert said.status == 0, said
    assert said.err == ""
    if form == "jsonl":
        told = [json.loads(line) for line in said.out.splitlines()]
        assert [each["path"] for each in told] == [f"pics/{c}/{c} {i}.png" for c in range(3) for i in range(2)]
        assert all(len(each["top"]) == 3 for each in told)
    elif form == "csv":
        widths = {line.count(",") for line in said.out.splitlines()}
        assert widths == {4 + 3 * 3}
        assert len(said.out.splitlines()) == 7
    else:
        assert said.out.count("%") == 18


def test_unreadable_images_are_reported_and_the_status_is_1(here: Path, say):
    (here / "pics" / "1" / "1 0.png").write_bytes(b"no image")
    said = say(
        "predict", "m.safetensors", "pics", "gone.png", "pics/0/0 0.png", "--format", "jsonl", "--out", "o.jsonl"
    )
    assert said.status == 1
    told = [json.loads(line) for line in (here / "o.jsonl").read_text().splitlines()]
    assert [each["error"] is None for each in told] == [True, True, False, True, True, True, False, True]
    lines = said.err.splitlines()
    assert lines[0].startswith("warning: pics/1/1 0.png: ")
    assert lines[1].startswith("warning: gone.png: ")
    assert lines[2] == "answers   o.jsonl: 8 images"
    assert lines[3] == "warning: 2 of 8 images could not be read"
    assert said.out == ""


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
@pytest.mark.parametrize("cut", [3, 40, 200, 10_000])
def test_a_file_of_answers_is_continued(name: str, cut: int, here: Path, say, monkeypatch: pytest.MonkeyPatch):
    """Whatever a kill leaves of the file, its complete lines stay and only the rest is predicted."""
    (here / "pics" / "1" / 'a, "b"\nc.png').write_bytes(b"no image")  # a name that takes two lines of the file
    assert say("predict", "m.safetensors", "pics", "--out", name).status == 1
    whole = (here / name).read_bytes()
    (here / name).write_bytes(whole[:cut])
    held = read_existing(here / name, name[2:], 1)
    seen: list[str] = []
    stream = linnaeus.Classifier.stream

    def watched(self, images):
        for prediction in stream(self, images):
            seen.append(prediction.path)
            yield prediction

    monkeypatch.setattr(linnaeus.Classifier, "stream", watched)
    said = say("predict", "m.safetensors", "pics", "--out", name)
    assert (here / name).read_bytes() == whole
    assert said.status == 1  # also where the unreadable one was done before
    assert said.err.splitlines()[-1] == "warning: 1 of 7 images could not be read"
    # The first and the last readable answer are computed again, to check that this model gave them.
    assert len(seen) == 7 - len(held.paths) + len(held.probes)
    assert len(held.paths) == {3: 0, 10_000: 7}.get(cut, len(held.paths))


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_images_that_were_gone_for_a_while_are_predicted_by_the_next_start(name: str, here: Path, say):
    """As on a share that was disconnected; an image that is broken for good is not read again."""
    (here / "pics" / "broken.png").write_bytes(b"\x89PNG")
    paths = sorted(str(path.relative_to(here)) for path in (here / "pics").rglob("*.png"))
    assert say("predict", "m.safetensors", *paths, "--out", name).status == 1
    whole = (here / name).read_text().splitlines()
    (here / name).unlink()
    moved = {here / path: here / f"{i}.away" for i, path in enumerate(paths[2:5])}
    for path, away in moved.items():
        path.rename(away)
    assert say("predict", "m.safetensors", *paths[2:5], "pics/broken.png", "--out", name).status == 1
    assert (here / name).read_text().count("No such file") == 3
    for path, away in moved.items():
        away.rename(path)
    said = say("predict", "m.safetensors", *paths, "--out", name)
    assert said.status == 1
    assert f"1 of {len(paths)} images could not be read" in said.err
    assert sorted((here / name).read_text().splitlines()) == sorted(whole)
    assert say("predict", "m.safetensors", *paths, "--out", name).err.count("continuing after") == 1


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.txt"])
def test_two_processes_do_not_write_one_file(name: str, here: Path, say):
    with claimed(here / name):
        said = say("predict", "m.safetensors", "pics", "--out", name)
    assert (said.status, said.err.splitlines()[-1]) == (
        2, f"error: {name}: another process is writing it; wait for that, or choose another name"
    )  # fmt: skip
    assert (here / name).read_bytes() == b""
    assert say("predict", "m.safetensors", "pics", "--out", name).status == 0


def test_a_name_that_is_too_long_once_it_is_escaped_is_no_error(here: Path, say):
    image = next((here / "pics").rglob("*.png"))
    long = image.rename(image.with_name("\udcff" * 120 + ".png"))  # each is one byte, and six when escaped
    for _ in range(2):
        assert say("predict", "m.safetensors", long, "--out", "o.csv").status == 0


@pytest.mark.parametrize("text", ['{"my":"thing"}', "hello", '{"path": "mine"}', '{"path":"mine"', " "])
def test_a_line_without_its_newline_that_is_no_prediction_is_kept(text: str, here: Path, say):
    """Also after predictions: only the beginning of a prediction, or what a power cut leaves, is cut off."""
    assert say("predict", "m.safetensors", "pics", "--out", "o.jsonl").status == 0
    whole = (here / "o.jsonl").read_text()
    for before in ("", whole):
        (here / "o.jsonl").write_text(before + text)
        said = say("predict", "m.safetensors", "pics", "--out", "o.jsonl")
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert "o.jsonl: exists and holds a line that is not a prediction; remove it" in said.err
        assert (here / "o.jsonl").read_text() == before + text
    for rest in (whole.splitlines()[0], '{"pa', "\0\0"):
        (here / "o.jsonl").write_text(rest)
        assert say("predict", "m.safetensors", "pics", "--out", "o.jsonl").status == 0
        assert (here / "o.jsonl").read_text() == whole


def test_a_single_image_is_counted_in_the_singular(here: Path, say):
    (here / "broken.png").write_bytes(b"no image")
    assert "1 of 1 image could not be read" in say("predict", "m.safetensors", "broken.png", "--out", "o.csv").err
    assert "o.csv: continuing after 1 image\n" in say("predict", "m.safetensors", "broken.png", "--out", "o.csv").err


def test_models_that_agree_where_they_are_sure_are_told_apart(here: Path, say):
    """Two models of the same classes may both be certain of the first and the last image of a file."""
    images = write_images(here / "more", each=10)
    assert say("predict", "m.safetensors", images, "--out", "o.csv").status == 0
    head, *rows = [line.split(",") for line in (here / "o.csv").read_text().splitlines()]
    rows.sort(key=lambda cells: -float(cells[5]))
    rows[-1][5] = f"{float(rows[-1][5]) - 0.05:.6f}"
    rows[-1:] = [rows[-1], rows.pop(0)]  # a sure one is first and last
    (here / "o.csv").write_text("".join(",".join(cells) + "\n" for cells in [head, *rows]))
    said = say("predict", "m.safetensors", images, "--out", "o.csv")
    assert (said.status, "holds predictions of another model" in said.err) == (2, True)


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_an_image_that_was_changed_since_is_not_answered_by_its_old_content(name: str, here: Path, say):
    """Also where the model was sure of it, its times are old, or it could not be read before."""
    images = write_images(here / "more", each=10)
    (images / "broken.png").write_bytes(b"no image")
    assert say("predict", "m.safetensors", images, "--out", "all.jsonl").status == 1
    answers = [json.loads(line) for line in (here / "all.jsonl").read_text().splitlines()]
    sure = max((a for a in answers if a["top"]), key=lambda answer: answer["top"][0]["probability"])
    other = next(a for a in answers if a["top"] and a["top"][0]["class"] != sure["top"][0]["class"])
    assert say("predict", "m.safetensors", images, "--out", name).status == 1
    before = (here / name).read_bytes()
    # Touched but equal: the answers stay, and they are not refused.
    Path(other["path"]).touch()
    assert say("predict", "m.safetensors", images, "--out", name).status == 1
    assert (here / name).read_bytes() == before
    shutil.copy2(other["path"], "moved.png")
    os.utime("moved.png", (1e9, 1e9))
    Path("moved.png").replace(sure["path"])
    for _ in range(2):  # a refusal does not make the file newer than the image
        said = say("predict", "m.safetensors", images, "--out", name)
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert f"or of images that have changed since ({sure['path']}: " in said.err
        assert (here / name).read_bytes() == before
    (here / name).unlink()
    assert say("predict", "m.safetensors", images, "--out", name).status == 1
    shutil.copy(other["path"], images / "broken.png")
    said = say("predict", "m.safetensors", images, "--out", name)
    assert (said.status, "no image" in said.err) == (0, False)


def test_answers_of_another_model_are_not_mixed(here: Path, say):
    assert say("predict", "m.safetensors", "pics", "--out", "o.csv").status == 0
    text = (here / "o.csv").read_text()
    cells = text.splitlines()[1].split(",")
    (here / "o.csv").write_text(text.replace(cells[5], "0.010000" if float(cells[5]) > 0.5 else "0.990000", 1))
    before = (here / "o.csv").read_bytes()
    said = say("predict", "m.safetensors", "pics", "--out", "o.csv")
    assert said.status == 2
    assert "holds predictions of another model" in said.err
    assert len(said.err.splitlines()) == 1
    assert (here / "o.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("my,own,table\n1,2,3\n", "other columns"),
        ("path", "pictures"),
        ("notes of mine", "no predictions"),
        ("path,unsure,error,class_1,name_1,probability_1\na.png,0\n", "a line of 2 cells"),
        ("path,unsure,error,class_1,name_1,probability_1\na.png,0,,1,1,much\n", "'much'"),
        ("path,unsure,error,class_1,name_1,probability_1,class_2,name_2,probability_2\n", "--top 2"),
    ],
)
def test_a_file_with_other_content_is_kept(text: str, told: str, here: Path, say):
    (here / "o.csv").write_text(text)
    said = say("predict", "m.safetensors", "pics", "--out", "o.csv")
    if text == "path":  # the beginning of the header: a process was killed right then
        assert said.status == 0
        return
    assert said.status == 2
    assert told in said.err
    assert (here / "o.csv").read_text() == text


def test_a_file_of_lines_with_another_number_of_classes_is_kept(here: Path, say):
    assert say("predict", "m.safetensors", "pics", "--out", "o.jsonl").status == 0
    assert "--top 1" in say("predict", "m.safetensors", "pics", "--out", "o.jsonl", "--top", "3").err
    (here / "o.jsonl").write_text('{"path": 3}\n')
    assert "not a prediction" in say("predict", "m.safetensors", "pics", "--out", "o.jsonl").err


def test_the_grid_of_a_continued_file_shows_all_images(here: Path, say, monkeypatch: pytest.MonkeyPatch):
    """As after a kill between the answers and the grid."""
    drawn: list[int] = []
    monkeypatch.setattr("linnaeus.report.image_grid.image_grid", lambda tiles, *a, **more: drawn.append(len(tiles)))
    command = ("predict", "m.safetensors", "pics", "--out", "p.csv")
    assert say(*command).status == 0
    answers = (here / "p.csv").read_bytes()
    lines = answers.splitlines(keepends=True)
    for kept in (len(lines), 3):
        (here / "p.csv").write_bytes(b"".join(lines[:kept]))
        assert say(*command, "--grid", "g.png").status == 0
        assert (here / "p.csv").read_bytes().count(b"\n") == len(lines)
    assert drawn == [len(lines) - 1] * 2  # without the header


def test_the_grid_is_drawn(here: Path, say):
    said = say("predict", "m.safetensors", "pics", "--grid", "grid 图.png")
    assert said.status == 0, said
    width, height = Image.open(here / "grid 图.png").size
    assert min(width, height) > 200
    images = len(list((here / "pics").glob("*/*.png")))
    assert said.err.splitlines()[-1].startswith(f"grid      grid 图.png: {images} images")


def test_a_written_file_is_named_with_the_number_of_its_answers(here: Path, say):
    images = len(list((here / "pics").glob("*/*.png")))
    for _ in range(2):  # the second time all answers are there already
        said = say("predict", "m.safetensors", "pics", "--out", "p.csv")
        assert said.err.splitlines()[-1] == f"answers   p.csv: {images} images"


def test_models_and_recipes_are_listed(say):
    assert "resnet50" in say("models").out
    assert "25,557,032" in say("models", "resnet50").out.replace(" ", "")
    assert say("models", "resnet20").out.splitlines()[-2].split() == [
        "total",
        "269,722",
        "40,551,040",
    ]  # for 10 classes
    assert "auxiliary" not in say("models", "inception_v1").out
    assert "and 6,379,984 parameters of auxiliary heads" in say("models", "inception_v1", "--set", "aux=true").out
    listed = say("recipes").out.splitlines()
    assert all(line.endswith(".") for line in listed), "whole sentences"
    assert any(line.startswith("digits ") for line in listed)
    assert say("recipes", "digits").out == linnaeus.recipe.recipe_text("digits")[1]


def run(*arguments: str | bytes, **more) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("environment", {})}
    return subprocess.run([*LINNAEUS, *arguments], capture_output=True, env=environment, check=False, **more)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_paths_on_standard_input_may_hold_any_bytes(encoding: str, here: Path):
    """A name that is not UTF-8 is read, opened, and printed in a form that JSON restores; also to an ASCII terminal."""
    odd = b"odd \xff.png"
    Image.fromarray(draw(samples(1)[1])[0]).save(here / "x.png")
    try:
        os.rename(here / "x.png", os.fsencode(here) + b"/" + odd)  # noqa: PTH104 - bytes
    except OSError:
        pytest.skip("this file system takes no such name")
    given = odd + "\npics/0/0 0.png\r\n\nno\u0142e.png\n".encode()
    arguments = ("predict", "m.safetensors", "-", "--format", "jsonl")
    result = run(*arguments, input=given, environment={"PYTHONIOENCODING": encoding})
    assert b"Traceback" not in result.stderr, result.stderr
    assert result.returncode == 1
    told = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [each["error"] is None for each in told] == [True, True, False]
    if encoding == "utf-8":
        assert [os.fsencode(each["path"]) for each in told] == [odd, b"pics/0/0 0.png", "no\u0142e.png".encode()]


@pytest.mark.long
def test_a_closed_pipe_ends_the_command_silently(here: Path):
    """`linnaeus predict … | head -1` ends without a message."""
    paths = "pics/0/0 0.png\n" * 3000
    (here / "paths.txt").write_text(paths)
    command = f"{sys.executable} -m linnaeus predict m.safetensors - < paths.txt | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_status_1(here: Path, small_disk: Path, say):
    said = say("train", "idx", "--recipe", "r.toml", "--out", small_disk / "run", "-q")
    assert said.status == 1, said
    assert len(said.err.splitlines()) == 1, said.err
    assert "no space left on the disk" in said.err
    assert str(small_disk) in said.err
    said = say("predict", "m.safetensors", *["pics"] * 300, "--format", "jsonl", "--out", small_disk / "o.jsonl")
    assert said.status == 1, said
    assert said.err.count("\n") == 1
    assert "o.jsonl: no space left" in said.err


@pytest.mark.long
def test_a_limit_on_the_size_of_files_acts_like_a_full_disk(here: Path):
    """The same test without permission to mount: a write that the system refuses ends the job with one line."""
    result = run(
        "train",
        "idx",
        "--recipe",
        "r.toml",
        "--out",
        "run",
        "-q",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count(b"\n") == 1, result.stderr
    assert b"model.safetensors: no space left on the disk" in result.stderr
    assert not (here / "run").exists(), "a job that failed leaves nothing behind"


def test_ctrl_c_outside_of_training_prints_one_word(here: Path, say, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("linnaeus.inference.classifier.load", interrupt)
    said = say("predict", "m.safetensors", "pics")
    assert (said.status, said.err.strip()) == (130, "stopped")


def test_the_calibration_of_a_run_is_kept_and_compared(here: Path, say):
    """Train, evaluate, predict, compare: temperature and threshold are fitted once and mean the same everywhere."""
    for name, epochs in (("one", 1), ("two", 3)):
        said = say("train", "idx", "--recipe", "r.toml", "--out", name, "--epochs", epochs)
        assert said.status == 0, said
        assert "certainty calibration error" in said.out
        assert "unsure    " in said.out
    metrics = json.loads((here / "two" / "metrics.json").read_text())
    stored = linnaeus.load(here / "two")
    assert stored.calibration is not None
    assert metrics["calibration"]["temperature"] == stored.temperature
    assert metrics["calibration"]["abstention"] == stored.calibration.rule.to_dict()
    assert stored.calibration.rule.candidates == metrics["epochs"] == 3
    assert json.loads((here / "one" / "metrics.json").read_text())["calibration"]["abstention"]["candidates"] == 1
    assert metrics["valid"]["calibration"]["cross_fitted"] is True
    assert metrics["test"]["calibration"]["cross_fitted"] is False

    said = say("evaluate", "two", "idx", "--tta", "--json", "e.json")
    assert said.status == 0, said
    found = json.loads((here / "e.json").read_text())["test"]
    assert found["n"] == 30
    for name in ("accuracy", "loss", "brier", "ece", "macro_f1", "macro_roc_auc"):
        assert found[name] == pytest.approx(metrics["test"][name], abs=1e-6), name
    assert np.array(found["confusion"]).sum() == 30
    assert [row["class"] for row in found["classes"]] == ["0", "1", "2"]
    assert set(found["tta"]) == {"mirror"}
    for piece in (
        "balanced accuracy",
        "calibration error (ECE)",
        "the worst first",
        "tested",
        "estimated",
        "mirror",
    ):
        assert piece in said.out, piece
    assert "30 images" in said.out

    predicted = (here / "two" / "predictions.csv").read_text().splitlines()
    assert predicted[0] == "sample,split,true,predicted,probability,probability_of_true,group,distance"
    assert len(predicted) == 1 + 12 + 30
    right = [row.split(",") for row in predicted[1:] if ",test," in row]
    assert sum(row[2] == row[3] for row in right) == metrics["test"]["correct"]

    for _ in range(2):  # its own file is replaced
        said = say("compare", "one", "two", "--json", "c.json")
        assert said.status == 0, said
    assert "phase.1.epochs" in said.out
    rows = json.loads((here / "c.json").read_text())["runs"]
    assert rows[1]["correct"] == metrics["test"]["correct"]
    assert rows[1]["loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-4)


def test_a_threshold_for_another_error_is_read_from_the_curve_and_not_stored(here: Path, say):
    """From the curve of the validation images in the model file, which is not changed."""
    assert say("train", "idx", "--recipe", "r.toml", "--out", "run", "-q").status == 0
    before = (here / "run" / "model.safetensors").read_bytes()
    said = say("evaluate", "run", "idx", "--error", "0.6", "--json", "e.json")
    assert said.status == 0, said
    found = json.loads((here / "e.json").read_text())["test"]["abstention"]
    assert found["chosen_on"] == "valid"
    assert found["rule"]["target_risk"] == 0.6
    assert found["rule"]["n"] == 12
    assert "so that at most 60 % of the answers are wrong" in said.out
    assert (here / "run" / "model.safetensors").read_bytes() == before
    said = say("evaluate", "run", "idx", "--split", "valid")
    assert said.err.count("\n") == 2
    assert "selected and calibrated on these images" in said.err
    assert "images are below 48 pixels" in said.err
    assert "cross-fitted in five folds" in said.out


def test_a_model_without_calibration_is_evaluated_too(here: Path, say):
    network, about = read_model(here / "m.safetensors")
    about.calibration = None
    write_model(here / "m.safetensors", network.state_dict(), about)
    write_images(here / "data" / "test", each=8)
    said = say("evaluate", "m.safetensors", "data", "--json", "e.json")
    assert said.status == 0, said
    found = json.loads((here / "e.json").read_text())["test"]
    assert found["calibration"]["cross_fitted"] is True
    assert found["abstention"]["chosen_on"] is None
    assert found["loss"] == pytest.approx(found["calibration"]["before"]["loss"])
    assert "thresholds chosen on these very images" in said.out


def test_evaluating(here: Path, say):
    write_images(here / "data" / "test", each=3)
    said = say("evaluate", "m.safetensors", "data", "--json", "deep/er/e.json")
    assert said.status == 0, said
    found = json.loads((here / "deep" / "er" / "e.json").read_text())["test"]
    assert found["n"] == 9
    assert f"{found['correct']} of 9" in said.out


def test_accuracy_by_a_column_of_a_csv(here: Path, say):
    write_images(here / "data" / "test", each=8)
    images = sorted((here / "data" / "test").rglob("*.png"))
    cameras = ("old", "")
    lines = [f"{image.relative_to(here)},{image.parent.name},{cameras[k % 2]}" for k, image in enumerate(images)]
    lines.insert(0, "path,label,camera")
    (here / "test.csv").write_text("\n".join(lines) + "\n")
    said = say("evaluate", "m.safetensors", "test.csv", "--slice", "camera", "--json", "e.json")
    assert said.status == 0, said
    assert "by camera, the lowest accuracy first" in said.out
    (found,) = json.loads((here / "e.json").read_text()).values()
    by_value = {row["value"]: row for row in found["slices"]["values"]}
    assert sum(row["correct"] for row in by_value.values()) == found["correct"]
    assert sum(row["n"] for row in by_value.values()) == 24
    assert set(by_value) == {"old", "(empty)"}

    said = say("evaluate", "m.safetensors", "data", "--slice", "camera")
    assert said.status == 2
    assert "--slice camera names a column, and only a CSV has columns" in said.err
    said = say("evaluate", "m.safetensors", "test.csv", "--slice", "lens")
    assert said.status == 2
    assert "no column 'lens'; the columns are" in said.err
