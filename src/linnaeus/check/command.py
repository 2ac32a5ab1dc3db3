"""The command `linnaeus check`, without the parsing of its options."""

from __future__ import annotations

import json
from pathlib import Path

from linnaeus.check.data_check import check
from linnaeus.check.gallery import write_gallery
from linnaeus.check.terminal import SHOWN, render
from linnaeus.console import Console, echo, echo_text
from linnaeus.errors import UserError
from linnaeus.files import write_text

VERBOSE = 10  # times as many findings of each kind


def run(
    source: str,
    console: Console,
    *,
    json_file: str | None,
    gallery: str | None,
    weights: str | None,
    groups: str | None,
    device: str,
) -> int:
    """Check `source`, write the requested files and print the findings. Returns the number of errors."""
    if gallery and Path(gallery).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--gallery {gallery}: the name must end in .html")
    result = check(source, weights=weights, groups=groups, device=device, console=console)
    if json_file:
        write_text(Path(json_file), json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if gallery:
        write_gallery(result, Path(gallery))
    if not console.quiet:
        for line in render(result, SHOWN * (VERBOSE if console.verbose else 1)):
            echo_text(line)
        if gallery:
            echo(f"page: {gallery}")
    return result.errors
