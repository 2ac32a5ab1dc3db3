"""The built site: the reference is complete, links and anchors exist, and nothing is loaded from another host."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from docblocks import ROOT, name, pages

import linnaeus
from linnaeus import theme
from linnaeus.cli.main import cli
from linnaeus.recipe import spec, tables

sys.path.insert(0, str(ROOT / "docs" / "hooks"))

generate = import_module("generate")

FENCE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.DOTALL | re.MULTILINE)  # also inline code
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"https?://[^\s)>\"'`]+")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built like `make docs`: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def built(site: Path) -> Iterator[tuple[Path, str]]:
    for page in sorted(site.rglob("*.html")):
        yield page, page.read_text(encoding="utf-8")


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    """Scripts, styles, images, frames and fonts are part of the site; only links may lead to other hosts."""
    loaded = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")
    outside = {(page.name, address) for page, text in built(site) for address in loaded.findall(text)}
    assert outside == set()
    styles = [s.read_text(encoding="utf-8") for s in site.rglob("*.css")]
    assert styles
    assert [address for s in styles for address in re.findall(r"(?:url\(|@import )[\"']?https?://[^)\"']+", s)] == []


def test_chinese_words_can_be_searched_for(site: Path) -> None:
    """They are separated in the index where the search of the browser separates words."""
    pytest.importorskip("jieba")
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert index["config"]["lang"] == ["en", "zh"]
    words = set(re.split(index["config"]["separator"], " ".join(part["title"] for part in index["docs"])))
    assert {"标注", "分类器", "照片"} <= words


def test_the_site_has_the_colors_of_the_pages(site: Path) -> None:
    style = (site / "theme.css").read_text(encoding="utf-8")
    for scheme, values in (("default", theme.LIGHT), ("slate", theme.DARK)):
        rule = re.search(rf'\[data-md-color-scheme="{scheme}"\] {{(.*?)}}', style)
        assert rule is not None
        assert values.items() <= dict(re.findall(r"--([\w-]+): (.*?);", rule[1])).items()
    for page, text in built(site):
        assert "theme.css" in text, page


def test_every_link_leads_somewhere(site: Path) -> None:
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in built(site)}
    assert len(anchors) > 20
    broken = []
    for page, text in built(site):
        if page.name == "404.html":
            continue
        for target in map(html.unescape, re.findall(r'<a\b[^>]*\bhref="([^"]*)"', text)):
            parts = urlsplit(target)
            if parts.scheme or not target:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file():
                broken.append(f"{page.name}: {target}")
            elif parts.fragment and file in anchors and unquote(parts.fragment) not in anchors[file]:
                broken.append(f"{page.name}: {target}: no such heading")
    assert broken == []


def test_links_of_the_source_are_whole() -> None:
    """Links in the Markdown sources, which are also read on GitHub: files exist, and URLs are well-formed."""
    for page in [
        *pages(),
        ROOT / "README.zh-CN.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
    ]:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            path = target.partition("#")[0]
            if not urlsplit(target).scheme and path and not path.startswith(("reference/", "../reference/")):
                assert (page.parent / path).exists(), f"{name(page)}: {target}"
        for address in ADDRESS.findall(text):
            parts = urlsplit(address)
            assert parts.hostname, f"{name(page)}: {address}"
            assert "." in parts.hostname or parts.hostname == "localhost", f"{name(page)}: {address}"


def test_every_command_and_option_is_described() -> None:
    page = generate.commands_page()
    known = dict(generate.commands())
    assert set(cli.commands) <= set(known)
    assert {"data pull", "weights import"} <= set(known)
    for name_, command in known.items():
        section = page.partition(f"\n## {name_}\n")[2].partition("\n## ")[0]
        assert command.help, name_
        assert command.help.split(".")[0].split("`")[0].split("[")[0].strip()[:40] in section, name_
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name_} {option.opts}"
                if option.name not in generate.SHARED:
                    assert option.opts[0] in section, f"{name_} {option.opts}"


def test_every_recipe_key_is_described() -> None:
    models = {model for _, model in generate.TABLES}
    named = (vars(spec) | vars(tables)).values()
    defined = {m for m in named if isinstance(m, type) and issubclass(m, spec.Strict)} - {spec.Strict}
    assert models == defined, "a table of the recipe is missing in the reference"
    page = generate.recipe_page()
    for heading, model in generate.TABLES:
        assert model.__doc__, heading
        section = page.partition(f"\n## {generate.plain(heading)}\n")[2].partition("\n## ")[0]
        for key, kind, default, description in generate.keys(model):
            assert kind, f"{heading} {key}"
            assert default, f"{heading} {key}"
            assert description, f"{heading} {key}: add a docstring below it"
            assert f"| `{key}` |" in section, f"{heading} {key}"


def test_every_public_name_is_described() -> None:
    page = generate.python_page()
    assert " object at 0x" not in page, "an address differs in every build"
    for name_ in linnaeus.__all__:
        section = page.partition(f"\n## {name_}\n")[2].partition("\n## ")[0]
        assert len(section.split()) > 3, name_
    for name_, value in generate.public_names():
        if isinstance(value, str):
            continue
        assert (value.__doc__ or "").strip(), name_
        for member_name, attribute in vars(value).items() if isinstance(value, type) else ():
            member = attribute.__func__ if isinstance(attribute, classmethod | staticmethod) else attribute
            if not member_name.startswith(("_", "model_")) and (callable(member) or isinstance(member, property)):
                if isinstance(member, type) or not hasattr(member, "__doc__"):
                    continue
                assert f"\n### {name_}.{member_name}\n" in page, f"{name_}.{member_name}: add a docstring"
    assert "| |  |" not in page


def test_every_file_format_is_described() -> None:
    page = generate.formats_page()
    for heading in generate.FORMATS:
        section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert len(section.split()) > 15, heading
    assert "```text\nmodel.safetensors   the best model so far\n" in page, "a table is kept as a literal block"
    empty = re.findall(r"^\| `\w+` \|\s*\|$", page + generate.python_page() + generate.recipe_page(), re.MULTILINE)
    assert empty == []
