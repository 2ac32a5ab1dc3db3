"""ONNX Runtime for browsers: the npm package onnxruntime-web, fetched once into the cache folder and verified."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from linnaeus.console import Console
from linnaeus.data.download import fetch
from linnaeus.environment import cache_dir, offline
from linnaeus.errors import UserError

VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SIZE = 33_106_585  # bytes
REGISTRY = "https://registry.npmjs.org"
MEMBERS = {
    "ort.js": "ort.wasm.min.mjs",
    "ort-wasm.js": "ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "ort-wasm-simd-threaded.wasm",
}
"""Name in the exported folder -> name in the package. Some hosts do not know that .mjs is JavaScript."""


def archive_path() -> Path:
    """Where the package lies in the cache folder."""
    return cache_dir() / "web" / ARCHIVE


def archive_url() -> str:
    """Address of the package in the registry that npm would use: `npm_config_registry`, else the public one."""
    registries = [os.environ.get(name, "").strip() for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY")]
    registry = next(filter(None, registries), REGISTRY)
    return f"{registry.rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"


def read_runtime(console: Console) -> dict[str, bytes]:
    """The files of `MEMBERS` by their names in the exported folder; fetched if they are not in the cache.

    Raises FetchError, with the address and the place for the file, where it cannot be fetched.
    """
    path = archive_path()
    if not path.is_file() and not offline():
        console.say(f"fetching onnxruntime-web {VERSION}, {SIZE / 1e6:.0f} MB, to {path}")
    with console.progress(ARCHIVE, "bytes") as advance:
        fetch(archive_url(), path, sha256=SHA256, size=SIZE, progress=advance)
    try:
        with tarfile.open(path) as archive:
            members = {name: archive.extractfile(f"package/dist/{member}") for name, member in MEMBERS.items()}
            return {name: file.read() for name, file in members.items() if file is not None}
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to download it again") from None
