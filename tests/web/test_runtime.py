"""ONNX Runtime for browsers: fetched once, from npm's registry or a mirror, verified, and never without leave."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import Host, hosted, write_package

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.web import runtime

QUIET = Console(quiet=True)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    write_package(tmp_path / "registry", monkeypatch)
    with hosted(tmp_path / "registry") as host:
        monkeypatch.setenv("npm_config_registry", host.address + "/")
        yield host


def test_the_package_is_fetched_once_and_its_files_get_names_that_every_host_knows(registry: Host):
    expected = {name: member.encode() for name, member in runtime.MEMBERS.items()}
    assert runtime.read_runtime(QUIET) == expected
    assert runtime.read_runtime(QUIET) == expected
    assert registry.asked == [f"/onnxruntime-web/-/{runtime.ARCHIVE}"], "the second time it lies in the cache"
    assert not [name for name in expected if name.endswith(".mjs")]


def test_the_address_is_that_of_the_public_registry_unless_npm_uses_another(monkeypatch: pytest.MonkeyPatch):
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.archive_url() == f"https://registry.npmjs.org/onnxruntime-web/-/{runtime.ARCHIVE}"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://npm.example/all/")
    assert runtime.archive_url() == f"https://npm.example/all/onnxruntime-web/-/{runtime.ARCHIVE}"


def test_a_mirror_of_the_cache_folder_is_asked_first(registry: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mirror" / "web").mkdir(parents=True)
    shutil.copy(tmp_path / "registry" / "onnxruntime-web" / "-" / runtime.ARCHIVE, tmp_path / "mirror" / "web")
    with hosted(tmp_path / "mirror") as mirror:
        monkeypatch.setenv("LINNAEUS_MIRROR", mirror.address)
        runtime.read_runtime(QUIET)
        assert mirror.asked == [f"/web/{runtime.ARCHIVE}"]
    assert registry.asked == []


def test_offline_the_error_says_which_file_to_put_where(registry: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        runtime.read_runtime(QUIET)
    line = str(error.value)
    assert "LINNAEUS_OFFLINE is set" in line
    assert runtime.archive_url() in line
    assert str(runtime.archive_path()) in line
    assert registry.asked == []


def test_another_file_than_the_published_one_is_refused(registry: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"sha256 .* instead of 0000"):
        runtime.read_runtime(QUIET)
    assert not runtime.archive_path().exists()


def test_a_damaged_file_in_the_cache_is_named(registry: Host):
    runtime.read_runtime(QUIET)
    runtime.archive_path().write_bytes(b"x" * runtime.SIZE)
    with pytest.raises(UserError, match="remove it to download it again"):
        runtime.read_runtime(QUIET)
