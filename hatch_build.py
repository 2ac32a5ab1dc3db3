"""What the package index shows: README.md with absolute addresses, and the links of the project.

The address of the repository is stated once, as `repository-code` in CITATION.cff; a release sets LINNAEUS_REPOSITORY
to the repository that it runs in. hatch-fancy-pypi-readme cannot be used: its replacements depend on neither.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "LINNAEUS_REPOSITORY"
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
PAGES = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}


class Metadata(MetadataHookInterface):
    """Completes the fields that pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`, and `urls` if the address of the repository is known."""
        root = Path(self.root)
        repository, tag = address(root), f"v{metadata['version']}"
        text = render((root / "README.md").read_text(encoding="utf-8"), repository, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            pages = {name: f"{repository}/blob/{tag}/{page}" for name, page in PAGES.items()}
            metadata["urls"] = {"Repository": repository, "Issues": f"{repository}/issues", **pages}


def address(root: Path) -> str:
    """The address of the repository without a slash at the end; "" if none is stated."""
    stated = re.search(
        r"^repository-code: *[\"']?([^\"'\s]+)", (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE
    )
    repository = os.environ.get(VARIABLE) or (stated[1] if stated else "")
    if repository and not repository.startswith("https://"):
        raise ValueError(
            f"{VARIABLE} or repository-code = {repository!r}: expected an address that begins with https://"
        )
    return repository.rstrip("/")


def render(text: str, repository: str, tag: str) -> str:
    """README for a package index, where relative addresses lead nowhere.

    They become addresses of the files of `tag` in `repository`; without a repository, links become their text and
    images their descriptions. Fenced code stays as it is.
    """

    def replaced(match: re.Match[str], folder: str) -> str:
        label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if not repository:
            return label
        mark = "!" if match[0].startswith("!") else ""
        return f"{mark}[{label}]({repository}/{folder}/{tag}/{target})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    for i in range(0, len(parts), 2):
        parts[i] = IMAGE.sub(lambda match: replaced(match, "raw"), parts[i])
        parts[i] = LINK.sub(lambda match: replaced(match, "blob"), parts[i])
    return "".join(parts)
