"""Hook of mkdocs: adds the generated pages of the reference to the site."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import generate


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in generate.pages().items():
        files.append(File.generated(config, path, content=text))
    return files
