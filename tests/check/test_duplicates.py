"""Duplicates: found among unrelated images, grouped, and reported as leaks and label conflicts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import COPIES, cropped, scene, write_scenes

from linnaeus.check.data_check import leaks
from linnaeus.check.duplicate_findings import duplicate_findings
from linnaeus.check.duplicates import COPY, EXACT, SCENE, Duplicates, connected, find_duplicates, group_members
from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.stores.embeddings import Embeddings
from linnaeus.stores.image_statistics import compute_statistics


def opened(folder: Path) -> tuple[Table, Duplicates]:
    table = open_source(folder)
    return table, find_duplicates(compute_statistics(table, cache=None))


def named(table: Table, found: Duplicates) -> dict[tuple[str, str], int]:
    return {
        (table.sample_id(a), table.sample_id(b)): relation
        for (a, b), relation in zip(found.pairs.tolist(), found.relation.tolist(), strict=True)
    }


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_and_nothing_else(kind: str, tmp_path: Path):
    write_scenes(tmp_path, each=15)
    for i in range(15):
        COPIES[kind](Image.open(tmp_path / "oak" / f"{i}.jpg")).save(tmp_path / "pine" / f"copy {i}.png")
    table, found = opened(tmp_path)
    expected = {(f"oak/{i}.jpg", f"pine/copy {i}.png"): COPY for i in range(15)}
    assert named(table, found) == expected


def test_exact_copies_are_paired_with_the_first(tmp_path: Path):
    write_scenes(tmp_path)
    pixels = Image.open(tmp_path / "oak" / "1.jpg")
    for name in ("oak/9.png", "pine/9.bmp"):
        pixels.save(tmp_path / name)
    table, found = opened(tmp_path)
    assert named(table, found) == {("oak/1.jpg", "oak/9.png"): EXACT, ("oak/1.jpg", "pine/9.bmp"): EXACT}
    assert (found.score == 1).all()


def test_a_copy_of_one_of_several_exact_copies_joins_them(tmp_path: Path):
    write_scenes(tmp_path)
    image = Image.open(tmp_path / "oak" / "1.jpg")
    image.save(tmp_path / "pine" / "same.png")
    image.resize((120, 100)).save(tmp_path / "pine" / "small.png")
    table, found = opened(tmp_path)
    (group,) = group_members(found.groups(), range(len(table)))
    assert {table.sample_id(i) for i in group} == {"oak/1.jpg", "pine/same.png", "pine/small.png"}


def test_embeddings_find_crops_that_hashes_miss(tmp_path: Path):
    """A third of the image is cut off: the embeddings are neighbors and the pixels match."""
    write_scenes(tmp_path)
    box = (0, 0, 170, 150)
    Image.open(tmp_path / "oak" / "1.jpg").crop(box).save(tmp_path / "pine" / "part.png")
    table, found = opened(tmp_path)
    assert named(table, found) == {}
    generator = np.random.default_rng(0)
    values = generator.normal(size=(len(table), 16)).astype(np.float32)
    pair = [i for i in range(len(table)) if table.sample_id(i) in ("oak/1.jpg", "pine/part.png")]
    values[pair[1]] = values[pair[0]] + 0.1
    values[[0, 3]] = values[2]  # neighbors by embedding, but with other pixels
    vectors = Embeddings(values, np.arange(len(table)), "made up")
    found = find_duplicates(compute_statistics(table, cache=None), vectors)
    assert named(table, found) == {("oak/1.jpg", "pine/part.png"): SCENE}


def test_flat_and_small_images_are_not_near_duplicates(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        flat = (128 + generator.integers(0, 3, (60, 60, 3))).astype(np.uint8)
        Image.fromarray(flat).save(tmp_path / "a" / f"{i}.png")
        scene(1).resize((24 + i, 30)).save(tmp_path / "b" / f"{i}.png")
    assert named(*opened(tmp_path)) == {}


def test_recolored_images_are_no_copies_but_gray_ones_are(tmp_path: Path):
    """The same shape in red and in blue may be two classes. A gray version of either is a copy."""
    write_scenes(tmp_path)
    shape = scene(70).convert("L")
    dark = shape.point(lambda v: v // 4)
    Image.merge("RGB", (shape, dark, dark)).save(tmp_path / "oak" / "red.png")
    Image.merge("RGB", (dark, dark, shape)).save(tmp_path / "pine" / "blue.png")
    table, found = opened(tmp_path)
    assert named(table, found) == {}
    shape.save(tmp_path / "pine" / "gray.png")
    table, found = opened(tmp_path)
    assert named(table, found) == {
        ("oak/red.png", "pine/gray.png"): COPY,
        ("pine/blue.png", "pine/gray.png"): COPY,
    }


def test_components_are_numbered_by_their_lowest_node():
    """Against a plain union-find."""
    generator = np.random.default_rng(0)
    for n, k in ((1, 0), (10, 4), (200, 120), (200, 400)):
        pairs = generator.integers(0, n, (k, 2))
        expected = np.arange(n)
        for a, b in pairs:
            low, high = sorted((expected[a], expected[b]))
            expected[expected == high] = low
        assert connected(n, pairs).tolist() == expected.tolist()
        assert connected(n, pairs).dtype == np.int64


def plain_table(splits: list[str], labels: list[int]) -> Table:
    paths = tuple(f"/d/{split or 'x'}/{i}.jpg" for i, split in enumerate(splits))
    classes = ("oak", "pine")
    return Table("d", "list", classes, classes, np.array(labels), np.array(splits), paths=paths, root="/d")


def duplicates(n: int, *pairs: tuple[int, int, int]) -> Duplicates:
    found = np.array(pairs).reshape(-1, 3)
    return Duplicates(n, found[:, :2], found[:, 2], np.ones(len(found), np.float32))


@pytest.mark.parametrize(
    ("splits", "labels", "relation", "expected"),
    [
        (["train", "train"], [0, 0], EXACT, {("duplicate", "warning")}),
        (["train", "train"], [0, 0], COPY, {("near-duplicate", "info")}),
        (["", ""], [0, 0], COPY, {("near-duplicate", "warning")}),
        (["train", "valid"], [0, 0], EXACT, {("leak", "error")}),
        (["train", "test"], [0, 0], COPY, {("leak", "error")}),
        (["train", "train"], [0, 1], COPY, {("label-conflict", "error")}),
        (["valid", "train"], [0, 1], EXACT, {("leak", "error"), ("label-conflict", "error")}),
        (["train", "train"], [0, 0], SCENE, {("same-scene", "info")}),
        (["train", "valid"], [0, 0], SCENE, {("same-scene", "warning")}),
        (["train", "train"], [0, 1], SCENE, {("same-scene", "warning")}),
    ],
)
def test_the_severity_of_a_pair(splits: list[str], labels: list[int], relation: int, expected: set[tuple[str, str]]):
    table = plain_table(splits, labels)
    found = duplicate_findings(table, duplicates(2, (0, 1, relation)))
    assert {(finding.kind, finding.severity) for finding in found} == expected
    order = sorted(range(2), key=lambda i: ("train", "valid", "test", "").index(splits[i]))
    assert all(finding.paths == tuple(table.sample_id(i) for i in order) for finding in found)


def test_a_group_is_one_finding():
    table = plain_table(["train", "valid", "train", "test", "train"], [0, 0, 0, 0, 1])
    (finding,) = duplicate_findings(table, duplicates(5, (0, 1, COPY), (1, 3, COPY), (0, 2, EXACT)))
    assert finding.kind == "leak"
    assert finding.paths == ("train/0.jpg", "train/2.jpg", "valid/1.jpg", "test/3.jpg")
    assert "in train and valid and test" in finding.detail


def test_copies_that_a_third_image_connects_are_not_a_scene_too():
    table = plain_table(["train"] * 4, [0] * 4)
    copies = ((0, 1, COPY), (1, 2, COPY), (0, 2, SCENE))
    (finding,) = duplicate_findings(table, duplicates(4, *copies))
    assert finding.kind == "near-duplicate"
    _, scene = duplicate_findings(table, duplicates(4, *copies, (2, 3, SCENE)))
    assert scene.kind == "same-scene"
    assert len(scene.paths) == 4


def test_leaked_samples_have_a_copy_in_an_earlier_split():
    table = plain_table(["train", "valid", "valid", "test", "test", "test"], [0] * 6)
    found = duplicates(6, (0, 1, EXACT), (2, 3, COPY), (0, 4, SCENE))
    leaked = leaks(table, found.groups(EXACT, COPY))
    assert {split: samples.tolist() for split, samples in leaked.items()} == {"valid": [1], "test": [3]}
    unsplit = dataclasses.replace(table, split=np.array([""] * 6))
    assert leaks(unsplit, found.groups(EXACT, COPY)) == {}


def test_groups_of_some_relations():
    found = duplicates(4, (0, 1, EXACT), (1, 2, COPY), (2, 3, SCENE))
    assert found.groups().tolist() == [0, 0, 0, 0]
    assert found.groups(EXACT, COPY).tolist() == [0, 0, 0, 3]
    assert found.groups(EXACT).tolist() == [0, 0, 2, 3]


def test_crops_of_ten_percent_off_one_side(tmp_path: Path):
    write_scenes(tmp_path, each=8)
    for i in range(8):
        image = Image.open(tmp_path / "oak" / f"{i}.jpg")
        image.crop((0, 0, image.width, round(0.9 * image.height))).save(tmp_path / "pine" / f"no caption {i}.png")
        cropped(image, 0.1).save(tmp_path / "pine" / f"middle {i}.png")
    table, found = opened(tmp_path)
    groups = group_members(found.groups(), range(len(table)))
    assert sorted(len(group) for group in groups) == [3] * 8
