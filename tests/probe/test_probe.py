"""A probe evaluates each backbone on images that its head has not seen, once, and recommends one by its rule."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import torchvision
from tiny import draw, mini, write_images

from linnaeus.console import Console
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.data.table import Table
from linnaeus.errors import JobError, UnknownNameError, UserError
from linnaeus.files import SCRATCH
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD, license_warning
from linnaeus.models.weights.store import lookup
from linnaeus.preprocess import Preprocessing
from linnaeus.probe import backbones, evaluation
from linnaeus.probe.backbones import Backbone, Candidate, parse_backbones
from linnaeus.probe.comparison import Comparison, Result
from linnaeus.probe.evaluation import HeldOutAnswers
from linnaeus.probe.features import Cost
from linnaeus.probe.result_files import render
from linnaeus.probe.run import Probe, probe
from linnaeus.recipe import load_recipe
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import open_split, open_table

QUIET = Console(silent=True)
SIDE = 28


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, and weights of two random networks."""
    folder = tmp_path_factory.mktemp("probe")
    write_images(folder / "images", each=14)
    for name, seed in (("a", 1), ("b", 2)):
        network = mini(seed=seed, channels=3)
        about = ModelFile(network.arch, ("0", "1", "2"), ("0", "1", "2"), Preprocessing(SIDE, SIDE))
        write_model(folder / f"{name}.safetensors", network.state_dict(), about)
    return folder


def run(place: Path, names: str, **more: Any) -> Probe:
    names = names.replace("A", str(place / "a.safetensors")).replace("B", str(place / "b.safetensors"))
    return probe(place / "images", names, console=QUIET, **more)


def features_of(table: Table, seed: int) -> torch.Tensor:
    """The features of all images, computed without stores."""
    network = mini(seed=seed, channels=3).eval()
    assert table.paths is not None
    rows = [load_row(path, RowSpec(SIDE, "crop", "bilinear", 3)) for path in table.paths]
    with torch.no_grad():
        x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        return network.pool(network.run(x, stop="head"))


@pytest.mark.parametrize("names", ["A", "B", "A+B"])
def test_accuracy_is_that_of_a_head_on_held_out_folds(names: str, place: Path, tmp_path: Path):
    result = run(place, names, out=tmp_path / "out").comparison.results[0]
    table = open_table(Request(place / "images"))
    table = open_split(table, load_recipe("photos"), QUIET)
    order = np.concatenate([table.where("train"), table.where("valid")])
    parts = [features_of(table, {"A": 1, "B": 2}[name])[order] for name in names.split("+")]
    features, labels = torch.cat(parts, 1), table.labels[order]
    head = fit_linear_probe(features, labels, 3, fold=stratified_folds(labels))
    right = head.probabilities.argmax(1) == labels
    assert abs(int(right.sum()) - int(result.answers.correct.sum())) <= 1  # the executor merges norms
    assert np.mean(right[np.argsort(order)] == result.answers.correct) > 0.95
    assert (result.n, result.answers.width) == (42, features.shape[1])


def test_many_validation_images_are_evaluated_alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "LARGE_VALIDATION", 3)
    result = run(place, "A", out=tmp_path / "out")
    table = result.comparison.table
    assert result.comparison.results[0].answers.indices.tolist() == table.where("valid").tolist()
    assert "validation images" in result.protocol
    assert json.loads((result.path / "probe.json").read_text())["protocol"] == "validation"


def test_the_second_time_everything_comes_from_the_cache(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(place, "A,B,A+B", out=tmp_path / "out")

    def forbidden(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("linnaeus.stores.frozen.choose_executor", forbidden)
    monkeypatch.setattr(evaluation, "fit_linear_probe", forbidden)
    monkeypatch.setattr("linnaeus.probe.features.layer_table", forbidden)
    monkeypatch.setattr("linnaeus.stores.pixels._build", forbidden)
    second = run(place, "A,B,A+B", out=tmp_path / "out")
    times = ("ms_per_image", "images_per_second", "pareto", "recommended")
    for before, after in zip(first.comparison.rows(), second.comparison.rows(), strict=True):
        assert {k: v for k, v in before.items() if k not in times} == {k: v for k, v in after.items() if k not in times}


def test_another_label_is_evaluated_anew(place: Path, tmp_path: Path):
    images = write_images(tmp_path / "images", each=8)
    before = probe(images, str(place / "a.safetensors"), out=tmp_path / "out", console=QUIET)
    (images / "0" / "0 0.png").rename(images / "1" / "0 0.png")
    after = probe(images, str(place / "a.safetensors"), out=tmp_path / "out", console=QUIET)
    assert before.comparison.results[0].accuracy > after.comparison.results[0].accuracy


def test_a_backbone_that_fails_is_one_line(place: Path, tmp_path: Path, say: Any):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    names = f"mini_resnet={tmp_path / 'bad.safetensors'},{place / 'a.safetensors'}"
    said = say("probe", place / "images", "--backbones", names, "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert sum("bad.safetensors" in line for line in said.err.splitlines() if line.startswith("warning")) == 1
    rows = json.loads((tmp_path / "out" / "probe.json").read_text())["backbones"]
    assert [row["error"] is None for row in rows] == [True, False]
    with pytest.raises(JobError, match="no backbone could be compared"):
        probe(place / "images", names.split(",")[0], out=tmp_path / "new", console=QUIET)
    assert not (tmp_path / "new").exists(), "an empty folder would be in the way of the next probe"


def test_a_license_that_forbids_uses_is_a_warning(place: Path, tmp_path: Path, say: Any):
    """The table shows the license; a warning says what it forbids."""
    network = mini(seed=1, channels=3)
    data = {"weights_license": "cc-by-nc-4.0"}
    about = ModelFile(network.arch, ("0", "1", "2"), ("0", "1", "2"), Preprocessing(SIDE, SIDE), data=data)
    write_model(tmp_path / "w.safetensors", network.state_dict(), about)
    said = say("probe", place / "images", "--backbones", tmp_path / "w.safetensors", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert "cc-by-nc-4.0" in said.out
    assert "cc-by-nc-4.0, forbids commercial use" in said.err


def test_the_command_it_prints_trains_that_backbone(place: Path, tmp_path: Path, say: Any, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    names = f"{place / 'a.safetensors'},{place / 'b.safetensors'}"
    said = say("probe", place / "images", "--backbones", names, "--seed", 3, "--set", "data.split.valid=0.25")
    assert said.status == 0, said.err
    command = shlex.split(said.out.splitlines()[-1])
    assert command[:2] == ["linnaeus", "train"]
    trained = say(*command[1:], "--out", "run")
    assert trained.status == 0, trained.err
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    recommended = json.loads((tmp_path / "runs/probe-1/probe.json").read_text())["recommended"]
    assert f'weights = "{recommended}"' in recipe
    assert "valid = 0.25" in recipe
    assert "seed = 3" in recipe


def test_csv_and_json_and_the_plot_are_there(place: Path, tmp_path: Path):
    result = run(place, "A,B", out=tmp_path / "out")
    with (result.path / "probe.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    json_rows = json.loads((result.path / "probe.json").read_text())["backbones"]
    assert [row["name"] for row in rows] == [row["name"] for row in json_rows]
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in json_rows]
    assert (result.path / "probe.png").stat().st_size > 5000
    assert json_rows[0]["p"] is None
    assert json_rows[1]["mcnemar"]["n"] == 42


def test_the_model_is_as_large_as_its_file(place: Path, tmp_path: Path):
    """In the table it is the weights alone: the file adds its header."""
    size = run(place, "A", out=tmp_path / "out").comparison.results[0].cost.model_bytes
    assert size <= (place / "a.safetensors").stat().st_size <= size + 8192


def result(name: str, correct: int, milliseconds: float, n: int = 200, parts: int = 1) -> Result:
    """A candidate that got the first `correct` of `n` images right."""
    answers = HeldOutAnswers(np.arange(n), np.arange(n) < correct, 4, 0.1)
    candidate = Candidate(name, tuple(Backbone(f"{name}{i}", "w") for i in range(parts)))
    return Result(candidate, answers, Cost(1, 1, milliseconds / 1000, 4), "mit")


def comparison(*results: Result) -> Comparison:
    labels, paths = np.arange(200) % 2, tuple(map(str, range(200)))
    return Comparison(Table("s", "folder", ("a", "b"), ("a", "b"), labels, np.full(200, "train"), paths), results)


@pytest.mark.parametrize(
    ("others", "recommended"),
    [
        ([("fast", 178, 2.0)], "fast"),  # one percentage point below the best, and not significantly so
        ([("fast", 177, 2.0)], "best"),  # more than one point below, though no test tells them apart
        ([("slow", 180, 30.0)], "best"),  # equally good and slower
        ([("fast", 160, 2.0), ("faster", 179, 1.0)], "faster"),
    ],
)
def test_the_fastest_as_good_as_the_best_is_recommended(others: list[tuple[str, int, float]], recommended: str):
    found = comparison(result("best", 180, 10.0), *(result(*other) for other in others))
    assert found.best.name == "best"
    assert found.recommended is not None
    assert found.recommended.name == recommended


def test_a_significant_difference_rules_out_even_a_close_one():
    best, fast = result("best", 2000, 10.0, 2000), result("fast", 1985, 1.0, 2000)
    labels, paths = np.arange(2000) % 2, tuple(map(str, range(2000)))
    table = Table("s", "folder", ("a", "b"), ("a", "b"), labels, np.full(2000, "train"), paths)
    found = Comparison(table, (fast, best))
    assert found.p["fast"] < 0.05
    assert found.recommended is best


def test_an_ensemble_is_compared_but_not_recommended():
    found = comparison(result("a+b", 190, 12.0, parts=2), result("a", 180, 6.0))
    assert found.best.name == "a+b"
    assert found.recommended is not None
    assert found.recommended.name == "a"
    assert comparison(result("a+b", 190, 12.0, parts=2)).recommended is None


def test_an_accuracy_that_needs_no_image_is_told():
    assert comparison(result("a", 110, 1.0)).no_better.endswith("answering the most frequent class: 50.00 %")
    assert comparison(result("a", 110, 1.0), result("b", 120, 1.0)).no_better == ""


def test_the_table_names_a_weights_file_without_its_folder_unless_two_have_the_same_name():
    def rows(*names: str) -> tuple[list[str], list[str]]:
        candidates = [Candidate(name, tuple(map(backbone, name.split("+")))) for name in names]
        results = (Result(candidate, result("", 100, 1.0).answers, Cost(1, 1, 1.0, 4), "") for candidate in candidates)
        found = comparison(*results)
        shown = [line.removeprefix("→ ").split()[0] for line in render(found).splitlines()[1:]]
        return shown, [row["name"] for row in found.rows()]

    def backbone(part: str) -> Backbone:
        model, _, file = part.rpartition("=")
        return Backbone(model, file)

    long = ["timm/x=/a/b/c.safetensors", "timm/x=/a/b/d.safetensors+resnet18=e", "/a/f.safetensors"]
    assert rows(*long) == (["timm/x=c.safetensors", "timm/x=d.safetensors+resnet18=e", "f.safetensors"], long)
    same = ["resnet18=one/w.pth", "resnet18=two/w.pth"]
    assert rows(*same) == (same, same)


def test_the_pareto_front_has_what_no_other_beats():
    found = comparison(result("a", 180, 9.0), result("b", 180, 5.0), result("c", 100, 1.0), result("d", 90, 2.0))
    assert found.front == {"b", "c"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("resnet5", "did you mean resnet50"),
        ("resnet50-torchvison-v1", "did you mean resnet50-torchvision-v1"),
        ("", "names no backbone"),
        (" , ", "names no backbone"),
        ("resnet50+resnet50", "joins a backbone with itself"),
        ("resnet50+", "a name is missing"),
        ("resnet50=missing.safetensors", "there is no file missing.safetensors"),
        ("resnet50=", "there is no file"),
        ("mini_resnet", "no pretrained weights"),
        ("timm:resnet50", r"did you mean timm/resnet50\?"),
        ("resnt50=README.md", "unknown model 'resnt50'"),
    ],
)
def test_bad_names_are_one_line_before_any_work(text: str, problem: str):
    with pytest.raises(UserError, match=problem) as caught:
        parse_backbones(text, {}, "cpu")
    assert "\n" not in str(caught.value)


def test_the_same_backbone_twice_is_compared_once():
    found = parse_backbones("resnet50,resnet50-torchvision-v1,resnet50", {}, "cpu")
    assert [candidate.name for candidate in found.chosen] == ["resnet50"]
    assert len(found.notes) == 2
    found = parse_backbones("resnet18+resnet50,resnet50+resnet18", {}, "cpu")
    assert len(found.chosen) == 1


def test_weights_at_hand_are_preferred_and_auto_lists_them(monkeypatch: pytest.MonkeyPatch):
    local = {"resnet50": "resnet50-v1-imagenet", "timm/x": "pretrained"}
    assert parse_backbones("resnet50", local, "cpu").chosen[0].backbones[0].weights == "resnet50-v1-imagenet"
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    found = parse_backbones("auto,resnet18", local, "cpu")
    assert [candidate.name for candidate in found.chosen] == ["resnet50-v1-imagenet", "timm/x", "resnet18"]
    assert any("left out" in note for note in found.notes)


def test_recommended_backbones_exist_and_permit_any_use():
    torchvision()
    pytest.importorskip("timm")
    for names in backbones.RECOMMENDED.values():
        for name in names:
            assert not license_warning(lookup(name).license), name
    with pytest.raises(UnknownNameError, match="did you mean timm/convnext_atto"):
        parse_backbones("timm/convnext_ato", {}, "cpu")


@pytest.mark.parametrize("key", ["phase.1.lr", "seed", "model.name", "lr"])
def test_keys_that_a_probe_does_not_use_are_refused(key: str, place: Path):
    with pytest.raises(UserError, match=f"--set {key}: a probe solves a linear head"):
        run(place, "A", settings={key: 1})


def test_what_a_killed_probe_has_left_is_removed(place: Path, tmp_path: Path):
    left = tmp_path / "out" / f"{SCRATCH}abcd1234"
    left.mkdir(parents=True)
    (left / "probe.json").write_text("{")
    run(place, "A", out=left.parent)
    assert not left.exists()


def test_results_of_others_are_not_overwritten(place: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty, and holds no probe\.json"):
        run(place, "A", out=tmp_path)
    other = tmp_path / "other" / "probe.json"
    other.parent.mkdir()
    other.write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"holds no probe\.json of a probe"):
        run(place, "A", out=other.parent)
    assert other.read_text() == '{"mine": 1}'
    for _ in range(2):
        run(place, "A", out=tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        run(place, "A", out=tmp_path / "notes.txt")
    with pytest.raises(UserError, match="lies inside the source"):
        run(place, "A", out=place / "images" / "out")
    assert not (place / "images" / "out").exists()


def test_copies_are_never_in_different_folds(place: Path, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch):
    for path in (place / "images").rglob("*.png"):
        for part in ("x", "y"):
            (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "images" / path.parent.name / f"{part} {path.name}")
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def folds(labels: np.ndarray, *, seed: int, groups: np.ndarray | None) -> np.ndarray:
        assert groups is not None
        seen.append((groups, stratified_folds(labels, seed=seed, groups=groups)))
        return seen[-1][1]

    monkeypatch.setattr("linnaeus.probe.evaluation.stratified_folds", folds)
    said = say("probe", tmp_path / "images", "--backbones", place / "a.safetensors", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert "warning: 42 images of" in said.err
    ((groups, fold),) = seen
    assert np.bincount(groups).max() == 2
    assert len(np.unique(groups)) == 42
    assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))


def test_validation_images_with_a_copy_in_training_are_not_evaluated(place: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(evaluation, "LARGE_VALIDATION", 3)
    for label in range(3):
        for split, images in (("train", range(8)), ("valid", range(8, 12))):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for i in images:
                pixels = np.random.default_rng(100 * label + i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((96, 96)).save(folder / f"{i}.png")
        identical, altered = folder / "identical.png", folder / "altered.jpg"
        shutil.copy(tmp_path / "images/train" / str(label) / "0.png", identical)
        Image.open(tmp_path / "images/train" / str(label) / "1.png").resize((80, 80)).save(altered, quality=80)
    said = Console(silent=True)
    lines: list[str] = []
    monkeypatch.setattr(said, "warn", lines.append)
    found = probe(tmp_path / "images", str(place / "a.safetensors"), out=tmp_path / "out", console=said)
    assert found.comparison.results[0].n == 12
    assert found.protocol.startswith("on the 12 of 18 validation images")
    assert any("6 images of" in line for line in lines)
    table = found.comparison.table
    names = {table.sample_id(i) for i in found.comparison.results[0].answers.indices.tolist()}
    assert not any("identical" in name or "altered" in name for name in names)


def test_too_few_unseen_validation_images_are_cross_validated(place: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(evaluation, "LARGE_VALIDATION", 4)
    for label in range(3):
        for split, images in (("train", range(8)), ("valid", range(8, 9))):
            write_images(tmp_path / "images" / split, (str(label),), each=1)
            for i in images:
                Image.fromarray(draw(np.array([label]), 50 + i)[0]).save(
                    tmp_path / "images" / split / str(label) / f"{i}.png"
                )
    found = probe(tmp_path / "images", str(place / "a.safetensors"), out=tmp_path / "out", console=QUIET)
    assert "cross-validation" in found.protocol
    assert found.comparison.results[0].n == 33
