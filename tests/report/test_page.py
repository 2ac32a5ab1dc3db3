"""The report page: its contents, missing files, and names that contain markup."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fabricate import draw, fabricate, write_source
from tiny import settings, write_images, write_recipe
from torch import Tensor, nn

import linnaeus
from linnaeus.cli.main import cli
from linnaeus.console import Console
from linnaeus.data.images.content import content_hash
from linnaeus.data.sources import open_source
from linnaeus.data.split import write_split
from linnaeus.errors import UserError
from linnaeus.preprocess import Preprocessing
from linnaeus.report.page import write_report
from linnaeus.runs.reader import label_lines, read_run
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.stores.samples import decode_split
from linnaeus.text import typeset_percent
from linnaeus.theme import style_sheet

EVIL = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\"'&"
NAMES = ("rose", "玫瑰", EVIL)
IMAGE = re.compile(r'<img src="([^"]*)"')


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three classes on 39 images; the name of one class is an injection attempt."""
    source = write_source(tmp_path / "source", NAMES)
    fabricate(source, tmp_path / "run", skill=0.5)
    return tmp_path / "run"


def page_of(run: Path, **more: Any) -> str:
    path, _ = write_report(run, **more)
    return path.read_text(encoding="utf-8")


def findings(*some: dict[str, Any]) -> str:
    plain = {"kind": "leak", "severity": "error", "paths": [], "classes": [], "detail": ""}
    return json.dumps({"findings": [plain | each for each in some], "notes": ["`not all` was looked for"]})


def test_the_figures_of_the_run_are_on_its_page(run: Path):
    page, metrics = page_of(run), json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    test = metrics["test"]
    low, high = test["accuracy_ci95"]
    assert f'<p class="big">{100 * test["accuracy"]:.1f}\u202f%</p>' in page
    assert f"95 % interval {100 * low:.1f}\u202f% to {100 * high:.1f}\u202f%" in page
    assert "short side scaled to 36, center 32 x 32 cut out, color" in page
    assert f"{test['correct']} correct, {test['n'] - test['correct']} wrong" in page
    assert f"{test['loss']:.3f}" in page
    assert f"{metrics['valid']['brier']:.3f}" in page
    assert metrics["fingerprint"] in page
    assert metrics["versions"]["torch"] in page
    assert "70 s in total" in page
    assert 'name = "mini_resnet"' in unescape(page)
    assert re.search(r"玫瑰</b>.*?6</span>.*?3</span>.*?4</span>", page, re.DOTALL), "counts of a class by split"


def test_figures_of_validation_are_also_given_cross_fitted(run: Path):
    """The table's are of the images that fitted the temperature; the section on trust shows the test images."""
    effect = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["valid"]["calibration"]
    assert effect["cross_fitted"]
    loss, brier, ece = (effect["after"][name] for name in ("loss", "brier", "ece"))
    words = f"log loss {loss:.3f}, Brier score {brier:.3f}, calibration error {typeset_percent(ece, 1)}"
    assert f"what other images fitted (cross-fitted), they have {words}." in page_of(run)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["valid"]["calibration"]["cross_fitted"] = False
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert "(cross-fitted), they have" not in page_of(run)


def test_the_page_names_the_precisions_beside_the_hardware(tmp_path: Path):
    source = write_source(tmp_path / "source", ("a", "b", "c"))
    precisions = {"phase 1": "32-true", "phase 2": "bf16-mixed", "phase 3": "bf16-mixed"}
    fabricate(source, tmp_path / "run", hardware={"processor": "some CPU", "gpu": None}, precision=precisions)
    assert "some CPU, 32-true, bf16-mixed<" in page_of(tmp_path / "run")


def test_the_command_that_repeats_the_run_can_be_typed(run: Path):
    found = re.search(r"<code>(linnaeus train .*?)</code>", page_of(run))
    assert found is not None
    program, command, source, option, recipe = shlex.split(unescape(found[1]))
    assert (program, command, option) == ("linnaeus", "train", "--recipe")
    assert len(open_source(source)) > 0
    assert (run / recipe).is_file()


def test_every_section_has_its_images_and_they_lie_in_the_page(run: Path):
    page = page_of(run)
    images = IMAGE.findall(page)
    assert len(images) > 3 * 6
    assert all(address.startswith("data:image/") for address in images)
    assert page.count("a training image of rose") >= 6
    wrong = [a for a in read_run(run).predictions["test"] if not a.correct]
    assert wrong, "the run must have mistakes to show"
    assert all(unescape(page).count(a.sample) for a in wrong)


def test_nothing_is_fetched_and_only_its_own_script_may_run(run: Path):
    page = page_of(run)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", page)
    assert "@import" not in page
    assert style_sheet() in page
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_names_are_text_and_never_markup(run: Path):
    (run / "check.json").write_text(findings({"detail": EVIL, "paths": [EVIL], "kind": EVIL, "severity": EVIL}))
    (run / "bad_images.csv").write_text("path,reason\n<b>bold</b>/1.jpg,<i>no</i>\n")
    (run / "recipe.toml").write_text("# </pre><script>alert(2)</script>\n")
    page = page_of(run)
    assert "onerror=alert" in page, "the name is there"
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert "<i>no" not in page
    assert page.count("<script>") == page.count("</script>") == 1
    assert "{{ 7 * 7 }}" in page
    assert '{{ 7 * 7 }}"' not in "".join(re.findall(r"<[^>]*>", page)), "a quote in a name ends no attribute"


def test_names_that_are_not_utf8_are_written(run: Path):
    (run / "check.json").write_text(findings({"paths": ["caf\udce9.jpg"], "detail": "odd \udce9"}))
    assert "odd \\udce9" in page_of(run)


def test_without_its_source_the_page_says_so_and_keeps_the_rest(run: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "source")
    path, missing = write_report(run)
    page = path.read_text(encoding="utf-8")
    assert "no such file" in missing
    assert missing in unescape(page)
    assert IMAGE.findall(page) == []
    assert page.count("<svg") > 10
    assert "correct, " in page


def test_a_source_that_was_moved_can_be_named(run: Path, tmp_path: Path):
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    assert IMAGE.findall(page_of(run)) == []
    assert len(IMAGE.findall(page_of(run, source=str(tmp_path / "elsewhere" / "images.csv")))) > 18


def test_a_source_with_other_images_is_not_shown(run: Path, tmp_path: Path):
    other = write_source(tmp_path / "other", NAMES, (6, 3, 5))
    with pytest.raises(UserError, match=r"its images differ from those of the run \(42 here, 39 in the run\)"):
        write_report(run, source=str(other))
    write_source(tmp_path / "third", NAMES[::-1]).replace(tmp_path / "source" / "images.csv")
    assert "its images differ from those of the run" in page_of(run)


def test_a_known_source_is_found_by_its_name_and_never_fetched(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    write_images(tmp_path / "here" / "digits")
    monkeypatch.chdir(tmp_path / "here")
    for name, said in (
        ("digits", r"digits: its images differ .* \(1797 here, 39 in the run\)"),
        ("cifar10", "not downloaded; run linnaeus"),
    ):
        (run / "metrics.json").write_text(json.dumps({**metrics, "source": {"path": name}}))
        assert re.search(said, write_report(run)[1])
    (run / "metrics.json").write_text(json.dumps({**metrics, "source": {}}))
    assert "give their place with --source" in write_report(run)[1]


def test_a_deleted_image_leaves_a_gap(run: Path, tmp_path: Path):
    wrong = next(a for a in read_run(run).predictions["test"] if not a.correct)
    (tmp_path / "source" / wrong.sample).unlink()
    assert '<span class="none">no image</span>' in page_of(run)


def test_an_image_that_was_replaced_since_is_not_shown_and_counted(run: Path, tmp_path: Path):
    table = open_source(tmp_path / "source" / "images.csv")
    hashes = np.array([content_hash(table.image(i)) for i in range(len(table))], np.uint64)
    write_split(table, run / "split.csv", hashes)
    whole = page_of(run)
    assert "changed since" not in whole
    pictures = sorted((tmp_path / "source" / "pictures").iterdir())
    shown = [path for path in pictures if path.name in whole]
    draw(200, 0).save(shown[0])
    page = page_of(run)
    assert len(IMAGE.findall(page)) < len(IMAGE.findall(whole))
    assert re.search(r"\b1 of \d+ images for this page changed since the run and cannot be shown\.", page)


def test_only_mistakes_have_heat_maps(run: Path, tmp_path: Path):
    asked: list[np.ndarray] = []

    def heat(images: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
        asked.append(targets)
        return [np.full((64, 64, 3), 200, np.uint8)] * len(images)

    contents = read_run(run)
    wrong = sorted((a for a in contents.predictions["test"] if not a.correct), key=lambda a: -a.probability)[:12]
    (tmp_path / "source" / wrong[0].sample).write_bytes(b"")
    page = page_of(run, heat=heat)
    (targets,) = asked
    assert targets.tolist() == [contents.class_index[row.predicted] for row in wrong[1:]], "the first cannot be read"
    assert page.count('alt="heat map: where the network sees') == len(wrong) - 1 > 0
    assert "where the network sees the predicted class" in page
    assert "heat map" not in page_of(run)


def test_images_of_a_store_are_not_decoded_again(run: Path, tmp_path: Path):
    table = open_source(tmp_path / "source" / "images.csv")
    part = decode_split(table, np.arange(len(table)), read_run(run).model.preprocessing.row_spec, None)
    assert isinstance(part.store, PixelStore)
    page = page_of(run, table=table)
    shutil.rmtree(tmp_path / "source" / "pictures")
    assert page_of(run, table=table, stored=part.store.read) == page
    assert len(IMAGE.findall(page)) > 20


def test_findings_are_shown_by_kind_the_worst_first_with_their_images(run: Path):
    pair = ["pictures/000-000.png", "pictures/000-006.png"]
    mild = {"kind": "few-of-class", "severity": "info", "classes": ["rose"], "detail": "2 in test"}
    (run / "check.json").write_text(findings(*[mild] * 8, {"paths": pair, "detail": "one image in two splits"}))
    page = page_of(run)
    part = page[page.index('id="findings"') : page.index('id="training"')]
    assert part.index('Leaks between splits <span class="muted number">1') < part.index(
        'Classes with few images for evaluation <span class="muted number">8'
    )
    assert part.count("<img ") == 2
    assert "one image in two splits" in part
    assert "<code>not all</code> was looked for" in part
    assert "and 2 more" in part
    assert part.count("rose: 2 in test") == 6
    assert "no record of a check" not in part
    (run / "check.json").unlink()
    assert "no record of a check" in page_of(run)


@pytest.mark.parametrize("name", ["check.json", "check-labels.json"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        '{"findings": [{"kind": "leak"}]}',
        '["leak"]',
        '{"findings": [], "labels": Infinity}',
        "[" * 100_000,
    ],
    ids=["empty", "cut", "number", "partial", "text", "infinite", "nested"],
)
def test_a_broken_check_costs_only_what_it_found(run: Path, name: str, text: str):
    """Neither file is needed for the rest, and nothing writes check-labels.json again."""
    (run / name).write_text(text)
    part = page_of(run).partition('id="findings"')[2]
    assert f"{name} cannot be read (" in part
    assert "The data check found nothing else" not in part
    (line,) = label_lines(run) if name == "check-labels.json" else [name]
    assert name in line


def test_a_check_that_was_removed_or_damaged_is_a_warning_of_the_command(run: Path):
    """metrics.json names the files of the checks that the run has made."""
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"checks": ["check.json", "check-labels.json"]}))
    (run / "check.json").write_text("{")
    done = CliRunner().invoke(cli, ["report", str(run)])
    assert done.exit_code == 0
    assert "warning: check.json cannot be read (" in done.stderr
    assert "warning: check-labels.json is missing; what it found is not shown" in done.stderr
    assert "check-labels.json is missing" in page_of(run)


def test_images_left_out_are_named(run: Path):
    rows = "".join(f"bad/{i}.jpg,cut short\n" for i in range(23))
    (run / "bad_images.csv").write_text("path,reason\n" + rows)
    page = page_of(run)
    assert "<b>23</b> images could not be read" in page
    assert "bad/<wbr>19.jpg" in page
    assert "bad/<wbr>20.jpg" not in page
    assert "and 3 more" in page


def test_without_evaluation_json_the_rest_is_shown(run: Path):
    (run / "evaluation.json").unlink()
    page = page_of(run)
    assert "this run has no evaluation.json" in page
    assert page.count("Not recorded for this run.") == 2
    assert 'class="matrix"' in page


def test_a_run_without_test_says_which_images_were_used(tmp_path: Path):
    source = write_source(tmp_path / "source", NAMES, (6, 4, 0))
    fabricate(source, tmp_path / "run", interrupted=True)
    page = page_of(tmp_path / "run")
    assert "12 validation images" in page
    assert "the images that selected the best epoch" in page
    assert "stopped before its end" in page


@pytest.mark.parametrize(("n", "few"), [(3, True), (30, True), (34, False)])
def test_a_figure_of_few_images_comes_with_a_warning(tmp_path: Path, n: int, few: bool):
    source = write_source(tmp_path / "source", NAMES, (1, n, 0))
    fabricate(source, tmp_path / "run", skill=0.5)
    page, metrics = page_of(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    low, high = metrics["valid"]["accuracy_ci95"]
    note = f"from only {3 * n} validation images: its interval spans {100 * (high - low):.0f} percentage points."
    assert (note in page) == few


def test_the_number_of_groups_is_shown(run: Path):
    assert " groups " not in page_of(run)
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["test"]["groups"] = 5
    path.write_text(json.dumps(metrics), encoding="utf-8")
    assert "test images</b> in 5 groups of " in page_of(run)


def test_leaks_are_mentioned_before_the_figures(run: Path):
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["test"]["without_leaks"] = {"n": 9, "correct": 6, "accuracy": 2 / 3, "accuracy_ci95": [0.354, 0.879]}
    metrics["valid"]["without_leaks"] = None
    path.write_text(json.dumps(metrics))
    page = page_of(run)
    said = "Without these images the accuracy is 66.7\u202f% (6 of 9, 95\u202f% interval 35.4\u202f% to 87.9\u202f%)."
    assert page.index(said) < page.index('id="figures"')
    assert "no images are left without them" in page


def test_a_hundred_classes_give_a_small_page(tmp_path: Path):
    names = [f"class {i}" for i in range(102)]
    fabricate(write_source(tmp_path / "source", names, (4, 2, 2)), tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.count("a training image of class") <= 320 + 10 * 3
    assert page.count('class="class-head"') == 102
    assert "Classes that are confused with each other are side by side" in page
    assert len(page) < 2_000_000
    rows = re.findall(r'<th scope="row" data-v="class', page)
    assert len(rows) == 102


@pytest.mark.long
def test_photographs_with_heat_maps_stay_below_five_megabytes(tmp_path: Path, shared_data: Path):
    def noise(images: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
        return [*np.random.default_rng(0).integers(0, 256, (len(images), 224, 224, 3), dtype=np.uint8)]

    source = shared_data / "flowers16"
    fabricate(source, tmp_path / "run", skill=2.0, seen=Preprocessing(256, 224))
    path, missing = write_report(tmp_path / "run", heat=noise)
    assert missing == ""
    assert path.read_text(encoding="utf-8").count("heat map: where") == 12
    assert path.stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", "[1]"),
        ("metrics.json", '{"valid": {}}'),
        ("metrics.json", "{"),
        ("history.csv", "phase,epoch\n1,x\n"),
        ("predictions.csv", ""),
    ],
)
def test_an_unreadable_file_is_named(run: Path, name: str, text: str):
    (run / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("metrics.json", ("versions",), 7),
        ("metrics.json", ("valid", "accuracy"), "high"),
        ("metrics.json", ("valid", "accuracy_ci95"), [0.5]),
        ("evaluation.json", ("test", "reliability"), {}),
        ("evaluation.json", ("test", "risk_coverage"), {"a": 1}),
        ("evaluation.json", ("test", "risk_coverage", 0, "coverage"), "x"),
    ],
)
def test_a_value_of_another_kind_is_one_line(run: Path, name: str, keys: tuple[str | int, ...], value: object):
    write_report(run)
    before = (run / "report.html").read_bytes()
    content = inner = json.loads((run / name).read_text(encoding="utf-8"))
    for key in keys[:-1]:
        inner = inner[key]
    assert keys[-1] in inner or isinstance(keys[-1], int)
    inner[keys[-1]] = value
    (run / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=rf"report\.html: cannot be made \(\w+Error: .*{re.escape(name)}.*; restore it"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_the_command_rebuilds_the_page_and_rejects_other_folders(run: Path, tmp_path: Path):
    done = CliRunner().invoke(cli, ["report", str(run)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(run / "report.html")
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    CliRunner().invoke(cli, ["report", str(run)])
    assert (run / "report.html").read_bytes() == first, "the same folder gives the same page"
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="linnaeus train"):
            CliRunner().invoke(cli, ["report", str(wrong)], catch_exceptions=False, standalone_mode=False)


def test_training_writes_the_page_and_survives_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = write_images(tmp_path / "photos", each=20)
    # The training images of the store are larger than those of the page.
    data = settings(train_resize=36, split={"valid": 0.2, "test": 0.2})
    recipe = write_recipe(tmp_path / "mine.toml", {"epochs": 1}, **data)

    def train(out: str) -> Path:
        return linnaeus.train(source, str(recipe), out=tmp_path / out, console=Console(quiet=True), device="cpu").path

    path = train("run")
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "12 test images" in page
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["source"] == {"path": str(source), "kind": "folder"}
    assert metrics["seconds"]["report"] > 0
    assert set(json.loads((path / "evaluation.json").read_text(encoding="utf-8"))) == {"valid", "test"}
    assert "heat map: where the network sees" in page
    CliRunner().invoke(cli, ["report", str(path), "--device", "cpu"], catch_exceptions=False)
    rebuilt = (path / "report.html").read_text(encoding="utf-8")
    assert IMAGE.findall(rebuilt) == IMAGE.findall(page), "the source, opened again, gives the same images"

    def fails(*args: object, **more: object) -> None:
        raise ZeroDivisionError("no page today")

    monkeypatch.setattr("linnaeus.report.page.write_report", fails)
    path = train("again")
    assert (path / "model.safetensors").exists()
    assert not (path / "report.html").exists()
    assert "report.html was not written (ZeroDivisionError: no page today)" in capsys.readouterr().err


def test_a_backend_of_charts_that_does_not_exist_is_not_asked_for(run: Path):
    environ = {**os.environ, "MPLBACKEND": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "linnaeus", "report", run], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()


def test_a_run_survives_charts_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As matplotlib with an MPLBACKEND that it does not know."""
    recipe = write_recipe(tmp_path / "mine.toml", {"epochs": 1})
    for name in ("fonts", "plots", "curves", "confusion", "page"):
        monkeypatch.setitem(sys.modules, f"linnaeus.report.{name}", None)
    path = linnaeus.train(write_images(tmp_path / "photos"), str(recipe), out=tmp_path / "run", device="cpu").path
    assert (path / "model.safetensors").exists()
    assert not (path / "checkpoint").exists()
    warned = capsys.readouterr().err
    assert "curves.png was not drawn (ModuleNotFoundError: " in warned
    assert "report.html was not written (ModuleNotFoundError: " in warned


def test_a_run_survives_a_plot_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    recipe = write_recipe(tmp_path / "mine.toml", {"epochs": 1})
    measured: list[bool] = []

    def fails(*args: object, **more: object) -> str:
        measured.append("valid" in json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")))
        raise StopIteration

    monkeypatch.setattr("linnaeus.report.curves.curves", fails)
    path = linnaeus.train(write_images(tmp_path / "photos"), str(recipe), out=tmp_path / "run", device="cpu").path
    assert measured == [True], "the figures are on disk before anything is drawn"
    assert (
        f"curves.png was not drawn (StopIteration); the model and its figures are complete, and linnaeus report {path}"
        in capsys.readouterr().err
    )
    assert not (path / "curves.png").exists()
    assert {"confusion.png", "predictions.png", "report.html"} <= {file.name for file in path.iterdir()}
    assert not (path / "checkpoint").exists(), "the run has finished"
    assert json.loads((path / "metrics.json").read_text(encoding="utf-8"))["seconds"]["plots"] > 0


class Plain(nn.Module):
    """A network without stages."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28 * 28, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def test_a_custom_network_has_a_page(tmp_path: Path):
    source = write_images(tmp_path / "photos", each=20)
    recipe = write_recipe(tmp_path / "mine.toml", {"epochs": 1}, **settings(split={"valid": 0.2, "test": 0.2}))
    out = tmp_path / "run"
    linnaeus.train(source, str(recipe), out=out, model=Plain(), console=Console(quiet=True), device="cpu")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "heat map" not in page
    done = CliRunner().invoke(cli, ["report", str(out)], catch_exceptions=False)
    assert "no heat maps: the network's code is needed (--model FILE.py:FUNCTION)" in done.output
    assert IMAGE.findall((out / "report.html").read_text(encoding="utf-8")) == IMAGE.findall(page)
