"""Finish: the source that is written from the labels, and the run that is trained on it."""

from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path

import pytest
from labelling import Page, opened, photos

import linnaeus


def source_of(page: Page) -> list[dict[str, str]]:
    with page.server.finish.write_source().open(newline="") as file:
        return list(csv.DictReader(file))


def label_all(page: Page, n: int) -> None:
    for _ in range(n):
        image = page.get_json("/api/next?n=1")["questions"][0]["image"]
        page.put_json("/api/answer", images=[image], label=page.truth(image))


def test_the_random_sample_validates_and_its_copies_do_not_train(tmp_path: Path):
    folder = photos(tmp_path / "photos", each=30)
    with opened(folder) as page:
        page.settle()
        label_all(page, 60)
        drawn = page.server.session.learner.audit.sample(page.server.session.labels, ())[0]
        valid = {folder.resolve() / page.server.session.features.paths[i] for i in drawn}
        rows = source_of(page)
        assert {Path(row["path"]) for row in rows if row["split"] == "valid"} == valid
        assert len(rows) == 60
        copied = page.server.session.features.paths[drawn[0]]
        name = f"{copied.split()[0]} copy.png"
    shutil.copy(folder / copied, folder / name)
    with opened(folder) as page:
        page.settle()
        image = page.server.session.position[name]
        page.put_json("/api/answer", images=[image], label=page.truth(image))
        page.settle()
        rows = source_of(page)
        split = {Path(row["path"]).name: row["split"] for row in rows}
        assert name not in split or copied not in split or split[name] == split[copied]


def test_without_enough_of_a_sample_train_draws_the_split(tmp_path: Path):
    with opened(photos(tmp_path / "photos"), "file") as page:
        page.settle()
        for image in range(0, 48, 3):
            page.put_json("/api/answer", images=[image], label=page.truth(image))
        assert {row["split"] for row in source_of(page)} == {""}


def test_too_few_labels_are_said_and_nothing_is_started(tmp_path: Path):
    with opened(photos(tmp_path / "photos")) as page:
        page.put_json("/api/answer", images=[0], label="a")
        response = page.post("/api/finish")
        assert response.status_code == 400
        assert "two classes with 2 labels each" in response.json()["error"]
        assert page.get_json("/api/state")["finish"]["run"] is None


@pytest.mark.long
def test_finish_writes_a_run_as_train_would(tmp_path: Path):
    folder = photos(tmp_path / "photos", each=30)
    with opened(folder) as page:
        page.settle()
        label_all(page, 70)
        run = Path(page.put_json("/api/finish")["run"])
        assert "running already" in page.post("/api/finish").json()["error"]
        while (state := page.get_json("/api/state")["finish"])["running"]:
            time.sleep(0.1)
        time.sleep(0.1)
        assert state["error"] == "", state
        names = {"model.safetensors", "report.html", "metrics.json", "predictions.csv"}
        assert names <= {file.name for file in run.iterdir()}
        assert f"linnaeus serve {run}" in page.get_json("/api/state")["finish"]["commands"]
        assert linnaeus.load(run).classes == ("a", "b", "c")
