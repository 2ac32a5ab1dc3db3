"""The pages in docs/results agree with the JSON beside them, and the scripts that write both can be started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BY_BENCHMARKS = ("speed", "several-labels", "unknown")
"""Pages whose figures come from `benchmarks/`, not from an experiment."""
PAGES = sorted(page.stem for page in RESULTS.glob("*.md") if page.stem not in ("index", *BY_BENCHMARKS))

SCRIPTS = sorted(file.stem for file in (ROOT / "experiments").glob("*.py") if file.stem != "common")


def page(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def figures(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cells(name: str) -> Iterator[tuple[str, list[str]]]:
    """(first cell, other cells) for each row of the tables of a page."""
    for line in page(name).splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            first, *rest = [cell.strip().strip("*") for cell in line.strip("| ").split("|")]
            yield first, rest


def requires_page(name: str) -> pytest.MarkDecorator:
    """Skip the test if the experiment has not been completed yet."""
    return pytest.mark.skipif(name not in PAGES, reason=f"docs/results/{name}.md does not exist yet")


@requires_page("degradation")
def test_degradation() -> None:
    rows = dict(cells("degradation"))
    for name, row in figures("degradation")["networks"].items():
        assert rows[name][:2] == [f"{row['train']:.1f}", f"{row['test']:.1f}"], name


@requires_page("transfer")
def test_transfer() -> None:
    results = figures("transfer")
    labels = {"scratch": "ResNet-18 from scratch", "head": "head alone", "layer4": "head, then layer4"}
    labels |= {"all": "head, then all", "gradual": "stage after stage"}
    rows = list(cells("transfer"))
    for source in ("flowers16", "food10"):
        for method, label in labels.items():
            expected = [f"{results[source][f'{method}-{count}']['accuracy']:.1f}" for count in (1, 2, 5, 10, 0)]
            assert (label, expected) in rows, (source, label)


@requires_page("digits")
def test_digits() -> None:
    for name, row in figures("digits").items():
        if name != "machine":
            row_cells = dict(cells("digits"))[name]
            assert row_cells[0] == f"{row['mean']:.2f}", name
            assert row_cells[1] == ("" if row["deviation"] is None else f"{row['deviation']:.2f}"), name
            assert row_cells[2] == str(len(row["test"])), name


@requires_page("label")
def test_label() -> None:
    results, rows, orders = figures("label"), list(cells("label")), ("mixed", "margin", "diverse", "random")
    for order in orders:
        name, row = "mixed (default)" if order == "mixed" else order, results["flowers16"][order]
        needed = []
        for target in ("0.80", "0.85", "0.90"):
            seeds = f" ({row[target]['reached']} of {row['seeds']} seeds)"
            needed.append(f"{row[target]['median']}{seeds if row[target]['reached'] < row['seeds'] else ''}")
        assert (name, [*needed, *(f"{100 * row[f'at {n}']:.1f}" for n in (80, 160, 320))]) in rows, order
    for size, row in results["milliseconds"].items():
        assert (size, [f"{row[key]:.1f}" for key in ("median", "new penalty")]) in rows, size


def share(figure: dict[str, float]) -> str:
    """A mean over splits and its standard error, in percent."""
    return f"{100 * figure['mean']:.1f} ± {100 * figure['error']:.1f}"


@requires_page("label")
def test_label_over_many_splits() -> None:
    rows = list(cells("label"))
    for images in ("flowers16", "food10", "mnist"):
        results = figures("label")[images]["many splits"]
        for order in ("mixed", "margin", "together"):
            row = results[order]
            shares = [f"{100 * row[key]:.1f}" for key in ("perfect", "random")]
            expected = [str(row["splits"]), f"{row['inside']} of {row['n']}", share(row["coverage"]), *shares]
            assert (f"{images}, {order}", [*expected, share(row["difference"]), f"{100 * row['width']:.0f}"]) in rows
        for level, row in results["batches"].items():
            for time, suffix in (("before", ""), ("after", ", after")):
                part = row[time]
                counts = [f"{part['images']:,} in {row['batches']}", str(part["wrong"]), f"{part['expected']:.1f}"]
                expected = [*counts, f"{part['most']:,}", str(part["held"]), share(part["share held"])]
                expected += [] if suffix else [str(row["different"]), f"{row['doubts']:.1f}"]
                assert (f"{images}, {100 * float(level):g} %{suffix}", expected) in rows, (images, level)


@requires_page("label")
def test_label_of_a_large_folder_and_after_kills() -> None:
    results, rows = figures("label"), list(cells("label"))
    kills = results["kills"]
    text = f"{kills['kills']} kills, {kills['acknowledged']:,} acknowledged answers, {kills['lost']} lost"
    assert text in page("label")
    folder = results["folder"]
    assert f"## A folder of {folder['images']:,} images" in page("label")
    for name, key, unit in (
        ("start of the server, seconds", "start", 1),
        ("the same, of the processor", "start, processor", 1),
        ("first image on the page, seconds", "first page", 1),
        ("the same, of the processor", "first page, processor", 1),
        ("answer on the disk, median, milliseconds", "answer, median", 1000),
        ("largest memory of the server, MiB", "peak MiB", 1),
    ):
        digits = 0 if key == "peak MiB" or unit == 1000 else 2
        values = [f"{unit * folder[start][key]:.{digits}f}" for start in ("first", "second")]
        assert (name, values) in rows, key


@requires_page("inception")
def test_inception() -> None:
    results, rows = figures("inception"), dict(cells("inception"))
    for name, row in results["modules"].items():
        assert rows[name][:2] == [f"{row['with']:,}", f"{row['without']:,}"], name
    for kind, row in results["heads"].items():
        assert rows[f"{kind} auxiliary heads"][0] == ", ".join(f"{a:.1f}" for a in row["accuracy"])


@requires_page("clock")
def test_clock() -> None:
    rows = dict(cells("clock"))
    for name, row in figures("clock")["rates"].items():
        assert rows[name][0] == f"{row['median']:,.0f}", name


@requires_page("backbones")
def test_backbones() -> None:
    rows = [(name, row[:3]) for name, row in cells("backbones") if len(row) == 4]
    for source in ("flowers16", "food10"):
        for row in figures("backbones")[source]:
            low, high = row["accuracy_ci95"]
            expected = [f"{100 * row['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", str(row["correct"])]
            assert (row["name"], expected) in rows, (source, row["name"])


@requires_page("backbones")
def test_parity() -> None:
    rows, results = list(cells("backbones")), figures("parity")
    assert len(results) >= 20
    assert len({row["family"] for row in results.values()}) >= 8
    for name, row in results.items():
        differences = [row[key] for key in ("whole", "cuts", "executors")]
        assert max(value or 0 for value in differences) <= 1e-5, name
        shown = ["none" if value is None else f"{value:.1e}" if value else "0" for value in differences]
        assert (name, [row["family"], str(row["stages"]), f"{row['parameters'] / 1e6:.2f}", *shown]) in rows, name


def test_unknown() -> None:
    results, rows = figures("unknown"), list(cells("unknown"))
    near, far = "4 classes held out, 1 round", ("mnist", "flowers16")
    for source, outside in (("flowers16", "food10"), ("flowers16", near), far):
        for name, row in results[source][outside].items():
            low, high = row["auroc_ci95"]
            share = f"{100 * row['let_through'] / row['unknown']:.1f} % ({row['let_through']:,})"
            expected = [f"{row['auroc']:.4f}", f"{low:.4f} to {high:.4f}", share]
            assert (name, expected) in [(first, rest[:3]) for first, rest in rows], (source, outside, name)
    flowers = results["flowers16"]
    assert flowers["food10"]["probability + distance"]["auroc"] >= 0.99
    assert flowers["food10"]["probability + distance"]["let_through_share"] <= 0.02
    assert flowers[near]["probability + distance"]["auroc"] >= 0.83


@pytest.mark.parametrize("name", PAGES)
def test_page_names_its_command_and_its_images(name: str) -> None:
    text = page(name)
    assert re.search(rf"python (experiments|benchmarks)/{name}\.py", text)
    assert figures(name)["machine"] in text
    for image in RESULTS.glob(f"{name}*.png"):
        assert f"]({image.name})" in text
    assert f"]({name}.md)" in page("index")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_has_a_help_text(name: str) -> None:
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"python experiments/{name}.py" in output
    assert "--work" in output


@pytest.mark.long
def test_networks_side_by_side(tmp_path: Path) -> None:
    """The degradation script trains two networks for one epoch on random images, without a plot."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = generator.integers(0, 256, (20, 3073), dtype=np.uint8)
        rows[:, 0] = generator.permutation(20) % 10
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    command = [sys.executable, str(ROOT / "experiments" / "degradation.py"), "--data", str(tmp_path)]
    command += ["--work", str(tmp_path / "runs"), "--epochs", "1", "--nets", "plain20,resnet20"]
    for _ in range(2):  # the second time both runs are complete
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout == ""
    for name in ("plain20", "resnet20"):
        assert (tmp_path / "runs" / name / "model.safetensors").is_file()
        assert json.loads((tmp_path / "runs" / f"{name}.seconds.json").read_text())["cpu"] > 0
