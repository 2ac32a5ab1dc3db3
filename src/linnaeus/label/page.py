"""The labelling page: styles and scripts are inline, so that it works before the token is exchanged for a cookie."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from linnaeus.data.class_names import printable
from linnaeus.text import page_templates, policy_source
from linnaeus.theme import style_sheet

FOLDER = Path(__file__).parent / "static"


@functools.cache
def render_page(language: str) -> tuple[str, str]:
    """(the page, its Content-Security-Policy). Its style and scripts are allowed by their hashes."""
    texts = json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))
    style = style_sheet() + (FOLDER / "label.css").read_text(encoding="utf-8")
    script = "".join(file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.js")))
    template = page_templates(FOLDER).get_template("label.html.j2")
    page = template.render(language=language, texts=texts[language], translations=texts, style=style, script=script)
    policy = (
        f"default-src 'none'; script-src {policy_source(script)}; style-src {policy_source(style)}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return printable(page), policy
