"""Mistakes that need no torch are reported without it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_images, write_recipe, write_tiny_model

PROGRAM = """
import resource, sys
from linnaeus.cli.main import main
sys.argv = ["linnaeus", *sys.argv[1:]]
status = 0
try:
    main()
except SystemExit as exit:
    status = exit.code
usage = resource.getrusage(resource.RUSAGE_SELF)
print(status, "torch" in sys.modules, usage.ru_utime + usage.ru_stime)
"""
LIMIT = 1.0
"""Seconds of CPU. Measured: 0.25 to 0.4 on an Intel Xeon; with torch, 3 and more."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    write_tiny_model(folder / "m.safetensors")
    write_images(folder / "images", each=4)
    write_recipe(folder / "r.toml")
    (folder / "r.toml").with_name("bad.toml").write_text((folder / "r.toml").read_text().replace("batch", "bach"))
    write_recipe(folder / "half.toml", precision="float16")
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    (folder / "file.zip").write_text("x")
    run = folder / "run"
    run.mkdir()
    for name in ("recipe.toml", "model.safetensors", "split.csv"):
        (run / name).write_text("")
    (run / "metrics.json").write_text('{"source": {"path": "/some where/images"}}')
    return folder


TRAIN = {
    "missing source": ("nowhere", "nowhere: no such file or folder"),
    "empty source": ("empty", "empty"),
    "an image": ("images/0/0 0.png", "a single image"),
    "run folder": (
        "run",
        "train its recipe again: linnaeus train '/some where/images' --recipe run",
    ),
    "unknown recipe": ("images --recipe phots", "did you mean photos?"),
    "unknown key in a file": ("images --recipe bad.toml", "phase.1.bach: unknown key (did you mean batch?)"),
    "unknown key": ("images --recipe r.toml --set data.siz=3", "did you mean size or resize?"),
    "unknown key without a recipe": (
        "images --set data.siz=3",
        "--set data.siz: unknown key (did you mean size",
    ),
    "size without a recipe": ("images --set data.size=999", "error: data: resize = 256 is smaller than size = 999"),
    "split without a recipe": (
        "images --set data.split.valid=0.9 --set data.split.test=0.5",
        "error: data.split: valid + test is 1.4, which leaves nothing",
    ),
    "value": (
        "images --recipe r.toml --set phase.1.lr=fast",
        "phase.1.lr = 'fast': expected a number above 0, or \"auto\"",
    ),
    "value without a recipe": ("images --set phase.1.batch=0", "phase.1.batch = 0"),
    "setting": ("images --set lr", "expected KEY=VALUE"),
    "epochs": ("images --epochs three", "--epochs three: expected a number"),
    "no epochs": ("images --epochs 0", "--epochs 0: expected a number from 1 on"),
    "not a number": ("images --set lr=nan", "error: --set phase.1.lr = nan: expected a finite number"),
    "epochs of phases": ("images --recipe r.toml --epochs 3,4", "has 1 phase"),
    "weights": ("images --weights w.pth", "w.pth: there is no such weights file"),
    "model": ("images --model resnet51", "unknown model 'resnet51' (did you mean"),
    "model of a recipe": ("images --recipe r.toml --set model.name=resnt18", "unknown model 'resnt18' (did you mean"),
    "precision as a number": ("images --device cpu --set precision=16", "precision = 16-mixed: not available on CPU"),
    "precision in a file": ("images --device cpu --recipe half.toml", "precision = 16-mixed: not available on CPU"),
    "int8 on a GPU": (
        "images --device cuda --set model.frozen_precision=int8",
        'model.frozen_precision = "int8": runs on a CPU only',
    ),
    "precision": ("images --device cpu --set precision=16-mixed", "precision = 16-mixed: not available on CPU"),
    "code": ("images --model net.py:build", "net.py: there is no such file"),
    "device": ("images --device gpu", "--device gpu: not one of auto, cpu, cuda, mps"),
    "GPU of another tool": ("images --device gpu", "cuda, mps (did you mean cuda?)"),
    "numbered GPU": ("images --device cuda:1", "(did you mean cuda?); CUDA_VISIBLE_DEVICES=1 before the command"),
    "checkpoints": ("images --checkpoint-every often", "--checkpoint-every often: expected auto"),
    "taken folder": ("images --recipe r.toml --out images", "images: already exists"),
    "folder below a file": ("images --recipe r.toml --out file/run", "file/run: cannot be written (Not a directory)"),
    "option": ("images --epoch", "No such option"),
    "key of a phase": (
        "images --optimizer adam",
        "No such option '--optimizer'. Did you mean '--set phase.1.optimizer=…'?",
    ),
    "folder of another tool": ("images --project x", "No such option '--project': --out DIR names the run folder."),
    "data of another tool": ("--data images", "No such option '--data': the data stands without an option"),
    "option of another tool": ("images --imgsz 224", "No such option '--imgsz'. Did you mean '--size'?"),
    "name of a run": ("images --name x", "No such option '--name'. Did you mean '--out'?"),
    "number of a GPU": ("images --gpu 0", "No such option '--gpu'. Did you mean '--device'?"),
    "short option": ("images -b 32", "No such option '-b'. Did you mean '--batch'?"),
    "number of classes": ("images --num-classes 2", "'--num-classes': the data says which classes there are"),
    "assignments": ("model=resnet50 data=images", "type: linnaeus train images --model resnet50 (see"),
    "assigned keys": (
        "--seed 1 data=images imgsz=64 opt=adam resume=True",
        "type: linnaeus train --seed 1 images --size 64 --set phase.1.optimizer=adam --resume (see",
    ),
    "assigned key of nothing": ("images nothing=3", "Got unexpected extra argument (nothing=3)"),
    "option that is a key here": ("images --patience 3", "Did you mean '--set phase.1.early_stop=…'?"),
    "option that is not needed": ("images --workers 4", "no number of workers is needed"),
    "key of another tool": ("images --set learning_rate=1e-3", "learning_rate: unknown key (did you mean lr?)"),
    "value that only some recipes take": ("images --set lr=abc", "phase.1.lr = 'abc': expected a number above 0"),
    "rate": ("images --lr fast", "fast: expected a number above 0, auto, or one value per phase"),
    "rates": (
        "images --recipe r.toml --lr 1e-3,1e-4",
        "error: --lr: 2 values, but r.toml has 1 phase for it; give one value, or one for each",
    ),
    "rates of --set": ("images --recipe r.toml --set lr=[1,2]", "error: --set lr: 2 values, but r.toml has 1 phase"),
    "rate of a solved head": ("images --recipe photos --lr 1", "error: --lr: recipe photos solves the head"),
    "model of the hub": ("images --model facebook/dinov2-small", "(did you mean hf/facebook/dinov2-small?)"),
    "ambiguous key": ("images --set head=auto", "--set head: write phase.1.head or model.head"),
}
OTHERS = {
    "command of another tool": ("val m.safetensors images", "No such command 'val'. Did you mean 'evaluate'?"),
    "argument as an option": (
        "predict m.safetensors --source images",
        "an option: linnaeus predict MODEL IMAGES.",
    ),
    "folder assigned": ("label data=images", "type: linnaeus label images (see"),
    "arguments assigned": ("predict source=images model=m.pt", "type: linnaeus predict m.pt images (see"),
    "format of an export": ("export m.safetensors --format onnx", "No such option '--format'. Did you mean '--to'?"),
    "models of a probe": ("probe images --models a", "No such option '--models'. Did you mean '--backbones'?"),
    "predict model": ("predict nowhere images", "nowhere: no such model file"),
    "predict folder": ("predict images images", "images: holds no model.safetensors"),
    "predict images": ("predict m.safetensors empty", "empty: no images in this folder"),
    "predict address": (
        "predict m.safetensors https://a.org/x.jpg",
        "x.jpg: an address, and images are read from files",
    ),
    "predict data": (f"predict m.safetensors data:image/png;base64,{'A' * 2000}", "AAAAA…: an address"),
    "predict pattern": ("predict m.safetensors nothing*.jpg", "no file matches this pattern"),
    "predict json": ("predict m.safetensors images --out x.json", "ends in .csv or .jsonl"),
    "predict xlsx": ("predict m.safetensors images --out x.xlsx", "unsupported format"),
    "predict formats": ("predict m.safetensors images --out x.csv --format jsonl", "its name says csv"),
    "predict table as csv": ("predict m.safetensors images --out x.csv --format table", "its name says csv"),
    "predict folder as file": ("predict m.safetensors images --out images", "--out images: is a folder"),
    "evaluate model": ("evaluate nowhere images", "nowhere: no such model file"),
    "predict files": ("predict m.safetensors nope.jpg no.png", "error: nope.jpg: no such file; check the path"),
    "evaluate source": ("evaluate m.safetensors nowhere", "nowhere: no such file or folder"),
    "evaluate json": ("evaluate m.safetensors images --json x.xlsx", "ends in .json"),
    "explain": ("explain nowhere images", "nowhere: no such model file"),
    "export": ("export nowhere --to onnx", "nowhere: no such model file"),
    "serve pixels": ("serve m.safetensors --max-megapixels 1e308", "'--max-megapixels': 1e+308 is not in the range"),
    "export place": ("export m.safetensors --to onnx --out file/m.onnx", "file/m.onnx: cannot be written"),
    "archive": ("train file.zip --recipe r.toml", "file.zip: not a readable zip (it has no directory of files)"),
    "serve": ("serve nowhere", "nowhere: no such model file"),
    "compare": ("compare a b --json x.csv", "ends in .json"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="measures CPU time as POSIX does")
@pytest.mark.parametrize("name", [*TRAIN, *OTHERS])
def test_a_mistake_is_reported_without_torch(name: str, place: Path):
    line, message = (f"train {TRAIN[name][0]}", TRAIN[name][1]) if name in TRAIN else OTHERS[name]
    arguments = ["images/0/0 0.png" if word == "images/0/0" else word for word in line.split() if word != "0.png"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    status, torch, seconds = done.stdout.split()[-3:]
    assert (status, torch) == ("2", "False"), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert float(seconds) < LIMIT


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        ("train nowhere", ["numpy", "pydantic", "email", "linnaeus.data.sources"]),
        ("evaluate m.safetensors nowhere", ["numpy", "pydantic", "email", "linnaeus.data.sources"]),
        ("train images --set data.siz=3", ["numpy", "linnaeus.data.sources"]),
        ("--help", ["numpy", "pydantic", "email", "linnaeus.data.sources"]),
    ],
)
def test_a_mistake_is_reported_without_the_readers_of_sources(arguments: str, unneeded: list[str], place: Path):
    """Imports are nearly all of the time; the readers, with numpy, were more than half of it."""
    program = f"{PROGRAM}print([name for name in {unneeded} if name in sys.modules])"
    command = [sys.executable, "-c", program, *arguments.split()]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file.zip/rose", "not a readable zip"),
        ("nowhere/a-{0..3}.tar", "nowhere/a-0.tar: cannot be read"),
        ("mnis", "did you mean mnist?"),
        ("ftp://a.org/b", "only shards can be read from an address"),
        ("a" * 300, "cannot be opened"),
    ],
)
def test_what_may_be_no_plain_path_is_left_to_the_readers(source: str, message: str, place: Path, monkeypatch):
    from linnaeus.cli.early import check_source
    from linnaeus.errors import UserError

    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=message):
        check_source(source)


def test_a_number_of_bits_is_a_precision(tmp_path: Path):
    from linnaeus.errors import UserError
    from linnaeus.recipe import load_recipe

    for bits, name in ((32, "32"), (16, "16-mixed")):
        assert load_recipe(str(write_recipe(tmp_path / "r.toml", precision=bits))).precision == name
    for value in (8, True, 32.5, "33"):
        with pytest.raises(UserError, match="precision"):
            load_recipe(str(write_recipe(tmp_path / "r.toml", precision=value)))


def test_an_export_finds_a_read_only_run_before_the_work(tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch):
    write_tiny_model(tmp_path / "model.safetensors")
    write_images(tmp_path / "images")

    def refuse(**more: object) -> None:  # root may write to a read-only folder
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("linnaeus.cli.export.load_model", lambda *a: pytest.fail("the model was read"))
    said = say("export", tmp_path / "model.safetensors", "--to", "onnx", "--data", tmp_path / "images")
    assert said.status == 1
    assert f"error: {tmp_path}: may not be written (Permission denied); choose another place" in said.err
