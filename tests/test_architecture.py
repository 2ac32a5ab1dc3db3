"""docs/architecture.md names existing files and symbols, and the image of the layout agrees with the imports."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from docblocks import ROOT

sys.path.insert(0, str(ROOT / "docs" / "images"))

PAGE = ROOT / "docs" / "architecture.md"
SYMBOLS = r"((?:,? `[\w.]+`)*)"
SOURCE = re.compile(r"\[`([^`]+)`\]\(\.\./src/linnaeus/([^)]+)\)" + SYMBOLS)
"""A link to a source file, and the symbols directly behind it."""


def references() -> list[tuple[str, str, list[str]]]:
    """(path as shown, linked path, symbols that are defined there) for each link to the source."""
    text = PAGE.read_text(encoding="utf-8")
    return [(shown, path, re.findall(r"`([\w.]+)`", symbols)) for shown, path, symbols in SOURCE.findall(text)]


def definitions(file: Path) -> set[str]:
    """Names of the classes, functions and constants of a module, and `Class.method`."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("shown", "path", "symbols"), references(), ids=lambda value: str(value))
def test_files_and_symbols_exist(shown: str, path: str, symbols: list[str]) -> None:
    file = ROOT / "src" / "linnaeus" / path
    assert shown == path
    assert file.is_file(), f"{path} does not exist"
    assert set(symbols) - definitions(file) == set(), f"not defined in {path}"


def test_the_page_answers_the_questions_of_a_newcomer() -> None:
    pairs = {(path, symbol) for _, path, symbols in references() for symbol in symbols}
    assert {
        ("metrics/intervals.py", "wilson"),
        ("data/images/decode.py", "_load"),
        ("training/schedule.py", "Schedule.before_step"),
        ("training/step.py", "Optimization.step"),
        ("training/checkpoint.py", "Checkpoints.read"),
    } <= pairs


def test_files_named_in_contributing_exist() -> None:
    names = re.findall(r"`([\w./]+\.(?:py|toml|txt|yml|md))`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(names) > 10
    places = (ROOT, ROOT / "src" / "linnaeus")
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


def test_the_image_of_the_layout_agrees_with_the_imports() -> None:
    layout = import_module("layout")
    image = layout.IMAGE.read_text(encoding="utf-8")
    lines = {tuple(line) for line in re.findall(r'id="import:(\w+):(\w+)"', image)}
    assert lines == layout.lines(), "outdated: run `python docs/images/layout.py`"
    assert {name for layer in layout.LAYERS for name in layer} - layout.HIDDEN <= set(re.findall(r">(\w+)<", image))
