"""Display names are matched to the classes by name; an error on a contradiction names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from linnaeus.data.sources import open_source
from linnaeus.errors import UserError


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").touch()
    return root


def shown(root: Path) -> dict[str, str]:
    table = open_source(root)
    return dict(zip(table.classes, table.names, strict=True))


@pytest.mark.parametrize(
    ("names", "lines", "expected"),
    [
        (["Cat", "Dog"], "dog\ncat\n", {"Cat": "cat", "Dog": "dog"}),
        (["cats", "dogs"], "Dog\nCat\n", {"cats": "Cat", "dogs": "Dog"}),
        (["golden_retriever", "pug"], "Pug\nGolden Retriever", {"golden_retriever": "Golden Retriever", "pug": "Pug"}),
        (["Cat", "Dog"], "0 dog\n1 cat\n", {"Cat": "cat", "Dog": "dog"}),
        (["01", "02"], "2 tulip\n1 rose\n", {"01": "rose", "02": "tulip"}),
        (["n0144", "n0200"], "tench\ngoldfish\n", {"n0144": "tench", "n0200": "goldfish"}),
    ],
)
def test_lines_are_matched_by_name(tmp_path: Path, names: list[str], lines: str, expected: dict[str, str]):
    (folders(tmp_path, *names) / "classes.txt").write_text(lines)
    assert shown(tmp_path) == expected
    (note,) = open_source(tmp_path).notes
    assert str(tmp_path / "classes.txt") in note


@pytest.mark.parametrize(
    ("names", "lines", "message"),
    [
        (["Cat", "Dog"], "Cat dog\nDog cat\n", "gives class 'Cat' the name 'dog', but 'Dog' is a class of its own"),
        (["Katze", "Hund"], "dog\ncat\n", "do not fit the 2 class folders"),  # words are never assigned by position
        (["cat", "dog"], "cat\nbird\n", "no line for 'dog'"),
        (["0", "1"], "1 rose\n2 tulip\n", "no line for '0'"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, names: list[str], lines: str, message: str):
    (folders(tmp_path, *names) / "classes.txt").write_text(lines)
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path)
    assert "classes.txt" in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"CAT": "Felis catus", "dogs": "Canis"}', {"Cat": "Felis catus", "Dog": "Canis"}),
        ('{"Felis catus": "cat", "Canis": "dog"}', {"Cat": "Felis catus", "Dog": "Canis"}),
        ('["dog", "cat"]', {"Cat": "cat", "Dog": "dog"}),
        ('{"dog": 0, "cat": 1}', {"Cat": "cat", "Dog": "dog"}),  # name to index says nothing of other names
    ],
)
def test_json_in_either_direction(tmp_path: Path, content: str, expected: dict[str, str]):
    (folders(tmp_path, "Cat", "Dog") / "cat_to_name.json").write_text(content)
    assert shown(tmp_path) == expected


def test_json_that_swaps_or_contradicts(tmp_path: Path):
    path = folders(tmp_path, "1", "2") / "cat_to_name.json"
    (tmp_path / "classes.txt").write_text("1 rose\n2 tulip\n")
    path.write_text('{"1": "tulip", "2": "rose"}')
    with pytest.raises(UserError, match=r"class '[12]' is '(rose|tulip)', but '(rose|tulip)' in .*classes.txt"):
        open_source(tmp_path)
    path.write_text('{"7": "aster"}')
    assert any("names none of the 2 classes; not used" in note for note in open_source(tmp_path).notes)


def test_a_file_of_another_purpose_is_ignored_and_reported(tmp_path: Path):
    (folders(tmp_path, "cat", "dog") / "labels.txt").write_text("cat/1.jpg 0\ndog/1.jpg 1\n")
    assert shown(tmp_path) == {"cat": "cat", "dog": "dog"}
    assert "labels.txt" in open_source(tmp_path).notes[0]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_numbers_whose_names_contradict_the_folders(tmp_path: Path, name: str):
    folders(tmp_path, "Cat", "Dog")
    rows = [("path", "label")] * name.endswith("csv") + [("Cat/1.jpg", "0"), ("Dog/1.jpg", "1")]
    separator = "," if name.endswith("csv") else " "
    (tmp_path / name).write_text("\n".join(map(separator.join, rows)))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match="gives class 'Cat' the name 'dog'"):
        open_source(tmp_path / name)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    table = open_source(tmp_path / name)
    assert table.names == ("cat", "dog")
    assert "by index" in table.notes[0]


@pytest.mark.parametrize(
    ("file", "names", "text", "expected"),
    [
        ("data.yaml", "0 1", "nc: 2\nnames:\n  0: red rose  # first\n  1: 'tulip, wild'\n", "red rose|tulip, wild"),
        ("data.yaml", "0 1", "nc: 2\nnames: ['rose',\n  \"tulip\"]\n", "rose|tulip"),
        ("data.yaml", "0 1", "names:\n- rose\n- tulip\n", "rose|tulip"),
        ("data.yaml", "Rose Tulip", "names: [rose, tulip]\n", "rose|tulip"),
        ("classes.csv", "0 1", "id,name\n0,rose\n1,tulip\n", "rose|tulip"),
        ("classes.csv", "0 1", "0,rose\n1,tulip\n", "rose|tulip"),
        ("class_dict.csv", "rose tulip", "class_index,class,height\n0,Rose,3\n1,Tulip,4\n", "Rose|Tulip"),
        ("LOC_synset_mapping.txt", "n01 n03", "n01 tench, Tinca\nn02 goldfish\nn03 shark\n", "tench, Tinca|shark"),
        ("label_num_to_disease_map.json", "0 1", '{"0": "blight", "1": "healthy"}', "blight|healthy"),
    ],
)  # fmt: skip
def test_names_of_other_tools_are_matched_by_name(tmp_path: Path, file: str, names: str, text: str, expected: str):
    (folders(tmp_path, *names.split()) / file).write_text(text)
    assert list(shown(tmp_path).values()) == expected.split("|")
    assert file in open_source(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: [tench, goldfish]\n"),
        ("data.yaml", "train: x\n"),
        ("classes.csv", "name\ntench\ngoldfish\n"),
        ("LOC_synset_mapping.txt", "n05 tench\nn06 goldfish\n"),
    ],
)
def test_names_of_other_tools_are_not_guessed_by_position(tmp_path: Path, file: str, text: str):
    (folders(tmp_path, "n0144", "n0200") / file).write_text(text)
    assert list(shown(tmp_path).values()) == ["n0144", "n0200"]
    (note,) = open_source(tmp_path).notes
    assert file in note
    assert "not used" in note


def test_numbers_of_a_csv_are_named_by_the_map_of_kaggle(tmp_path: Path):
    for k in range(4):
        (tmp_path / f"{k}.jpg").touch()
    (tmp_path / "train.csv").write_text("image_id,label\n0.jpg,0\n1.jpg,1\n2.jpg,0\n3.jpg,1\n")
    (tmp_path / "label_num_to_disease_map.json").write_text('{"0": "blight", "1": "healthy"}')
    assert open_source(tmp_path / "train.csv").names == ("blight", "healthy")
