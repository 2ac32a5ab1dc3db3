"""Finish: the source that is written from the labels, and the run that is trained on it."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from labelling import Page, opened, photos

from linnaeus.console import Console


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


def test_too_few_labels_are_reported_and_nothing_is_started(tmp_path: Path):
    with opened(photos(tmp_path / "photos")) as page:
        page.put_json("/api/answer", images=[0], label="a")
        response = page.post("/api/finish")
        assert response.status_code == 400
        assert "two classes with 2 labels each" in response.json()["error"]
        assert page.get_json("/api/state")["finish"]["run"] is None


def test_without_a_free_process_finish_says_so_and_works_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_process(*command: object, **more: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with opened(photos(tmp_path / "photos")) as page:
        page.settle()
        label_all(page, 12)
        with monkeypatch.context() as patch:
            patch.setattr("linnaeus.label.finish.subprocess.Popen", no_process)
            response = page.post("/api/finish")
        assert response.status_code == 400
        said = (
            "training cannot be started: out of processes; close other programs, or allow this one more; all labels are"
        )
        assert said in response.json()["error"]
        finish = page.get_json("/api/state")["finish"]
        assert (finish["run"], finish["running"], finish["error"]) == (None, False, "")
        assert not list((tmp_path / "runs").glob("*"))


TRAIN = """#!/bin/sh
shift 2
test "$1" = train && test -s "$2" && test "$3" = --out || exit 3
for epoch in 9 8 7 6 5 4 3 2 1; do echo "epoch $epoch"; done
test -e "$2.fails" && echo "error: no space left" && exit 1
mkdir -p "$4"
"""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_finish_trains_on_the_labels_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
):
    """`train` is replaced: its runs have tests of their own."""
    program = tmp_path / "python"
    program.write_text(TRAIN)
    program.chmod(0o755)
    monkeypatch.setattr("linnaeus.label.finish.sys.executable", str(program))
    with opened(photos(tmp_path / "photos")) as page:
        page.server.session.console = Console(stream=sys.stderr)
        page.settle()
        for image in range(0, 48, 3):
            page.put_json("/api/answer", images=[image], label=page.truth(image))
        page.put_json("/api/answer", images=[1], label="rare")
        source = page.server.finish.write_source()
        if fails:
            source.with_name("train.csv.fails").touch()
        run = Path(page.put_json("/api/finish")["run"])
        page.server.finish.wait()
        state = page.get_json("/api/state")["finish"]
        left_out = "left out, with a single image each: rare; to keep a class, label a second image of it"
        assert state["lines"][0] == left_out, "a long log does not scroll it away"
        assert "epoch 1" in state["lines"]
        assert state["error"] == ("error: no space left" if fails else "")
        assert run.is_dir() is not fails
        assert (f"linnaeus serve {run}" in state["commands"]) is not fails
        assert not any("train.csv" in command for command in state["commands"])
        if not fails:
            assert left_out in capsys.readouterr().err
            page.server.finish.say_next()
            assert left_out in capsys.readouterr().err, "said again when the server ends"


WAIT = """#!/bin/sh
echo "$LINNAEUS_PARENT" >"$4.parent"
echo "epoch 1"
exec sleep 60
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_two_servers_that_train_at_once_have_two_runs_which_end_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Neither run has a folder of its own making yet when the second begins."""
    program = tmp_path / "python"
    program.write_text(WAIT)
    program.chmod(0o755)
    monkeypatch.setattr("linnaeus.label.finish.sys.executable", str(program))
    with opened(photos(tmp_path / "one")) as one, opened(photos(tmp_path / "two")) as two:
        for page in (one, two):
            page.server.session.console = Console(stream=sys.stderr)
            page.settle()
            for image in range(0, 48, 3):
                page.put_json("/api/answer", images=[image], label=page.truth(image))
        runs = [page.put_json("/api/finish")["run"] for page in (one, two)]
        for page in (one, two):
            while "epoch 1" not in page.server.finish.lines:
                assert page.server.finish.running
                time.sleep(0.01)
            parent = page.server.finish._source.with_name("train.csv.parent").read_text()
            assert int(parent) == os.getpid(), "so that `train` ends also if the server is killed"
    assert len(set(runs)) == 2
    assert capsys.readouterr().err.count("training was stopped: train was ended by SIGTERM") == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_without_images_to_review_the_review_is_not_printed(tmp_path: Path):
    with opened(photos(tmp_path / "photos", each=4)) as page:
        finish = page.server.finish
        assert any(command.startswith("linnaeus label") for command in finish._commands(tmp_path))
        label_all(page, 12)
        assert not any(command.startswith("linnaeus label") for command in finish._commands(tmp_path))
