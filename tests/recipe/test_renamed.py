"""Recipe files of earlier versions are read, whatever their keys were called."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from linnaeus.errors import UserError
from linnaeus.recipe import OneCycle, load_recipe
from linnaeus.recipe.keys import full_keys
from linnaeus.recipe.renamed import RENAMED
from linnaeus.runs.compared_run import read_compared_run
from linnaeus.runs.layout import METRICS, RECIPE
from linnaeus.runs.predictions import PredictionRow
from linnaeus.sweeps.run import record_description
from linnaeus.training.setup.identity import Identity

FORMER = """
[model]
name = "mini_resnet"
frozen = "bf16"
[data]
resize = 28
size = 28
normalise = "none"
[[phase]]
epochs = 1
lr = 0.1
[[phase]]
epochs = 2
lr = 0.1
augment = { hflip = 0.5, trivial = true }
schedule = { name = "onecycle", rise = 0.2, start_div = 10, end_div = 100 }
"""
PRESENT = (
    FORMER.replace("frozen", "frozen_precision")
    .replace("normalise", "normalize")
    .replace("trivial", "trivial_augment")
    .replace("rise", "pct_start")
    .replace("start_div", "div")
    .replace("end_div", "div_final")
)


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """A recipe of an earlier version, as in a folder of a run."""
    (tmp_path / RECIPE).write_text(FORMER)
    (tmp_path / METRICS).write_text('{"seconds": {"total": 1}}')
    return tmp_path / RECIPE


def test_every_former_key_is_read_and_every_present_one_exists(former: Path, tmp_path: Path):
    assert all(key.rpartition(".")[2] in FORMER for key in RENAMED)
    assert all(len(full_keys(name)) == 1 for name in RENAMED.values())
    (tmp_path / "present.toml").write_text(PRESENT)
    recipe = load_recipe(str(former))
    assert recipe == load_recipe(str(tmp_path / "present.toml")).model_copy(update={"name": recipe.name})
    assert recipe.phase[1].schedule == OneCycle(name="onecycle", pct_start=0.2, div=10, div_final=100)


def test_a_setting_replaces_the_value_of_the_former_key(former: Path):
    recipe = load_recipe(str(former), {"data.normalize": "data", "phase.2.schedule.pct_start": 0.4})
    assert recipe.data.normalize == "data"
    assert recipe.phase[1].schedule == OneCycle(name="onecycle", pct_start=0.4, div=10, div_final=100)
    for key, present in RENAMED.items():
        with pytest.raises(UserError, match=rf"unknown key \(did you mean [\w.]*\.{present}\?\)"):
            load_recipe(str(former), {key.replace("phase.", "phase.2."): 1})


@pytest.mark.parametrize("key", RENAMED)
@pytest.mark.parametrize("first", [True, False])
def test_a_former_key_beside_its_present_one_is_refused(key: str, first: bool, former: Path):
    """Whichever came last would be used, without a word."""
    name, present = key.rpartition(".")[2], RENAMED[key]
    setting = next(part for part in re.split(r"[\n{},]", FORMER) if part.strip().startswith(f"{name} ")).strip()
    both = [setting, setting.replace(name, present)][:: 1 if first else -1]
    text = FORMER.replace(
        setting, ("\n" if setting in FORMER.split("\n") else ", ").join(both if first else both[::-1])
    )
    former.write_text(text)
    with pytest.raises(UserError, match=rf"\.{name}: unknown key \(did you mean [\w.]*\.{present}\?\)"):
        load_recipe(str(former))


def test_arguments_of_a_network_keep_their_names(former: Path):
    former.write_text(FORMER.replace("[data]", "[model.arguments]\nfrozen = 1\n[data]"))
    assert load_recipe(str(former)).model.arguments == {"frozen": 1}


def test_a_former_run_is_compared_and_resumed_and_a_former_sweep_continued(former: Path, tmp_path: Path):
    row = PredictionRow("a", "valid", "x", "x", 1.0, 1.0)
    assert read_compared_run(tmp_path, [row], "valid").recipe["data"]["normalize"] == "none"
    recipe = load_recipe(str(former))
    values = json.loads(recipe.model_dump_json(exclude_none=True))
    old = json.loads(json.dumps(values).replace('"normalize"', '"normalise"').replace('"frozen_precision"', '"frozen"'))
    record_description(tmp_path, {"recipe": old}, "photos")
    record_description(tmp_path, {"recipe": values}, "photos")
    Identity("photos", old, [], {}, "", {}).write(tmp_path)
    identity = Identity.read(tmp_path)
    assert identity is not None
    assert identity.recipe == values
