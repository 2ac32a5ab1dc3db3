"""The code blocks of README.md and docs/ are executed in order, in a folder of example images; outputs are compared."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from docblocks import COMPARED, ROOT, RUN, SHOWN_ONLY, Block, blocks, commands, console, excerpt_of, name, pages, same
from PIL import Image

from linnaeus.cli.main import cli
from linnaeus.recipe import Recipe

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

PAGES = pages()
ALL = [block for page in PAGES for block in blocks(page)]
WEIGHTS = SHARED / "weights" / "resnet50-v1-imagenet.safetensors"
LIMIT = 600  # seconds per block


def having(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos/rose and photos/tulip: red and yellow squares on green."""
    generator = np.random.default_rng(0)
    for kind, color in (("rose", (200, 30, 60)), ("tulip", (230, 200, 40))):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(12):
            image = generator.integers(0, 80, (160, 200, 3)) + np.array([0, 60, 0])
            top, left = generator.integers(20, 80, 2)
            image[top : top + 60, left : left + 60] = np.array(color) + generator.integers(-20, 20, (60, 60, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / kind / f"{i}.jpg")
    (tmp_path / "space.toml").write_text('"phase.1.lr" = { low = 1e-4, high = 1e-2, log = true }\n')
    return tmp_path


def run(folder: Path, command: list[str], cache: Path, where: object) -> None:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LINNAEUS_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{where}\n{command[-1]}\n{done.stdout}\n{done.stderr}"


def test_there_are_blocks_to_run() -> None:
    assert len(having("sh")) >= 12
    assert len(having("python")) >= 3
    assert len(having("console")) >= 3


def test_every_block_is_executed_or_gives_a_reason() -> None:
    known = {*RUN, *COMPARED, *SHOWN_ONLY, "toml"}
    for block in ALL:
        assert block.language, f"{block}: the fence has no language"
        if block.language not in known:
            assert {"not run", "from"} & set(block.marks), f"{block}: {block.language} is not executed: give the reason"
        assert block.marks.get("not run", "a reason"), f"{block}: not executed, and no reason is given"


@pytest.mark.parametrize("block", [b for b in having("sh", "console") if any(commands(b))], ids=str)
def test_commands_exist_with_their_options(block: Block) -> None:
    for words in commands(block):
        group: click.Command = cli
        context = click.Context(cli, info_name="linnaeus")
        while isinstance(group, click.Group) and words[0] in group.commands:
            group = group.commands[words[0]]
            context = click.Context(group, parent=context, info_name=words[0])
            words = words[1:]
        if words not in (["--help"], ["--version"]):
            group.parse_args(context, list(words))  # raises click.UsageError


def extras(words: list[str]) -> set[str]:
    """The optional dependencies that a command needs."""
    commands = {"export": "onnx", "serve": "serve", "label": "serve", "sweep": "sweep", "probe": "timm", "push": "hub"}
    prefixes = {"timm/": "timm", "hf/": "transformers", "hf:": "hub"}
    needed = {commands[words[0]]} if words[0] in commands else set()
    needed |= {extra for prefix, extra in prefixes.items() if any(word.startswith(prefix) for word in words)}
    return needed | ({"digits"} if words[:2] == ["train", "digits"] else set())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_names_the_extras_of_its_commands(page: Path) -> None:
    """A reader who runs the commands of one page should not have to find the page on installation first."""
    text = page.read_text(encoding="utf-8")
    lists = re.findall(r"""pip install ["'][a-z.]*\[([a-z,]+)\]""", text)
    named = {extra for names in lists for extra in names.split(",")}
    named |= set(re.findall(r"(?:extras?|可选依赖) `([a-z]+)`", text))
    for block in blocks(page):
        for words in commands(block) if block.language in ("sh", "console") else ():
            assert extras(words) <= named, f"{block}: {words} needs {extras(words)}"


@pytest.mark.parametrize("block", [b for b in having("console") if "not run" not in b.marks], ids=str)
def test_console_prints_what_the_page_shows(block: Block, say) -> None:
    for command, expected in console(block):
        words = shlex.split(command)
        assert words[0] == "linnaeus", f"{block}: {command}: only linnaeus commands are compared"
        result = say(*words[1:])
        assert same(result.out + result.err, expected), f"{block}: {command} prints\n{result.out}{result.err}"


@pytest.mark.parametrize("page", [p for p in PAGES if "pycon" in {b.language for b in blocks(p)}], ids=name)
def test_sessions_print_what_the_page_shows(page: Path) -> None:
    """All sessions of a page share their variables."""
    names: dict[str, object] = {}
    failures: list[str] = []
    for block in blocks(page):
        if block.language == "pycon" and "not run" not in block.marks:
            test = doctest.DocTestParser().get_doctest(block.text + "\n", names, str(block), block.page, block.line)
            assert test.examples, block
            doctest.DocTestRunner().run(test, out=failures.append, clear_globs=False)
            names = test.globs
    assert failures == [], "".join(failures)


@pytest.mark.parametrize("block", [b for b in ALL if "from" in b.marks], ids=str)
def test_excerpts_occur_in_their_files(block: Block) -> None:
    source = (ROOT / block.marks["from"]).read_text(encoding="utf-8")
    assert excerpt_of(block, source), f"{block}: does not occur in its file"


@pytest.mark.parametrize("block", having("toml", "json"), ids=str)
def test_toml_and_json_can_be_parsed(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
        return
    values = tomllib.loads(block.text)
    if {"model", "data", "phase"} <= set(values):
        Recipe.model_validate(values)


@pytest.mark.parametrize("block", [b for b in having("python") if "from" not in b.marks], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.long
@pytest.mark.parametrize("page", [p for p in PAGES if {b.language for b in blocks(p)} & set(RUN)], ids=name)
def test_page_runs(page: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    for block in blocks(page):
        if "file" in block.marks:
            (folder / block.marks["file"]).write_text(block.text + "\n", encoding="utf-8")
        elif block.language not in RUN or {"not run", "from"} & set(block.marks):
            continue
        elif "needs" in block.marks:
            assert block.marks["needs"] == "weights", block
            if not WEIGHTS.is_file():
                continue
            import_weights = f"linnaeus weights import {WEIGHTS.stem} {shlex.quote(str(WEIGHTS))}"
            run(folder, ["bash", "-ec", f"{import_weights}\n{block.script}"], cache, block)
        elif block.language == "python":
            run(folder, [sys.executable, "-c", block.text], cache, block)
        else:
            run(folder, ["bash", "-ec", block.script], cache, block)
    if page.name == "README.md":
        assert (folder / "grid.png").stat().st_size > 1000
        assert len((folder / "predictions.csv").read_text().splitlines()) == 25


LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_comments(text: str) -> str:
    """The commands of a block, without the comments behind them: those are translated."""
    return "\n".join(re.sub(r" +# .*$", "", line) for line in text.splitlines())


def test_the_chinese_readme_has_the_same_blocks_links_and_images() -> None:
    """Only the commands of README.md are executed, so its translation must have the same ones in the same order."""
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    sequences = [[(b.language, without_comments(b.text), b.marks) for b in blocks(page)] for page in (english, chinese)]
    assert sequences[0] == sequences[1]
    links = [set(LINK.findall(page.read_text(encoding="utf-8"))) for page in (english, chinese)]
    assert "README.zh-CN.md" in links[0]
    in_english = [{link.replace(".zh-CN.", ".") for link in page} for page in links]
    assert in_english[0] == in_english[1]


def test_figures_are_the_same_in_both_languages() -> None:
    figures = [
        sorted(re.findall(r"\d+(?:[.,]\d+)*", page.read_text(encoding="utf-8")))
        for page in (ROOT / "README.md", ROOT / "README.zh-CN.md")
    ]
    assert len(figures[0]) > 60
    assert figures[0] == figures[1]


def test_images_are_small_and_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    images = [f for f in (ROOT / "docs" / "images").iterdir() if f.suffix in (".png", ".jpg")]
    assert len(images) >= 6
    assert [f.name for f in images if f.stat().st_size >= 200_000 or f"images/{f.name})" not in text] == []
    assert sum(f.stat().st_size for f in images) < 1_000_000
    assert "](docs/images/overview.png)" in (ROOT / "README.md").read_text(encoding="utf-8")


PAGE = """Text.

<!-- not run: needs a network -->

```sh
linnaeus data pull mnist
```

<!-- before: linnaeus train photos -->
```console
$ linnaeus models
model
…
last
```
"""


def test_blocks_are_found_with_their_marks() -> None:
    first, before, last = blocks(PAGES[0], PAGE)
    assert (first.language, first.line, first.marks) == ("sh", 5, {"not run": "needs a network"})
    assert list(commands(first)) == [["data", "pull", "mnist"]]
    assert (before.language, before.text) == ("sh", "linnaeus train photos")
    assert list(console(last)) == [("linnaeus models", "model\n…\nlast")]
    with pytest.raises(AssertionError, match="without a block"):
        blocks(PAGES[0], "<!-- not run: x -->\nwords\n```sh\nlinnaeus\n```\n")


@pytest.mark.parametrize(
    ("output", "expected", "equal"),
    [
        ("a  \nb\n", "a\nb", True),
        ("a\nb\nc\nd", "a\n…\nd", True),
        ("a\nd", "a\n…\nd", True),
        ("a\nb\nc", "…\nc", True),
        ("a\nb\nc", "a\n…", True),
        ("a\nb\nc", "a\nc", False),
        ("a\nb\nc", "a\n…\nx", False),
        ("ab\nc", "b\nc", False),
        ("a\nbc", "…\nc", False),
    ],
)
def test_output_is_compared_by_lines(output: str, expected: str, equal: bool) -> None:
    assert same(output, expected) is equal


def test_commands_are_extracted_from_shell_lines() -> None:
    text = (
        "LINNAEUS_OFFLINE=1 linnaeus check photos > a.txt  # why\nlinnaeus serve x &\nls | linnaeus predict m -\ncd x"
    )
    block = Block("page", 1, "sh", text)
    assert list(commands(block)) == [["check", "photos"], ["serve", "x"], ["predict", "m", "-"]]


def test_the_messages_under_troubleshooting_exist() -> None:
    """Each message is in the source, with the parts of its literal joined as Python joins them."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+?)` \|", page, re.MULTILINE)
    assert len(messages) > 15
    assert [message for message in messages if message not in joined and message not in source] == []


def test_a_chinese_page_links_to_the_chinese_pages() -> None:
    """Only its line of languages leads to English twins."""
    chinese = [ROOT / "README.zh-CN.md", *(ROOT / "docs").rglob("*.zh-CN.md")]
    for page in chinese:
        text = "".join(line for line in page.read_text(encoding="utf-8").splitlines(True) if "[English]" not in line)
        linked = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)\.md[)#]", text)]
        twins = [file for file in linked if file.with_name(f"{file.name}.zh-CN.md").is_file()]
        assert twins == [], page
    assert len(chinese) >= 2
