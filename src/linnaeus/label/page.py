"""The page: style and scripts are in it, so that it works before the token is exchanged for a cookie."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path

from linnaeus.data.class_names import printable
from linnaeus.theme import style_sheet

FOLDER = Path(__file__).parent / "static"


@functools.cache
def render_page(language: str) -> tuple[str, str]:
    """(the page, its Content-Security-Policy). Its style and scripts are allowed by their hashes."""
    import jinja2

    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    texts = json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))
    style = style_sheet() + (FOLDER / "label.css").read_text(encoding="utf-8")
    script = "".join(file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.js")))
    page = environment.get_template("label.html.j2").render(
        language=language, texts=texts[language], translations=texts, style=style, script=script
    )
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return printable(page), policy
