"""Answers on the disk: the journal, `labels.csv`, undo, several servers, and files that were left incomplete."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest

from linnaeus.data.readers.csvfile import read_csv
from linnaeus.errors import DiskError, UserError
from linnaeus.label.journal import ACCEPTED, HUMAN, SKIPPED, UNKNOWN, Answer, Journal
from linnaeus.label.labels_csv import LabelStore


def store_of(folder: Path) -> LabelStore:
    return LabelStore.open(folder, folder / "labels.csv")


def shown(store: LabelStore) -> dict[str, str]:
    with store.csv.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def current(store: LabelStore) -> dict[str, str]:
    store.journal.refresh()
    return {path: label.label for path, label in store.journal.labels.items()}


def test_answers_of_two_servers_are_kept_by_both(tmp_path: Path):
    first, second = store_of(tmp_path), store_of(tmp_path)
    for k in range(6):
        (first, second)[k % 2].answer([Answer(f"{k}.jpg", "rose" if k < 3 else "tulip")])
    expected = {f"{k}.jpg": "rose" if k < 3 else "tulip" for k in range(6)}
    assert current(first) == current(second) == shown(first) == expected
    first.answer([Answer("0.jpg", "tulip")])
    second.undo(0)
    assert current(second)["0.jpg"] == "tulip", "somebody has answered since"


def test_undo_goes_back_step_by_step(tmp_path: Path):
    store = store_of(tmp_path)
    numbers = [store.answer([Answer("a.jpg", name)]) for name in ("rose", "tulip", "lily")]
    for number, label in zip(reversed(numbers), ("tulip", "rose", None), strict=True):
        assert store.undo(number) == ["a.jpg"]
        assert current(store).get("a.jpg") == current(store_of(tmp_path)).get("a.jpg") == label
        assert shown(store).get("a.jpg") == label
    assert store.undo(numbers[0]) == []
    assert store.journal.classes == []


def test_a_label_is_confirmed_by_the_same_answer_and_undoing_keeps_what_was_confirmed(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose", ACCEPTED)])
    assert not store.journal.labels["a.jpg"].confirmed
    store.answer([Answer("a.jpg", "rose")])
    assert store.journal.labels["a.jpg"].confirmed
    changed = store.answer([Answer("a.jpg", "tulip")])
    assert not store.journal.labels["a.jpg"].confirmed
    store.undo(changed)
    assert store.journal.labels["a.jpg"].confirmed
    store.answer([Answer("b.jpg", "rose")])
    wrong = store.answer([Answer("b.jpg", "tulip")])
    store.undo(wrong)
    assert not store.journal.labels["b.jpg"].confirmed, "a restored label is no second opinion"


def test_a_skip_is_kept_until_it_is_undone_or_answered(tmp_path: Path):
    store = store_of(tmp_path)
    number = store.answer([Answer("a.jpg", None, SKIPPED)])
    assert store_of(tmp_path).journal.skipped == {"a.jpg"}
    assert store.undo(number) == ["a.jpg"]
    assert store.journal.skipped == set()
    store.answer([Answer("a.jpg", None, SKIPPED)])
    store.answer([Answer("a.jpg", "rose")])
    assert store.journal.skipped == set()


def test_images_of_no_class_stand_in_a_file_of_their_own(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    store.answer([Answer("b.jpg", UNKNOWN)])
    assert shown(store) == {"a.jpg": "rose"}
    assert "b.jpg" in store.unknown_csv.read_text()


@pytest.mark.parametrize("lost", ["journal", "line"])
def test_images_of_no_class_survive_the_loss_of_their_journal(tmp_path: Path, lost: str):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    store.answer([Answer("b.jpg", UNKNOWN)])
    store.answer([Answer("c.jpg", UNKNOWN)])
    store.answer([Answer("c.jpg", "rose")])
    journal = store.journal.path
    if lost == "journal":  # it is in a hidden folder, which copies leave behind
        journal.unlink()
    else:
        journal.write_bytes(journal.read_bytes().replace(b'"b.jpg"', b'"B.jpg"'))
    again = store_of(tmp_path)
    again.answer([Answer("d.jpg", "rose")])
    again.undo(again.answer([Answer("e.jpg", UNKNOWN)]))
    assert current(again) == {"a.jpg": "rose", "b.jpg": UNKNOWN, "c.jpg": "rose", "d.jpg": "rose"}
    assert [line.split(",")[:3] for line in again.unknown_csv.read_text().splitlines()[1:]] == [
        ["b.jpg", "unknown", "human"]
    ]
    assert shown(again) == {"a.jpg": "rose", "c.jpg": "rose", "d.jpg": "rose"}


def test_a_row_of_no_class_that_was_not_yet_removed_is_no_answer(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", UNKNOWN)])
    before = store.unknown_csv.read_bytes()
    store.answer([Answer("a.jpg", "rose")])
    store.unknown_csv.write_bytes(before)
    assert current(store_of(tmp_path)) == {"a.jpg": "rose"}
    store.journal.path.unlink()
    store.unknown_csv.write_bytes(before)
    assert current(store_of(tmp_path)) == {"a.jpg": "rose"}


def test_edits_of_the_file_are_answers_and_missing_rows_are_restored(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    store.answer([Answer("b.jpg", "rose")])
    lines = store.csv.read_text().splitlines(keepends=True)
    store.csv.write_text(lines[0] + lines[1].replace("rose", "tulip") + "c.jpg,lily,,\n")
    store.answer([Answer("d.jpg", "rose")])
    assert current(store) == shown(store) == {"a.jpg": "tulip", "b.jpg": "rose", "c.jpg": "lily", "d.jpg": "rose"}


def test_an_edit_that_keeps_the_size_and_the_time_of_the_file_is_an_answer(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    status = store.csv.stat()
    store.csv.write_text(store.csv.read_text().replace("rose", "lily"))
    os.utime(store.csv, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.answer([Answer("b.jpg", "rose")])
    assert current(store) == shown(store) == {"a.jpg": "lily", "b.jpg": "rose"}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 8, 20, -1])
def test_a_torn_row_is_no_edit(tmp_path: Path, kept: int, later: bool):
    """A process was killed while it wrote the row of an answer, or the disk was full; the journal holds the answer."""
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    whole = store.csv.read_bytes()
    store.answer([Answer("b.jpg", "tulips")])
    row = store.csv.read_bytes()[len(whole) :]
    store.csv.write_bytes(whole + row[:kept])
    if later:
        store.journal.append([Answer("c.jpg", None, SKIPPED)])
    again = store_of(tmp_path)
    assert current(again) == shown(again) == {"a.jpg": "rose", "b.jpg": "tulips"}
    last = "c.jpg" if later else "b.jpg"
    assert again.journal.records[-1].answers[0].path == last, "nothing was added to the journal"


@pytest.mark.parametrize("undone", [False, True])
def test_a_file_that_lacks_several_actions_is_no_edit(tmp_path: Path, undone: bool):
    """The disk was full for the file, not for the journal."""
    store = store_of(tmp_path)
    number = store.answer([Answer("a.jpg", "rose")])
    old = store.csv.read_bytes()
    if undone:
        store.undo(number)
    else:
        store.answer([Answer("a.jpg", "tulip")])
    store.answer([Answer("b.jpg", "tulip")])
    store.csv.write_bytes(old)
    again = store_of(tmp_path)
    expected = {"b.jpg": "tulip"} if undone else {"a.jpg": "tulip", "b.jpg": "tulip"}
    assert current(again) == shown(again) == expected


def test_what_the_journal_holds_counts_where_the_csv_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_of(tmp_path)
    first = store.answer([Answer("a.jpg", "rose")])
    store.answer([Answer("b.jpg", "rose")])

    def full(file: Path, rows: object) -> None:
        raise DiskError(f"{file}: no space left on the disk")

    with monkeypatch.context() as disk:
        disk.setattr("linnaeus.label.labels_csv._write_rows", full)
        assert store.undo(first) == ["a.jpg"]
        number = store.answer([Answer("b.jpg", "tulip")])
        store.catch_up()
        assert "labels.csv: no space left on the disk" in store.problem
    assert current(store) == {"b.jpg": "tulip"}
    assert store.journal.records[number].answers == (Answer("b.jpg", "tulip"),)
    assert shown(store) == {"a.jpg": "rose", "b.jpg": "rose"}
    store.catch_up()
    assert (shown(store), store.problem) == ({"b.jpg": "tulip"}, "")


def test_answers_count_while_somebody_has_half_edited_the_csv(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    good = store.csv.read_text()
    store.csv.write_text("pathlabel\na.jpg,lily\n")
    store.answer([Answer("b.jpg", "tulip")])
    assert "labels.csv:1: has no columns path and label" in store.problem
    assert store.csv.read_text() == "pathlabel\na.jpg,lily\n", "the edits are not lost"
    store.csv.write_text(good.replace("rose", "lily"))
    store.catch_up()
    assert current(store) == shown(store) == {"a.jpg": "lily", "b.jpg": "tulip"}
    assert not store.problem


@pytest.mark.parametrize("left", [None, b"", b"longer"])
def test_a_journal_that_is_removed_in_use_is_read_again_before_it_goes_on(tmp_path: Path, left: bytes | None):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    store.answer([Answer("b.jpg", "tulip")])
    records = list(store.journal.records)
    store.journal.path.unlink()
    if left == b"longer":
        other = Journal.open(store.journal.path)
        for i in range(5):
            other.append([Answer(f"{i}.jpg", "lily")])
        left = store.journal.path.read_bytes()
    elif left is not None:
        store.journal.path.write_bytes(left)
    lost = r"journal: was removed, cut or replaced while it was in use; stop and start"
    with pytest.raises(DiskError, match=lost):
        store.answer([Answer("c.jpg", "rose")])
    with pytest.raises(DiskError, match=lost):
        store.undo(0)
    assert not store.journal.refresh()
    assert store.journal.records == records, "no line of the other file was read as an answer of this one"
    assert (store.journal.path.read_bytes() if store.journal.path.exists() else None) == left
    store.journal.path.unlink(missing_ok=True)
    again = store_of(tmp_path)
    assert again.answer([Answer("c.jpg", "rose")]) == 1
    assert current(again) == shown(again) == {"a.jpg": "rose", "b.jpg": "tulip", "c.jpg": "rose"}


def test_a_torn_or_damaged_line_of_the_journal_costs_itself_alone(tmp_path: Path):
    journal = Journal.open(tmp_path / "journal")
    journal.append([Answer("a.jpg", "rose")])
    with journal.path.open("ab") as file:
        file.write(b'1234abcd {"time":"2026')
    again = Journal.open(tmp_path / "journal")
    again.append([Answer("b.jpg", "rose")])
    journal.append([Answer("c.jpg", "rose")])
    expected = {"a.jpg", "b.jpg", "c.jpg"}
    assert set(Journal.open(journal.path).labels) == set(journal.labels) == expected
    assert journal.damaged == 1


def test_names_that_csv_and_spreadsheets_would_change_are_restored(tmp_path: Path):
    names = ['=1+1, "x".jpg', "a,b.jpg", "\udcff.jpg", "line\nbreak.jpg", "玫瑰.jpg"]
    store = store_of(tmp_path)
    for name in names:
        store.answer([Answer(name, "=rose")])
    for text in (store.csv.read_bytes(), store.csv.read_bytes().replace(b"=rose", b"=lily")):
        store.csv.write_bytes(text)
        again = store_of(tmp_path)
        label = "=lily" if b"lily" in text else "=rose"
        assert current(again) == dict.fromkeys(names, label)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    rows = read_csv(store.csv)
    assert (set(rows.texts), set(rows.labels)) == (set(names), {"=lily"}), "as a source for `train`"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_on_which_not_even_a_lock_can_be_opened_is_one_line(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    store = LabelStore.open(tmp_path, tmp_path / "labels.csv")
    store.answer([Answer("a.png", "x")])

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as full:
        full.setattr("linnaeus.label.journal.locked", fail)
        with pytest.raises(DiskError, match=r"journal: .*; ") as caught:
            store.answer([Answer("b.png", "x")])
    assert "\n" not in str(caught.value)
    store.answer([Answer("b.png", "y")])
    assert {path: label.label for path, label in store.journal.labels.items()} == {"a.png": "x", "b.png": "y"}


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("path,label,age\na.jpg,rose,7\n")
    with pytest.raises(UserError, match=r"labels\.csv:1: has the column 'age', .*--labels"):
        store_of(tmp_path)
    (tmp_path / "labels.csv").write_text("name,weight\nx,7\n")
    with pytest.raises(UserError, match=r"labels\.csv:1: has no columns path and label"):
        store_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,label,age\na.jpg,unknown,7\n", "has the column 'age'"),
        ("name,weight\nx,7\n", "no columns path and label"),
        ("path,label\na.jpg,rose\n", "a.jpg has the label 'rose', .*rename"),
    ],
)
def test_a_file_of_somebody_else_in_the_place_of_the_images_of_no_class_is_not_replaced(
    tmp_path: Path, content: str, reason: str
):
    other = tmp_path / "labels-unknown.csv"
    other.write_text(content)
    with pytest.raises(UserError, match=rf"labels-unknown\.csv.*{reason}"):
        store_of(tmp_path)
    other.unlink()
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    other.write_text(content)  # while it is labelled
    store.answer([Answer("b.jpg", UNKNOWN)])
    assert "labels-unknown.csv" in store.problem
    assert other.read_text() == content
    assert current(store) == {"a.jpg": "rose", "b.jpg": UNKNOWN}


def test_labels_of_another_folder_are_not_those_of_images_with_the_same_names(tmp_path: Path):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "all.csv"
    LabelStore.open(second, file)  # without an answer
    store = LabelStore.open(first, file)
    store.answer([Answer("1.jpg", "rose")])
    before = file.read_bytes()
    for other in (second, first / "below", tmp_path):
        with pytest.raises(UserError, match=rf"all\.csv: holds the labels of the images in .*{first.name}; .*--out"):
            LabelStore.open(other, file)
    file.unlink()
    with pytest.raises(UserError, match="holds the labels of"):
        LabelStore.open(second, file)
    assert current(LabelStore.open(first, file)) == {"1.jpg": "rose"}
    assert file.read_bytes() == before


@pytest.mark.parametrize("beside", [False, True])
def test_labels_move_with_their_folder(tmp_path: Path, beside: bool):
    (tmp_path / "old" / "images").mkdir(parents=True)

    def opened(project: str) -> LabelStore:
        folder = tmp_path / project / "images"
        return LabelStore.open(folder, (tmp_path / project if beside else folder) / "labels.csv")

    opened("old").answer([Answer("1.jpg", "rose"), Answer("2.jpg", UNKNOWN)])
    (tmp_path / "old").rename(tmp_path / "new")
    store = opened("new")
    store.answer([Answer("3.jpg", "rose")])
    assert current(store) == {"1.jpg": "rose", "2.jpg": UNKNOWN, "3.jpg": "rose"}
    assert set(shown(store)) == {str(store.folder / name) if beside else name for name in ("1.jpg", "3.jpg")}
    assert current(opened("new")) == current(store)


def test_labels_of_another_file_are_taken_over_for_images_without_one(tmp_path: Path):
    store = store_of(tmp_path)
    store.answer([Answer("a.jpg", "rose")])
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "given.csv").write_text("path,label\na.jpg,tulip\nb.jpg,tulip\n")
    assert store.import_csv(tmp_path / "given.csv") == 1
    assert current(store) == {"a.jpg": "rose", "b.jpg": "tulip"}
    assert [store.journal.labels[name].provenance for name in ("a.jpg", "b.jpg")] == [HUMAN, "imported"]
