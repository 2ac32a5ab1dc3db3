"""The table, and how it is split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnaeus.data.readers.csvfile import open_csv
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table, write_split
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import UserError


def table_of(labels, split: str | list[str] = "", groups=None, root: str = "/data", paths=None) -> Table:
    labels = np.asarray(labels)
    classes = tuple(f"class {i}" for i in range(int(labels.max()) + 1))
    n = len(labels)
    return Table(
        root,
        "folder",
        classes,
        classes,
        labels,
        np.array([split] * n if isinstance(split, str) else split, dtype="<U5"),
        paths=tuple(paths or (f"{root}/{labels[i]}/{i}.jpg" for i in range(n))),
        groups=groups,
        root=root,
    )


def arrays(n: int, split: str = "train") -> Table:
    images = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2)
    return Table("here", "idx", ("a", "b"), ("a", "b"), np.arange(n) % 2, np.full(n, split), images=images)


def test_counts_and_where():
    table = table_of([0, 0, 1, 1, 1], ["train", "valid", "train", "", ""])
    assert table.where("").tolist() == [3, 4]
    assert list(table.counts()) == ["train", "valid", ""]
    assert {k: v.tolist() for k, v in table.counts().items()} == {"train": [1, 1], "valid": [1, 0], "": [0, 2]}


def test_sample_ids_stay_with_their_samples():
    table = dataclasses.replace(table_of([0, 1, 0]), paths=("/data/0/a.jpg", "/elsewhere/b.jpg", "/data2/c.jpg"))
    assert [table.sample_id(i) for i in range(3)] == ["0/a.jpg", "/elsewhere/b.jpg", "/data2/c.jpg"]
    array = arrays(6)
    assert array.sample_id(5) == "train[5]"
    assert array.select(np.array([5, 2])).sample_id(0) == "train[5]"
    split = split_table(array, valid=0.5, test=0.0, seed=0)
    assert {split.sample_id(i) for i in split.where("valid")} <= {f"train[{i}]" for i in range(6)}
    assert arrays(2, "").sample_id(1) == "idx[1]"


def test_select_takes_every_column():
    table = arrays(6).select(np.array([4, 1]))
    assert table.images is not None
    assert table.images[0, 0, 0] == 16
    assert table.labels.tolist() == [0, 1]
    assert len(table) == len(table.split) == 2
    assert table.channels == 1


def test_fingerprint_is_of_the_content(tmp_path: Path):
    for folder in ("one", "two"):
        for name, size in (("a/1.jpg", 3), ("a/2.jpg", 4), ("b/1.jpg", 5)):
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x" * size)
    one, two = open_source(tmp_path / "one"), open_source(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint()  # moving the folder changes nothing
    assert len(one.fingerprint()) == 64
    (tmp_path / "two/b/1.jpg").write_bytes(b"longer")
    assert one.fingerprint() != two.fingerprint()
    split = dataclasses.replace(one, split=np.array(["train", "valid", "train"]))
    relabelled = dataclasses.replace(one, labels=one.labels[::-1].copy())
    assert len({one.fingerprint(), split.fingerprint(), relabelled.fingerprint()}) == 3


def test_fingerprint_sees_one_pixel():
    table = arrays(5000)
    assert table.images is not None
    images = table.images.copy()
    images[4999, 1, 1] += 1
    assert table.fingerprint() != dataclasses.replace(table, images=images).fingerprint()


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=8),
    valid=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
    seed=st.integers(0, 2**63),
)
@settings(deadline=None, max_examples=60)
def test_split_is_stratified(sizes, valid, test, seed):
    table = table_of(np.repeat(np.arange(len(sizes)), sizes))
    try:
        split = split_table(table, valid=valid, test=test, seed=seed)
    except UserError as error:
        assert max(sizes) < 4, error  # noqa: PT017  too few images to set any aside for both parts
        return
    counts = split.counts()
    assert sum(c.sum() for c in counts.values()) == sum(sizes)
    assert set(counts) == set(SPLITS)
    assert (counts["train"] >= 1).all()
    if all(size * (1 - valid - test) >= 3 for size in sizes):  # no class had to give its last image
        for name, share in (("valid", valid), ("test", test)):
            # Halves go either way, because the shares of the classes are added before they are rounded.
            assert counts[name].sum() == 1 or abs(counts[name].sum() - sum(sizes) * share) <= 0.5 + 1e-6
            assert (np.abs(counts[name] - np.array(sizes) * share) <= 1 + 1e-6).all()


@given(seed=st.integers(0, 1000), order=st.permutations(range(30)))
@settings(deadline=None, max_examples=30)
def test_split_does_not_depend_on_order(seed, order):
    table = table_of(np.arange(30) % 3)
    other = table.select(np.array(order))
    once = split_table(table, valid=0.2, test=0.2, seed=seed)
    again = split_table(other, valid=0.2, test=0.2, seed=seed)
    assert {(once.sample_id(i), once.split[i]) for i in range(30)} == {
        (again.sample_id(i), again.split[i]) for i in range(30)
    }


def test_split_depends_on_the_seed_alone():
    table = table_of(np.arange(60) % 3)
    first, same, other = (split_table(table, valid=0.2, test=0.2, seed=seed).split.tolist() for seed in (1, 1, 2))
    assert first == same
    assert first != other


@given(
    labels=st.lists(st.integers(0, 3), min_size=8, max_size=60),
    sizes=st.integers(1, 5),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=80)
def test_groups_are_never_divided(labels, sizes, seed):
    labels = np.unique(labels, return_inverse=True)[1]
    groups = tuple(f"patient {i // sizes}" if i % 7 else "" for i in range(len(labels)))
    table = table_of(labels, groups=groups)
    try:
        split = split_table(table, valid=0.2, test=0.2, seed=seed)
    except UserError:
        return
    for group in set(groups) - {""}:
        assert len({split.split[i] for i in range(len(labels)) if groups[i] == group}) == 1
    assert (split.counts()["train"] >= 1).all()


def test_groups_reach_the_stated_share():
    labels = np.repeat(np.arange(2), 100)
    table = table_of(labels, groups=tuple(str(i // 4) for i in range(200)))
    counts = split_table(table, valid=0.2, test=0.1, seed=0).counts()
    assert counts["valid"].tolist() == [20, 20]
    assert np.abs(counts["test"] - 10).max() <= 2


def test_an_image_listed_twice_stays_in_one_split():
    table = table_of(np.arange(40) % 2, paths=[f"/data/{i // 4}.jpg" for i in range(40)])
    split = split_table(table, valid=0.3, test=0.2, seed=3)
    for i in range(0, 40, 4):
        assert len(set(split.split[i : i + 4])) == 1


@pytest.mark.parametrize("part", ["", "train"])
def test_equal_arrays_stay_in_one_split(part: str):
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (40, 3, 3), dtype=np.uint8), 3, axis=0)
    table = Table("here", "idx", ("a", "b"), ("a", "b"), np.arange(120) // 3 % 2, np.full(120, part), images=images)
    split = split_table(table, valid=0.2, test=0.0, seed=1).split.reshape(40, 3)
    assert (split == split[:, :1]).all()
    assert (split == "valid").sum() == 24


def test_a_group_stays_in_the_split_that_the_source_gives_it():
    split = ["test", "test", *[""] * 10, "train"]
    groups = ("p", "q", "p", *[""] * 9, "r")
    table = table_of([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0], split, groups=groups)
    done = split_table(table, valid=0.2, test=0.5, seed=0)
    assert done.split[2] == "test"
    assert (done.split == "test").sum() == 3  # the source has a test part, so no more are drawn


@pytest.mark.parametrize(
    ("given_split", "expected"),
    [
        (["train", "train", "test"], {"train", "valid", "test"}),
        (["train", "train", "valid"], {"train", "valid"}),
        (["train", "train", "train"], {"train", "valid"}),
        (["train", "valid", "test"], {"train", "valid", "test"}),
        (["", "", "test"], {"train", "valid", "test"}),
        (["", "", "valid"], {"train", "valid", "test"}),
        (["", "", ""], {"train", "valid", "test"}),
    ],
)
def test_only_missing_parts_are_drawn(given_split, expected):
    table = table_of(np.repeat([0, 1], 30), given_split * 20)
    done = split_table(table, valid=0.1, test=0.1, seed=0)
    assert set(done.split.tolist()) == expected
    kept = table.split != ""
    kept &= ~((table.split == "train") & (done.split == "valid"))
    assert (done.split[kept] == table.split[kept]).all()


def test_validation_on_test_must_be_asked_for():
    table = table_of(np.repeat([0, 1], 30), ["train", "train", "test"] * 20)
    done = split_table(table, valid=0.1, test=0.1, seed=0, valid_is_test=True)
    assert (done.where("valid") == table.where("test")).all()
    assert not len(done.where("test"))
    assert (done.where("train") == table.where("train")).all()
    with pytest.raises(UserError, match="has no test samples; remove the setting"):
        split_table(table_of([0, 1, 0, 1]), valid=0.1, test=0.1, seed=0, valid_is_test=True)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(UserError, match="no training images"):
        split_table(table_of([0, 1], "test"), valid=0.1, test=0.1, seed=0)
    with pytest.raises(UserError, match=r"set aside for test .* too few"):
        split_table(table_of([0, 1]), valid=0.1, test=0.1, seed=0)
    with pytest.raises(UserError, match="their sum less than 1"):
        split_table(table_of([0, 1, 0, 1]), valid=0.5, test=0.5, seed=0)
    with pytest.raises(UserError, match="groups are too large"):
        split_table(table_of([0, 0, 1, 1], groups=("a", "a", "b", "b")), valid=0.25, test=0, seed=0)


def test_shares_of_zero_leave_everything_to_train():
    assert set(split_table(table_of([0, 1]), valid=0, test=0, seed=0).split) == {"train"}


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(names=st.lists(NAME.filter(lambda s: s.strip() not in ("", ".", "..")), min_size=2, max_size=4, unique=True))
@settings(deadline=None, max_examples=40)
def test_a_written_split_reads_back(names, tmp_path_factory):
    """Whatever the file and class names hold: blanks, quotes, line ends, commas, other scripts."""
    root = tmp_path_factory.mktemp("any")
    for name in names:
        folder = root / "data" / f"c{names.index(name)}{name}"
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"p{name}{i}.png").touch()
    table = split_table(open_source(root / "data"), valid=0.2, test=0.2, seed=0)
    (root / "runs").mkdir()
    for place in (root / "split.csv", root / "runs" / "split.csv", root / "data" / "split.csv"):
        write_split(table, place)
        back = open_csv(str(place), {"": place})
        assert back.paths == table.paths
        assert back.classes == table.classes
        assert (back.labels == table.labels).all()
        assert (back.split == table.split).all()


def test_groups_are_written_too(tmp_path: Path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").touch()
    paths = [str(tmp_path / f"{i}.jpg") for i in range(4)]
    table = table_of([0, 1, 0, 1], "train", groups=("p", "p", "q", ""), paths=paths, root=str(tmp_path))
    write_split(table, tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().splitlines()[:2] == ["path,label,split,group", "0.jpg,class 0,train,p"]
    assert open_source(tmp_path / "split.csv").groups == table.groups


def test_arrays_are_written_for_the_record(tmp_path: Path):
    write_split(arrays(2), tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().splitlines()[1] == "train[0],a,train"
