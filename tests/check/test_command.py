"""The command `linnaeus check`: terminal, JSON, page and exit status, with embeddings and without."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scenes import COPIES, scene, write_scenes
from wording import broken_words

from linnaeus.cache import default_cache
from linnaeus.check import gallery
from linnaeus.check.data_check import DataCheck, check, check_table, copies, leaks, near_duplicates
from linnaeus.check.findings import Finding
from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.models import create
from linnaeus.models.weights.store import lookup, sha256_of, store_checksum, weights_dir
from linnaeus.stores.embeddings import default_weights, embed
from linnaeus.theme import style_sheet

WEIGHTS = "resnet18-torchvision-v1"


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A source with one fault of each kind, and a class name that contains markup."""
    source = tmp_path / "photos"
    write_scenes(source / "train", ("oak", "<b>pine"), each=12)
    write_scenes(source / "valid", ("oak", "<b>pine"), each=6, seed=1)
    train = source / "train" / "oak"
    COPIES["mirrored"](Image.open(train / "3.jpg")).save(source / "valid" / "oak" / "leak.jpg")
    (train / "4.jpg").write_bytes((train / "4.jpg").read_bytes()[:900])
    scene(70).save(train / "png.jpg", "PNG")
    (train / "readme.txt").write_text("about these images")
    return source


def store_weights() -> None:
    """Store untrained weights under a published name: their embeddings are arbitrary but reproducible."""
    torch.manual_seed(0)
    weights_dir().mkdir(parents=True, exist_ok=True)
    path = weights_dir() / f"{WEIGHTS}.safetensors"
    save_file(create("resnet18", 1000).state_dict(), path)
    store_checksum(lookup(WEIGHTS), path.name, sha256_of(path))


class Page(HTMLParser):
    """Parses a page and asserts that tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_errors_exit_with_status_1(say, faulty: Path, tmp_path: Path):
    said = say("check", faulty, "--json", tmp_path / "found.json", "--gallery", tmp_path / "found.html")
    assert said.status == 1
    assert "2 errors" in said.out
    assert "train/oak/3.jpg = valid/oak/leak.jpg: 2 images are nearly identical, in train and valid" in said.out
    assert "train/oak/4.jpg: image file is truncated" in said.out
    assert "linnaeus weights pull" in said.out
    assert "next: leaks between splits" in said.out
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["images"] == 38
    assert found["splits"] == {"train": 25, "valid": 13}
    kinds = {finding["kind"] for finding in found["findings"]}
    assert kinds == {"leak", "truncated", "wrong-extension", "ignored", "few-to-measure"}
    assert all(set(finding) == {"kind", "severity", "paths", "classes", "detail"} for finding in found["findings"])


def test_a_good_source_exits_with_status_0(say, tmp_path: Path):
    said = say("check", write_scenes(tmp_path / "good", each=12))
    assert said.status == 0
    assert "no problems found" in said.out
    assert say("check", tmp_path / "good", "-q").out == ""


def test_groups_are_a_column(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scenes(tmp_path, ("oak", "pine"), each=6)
    rows = [f"{label}/{i}.jpg,{label},{label}{i // 2}" for label in ("oak", "pine") for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,tree", *rows]))
    seen: list[Table] = []

    def checked(table: Table, **more: Any) -> DataCheck:
        seen.append(table)
        return check_table(table, **{**more, "weights": "none"})

    monkeypatch.setattr("linnaeus.check.data_check.check_table", checked)
    said = say("check", tmp_path / "t.csv", "--groups", "tree")
    assert said.status == 0, said.err
    assert seen[0].groups == tuple(row.rpartition(",")[2] for row in rows)
    said = say("check", tmp_path / "t.csv")
    assert "the column 'tree' repeats" in said.out
    said = say("check", tmp_path / "t.csv", "--groups", "shrub")
    assert (said.status, "no column 'shrub'" in said.err) == (2, True)
    said = say("check", tmp_path, "--groups", "tree")
    assert (said.status, "data.split" in said.err) == (2, False)
    assert "cannot be grouped by 'tree', because only a CSV has columns" in said.err


def test_wrong_input_exits_with_status_2(say, tmp_path: Path):
    said = say("check", tmp_path / "nowhere")
    assert (said.status, said.err.count("\n")) == (2, 1)
    write_scenes(tmp_path / "good")
    said = say("check", tmp_path / "good", "--gallery", tmp_path / "page.png")
    assert said.status == 2
    assert "ends in .html" in said.err


def test_the_page_is_complete_and_self_contained(say, faulty: Path, tmp_path: Path):
    say("check", faulty, "--gallery", tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert "link" not in tags
    assert "http" not in text
    assert "<b>pine" not in text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3  # the leaked pair and the misnamed image; the truncated one cannot be read
    for attributes in images:
        assert attributes["alt"]
        data = re.fullmatch(r"data:image/jpeg;base64,(.+)", attributes["src"] or "")
        assert data
        shown = Image.open(io.BytesIO(base64.b64decode(data[1])))
        assert shown.size == (int(attributes["width"] or 0), int(attributes["height"] or 0))
    assert "cannot be read" in page.text
    assert "train/oak/3.jpg (oak)" in page.text
    assert "<code>linnaeus weights pull" in text
    assert "`" not in page.text
    assert '<span class="badge error">error</span>' in text
    assert "Leaks between splits" in page.text
    anchors = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert anchors == {f"#{attributes['id']}" for tag, attributes in page.tags if tag == "section"}
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS rejects names that are not UTF-8")
def test_names_that_are_not_utf8(tmp_path: Path):
    source = write_scenes(Path(str(tmp_path / "fotos \udcff")), ("oak \udce9", "pine"), each=2)
    (source / "pine" / "broken \udcff.jpg").write_bytes(b"")
    checked = check(source)
    assert [f.paths for f in checked.findings if f.kind == "empty"] == [("pine/broken \\udcff.jpg",)]
    json.dumps(checked.to_dict(), ensure_ascii=False).encode("utf-8")
    gallery.write_gallery(checked, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "broken \\udcff.jpg" in Page(page).text
    assert style_sheet() in page


@pytest.mark.long
def test_no_word_is_broken_on_a_phone(browser: Any, faulty: Path, tmp_path: Path):
    gallery.write_gallery(check(faulty), tmp_path / "found.html")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "found.html").as_uri())
    assert broken_words(page, "th, td, figcaption, h1, h2, li p") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_is_bounded(faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checked = check(faulty)
    names = [checked.table.sample_id(i) for i in checked.statistics.readable.tolist()]
    checked.findings[:] = [Finding("small", "info", (name,), ("oak",), "tiny") for name in names]
    monkeypatch.setattr(gallery, "CARDS", 10)
    monkeypatch.setattr(gallery, "ALL_IMAGES", 6)
    gallery.write_gallery(checked, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.tags) == 6
    assert page.text.count("not shown") == 4
    assert f"and {len(names) - 10} more" in page.text


def test_thumbnails_of_arrays():
    """Tiny images are enlarged to a visible size."""
    data, width, height = gallery.encode_thumbnail(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert (width, height) == (gallery.SIDE, gallery.SIDE)
    assert Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).size == (width, height)


def test_small_arrays_are_checked_for_exact_copies_only():
    images = np.stack([np.asarray(scene(i, 28, 28).convert("L")) for i in (*range(39), 7)])
    table = Table("t", "idx", ("a", "b"), ("a", "b"), np.arange(40) % 2, np.array([""] * 40), images=images)
    found = check_table(table)
    assert any("only exact duplicates were searched for" in note for note in found.notes)
    assert {(f.kind, f.paths) for f in found.findings} == {("duplicate", ("idx[7]", "idx[39]"))}


@pytest.mark.long
def test_stored_weights_check_labels_too(faulty: Path):
    store_weights()
    assert default_weights() == WEIGHTS
    found = check(faulty)
    assert (found.weights, found.notes) == (WEIGHTS, [])
    assert "leak" in {finding.kind for finding in found.findings}
    without = check(faulty, weights="none")
    assert without.weights is None
    assert "--weights none" in without.notes[0]


def test_embeddings_are_computed_once_for_readable_images(tmp_path: Path):
    store_weights()
    write_scenes(tmp_path, each=3)
    (tmp_path / "oak" / "1.jpg").write_bytes(b"")
    table = open_source(tmp_path)
    assert embed(table, WEIGHTS, cache=default_cache(), console=Console(quiet=True), compute=False) is None
    assert check_table(table, weights="stored").weights is None
    first = embed(table, WEIGHTS, cache=default_cache(), console=Console(quiet=True))
    assert first is not None
    assert [table.sample_id(i) for i in range(6) if i not in first.indices] == ["oak/1.jpg"]
    assert first.values.shape == (5, 512)
    entries = {entry.name for entry in default_cache().entries()}
    second = embed(table, WEIGHTS, cache=default_cache(), console=Console(quiet=True), compute=False)
    assert second is not None
    assert check_table(table, weights="stored").weights == WEIGHTS
    assert (second.values == first.values).all()
    assert {entry.name for entry in default_cache().entries()} == entries


def test_near_duplicates_find_leaks_without_embeddings(faulty: Path):
    table = open_source(faulty)
    found = near_duplicates(table)
    assert {split: [table.sample_id(i) for i in samples] for split, samples in leaks(table, copies(table)).items()} == {
        "valid": ["valid/oak/leak.jpg"]
    }
    assert (found.pairs == check_table(table).duplicates.pairs).all()


def test_a_file_of_weights_computes_embeddings_as_its_name_does(tmp_path: Path):
    """`train --weights` takes such a file, too. The stored embeddings belong to its content, not to its name."""
    write_scenes(tmp_path / "images", each=3)
    file = tmp_path / "weights.safetensors"
    save_file(create("resnet18", 1000).state_dict(), file)
    found = check(tmp_path / "images", weights=str(file))
    assert (found.weights, found.notes) == (str(file), [])
    table = open_source(tmp_path / "images")
    stored = embed(table, str(file), cache=default_cache(), console=Console(quiet=True), compute=False)
    assert stored is not None
    save_file(create("resnet18", 1000).state_dict(), file)
    assert embed(table, str(file), cache=default_cache(), console=Console(quiet=True), compute=False) is None
    with pytest.raises(UserError, match="a folder; give the name or the file"):
        check(tmp_path / "images", weights=str(tmp_path))
