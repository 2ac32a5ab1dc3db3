"""The web page in the browser's language, and the API documentation. They load nothing from other servers."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from linnaeus.data.class_names import printable
from linnaeus.text import page_templates, policy_source
from linnaeus.theme import style_sheet

FOLDER = Path(__file__).parent / "static"
SHARED = ("page.js", "i18n.js", "queue.js", "files.js", "answers.js", "table.js")
"""Scripts that also a page without a server needs."""
SCRIPTS = (*SHARED, "requests.js", "token.js", "share.js")
STATIC = {"page.css": "text/css", "icon.svg": "image/svg+xml", **dict.fromkeys(SCRIPTS, "text/javascript")}
LANGUAGES = ("en", "zh")
HEADER_LENGTH = 1000  # characters of an Accept-Language header that are parsed
LANGUAGE_RANGE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?")


def choose_language(accept_language: str) -> str:
    """The one of `LANGUAGES` that an Accept-Language header prefers (RFC 9110, section 12.5.4), or English."""
    best, language = 0.0, LANGUAGES[0]
    for part in accept_language[:HEADER_LENGTH].split(","):
        match = LANGUAGE_RANGE.fullmatch(part)
        if match is not None and match[1].lower() in LANGUAGES and float(match[2] or 1) > best:
            best, language = float(match[2] or 1), match[1].lower()
    return language


@functools.cache
def translations() -> dict[str, dict[str, str]]:
    """Language -> key -> text."""
    return json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))


def render_page(language: str, name: str, policy: str | None = None) -> str:
    """The page in a language; `name` is that of the model. All translations are embedded for the language switch.

    `policy`: the Content-Security-Policy of a page that works without a server, in any folder; None for the server's.
    """
    template = page_templates(FOLDER).get_template("page.html.j2")
    texts, server = translations(), policy is None
    values = {"server": server, "base": "/" if server else "./", "policy": policy, "name": name}
    return printable(template.render(language=language, texts=texts[language], translations=texts, **values))


def render_docs(api: dict[str, Any], origin: str) -> str:
    """The OpenAPI description as a static HTML page. `origin`: http://host of this server."""
    template = page_templates(FOLDER).get_template("docs.html.j2")
    return printable(template.render(api=api, schemas=api["components"]["schemas"], origin=origin))


def read_static(name: str) -> tuple[bytes, str]:
    """(content, ETag) of a file of `STATIC`. The colors and fonts of the theme come before the style of the page."""
    body = (FOLDER / name).read_bytes()
    if name == "page.css":
        body = style_sheet().encode() + body
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def report_policy(report: str) -> str:
    """A Content-Security-Policy under which a report can run its own scripts and nothing else.

    The sandbox gives the report an origin of its own: the report of an untrusted run cannot send requests to the
    server.
    """
    scripts = re.findall(r"<script>(.*?)</script>", report, re.DOTALL)
    allowed = " ".join(map(policy_source, scripts)) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
    )
