"""What a browser shows: the page in its language, and the documentation of the routes. No network beyond the server."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from linnaeus.data.class_names import printable

HERE = Path(__file__).parent / "static"
SCRIPTS = ("page.js", "i18n.js", "requests.js", "answers.js", "table.js")
STATIC = {"page.css": "text/css", "icon.svg": "image/svg+xml", **dict.fromkeys(SCRIPTS, "text/javascript")}
LANGUAGES = ("en", "zh")
CHOICE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?")


def choose_language(accepted: str) -> str:
    """The one of `LANGUAGES` that an Accept-Language header likes best (RFC 9110, section 12.5.4); else English."""
    best, chosen = 0.0, LANGUAGES[0]
    for each in accepted[:1000].split(","):
        found = CHOICE.fullmatch(each)
        if found is not None and found[1].lower() in LANGUAGES and float(found[2] or 1) > best:
            best, chosen = float(found[2] or 1), found[1].lower()
    return chosen


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """Language -> key -> text."""
    return json.loads((HERE / "translations.json").read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def render_page(language: str, name: str) -> str:
    """The page in a language, `name` being the model's. The words of all are in it, as data, for the switch."""
    template = _environment().get_template("page.html.j2")
    return printable(template.render(language=language, words=words()[language], all_words=words(), name=name))


def render_docs(api: dict[str, Any], origin: str) -> str:
    """OpenAPI as a page to read, without the scripts that FastAPI would load from elsewhere. `origin`: http://host."""
    template = _environment().get_template("docs.html.j2")
    return printable(template.render(api=api, schemas=api["components"]["schemas"], origin=origin))


def static(name: str) -> tuple[bytes, str]:
    """(bytes, ETag) of a file of `STATIC`."""
    body = (HERE / name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def report_policy(report: str) -> str:
    """The Content-Security-Policy that lets a report run its own script and nothing else.

    It runs apart from the server's own pages (sandbox): a report of a stranger's run cannot ask the server anything.
    """
    scripts = re.findall(r"<script>(.*?)</script>", report, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
    )
