"""docs/coming-from.md: what it gives for Linnaeus exists and is accepted."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from linnaeus.cli.main import cli
from linnaeus.recipe import load_recipe
from linnaeus.recipe.load import parse_setting

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = [line.rsplit(" | ", 1)[1].removesuffix(" |") for line in PAGE.splitlines() if line.startswith("| ")]
CODE = [code for row in ROWS for code in re.findall(r"`([^`]+)`", row)]


def of(prefix: str) -> list[str]:
    return [code for code in CODE if code.startswith(prefix)]


def test_there_are_tables_for_four_tools():
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == ["fastai", "timm", "Ultralytics", "Keras"]
    assert len(ROWS) > 60


@pytest.mark.parametrize("code", of("linnaeus "))
def test_commands_have_these_options(code: str):
    words = shlex.split(code)[1:]
    command = cli.commands[words[0]]
    if len(words) > 1:
        command.parse_args(click.Context(command, info_name=words[0]), words[1:])


@pytest.mark.parametrize("code", of("--"))
def test_options_are_those_of_train(code: str):
    train = cli.commands["train"]
    train.parse_args(click.Context(train, info_name="train"), ["photos", *shlex.split(code)])


@pytest.mark.parametrize("setting", sorted({s for code in CODE for s in re.findall(r"--set (\S+)", code)}))
def test_keys_exist_with_these_values(setting: str):
    load_recipe("scratch", dict([parse_setting(setting)]))


@pytest.mark.parametrize("code", [*of("schedule = "), *of("train = ")])
def test_lines_of_a_phase_are_valid(code: str):
    key, value = next(iter(tomllib.loads(code).items()))
    phase = load_recipe("scratch").phase[0].model_dump()
    type(load_recipe("scratch").phase[0]).model_validate({**phase, "head": "train", key: value})
