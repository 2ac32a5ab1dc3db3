"""The page's way through a folder: answer, undo, skip, a new class, finish, and reopen."""

from __future__ import annotations

import csv
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from labelling import new_server, opened, photos
from tiny import write_images

from linnaeus.console import Console
from linnaeus.label.backbone import colors
from linnaeus.label.features import Features
from linnaeus.label.finish import Finish
from linnaeus.label.server import Server
from linnaeus.label.session import Session
from linnaeus.label.state import describe
from linnaeus.serve.server import bind
from linnaeus.serve.sharing import address_of


def rows(folder: Path) -> dict[str, str]:
    with (folder / "labels.csv").open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def test_labels_are_kept_and_the_classifier_learns_from_them(tmp_path: Path):
    folder = photos(tmp_path / "photos", each=30)
    with opened(folder) as page:
        state = page.settle()
        assert (state["images"], state["labelled"], state["accuracy"]) == (90, 0, None)
        answered = []
        for _ in range(62):
            card = page.get_json("/api/next?n=1")["questions"][0]
            assert card["image"] not in answered
            answered.append(card["image"])
            page.put_json("/api/answer", images=[card["image"]], label=page.truth(card["image"]))
        state = page.settle()
        assert state["labelled"] == 62
        assert state["accuracy"]["n"] == state["sample"]["n"] == 20
        assert state["accuracy"]["ci95"][0] <= state["accuracy"]["accuracy"] <= state["accuracy"]["ci95"][1]
        assert [c["name"] for c in state["classes"]] == list(dict.fromkeys(map(page.truth, answered)))
    assert len(rows(folder)) == 62
    with opened(folder) as page:
        state = page.settle()
        assert (state["labelled"], len(state["classes"])) == (62, 3)
        assert state["course"][-1]["labels"] == 62
        assert page.get_json("/api/next?n=1")["questions"][0]["image"] not in answered


def test_an_answer_can_be_undone_an_image_skipped_and_a_class_added(tmp_path: Path):
    folder = photos(tmp_path / "photos", each=4)
    with opened(folder) as page:
        page.settle()
        first = page.put_json("/api/answer", images=[3], label="a")
        page.put_json("/api/answer", images=[4], unknown=True)
        assert page.put_json("/api/undo", number=first["record"])["images"][0]["image"] == 3
        assert rows(folder) == {}
        assert page.get_json("/api/state")["unknown"] == 1
        assert page.get_json("/api/state")["classes"] == [], "a misspelled class goes with its answer"
        added = page.put_json("/api/class", name="  tulip ")
        assert page.get_json("/api/state")["classes"] == [{"name": "tulip", "n": 0, "held_out": None}]
        page.put_json("/api/undo", number=added["record"])
        assert page.get_json("/api/state")["classes"] == []
        asked = page.get_json("/api/next?n=1")["questions"][0]["image"]
        skip = page.put_json("/api/skip", images=[asked])
        assert asked not in [q["image"] for q in page.get_json("/api/next?n=12")["questions"]]
    with opened(folder) as page:
        assert [card["image"] for card in page.get_json("/api/skipped")["images"]] == [asked]
        assert page.get_json("/api/state")["skipped"] == 1
        page.put_json("/api/undo", number=skip["record"])
        assert asked in [q["image"] for q in page.get_json("/api/next?n=12")["questions"]]


def test_the_page_and_the_images_are_served(tmp_path: Path):
    with opened(photos(tmp_path / "photos", each=2)) as page:
        response = page.get("/", headers={"Accept-Language": "zh"})
        assert response.status_code == 200
        assert 'lang="zh' in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert page.get("/image/0?side=160").content[:2] == b"\xff\xd8"
        assert page.get("/image/99").status_code == 404
        assert page.post("/api/answer", json={"images": [99], "label": "a"}).json()["error"].startswith("no image 99")
        assert page.post("/api/answer", json={"images": [0], "label": ""}).status_code == 400


def test_what_the_disk_has_no_room_for_is_to_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos", each=2)
    with opened(folder) as page:
        page.settle()

        def full(handle: int, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr("linnaeus.label.journal._write_all", full)
            refused = page.post("/api/answer", json={"images": [0], "label": "a"})
        assert refused.status_code == 507, "the page drops what is refused by 400"
        assert "no space left on the disk" in refused.json()["error"]
        page.put_json("/api/answer", images=[0], label="a")
        with monkeypatch.context() as disk:
            disk.setattr("linnaeus.label.labels_csv._write_rows", lambda file, rows: full(0, b""))
            page.put_json("/api/answer", images=[0], label="b")
            assert "No space left" in page.get_json("/api/state")["problem"]
        page.settle()
    assert set(rows(folder).values()) == {"b"}, "completed when the server stops"


@pytest.mark.parametrize("cache", ["a file", "a dangling link"])
def test_the_classifier_learns_without_a_cache(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "cache"
    if cache == "a file":
        place.touch()
    else:
        place.symlink_to(tmp_path / "nowhere" / "else")
    monkeypatch.setenv("LINNAEUS_CACHE", str(place))
    with opened(photos(tmp_path / "photos", each=4)) as page:
        page.put_json("/api/answer", images=[0], label="a")
        assert page.settle()["features"]["failure"] == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")
def test_an_image_with_a_backslash_in_its_name_is_read(tmp_path: Path):
    folder = photos(tmp_path / "photos", each=2)
    (folder / "a 0.png").rename(folder / "a\\b.png")
    with opened(folder) as page:
        assert page.settle()["features"]["unreadable"] == 0


def test_a_server_on_all_networks_names_an_address_that_opens(tmp_path: Path):
    folder = photos(tmp_path)
    with bind("0.0.0.0", 0) as listener:
        server = Server(new_server(folder), listener, Console(silent=True), "token")
        assert server.address == address_of(listener)
        assert "0.0.0.0" not in server.address


def test_a_random_question_shows_nothing_that_could_influence_its_answer(tmp_path: Path):
    with opened(photos(tmp_path / "photos", each=24)) as page:
        page.settle()
        for image in range(0, 72, 3):
            page.put_json("/api/answer", images=[image], label=page.truth(image))
        page.settle()
        batch = page.get_json("/api/batch?at_least=0.5")
        while batch["sample"]:
            image = batch["sample"][0]["image"]
            body = {"images": [image], "label": page.truth(image), "batch": batch["batch"]}
            batch = page.put_json("/api/answer", **body)["batch"]
        assert (batch["wrong"], batch["verified"] > 0) == (0, True)
        assert 0 <= batch["expected_errors"] <= batch["most_errors"] <= batch["n"] - batch["verified"]
        assert page.put_json("/api/batch", number=batch["batch"])["n"] == batch["n"] - batch["verified"]
        before = page.settle()["sample"]["n"]
        for _ in range(8):
            questions = page.get_json("/api/next?n=4")["questions"]
            assert all({"label", "guesses"} & set(card) == set() for card in questions if card["reason"] == "random")
            page.put_json("/api/answer", images=[questions[0]["image"]], label=page.truth(questions[0]["image"]))
        assert page.settle()["sample"]["n"] > before, "accepted labels do not end the sample"


def test_random_answers_count_before_the_network_has_read_their_images(tmp_path: Path):
    server = new_server(photos(tmp_path / "photos"))
    reserved = server.session.learner.audit.reserved[:5]
    server.session.answer(reserved, "a")
    assert not server.session.features.ready.any()
    assert describe(server)["sample"]["n"] == 5


def test_labels_of_images_that_are_left_out_are_not_counted(tmp_path: Path):
    server = new_server(photos(tmp_path / "photos"))
    server.session.answer([0, 1, 2], "a")
    features = Features(server.session.features.folder, server.session.features.paths[2:], colors())
    review = Session.open(server.session.store, features, "mixed", Console(silent=True))
    state = describe(replace(server, session=review, finish=Finish(review, tmp_path / "runs")))
    assert (state["images"], state["labelled"], state["provenance"]["human"]) == (46, 1, 1)
    assert state["classes"] == [{"name": "a", "n": 1, "held_out": None}]


def test_a_batch_is_not_accepted_unseen_and_verified_by_its_sample_alone(tmp_path: Path):
    with opened(photos(tmp_path / "photos")) as page:
        page.settle()
        for image in range(0, 48, 2):
            page.put_json("/api/answer", images=[image], label=page.truth(image))
        page.settle()
        batch = page.get_json("/api/batch?at_least=0.5")
        assert "not verified" in page.post("/api/batch", json={"number": batch["batch"]}).json()["error"]
        response = page.post("/api/answer", json={"images": [0], "label": "c", "batch": batch["batch"]})
        assert "is not in the sample" in response.json()["error"]
        assert page.server.session.labels[page.server.session.features.paths[0]].label == page.truth(0)


def test_subfolders_are_proposed_as_classes(tmp_path: Path):
    folder = write_images(tmp_path / "photos", ("rose", "tulip"), each=2)
    with opened(folder) as page:
        assert page.get_json("/api/state")["suggested_classes"] == ["rose", "tulip"]
        page.put_json("/api/class", name="rose")
        assert page.get_json("/api/state")["suggested_classes"] == ["tulip"]
