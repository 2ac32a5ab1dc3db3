"""What `linnaeus check` does, beside parsing its options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from linnaeus.check.gallery import write_gallery
from linnaeus.check.run import check
from linnaeus.check.terminal import SHOWN, render
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.files import write_text

VERBOSE = 10  # times as many findings of each kind


def run(
    source: str, console: Console, *, json_file: str | None, gallery: str | None, weights: str | None,
    groups: str | None, device: str,
) -> int:  # fmt: skip
    """Check `source`, write the files asked for, and print the findings. Returns how many of them are errors."""
    if gallery and Path(gallery).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--gallery {gallery}: must end in .html")
    checked = check(source, weights=weights, groups=groups, device=device, console=console)
    if json_file:
        write_text(Path(json_file), json.dumps(checked.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if gallery:
        write_gallery(checked, Path(gallery))
    if not console.quiet:
        for line in render(checked, SHOWN * (VERBOSE if console.verbose else 1)):
            print(line, file=sys.stdout)
        if gallery:
            print(f"page: {gallery}")
    return checked.errors
