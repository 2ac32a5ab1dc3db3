"""The folder of `export --to web`: complete, of one version, and written only where it belongs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hosting import hosted, write_package
from PIL import Image

from linnaeus.cli.export import page_lines
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.metrics.ood import Thresholds
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.serve.pages import FOLDER, read_static, translations
from linnaeus.web import export as web

pytest.importorskip("onnxruntime")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "format1"
QUIET = Console(quiet=True)


def write_example(folder: Path) -> str:
    """A folder with one image, below `folder`."""
    (folder / "examples").mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "examples" / "red.png")
    return str(folder / "examples")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model with a small package in place of ONNX Runtime, beside the model."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("color.onnx", "color.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    with pytest.MonkeyPatch.context() as patch, hosted(folder) as registry:
        write_package(folder, patch)
        patch.setenv("npm_config_registry", registry.address)
        patch.setenv("LINNAEUS_CACHE", str(folder / "cache"))
        classifier, examples = load(folder / "color.onnx"), write_example(folder)
        written, _ = web.export_web(classifier, folder / "web", "Three <places>", examples=examples, console=QUIET)
    assert written is not None
    assert written.sizes == {file.name: file.stat().st_size for file in written.path.iterdir()}
    return written.path


class Links(HTMLParser):
    """The addresses in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]


def test_every_file_that_the_page_names_is_in_the_folder_whatever_its_address(page: Path):
    links = Links()
    text = (page / "index.html").read_text(encoding="utf-8")
    links.feed(text)
    local = [link for link in links.found if not link.startswith("#")]
    assert all(link.startswith("./") for link in local), "the folder may lie anywhere on a host"
    assert [link for link in local if not (page / link).is_file()] == []
    scripts = [file for file in page.glob("*.js") if not file.name.startswith("ort")]
    imports = {name for file in scripts for name in re.findall(r'"\./([\w.-]+)"', file.read_text(encoding="utf-8"))}
    assert [name for name in imports if not (page / name).is_file()] == []
    assert "Three &lt;places&gt;" in text
    assert (page / "page.css").read_bytes() == read_static("page.css")[0], "with the colors of the theme"
    assert "token" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)


def test_the_page_may_load_and_send_nothing_elsewhere(page: Path):
    text = (page / "index.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    directives = dict(part.split(" ", 1) for part in policy.replace("&#39;", "'").split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["connect-src"] == "'self'"
    assert not re.search(r"https?:|\*", policy)


def test_the_service_worker_names_every_file_with_its_checksum(page: Path):
    text = (page / "service-worker.js").read_text(encoding="utf-8")
    checksums = json.loads(re.search(r"FILES = (\{.*?\});", text, re.DOTALL)[1])  # type: ignore[index]
    others = [file for file in page.iterdir() if file.name != "service-worker.js"]
    assert checksums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in others}


def test_the_description_is_that_of_the_model(page: Path):
    about = json.loads((page / "model.json").read_text(encoding="utf-8"))
    model = load(page.parent / "color.onnx")
    assert [entry["class"] for entry in about["classes"]] == list(model.classes)
    assert [entry["name"] for entry in about["classes"]] == list(model.names)
    assert about["threshold"] == model.threshold
    assert about["name"] == "Three <places>"
    assert about["files"]["model.onnx"] == (page / "model.onnx").stat().st_size
    assert about["unknown"] is None
    assert str(page.parent) not in json.dumps(about), "no paths of this machine"


def test_every_text_of_the_scripts_is_translated(page: Path):
    scripts = [file.read_text(encoding="utf-8") for file in (*FOLDER.glob("*.js"), *web.STATIC.glob("*.js"))]
    keys = {key for text in scripts for key in re.findall(r'\bt\("(\w+)"|failed\("(\w+)"\)|kind: "(\w+)"', text)}
    for language, texts in translations().items():
        assert {key for found in keys for key in found if key} - texts.keys() == set(), language


def test_an_exported_file_becomes_a_page_without_another_comparison(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[..., Any]
):
    monkeypatch.setattr(web, "read_runtime", lambda console: {"ort-wasm.wasm": b""})
    said = say("export", page / "model.onnx", "--to", "web", "--out", tmp_path / "web", "--title", "again")
    assert said.status == 0, said.err
    assert said.out == f"{tmp_path / 'web'}\n"
    assert (tmp_path / "web" / "model.onnx").read_bytes() == (page / "model.onnx").read_bytes()
    said = say("export", page / "model.onnx", "--to", "web", "--data", page.parent)
    assert said.status == 2
    assert "was compared when exported; omit --data" in said.err


@pytest.mark.parametrize(("megabytes", "is_float", "hint"), [(94, True, True), (24, False, False), (14, True, False)])
def test_a_large_page_says_how_it_becomes_smaller(megabytes: int, is_float: bool, hint: bool):
    folder = web.WebFolder(Path("web"), {"model.onnx": megabytes * 10**6, "ort-wasm.wasm": 14 * 10**6})
    lines = page_lines(folder, is_float=is_float)
    assert lines[0].startswith(f"{megabytes + 14}.0 MB (model.onnx {megabytes}.0, ")
    assert ("--to onnx-int8" in "".join(lines)) == hint


def test_files_of_others_are_neither_replaced_nor_removed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "read_runtime", lambda console: {"ort-wasm.wasm": b""})
    classifier = load(page / "model.onnx")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(UserError, match="do not belong to an exported page; give --out DIR"):
        web.export_web(classifier, tmp_path / "site", "t", console=QUIET)
    assert (tmp_path / "site" / "index.html").read_text() == "<h1>mine</h1>"
    with pytest.raises(UserError, match="is a file; --to web writes a folder"):
        web.export_web(classifier, tmp_path / "site" / "index.html", "t", console=QUIET)
    out = tmp_path / "page"
    web.export_web(classifier, out, "first", console=QUIET)
    (out / "CNAME").write_text("flowers.example")
    web.export_web(classifier, out, "second", console=QUIET)
    assert (out / "CNAME").read_text() == "flowers.example"
    assert "second" in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("nth", [2, 9])
def test_an_export_that_was_killed_is_completed_by_the_next(
    page: Path, tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web, "read_runtime", lambda console: {"ort-wasm.wasm": b""})
    classifier, out, count = load(page / "model.onnx"), tmp_path / "web", 0
    real = web.atomic

    @contextmanager
    def killed(path: Path) -> Iterator[Path]:
        nonlocal count
        count += 1
        if count == nth:
            raise KeyboardInterrupt
        with real(path) as temporary:
            yield temporary

    with monkeypatch.context() as patch:
        patch.setattr(web, "atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            web.export_web(classifier, out, "again", console=QUIET)
    assert len(list(out.iterdir())) == nth - 1
    written, _ = web.export_web(classifier, out, "again", console=QUIET)
    assert written is not None
    assert written.sizes.keys() == {file.name for file in out.iterdir()}
    # A script of the user, of the same name, is not the beginning of a page.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "page.js").write_text("mine()")
    with pytest.raises(UserError, match="holds files that do not belong"):
        web.export_web(classifier, tmp_path / "own", "again", console=QUIET)


def test_examples_of_an_earlier_export_are_removed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "read_runtime", lambda console: {"ort-wasm.wasm": b""})
    classifier, out = load(page / "model.onnx"), tmp_path / "page"
    for examples in (write_example(tmp_path), None):
        web.export_web(classifier, out, "t", examples=examples, console=QUIET)
        about = json.loads((out / "model.json").read_text(encoding="utf-8"))
        assert about["examples"] == (out / "examples.json").exists() == (examples is not None)
        assert ("examples.json" in (out / "service-worker.js").read_text(encoding="utf-8")) == about["examples"]


def test_what_cannot_be_a_page_is_refused_before_anything_is_fetched(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[..., Any]
):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    model = page.parent / "color.safetensors"
    said = say("export", model, "--to", "web", "--out", tmp_path / "web")
    assert said.status == 1
    assert said.err.count("\n") == 1
    assert "LINNAEUS_OFFLINE is set" in said.err
    assert not (tmp_path / "web").exists()
    said = say("export", model, "--to", "onnx", "--title", "x")
    assert (said.status, said.err.count("\n")) == (2, 1)
    said = say("export", model, "--to", "web", "--agree", "0.9")
    assert (said.status, said.err.count("\n")) == (2, 1)


def test_the_thresholds_of_unknown_images_are_in_the_description(page: Path):
    classifier = load(page / "model.onnx")
    classifier.detector = UnknownDetector(Thresholds(distance=0.3, probability=0.4, n=9, accepted=9))
    unknown = web.describe(classifier, "t")["unknown"]
    assert (unknown["distance"], unknown["probability"]) == (0.3, 0.4)
