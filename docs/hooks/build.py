"""Hooks of mkdocs: add the generated pages of the reference, and unlink files that are not part of the site."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import generate

from linnaeus.theme import DARK, FONTS, LIGHT, custom_properties


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in generate.pages().items():
        files.append(File.generated(config, path, content=text))
    # The reader chooses between light and dark on the site, so the colors do not depend on the browser's preference.
    schemes = {"default": LIGHT | FONTS, "slate": DARK | FONTS}
    rules = (custom_properties(f'[data-md-color-scheme="{name}"]', values) for name, values in schemes.items())
    files.append(File.generated(config, "theme.css", content="".join(rules)))
    return files


OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(\.\./(?:src/|[A-Z]+\.md)[^)\s]*\)")
"""A link of docs/architecture.md to the source, which works in the repository but not on the site."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return OUTSIDE.sub(r"\1", markdown) if page.file.src_uri == "architecture.md" else markdown
