"""Runs are joined by sample and tested in pairs; runs that cannot be compared are rejected."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from linnaeus.errors import UserError
from linnaeus.metrics.intervals import proportion_interval, wilson
from linnaeus.metrics.mcnemar import McNemar, holm
from linnaeus.runs.compare import compare_runs, differing
from linnaeus.runs.layout import PREDICTIONS
from linnaeus.runs.predictions import COLUMNS


def write_run(
    folder: Path,
    right: np.ndarray,
    *,
    first: int = 0,
    split: str = "test",
    label: str = "a",
    each: int = 0,
    **recipe: Any,
) -> Path:
    """A run folder with predictions for samples first, first + 1 …, each with probability 0.8, `each` in a group."""
    folder.mkdir()
    with (folder / PREDICTIONS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, hit in enumerate(right.tolist(), first):
            writer.writerow(
                [
                    f"pic {i}.png",
                    split,
                    label,
                    label if hit else "b",
                    0.8,
                    0.8 if hit else 0.2,
                    i // each if each else "",
                ]
            )
    (folder / "metrics.json").write_text(json.dumps({"seconds": {"total": 12.5}}))
    (folder / "recipe.toml").write_text(tomli_w.dumps({"seed": 0, "phase": [{"lr": 0.1}], **recipe}))
    return folder


def hits(n: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_runs_are_joined_by_sample_whatever_their_order(tmp_path: Path):
    right = [hits(200, 0.9, 0), hits(200, 0.8, 1), hits(200, 0.88, 2)]
    runs = [write_run(tmp_path / name, r) for name, r in zip("abc", right, strict=True)]
    lines = (runs[1] / PREDICTIONS).read_text().splitlines()
    (runs[1] / PREDICTIONS).write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    found = compare_runs(runs)
    assert found.warnings == []
    for row, r in zip(found.rows, right, strict=True):
        assert (row.n, row.correct, row.seconds) == (200, r.sum(), 12.5)
        assert row.accuracy_ci95 == wilson(int(r.sum()), 200)
        assert row.loss == pytest.approx(-(r * np.log(0.8) + ~r * np.log(0.2)).mean())
        assert row.ece == pytest.approx(abs(r.mean() - 0.8))
    pairs = {(i, j): McNemar.of(right[i], right[j]) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert found.pairs == pairs
    assert found.corrected == holm([pair.p for pair in pairs.values()])


def write_contents(run: Path, folder: str, contents: Iterable[int]) -> None:
    rows = [f"{folder}/pic {i}.png,a,test,{content:012x}" for i, content in enumerate(contents)]
    (run / "split.csv").write_text("\n".join(["path,label,split,content", *rows]) + "\n")


def test_images_of_the_same_name_but_another_content_are_not_compared(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(100, 0.8, seed)) for seed, name in enumerate("abc")]
    write_contents(runs[0], "/data/one", range(1, 101))
    write_contents(runs[1], "/moved/two", range(1, 101))
    assert compare_runs(runs).rows[0].n == 100, "a run of an earlier version has no contents"
    write_contents(runs[2], "/data/three", range(21, 121))
    with pytest.raises(UserError, match=r"a: its test images differ from those of the other runs: 0 shared of 100"):
        compare_runs(runs)
    write_contents(runs[2], "/data/three", [*range(1, 81), *range(201, 221)])
    found = compare_runs(runs)
    assert found.rows[0].n == 80
    assert found.warnings == [
        "the runs have different test images (100, 100 and 100): compared on the 80 that all share"
    ]


def test_images_with_copies_in_training_are_voiced(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(100, 0.8, 0)) for name in "ab"]
    metrics: dict[str, Any] = {"seconds": {"total": 1}, "test": {"n": 100, "without_leaks": {"n": 70}}}
    (runs[1] / "metrics.json").write_text(json.dumps(metrics))
    (warning,) = compare_runs(runs).warnings
    assert warning.startswith(f"{runs[1]}: 30 of its 100 test images were seen in training")
    metrics["test"]["without_leaks"] = None
    (runs[1] / "metrics.json").write_text(json.dumps(metrics))
    assert "100 of its 100 test images" in compare_runs(runs).warnings[0]


def test_runs_that_know_other_classes_are_voiced(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(100, 0.8, 0)) for name in "ab"]
    for run, classes in zip(runs, ("abcd", "ab"), strict=True):
        rows = [{"class": name} for name in classes]
        (run / "evaluation.json").write_text(json.dumps({"test": {"classes": rows}}))
    (warning,) = compare_runs(runs).warnings
    assert warning.startswith(f"{runs[0]} also knows 'c', 'd', which not all of these runs know: on the same images")
    (runs[1] / "evaluation.json").unlink()
    assert compare_runs(runs).warnings == [], "a run of an earlier version"


def test_differences_are_described(tmp_path: Path):
    right = np.full(100, True)
    fewer, much = right.copy(), right.copy()
    fewer[:3], much[:20] = False, False
    runs = [write_run(tmp_path / name, r) for name, r in (("one", right), ("two", fewer), ("three", much))]
    text = compare_runs(runs).render()
    verdicts = {line.split("  ")[1]: line for line in text.splitlines() if " - " in line}
    assert "no significant difference" in verdicts["two - one"]
    assert "-3.00 % (" in verdicts["two - one"]
    assert "one is better" in verdicts["three - one"]
    assert "two is better" in verdicts["three - two"]
    assert "0 correct only in two, 3 only in one" in verdicts["two - one"]
    assert "the recipes are identical" in text
    assert "97 of 100" in text


def test_runs_on_different_images_are_compared_on_shared_ones_or_rejected(tmp_path: Path):
    runs = [
        write_run(tmp_path / "a", hits(200, 0.9, 0)),
        write_run(tmp_path / "b", hits(200, 0.9, 1), first=140),
        write_run(tmp_path / "c", hits(200, 0.9, 1), first=151),
    ]
    found = compare_runs(runs[:2])
    assert found.rows[0].n == 60
    assert found.rows[0].correct == hits(200, 0.9, 0)[140:].sum()
    assert found.rows[1].correct == hits(200, 0.9, 1)[:60].sum()
    assert "(200 and 200): compared on the 60 that all share" in found.warnings[0]
    with pytest.raises(UserError, match="49 shared of 200 and 200, and 50 are needed"):
        compare_runs([runs[0], runs[2]])


def test_few_images_are_enough_if_they_are_the_same(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(12, 0.5, i)) for i, name in enumerate("ab")]
    assert compare_runs(runs).rows[0].n == 12


def test_the_split_is_test_if_every_run_has_it(tmp_path: Path):
    both = write_run(tmp_path / "a", hits(30, 0.9, 0))
    valid = write_run(tmp_path / "b", hits(30, 0.9, 0), split="valid")
    with (both / PREDICTIONS).open("a") as file:
        file.writelines(line + "\n" for line in (valid / PREDICTIONS).read_text().splitlines()[1:])
    assert compare_runs([both, valid]).split == "valid"
    other = write_run(tmp_path / "c", hits(30, 0.9, 0))
    assert compare_runs([both, other]).split == "test"
    with pytest.raises(UserError, match="b: has no test images; compare on --split valid"):
        compare_runs([both, valid], "test")


def test_groups_are_compared_not_images(tmp_path: Path):
    """Ten images that only one run classifies correctly, all from two groups."""
    one, other = np.full(100, True), np.full(100, True)
    other[20:30] = False
    found = compare_runs([write_run(tmp_path / name, r, each=5) for name, r in (("a", one), ("b", other))])
    assert found.pairs[0, 1].p == 0.5
    assert "p: McNemar's exact test, one trial per group)" in found.render()
    assert found.rows[1].accuracy_ci95 == proportion_interval(other, np.arange(100) // 5)
    blind = compare_runs([write_run(tmp_path / name, r) for name, r in (("c", one), ("d", other))])
    assert blind.pairs[0, 1].p < 0.01
    assert "one trial per group" not in blind.render()
    mixed = compare_runs([tmp_path / "d", tmp_path / "a"])  # one run has no groups recorded
    assert mixed.pairs[0, 1].p == 0.5


def test_predictions_without_a_group_column_are_read(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(60, 0.9, i)) for i, name in enumerate("ab")]
    for run in runs:
        lines = (run / PREDICTIONS).read_text().splitlines()
        (run / PREDICTIONS).write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    assert compare_runs(runs).rows[0].n == 60


def test_runs_that_cannot_be_compared_are_rejected(tmp_path: Path):
    good = write_run(tmp_path / "good", hits(60, 0.9, 0))
    other = write_run(tmp_path / "other", hits(60, 0.9, 0), label="c")
    with pytest.raises(UserError, match=r"60 of 60 test images have other labels than in .*other.*the same source"):
        compare_runs([good, other])
    with pytest.raises(UserError, match="give at least two runs"):
        compare_runs([good])
    with pytest.raises(UserError, match="a run is listed twice"):
        compare_runs([good, good])
    with pytest.raises(UserError, match="gone: no such run folder"):
        compare_runs([good, tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no predictions\.csv"):
        compare_runs([good, tmp_path / "empty"])
    (other / PREDICTIONS).write_text("path,label\nx,y\n")
    with pytest.raises(UserError, match="must have rows with the columns sample, split"):
        compare_runs([good, other])
    (other / PREDICTIONS).write_text(",".join(COLUMNS) + "\nx,test,a,a,much,0.5\n")
    with pytest.raises(UserError, match=r"predictions\.csv:2: invalid row \['x'"):
        compare_runs([good, other])
    (good / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"good.metrics\.json: is not valid JSON"):
        compare_runs([good, write_run(tmp_path / "third", hits(60, 0.9, 0))])


def test_recipe_differences():
    one = {"seed": 0, "data": {"size": 28, "mean": [1, 2]}, "phase": [{"lr": 0.1}, {"lr": 0.2}]}
    other = {"seed": 1, "data": {"size": 28, "mean": [1, 3]}, "phase": [{"lr": 0.1, "ema": 0.9}]}
    assert differing([one, other]) == {
        "seed": ["0", "1"],
        "data.mean": ["[1, 2]", "[1, 3]"],
        "phase.2.lr": ["0.2", "-"],
        "phase.1.ema": ["-", "0.9"],
    }


def test_json_has_runs_pairs_and_recipes(tmp_path: Path):
    runs = [write_run(tmp_path / name, hits(90, 0.9, i), seed=i) for i, name in enumerate("ab")]
    content = json.loads(compare_runs(runs).to_json())
    assert [row["n"] for row in content["runs"]] == [90, 90]
    assert content["runs"][0]["accuracy"] == hits(90, 0.9, 0).mean()
    assert content["pairs"][0].keys() >= {
        "first",
        "second",
        "only_first",
        "only_second",
        "p",
        "p_holm",
        "difference_ci95",
    }
    assert content["recipes"] == {"seed": ["0", "1"]}
