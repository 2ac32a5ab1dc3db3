"""The image of the server, its compose file and the workflows: what can be checked without a builder and a runner."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import click
import pytest
import yaml

import linnaeus
from linnaeus.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE, COMPOSE, CADDYFILE = (ROOT / "packaging" / name for name in ("Dockerfile", "compose.yaml", "Caddyfile"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile; continued lines are one."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def accepts(words: list[str]) -> None:
    """Raise click.UsageError unless `linnaeus WORDS` has these options."""
    command = cli.commands[words[0]]
    command.parse_args(click.Context(command, info_name=words[0]), list(words[1:]))


def entrypoint() -> list[str]:
    return json.loads(dict(instructions())["ENTRYPOINT"])


def test_the_image_runs_as_a_user_without_rights_and_reports_its_health():
    last_stage = instructions()[[word for word, _ in instructions()].index("FROM", 1) :]
    assert ("USER", "10001:10001") in last_stage
    words = [word for word, _ in last_stage]
    assert words.index("USER") < words.index("ENTRYPOINT")
    (health,) = (rest for word, rest in last_stage if word == "HEALTHCHECK")
    assert f"127.0.0.1:{entrypoint()[-1]}/ready" in health
    compile(json.loads(health[health.index("[") :])[-1], "HEALTHCHECK", "exec")
    assert entrypoint()[0] == "linnaeus"
    accepts(entrypoint()[1:])


def test_the_build_needs_no_more_than_what_is_copied(tmp_path: Path):
    pytest.importorskip("hatchling")
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                assert f"!{source}" in ignore, source
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)


def test_the_compose_file_locks_the_server_in():
    about: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    server, proxy = about["services"]["linnaeus"], about["services"]["proxy"]
    for service in (server, proxy):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in server, "only the proxy is reachable"
    assert about["networks"]["inside"]["internal"] is True
    assert proxy["depends_on"]["linnaeus"]["condition"] == "service_healthy"
    assert (COMPOSE.parent / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    accepts([*entrypoint()[1:], *server["command"]])
    mounts = [volume.split(":")[0] for volume in proxy["volumes"] if volume.startswith("./")]
    assert mounts == ["./Caddyfile"]


def test_the_proxy_accepts_what_the_server_accepts():
    text = CADDYFILE.read_text()
    limit = int(re.search(r"max_size (\d+)MB", text)[1]) * 1_000_000  # type: ignore[index]
    (largest,) = (int(str(o.default)) for o in cli.commands["serve"].params if o.name == "max_mb")
    assert largest * 2**20 * 4 / 3 <= limit < 2 * largest * 2**20
    assert {"read_header", "read_body", "response_header_timeout"} <= set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
    assert f"reverse_proxy linnaeus:{entrypoint()[-1]}" in text
    assert text.count("{") == text.count("}")
    # nginx counts in MiB, Caddy in MB.
    page = (ROOT / "docs" / "howto" / "deploy.md").read_text()
    for pattern, unit in ((r"max_size (\d+)MB", 1_000_000), (r"client_max_body_size (\d+)m;", 2**20)):
        (limit,) = (int(number) * unit for number in re.findall(pattern, page))
        assert largest * 2**20 * 4 / 3 <= limit < 2 * largest * 2**20


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(path: Path):
    about = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([.\w/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in about["jobs"].values() for step in job["steps"]]
    assert all(job["timeout-minutes"] for job in about["jobs"].values())
    assert all(re.search(r"@(v[\d.]+|release/v\d+)$", step["uses"]) for step in steps if "uses" in step)
    scripts = "\n".join(step["run"] for step in steps if "run" in step)
    for command in re.findall(r"^ *make (.+)", scripts, re.MULTILINE):
        named = {word for word in shlex.split(command) if "=" not in word}
        assert named <= targets | {".venv/.installed"}, command
    for line in re.findall(r"^ *linnaeus (.+?)(?: >.*)?$", scripts, re.MULTILINE):
        accepts(shlex.split(line))
    assert about["permissions"] == {"contents": "read"}


def test_the_tests_of_the_workflow_cover_every_python_that_is_claimed():
    import tomllib

    claimed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = {re.sub(".*:: ", "", line) for line in claimed if re.search(r"Python :: 3\.\d+", line)}
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert versions <= set(matrix["python"])


@pytest.mark.parametrize(("tool", "files"), [("hadolint", [DOCKERFILE]), ("actionlint", WORKFLOWS)])
def test_linters_have_no_complaint(tool: str, files: list[Path]):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *files], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# What `docker run --read-only --tmpfs /tmp` does, with the environment of the Dockerfile.
READ_ONLY = """
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /tmp
mount -o bind,remount,ro /
cd /
shift
exec "$@"
"""


@pytest.mark.long
def test_the_server_runs_on_a_read_only_root_file_system(tmp_path: Path):
    source = Path(linnaeus.__file__).parents[1]
    if any(path.is_relative_to("/tmp") for path in (Path(sys.prefix), source)):
        pytest.skip("Linnaeus or its environment is in /tmp, which is empty in the image")
    isolated = ["unshare", "-m", "bash", "-ec", textwrap.dedent(READ_ONLY), "bash", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make mount namespaces")
    shutil.copy(ROOT / "tests" / "golden" / "format1" / "gray.safetensors", tmp_path / "model.safetensors")
    set_ = dict(pair.split("=") for pair in shlex.split(next(rest for word, rest in instructions() if word == "ENV")))
    env = os.environ | {name: value for name, value in set_.items() if name != "PATH"}
    env["PYTHONPATH"] = str(source)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*isolated, sys.executable, "-m", "linnaeus", "serve", "/mnt/model.safetensors", "--port", str(port)]
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(400):
            try:
                with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                    assert json.load(answer) == {"status": "ready"}
                    return
            except URLError:
                assert server.poll() is None, server.stdout.read() if server.stdout else ""
                time.sleep(0.25)
        pytest.fail("the server was not ready in 100 s")
    finally:
        server.terminate()
        server.wait(60)
