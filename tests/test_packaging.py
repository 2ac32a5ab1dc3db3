"""The wheel and the sdist: complete, readable on a package index, and sufficient without the source tree."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from linnaeus.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://example.org/someone/linnaeus"
hatchling = pytest.importorskip("hatchling", reason="the package is built with hatchling")


def build(kind: str, out: Path, repository: str = "") -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"LINNAEUS_REPOSITORY": repository}, check=True, timeout=60)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"), REPOSITORY)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def relative_links(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(([^)]+)\)", prose) if not re.match("https://|#", target)]


def tracked() -> set[str]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        packed = {f"src/{name}" for name in archive.namelist()}
    assert {name for name in tracked() if name.startswith("src/linnaeus/")} <= packed


def test_the_sdist_holds_every_file_of_the_repository(tmp_path: Path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked() <= packed


def test_no_link_is_dead_on_a_package_index(wheel: Path, tmp_path: Path):
    stated = metadata(wheel)
    text = str(stated.get_payload())
    assert f"]({REPOSITORY}/raw/v" in text
    assert f"]({REPOSITORY}/blob/v" in text
    assert relative_links(text) == []
    urls = dict(url.split(", ") for url in stated.get_all("Project-URL", []))
    assert urls["Repository"] == REPOSITORY
    assert {"Issues", "Documentation", "Changelog"} <= set(urls)
    without = metadata(build("wheel", tmp_path))
    assert relative_links(str(without.get_payload())) == []


def test_an_address_that_is_none_stops_the_build(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        build("wheel", tmp_path, "git@example.org:someone/linnaeus")


def test_code_in_the_readme_is_not_rewritten():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = "```python\nx[0](y)\n```\n"
    assert module.render(f"{code}[a](b.md) [c](#d) ![e](f.png)", REPOSITORY, "v1") == (
        f"{code}[a]({REPOSITORY}/blob/v1/b.md) [c](#d) ![e]({REPOSITORY}/raw/v1/f.png)"
    )
    assert module.render("[a](b.md) ![e](f.png)", "", "v1") == "a e"


@pytest.mark.long
def test_the_wheel_trains_in_an_empty_environment(wheel: Path, tmp_path: Path):
    """The environment holds nothing but the wheel; its dependencies are found where this Python has them."""
    import torch

    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=60)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, wheel], check=True, timeout=60)
    (packages,) = {Path(path).parents[1] for path in home.rglob("linnaeus/__init__.py")}
    # A path in a .pth file is searched, but its own .pth files, such as that of an editable install, are not read.
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"OMP_NUM_THREADS": "1"}
    where = "import linnaeus; print(linnaeus.__file__)"
    shown = subprocess.run([python, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()).is_relative_to(home)
    options = ["--recipe", "digits", "--epochs", "1", "--out", "run"]
    command = [str(python.with_name("linnaeus")), "train", "digits", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_messages_name_the_packages_of_every_extra():
    """The package is not on an index yet, so that `pip install "linnaeus[onnx]"` would fetch a stranger's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, packages in EXTRAS.items():
        wanted = [Requirement(text) for text in project["optional-dependencies"][extra]]
        named = [Requirement(text) for text in shlex.split(packages)]
        assert [package.name for package in named] == [package.name for package in wanted]
        # A newer major version than the extra allows must not be installed.
        limits = [{str(s) for s in package.specifier if s.operator == "<"} for package in wanted]
        assert [{str(s) for s in package.specifier} for package in named] == limits


def test_nothing_tells_a_user_to_install_the_package_by_its_name():
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.*")]
    texts = {str(page.relative_to(ROOT)): page.read_text("utf-8", "ignore") for page in pages if page.is_file()}
    named = re.compile(r"""(?:pip|uv tool|pipx) install (?!--no-index)[^\n`]*\blinnaeus\b(?!:|\*)""")
    assert {name: named.findall(text) for name, text in texts.items() if named.search(text)} == {}
