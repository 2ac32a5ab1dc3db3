"""The fenced blocks of README.md and docs/, and what is to be done with each of them.

A comment on the line above a fence (a blank line may stand between) says what the fence alone does not:

    <!-- not run: needs a network -->     with the reason; commands are still checked for their options
    <!-- needs: weights -->               run where the published ResNet-50 lies beside the checkout
    <!-- from: src/linnaeus/x.py -->      an excerpt, which must stand in that file line by line; `...` skips lines
    <!-- file: space.toml -->             the block is written to that file in the reader's folder
    <!-- before: linnaeus train … -->     anywhere: a command that the page takes as done, such as another page's run

`sh` and `python` run in the order of the page, in one folder. `console` (commands behind `$`, and what they print) and
`pycon` (a session of Python) are quick, and their output is compared; a line `…` stands for any lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN_ONLY = ("text", "json")  # what is printed or kept, and runs nowhere
RUN = ("sh", "python")
COMPARED = ("console", "pycon")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"<!-- *(not run|needs|from|file|before): *(.*?) *-->", re.DOTALL)
NOT_RUN = (
    "make ",  # they make an environment; the set-up itself is tried on a clean checkout
    "linnaeus serve ",  # waits for clients; docs/howto/deploy.md starts one, asks it and ends it
    "curl ",
)
"""Lines of the README that are shown and not run."""


@dataclass(frozen=True)
class Block:
    """One fenced block, or one hidden command."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def script(self) -> str:
        """The shell commands that run."""
        left_out = NOT_RUN if self.page == "README.md" else ()
        return "\n".join(line for line in self.text.splitlines() if not line.startswith(left_out))


def pages() -> list[Path]:
    """README.md and the pages under docs/, those of the experiments' results too."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8") if text is None else text
    found: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(text):
        between, marks = text[end : fence.start()], {}
        for comment in _COMMENT.finditer(between):
            line = text.count("\n", 0, end + comment.start()) + 1
            if comment[1] == "before":
                found.append(Block(name(page), line, "sh", comment[2]))
            elif not _COMMENT.sub("", between[comment.end() :]).strip():
                marks[comment[1]] = comment[2]
            else:
                raise AssertionError(f"{name(page)}:{line}: a comment that belongs to no block: {comment[0]}")
        indent = len(fence["indent"])
        body = "\n".join(each[indent:] for each in fence["text"].splitlines())
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(name(page), line, fence["language"], body, marks))
        end = fence.end()
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Every `linnaeus` command of a block of shell or console, in words, without what the shell makes of it."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        for piece in re.split(r"\||;|&&|&(?= |$)", line.split("  #")[0]):
            words = shlex.split(re.split(r" \d?>", piece)[0])
            while words and "=" in words[0]:  # a variable of the environment
                words.pop(0)
            if words[:1] == ["linnaeus"]:
                yield words[1:]


def console(block: Block) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a console block."""
    for piece in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, printed = piece.partition("\n")
        yield command, printed


def same(found: str, wanted: str) -> bool:
    """Whether `found` is what a page shows: line by line but for blanks at the ends, `…` standing for any lines."""
    pattern = "".join(
        r"(?:.*\n)?" if line == "…" else re.escape(line.rstrip()) + r"\n" for line in wanted.strip("\n").splitlines()
    )
    lines = "".join(line.rstrip() + "\n" for line in found.strip("\n").splitlines())
    return re.fullmatch(pattern, lines, re.DOTALL) is not None


def excerpt_of(block: Block, source: str) -> bool:
    """Whether the lines of an excerpt stand in `source` in this order, each run of them without a gap."""
    lines = [each.strip() for each in source.splitlines()]
    at = 0
    for part in re.split(r"^ *(?:\.\.\.|…)\n?", block.text, flags=re.MULTILINE):
        wanted = [each.strip() for each in part.strip("\n").splitlines()]
        starts = [i for i in range(at, len(lines) - len(wanted) + 1) if lines[i : i + len(wanted)] == wanted]
        if not starts:
            return False
        at = starts[0] + len(wanted)
    return True
