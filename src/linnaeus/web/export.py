"""export_web(): write a model as a page, after the comparison with the original that every export passes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.export.onnx import GateResult, export_onnx
from linnaeus.files import atomic, is_scratch, scratch
from linnaeus.inference.classifier import Classifier, load
from linnaeus.inference.runners import OnnxRunner
from linnaeus.serve.examples import FILE as EXAMPLES
from linnaeus.serve.examples import read_examples, to_json
from linnaeus.serve.model_info import describe_classifier
from linnaeus.serve.pages import SHARED, read_static, render_page
from linnaeus.web.runtime import MEMBERS, read_runtime

STATIC = Path(__file__).parent / "static"
SHARED_HERE, SCRIPTS = (*SHARED, "page.css", "icon.svg"), ("requests.js", "worker.js")
INDEX, DESCRIPTION, NETWORK, SERVICE_WORKER = "index.html", "model.json", "model.onnx", "service-worker.js"
FIRST, BEFORE_INDEX = SHARED[0], {*SHARED_HERE, *SCRIPTS, *MEMBERS, EXAMPLES, NETWORK, DESCRIPTION}
GENERATOR = b'<meta name="generator" content="linnaeus">'
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    # A page that is isolated from other origins may run the network on several threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class WebFolder:
    """What was written."""

    path: Path
    sizes: dict[str, int]  # bytes of each file

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


def export_web(
    classifier: Classifier,
    out: Path,
    title: str,
    *,
    examples: str | None = None,
    data: str | None = None,
    split: str | None = None,
    console: Console,
) -> tuple[WebFolder | None, GateResult | None]:
    """Write the page of `classifier` to the folder `out`, with the heading `title` and the images of `examples`.

    A network is written as ONNX, if that agrees with it on real images (`export_onnx`); an ONNX file that `export`
    wrote has passed the same comparison, and is taken as it is. Returns the folder, None if the gate let nothing pass,
    and the result of the gate, None for an ONNX file. Raises UserError, before the comparison, where the folder holds
    something else, ONNX Runtime cannot be fetched, or the page cannot show the model's answers.
    """
    check_folder(out)
    shown = () if examples is None else read_examples(examples, classifier.preprocessing)
    parts = read_runtime(console) | ({EXAMPLES: to_json(shown)} if shown else {})
    if isinstance(classifier.run, OnnxRunner):
        return _write(out, classifier, title, parts), None
    with scratch(out.absolute().parent) as folder:
        path, result = export_onnx(
            classifier, "onnx", data=data, split=split, out=folder / NETWORK, agree=1.0, console=console
        )
        return None if path is None else _write(out, load(path, device="cpu"), title, parts), result


def check_folder(out: Path) -> None:
    """Raise UserError unless `out` is missing, empty, or a page that was exported before, perhaps not to its end."""
    if out.is_file():
        raise UserError(f"{out}: is a file; --to web writes a folder")
    names = {path.name for path in out.iterdir() if not is_scratch(path)} if out.is_dir() else set()
    if not names:
        return
    index = out / INDEX
    # The index comes after the files that it uses, so a killed export may have left these alone.
    begun = FIRST in names <= BEFORE_INDEX and (out / FIRST).read_bytes() == read_static(FIRST)[0]
    if not begun and not (index.is_file() and GENERATOR in index.read_bytes()):
        raise UserError(
            f"{out}: holds files that do not belong to an exported page; give --out DIR, a new or empty folder"
        )


def _write(out: Path, classifier: Classifier, title: str, parts: dict[str, bytes]) -> WebFolder:
    """Write all files, of which `parts` are ready.

    The service worker comes last: with it, browsers take the others for one version.
    """
    files = {name: read_static(name)[0] for name in SHARED_HERE}
    files |= {name: (STATIC / name).read_bytes() for name in SCRIPTS}
    files |= parts | {NETWORK: classifier.path.read_bytes()}
    sizes = {name: len(content) for name, content in files.items()}
    about = describe(classifier, title) | {"files": sizes, "examples": EXAMPLES in files}
    files[DESCRIPTION] = json.dumps(about, ensure_ascii=False).encode()
    files[INDEX] = render_page("en", title, POLICY).encode()
    files[SERVICE_WORKER] = service_worker(files).encode()
    for name, content in files.items():
        with atomic(out / name) as temporary:
            temporary.write_bytes(content)
    if EXAMPLES not in files:  # of an earlier export
        (out / EXAMPLES).unlink(missing_ok=True)
    return WebFolder(out, {name: len(content) for name, content in files.items()})


def describe(classifier: Classifier, title: str) -> dict[str, Any]:
    """What the page knows of the model, as JSON: the answer of GET /model, and the thresholds of unknown images."""
    detector = classifier.detector
    return describe_classifier(classifier, title) | {
        "file": NETWORK,
        "explains": False,
        "neighbors": None,
        "report": False,
        "unknown": None if detector is None else detector.thresholds.to_dict(),
    }


def service_worker(files: dict[str, bytes]) -> str:
    """The script that keeps `files` for use without a network."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    values = {
        "checksums": json.dumps(checksums, indent=2),
        "headers": json.dumps(HEADERS, indent=2),
        "version": hashlib.sha256(json.dumps(checksums).encode()).hexdigest()[:16],
    }
    template = (STATIC / "service-worker.js.j2").read_text(encoding="utf-8")
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(values)
