"""The fenced code blocks of README.md and docs/, and how the tests treat each of them.

A comment above a fence (with at most blank lines in between) marks the block:

    <!-- not run: needs a network -->     not executed, for this reason; the options of its commands are still checked
    <!-- needs: weights -->               executed only if the weights of ResNet-50 are beside the checkout
    <!-- from: src/linnaeus/x.py -->      an excerpt: its lines must occur in that file in this order; `...` skips lines
    <!-- file: space.toml -->             the block is written to that file in the working folder
    <!-- before: linnaeus train … -->     anywhere: a hidden command, such as a run that another page trains

`sh` and `python` blocks are executed in the order of the page, in one folder. `console` blocks (commands after `$`, and
their output) and `pycon` blocks (Python sessions) are fast, and their output is compared; a line `…` matches any lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN_ONLY = ("text", "json")  # output and file contents; not executable
RUN = ("sh", "python")
COMPARED = ("console", "pycon")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"<!-- *(not run|needs|from|file|before): *(.*?) *-->", re.DOTALL)
NOT_RUN = (
    "make ",  # creates an environment; CI runs it in a clean checkout
    "linnaeus serve ",  # runs until it is stopped; docs/howto/deploy.md starts, queries and stops a server
    "curl ",
)
"""Beginnings of the lines of the README that are not executed."""


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
        """The shell commands that are executed."""
        skipped = NOT_RUN if self.page == "README.md" else ()
        return "\n".join(line for line in self.text.splitlines() if not line.startswith(skipped))


def pages() -> list[Path]:
    """README.md and all pages under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8") if text is None else text
    result: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(text):
        between, marks = text[end : fence.start()], {}
        for comment in _COMMENT.finditer(between):
            line = text.count("\n", 0, end + comment.start()) + 1
            if comment[1] == "before":
                result.append(Block(name(page), line, "sh", comment[2]))
            elif not _COMMENT.sub("", between[comment.end() :]).strip():
                marks[comment[1]] = comment[2]
            else:
                raise AssertionError(f"{name(page)}:{line}: a comment without a block: {comment[0]}")
        indent = len(fence["indent"])
        body = "\n".join(line[indent:] for line in fence["text"].splitlines())
        line = text.count("\n", 0, fence.start()) + 1
        result.append(Block(name(page), line, fence["language"], body, marks))
        end = fence.end()
    return result


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every `linnaeus` command in a `sh` or `console` block, without variables, pipes and redirections."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        for piece in re.split(r"\||;|&&|&(?= |$)", line.split("  #")[0]):
            words = shlex.split(re.split(r" \d?>", piece)[0])
            while words and "=" in words[0]:  # an environment variable
                words.pop(0)
            if words[:1] == ["linnaeus"]:
                yield words[1:]


def console(block: Block) -> Iterator[tuple[str, str]]:
    """(command, expected output) pairs of a `console` block."""
    for piece in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = piece.partition("\n")
        yield command, output


def same(output: str, expected: str) -> bool:
    """Whether an output matches the one on a page, except for trailing blanks; a line `…` matches any lines."""
    pattern = "".join(
        r"(?:.*\n)?" if line == "…" else re.escape(line.rstrip()) + r"\n" for line in expected.strip("\n").splitlines()
    )
    lines = "".join(line.rstrip() + "\n" for line in output.strip("\n").splitlines())
    return re.fullmatch(pattern, lines, re.DOTALL) is not None


def excerpt_of(block: Block, source: str) -> bool:
    """Whether the lines of an excerpt occur in `source` in this order; `...` allows a gap."""
    lines = [line.strip() for line in source.splitlines()]
    at = 0
    for part in re.split(r"^ *(?:\.\.\.|…)\n?", block.text, flags=re.MULTILINE):
        excerpt = [line.strip() for line in part.strip("\n").splitlines()]
        starts = [i for i in range(at, len(lines) - len(excerpt) + 1) if lines[i : i + len(excerpt)] == excerpt]
        if not starts:
            return False
        at = starts[0] + len(excerpt)
    return True
