"""Outputs of a command that would replace a file of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tiny import write_idx, write_images, write_tiny_model

from linnaeus.data.sources import refuse_among
from linnaeus.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model.safetensors")


def test_predictions_do_not_replace_files_of_the_user(model: Path, tmp_path: Path, say):
    image = write_images(tmp_path / "pictures", each=1) / "0" / "0 0.png"
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = image.read_bytes()
    for option, file, reason in (
        ("--out", notes, "exists and was not written by this command"),
        ("--out", image, "unsupported format"),
        ("--out", tmp_path, "is a folder"),
        ("--grid", image, "exists and was not written by this command"),
    ):
        said = say("predict", model, image, option, file, "--device", "cpu")
        assert said.status == 2
        assert said.err.count("\n") == 1
        assert f"{file}: {reason}" in said.err
    assert notes.read_text() == "mine"
    assert image.read_bytes() == before
    notes.write_text("")
    assert say("predict", model, image, "--out", notes, "--device", "cpu").status == 0


def test_exports_do_not_replace_files_of_the_user(model: Path, tmp_path: Path, say):
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    source = write_images(tmp_path / "pictures", each=2)
    notes, before = tmp_path / "notes.txt", model.read_bytes()
    notes.write_text("mine")
    for out, reason in ((notes, "exists"), (model, "exists"), (tmp_path, "is a folder")):
        said = say("export", model, "--to", "onnx", "--data", source, "--out", out)
        assert said.status == 2
        assert f"{out}: {reason}" in said.err
    assert notes.read_text() == "mine"
    assert model.read_bytes() == before
    export = tmp_path / "model.onnx"
    export.write_bytes(b"a network of the user's own")
    assert f"{export}: exists" in say("export", model, "--to", "onnx", "--data", source, "--out", export).err
    assert export.read_bytes() == b"a network of the user's own"
    export.unlink()
    gate = tmp_path / "gate.json"
    for _ in range(2):  # its own files are replaced
        said = say("export", model, "--to", "onnx", "--data", source, "--out", export, "--json", gate)
        assert said.status == 0, said.err


def test_no_command_replaces_a_file_of_a_run_or_a_page_of_the_user(model: Path, tmp_path: Path, say):
    """A run is known by its recipe.toml; --json results, pages and grids may be written again elsewhere."""
    source, run = write_images(tmp_path / "pictures", each=2), tmp_path / "run"
    run.mkdir()
    names = ("metrics.json", "report.html", "predictions.png", "recipe.toml", "model.safetensors")
    for name in names:
        (run / name).write_bytes(b"mine")
    (tmp_path / "page.html").write_text("mine")
    for command in (
        ("evaluate", model, source, "--json", run / "metrics.json"),
        ("check", source, "--json", run / "metrics.json"),
        ("compare", run, run, "--json", run / "metrics.json"),
        ("check", source, "--gallery", run / "report.html"),
        ("predict", model, source, "--grid", run / "predictions.png"),
        ("embed", model, source, "--out", run / "model.safetensors"),
    ):
        said = say(*command)
        assert (said.status, "is a file of the run" in said.err) == (2, True), command
    assert {(run / name).read_bytes() for name in names} == {b"mine"}
    said = say("check", source, "--gallery", tmp_path / "page.html")
    assert "exists and was not written by this command" in said.err
    for _ in range(2):
        assert say("check", source, "--gallery", tmp_path / "new.html", "--json", tmp_path / "c.json").status < 2
        assert say("predict", model, source, "--grid", tmp_path / "grid.png", "--device", "cpu").status == 0


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "parquet"])
def test_features_replace_features_only(model: Path, tmp_path: Path, say, suffix: str):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    source, before, out = write_images(tmp_path / "pictures", each=1), model.read_bytes(), tmp_path / f"f.{suffix}"
    for _ in range(2):
        assert say("embed", model, source, "--out", out).status == 0
    assert "exists and was not written by this command" in say("embed", model, source, "--out", model).err
    assert model.read_bytes() == before
    out.write_bytes(before)
    assert say("embed", model, source, "--out", out).status == 2


def test_no_image_is_written_among_the_images_that_are_read(
    model: Path, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch
):
    """The next `check` or `train` would take the sheets of `explain` as a class, and a grid as an image."""
    source = write_images(tmp_path / "pictures", each=2)
    loose = tmp_path / "loose"
    loose.mkdir()
    image = (source / "1" / "1 0.png").rename(loose / "a.png")
    idx = write_idx(tmp_path / "idx")
    before = sorted(tmp_path.rglob("*"))
    for place, command in (
        (source, ("explain", model, "1")),
        (source, ("explain", model, "1/1 1.png")),
        (source, ("explain", model, "1/*.png")),
        (source / "1", ("explain", model, "1 1.png")),
        (source / "1", ("explain", model, ".", "--out", "../2/sheets")),
        (tmp_path, ("explain", model, loose, "--out", loose / "sheets")),
        (tmp_path, ("predict", model, source, "--grid", source / "1" / "grid.png")),
        (tmp_path, ("predict", model, source / "0", "--grid", source / "1" / "grid.png")),
        (loose, ("predict", model, ".", "--grid", "grid.png")),
        (source, ("explain", model, loose)),
        (source, ("explain", model, image)),
        (source / "1", ("predict", model, image, "--grid", "grid.png")),
        (source, ("train", idx)),
    ):
        monkeypatch.chdir(place)
        said = say(*command)
        option = "--grid" if "--grid" in command else "--out"
        assert (said.status, said.err.count("\n")) == (2, 1), command
        assert f"error: {option} " in said.err
        inside = loose if place == loose or command[-1] == loose / "sheets" else source
        assert f": lies inside the source {inside}, so images written there would become part of the data" in said.err
        assert said.err.endswith(f"; choose another {option} elsewhere\n")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.chdir(loose)  # a folder of which nothing is known, and one file of it
    assert say("explain", model, image).status == 0
    monkeypatch.chdir(tmp_path)
    assert say("explain", model, "pictures/0", "loose").status == 0
    assert say("predict", model, "pictures", "--grid", "grid.png").status == 0


def test_runs_that_are_called_like_classes_are_no_class_folders(tmp_path: Path):
    runs = tmp_path / "runs"
    for name in ("rose", "tulip"):
        (runs / name).mkdir(parents=True)
        for file in ("recipe.toml", "history.csv"):
            (runs / name / file).touch()
    refuse_among("--out", runs / "next", [], ("rose", "tulip"))
    for name in ("rose", "tulip"):
        (runs / name / "recipe.toml").unlink()
    with pytest.raises(UserError, match="lies inside the source"):
        refuse_among("--out", runs / "next", [], ("rose", "tulip"))


def test_results_replace_only_results_of_the_same_command(
    model: Path, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch
):
    """A rerun replaces its own file, and nothing else."""
    monkeypatch.chdir(tmp_path)
    source = write_images(tmp_path / "pictures", each=2)
    commands = {
        "evaluate": ("evaluate", model, source, "--json", "evaluate.json"),
        "check": ("check", source, "--json", "check.json"),
        "explain": ("explain", model, source / "0", "--json", "explain.json"),
    }
    for command in [*commands.values(), *commands.values()]:
        said = say(*command)
        assert said.status < 2, said.err
    written = {name: Path(f"{name}.json").read_text() for name in commands}
    for name, command in commands.items():
        file = Path(command[-1])
        for content in ('{"precious":1}', *(text for other, text in written.items() if other != name)):
            file.write_text(content)
            said = say(*command)
            assert said.status == 2
            assert said.err == (
                f"error: --json {file}: exists and was not written by this command; remove it, or choose another name\n"
            )
            assert file.read_text() == content
    sheet = Path("explained") / "0 0-explained.png"
    figure = Figure()
    figure.savefig(tmp_path / "mine.png")
    for mine in (b"mine", (tmp_path / "mine.png").read_bytes()):
        sheet.write_bytes(mine)
        said = say("explain", model, source / "0" / "0 0.png")
        assert said.status == 2
        assert said.err.endswith(
            f"--out {sheet}: exists and was not written by this command; remove it, or choose another name\n"
        )
        assert sheet.read_bytes() == mine
