"""Properties of everything that reads untrusted input. The tests try a few examples of each, `benchmarks/fuzz.py` as
many as its time allows.

Every property is a function of (what hypothesis drew, an empty folder). It raises if reading raises anything but
UserError, takes too long, or writes anything outside of that folder.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hostile import archives, file_name, image_bytes, images, mutated, name, watched
from hypothesis import strategies as st
from tiny import SIDE, write_tiny_model

from linnaeus.data.images.decode import RowSpec, UnreadableError, decode, header_size, inspect, load_row
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table, write_split
from linnaeus.data.table import Table
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError

Property = Callable[[Any, Path], None]


def check_decode(data: bytes, folder: Path) -> None:
    """Bytes become an upright image, or a reason."""
    with watched(folder):
        size = header_size(data)
        assert size is None or min(size) >= 0
    for read in (decode, lambda d: load_row(d, RowSpec(8, "crop", "bilinear", 3)), lambda d: _pixels(d)):
        with watched(folder) as said:
            found = read(data)
            assert found.dtype == np.uint8
            assert found.ndim == 3
            assert found.shape[2] == 3
            assert found.size
        assert all(isinstance(error, UnreadableError) for error in said)


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(inspect(data).image)


def check_table(table: Table, folder: Path) -> None:
    """What holds for every table: names can be printed, and a split is read back as it was written."""
    for text in (*table.classes, *table.names, *table.ignored, *map(table.sample_id, range(len(table)))):
        text.encode("utf-8")
    assert len(set(table.classes)) == len(table.classes)
    if table.several:
        assert table.labels.shape == (len(table), len(table.classes))
    else:
        assert table.labels.min(initial=0) >= 0
        assert table.labels.max(initial=0) < max(1, len(table.classes))
    assert len(table.fingerprint()) == 64
    if not len(table):
        return
    try:
        divided = split_table(table, valid=0.3, test=0.0, seed=0)
    except UserError:
        return
    if table.paths is not None:
        write_split(divided, folder / "split.csv")
        again = open_source(folder / "split.csv")
        assert [os.path.realpath(p) for p in again.paths or ()] == [os.path.realpath(p) for p in table.paths]
        assert again.split.tolist() == divided.split.tolist()
        assert _label_names(again) == _label_names(table)


def _label_names(table: Table) -> list[list[str]]:
    """The labels of each sample by name, sorted."""
    if table.several:
        return [sorted(name for name, has in zip(table.classes, row, strict=True) if has) for row in table.labels]
    return [[table.classes[label]] for label in table.labels]


def _opened(source: Path, folder: Path, **more: Any) -> None:
    with watched(folder):
        check_table(open_source(source, **more), folder)


TREE = st.lists(
    st.tuples(
        st.lists(st.one_of(st.sampled_from(["train", "valid", "rose", "tulip"]), file_name), min_size=1, max_size=3),
        st.sampled_from(
            ["a.jpg", "b.PNG", "c.txt", ".jpg", "x\udcff.png", "cat_to_name.json", "classes.txt", "train.txt"]
        )
        | file_name,
        st.sampled_from(["file", "file", "file", "folder", "loop", "outside", "dangling", "pipe"]),
    ),
    max_size=8,
)


def check_folder(tree: list[tuple[list[str], str, str]], folder: Path) -> None:
    """A folder with any names that a file system accepts."""
    for parts, last, kind in tree:
        try:
            place = (folder / "source").joinpath(*parts)
            place.mkdir(parents=True, exist_ok=True)
            at = place / last
            if kind == "file":
                at.write_bytes(b"x")
            elif kind == "folder":
                at.mkdir()
            elif kind == "pipe":
                os.mkfifo(at)
            else:
                at.symlink_to({"loop": "..", "outside": "/etc", "dangling": "nowhere"}[kind])
        except (OSError, ValueError):  # this file system does not take it either
            continue
    (folder / "source").mkdir(exist_ok=True)
    _opened(folder / "source", folder)


CELL = st.one_of(
    name, st.sampled_from(["a.png", "b.png", "sub/c.png", "rose", "1", "2", "train", "valid", "path", "label"])
)
LINES = st.lists(st.lists(CELL, min_size=0, max_size=4), max_size=8)
BREAKS = st.sampled_from([" ", ",", ";", "\t"])
TEXT = st.tuples(LINES, BREAKS, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-16", "latin-1"]))


def _text_of(drawn: tuple[list[list[str]], str, str, str], head: list[list[str]]) -> bytes:
    lines, between, end, code = drawn
    return end.join(between.join(line) for line in [*head, *lines]).encode(code, "replace")


def _with_images(folder: Path) -> Path:
    source = folder / "source"
    (source / "sub").mkdir(parents=True, exist_ok=True)
    for image in ("a.png", "b.png", "sub/c.png"):
        (source / image).write_bytes(b"x")
    return source


def check_list(drawn: tuple[tuple[list[list[str]], str, str, str], bytes], folder: Path) -> None:
    """A list file of any lines, beside a classes.txt of any bytes."""
    source = _with_images(folder)
    (source / "train.txt").write_bytes(_text_of(drawn[0], []))
    if drawn[1]:
        (source / "classes.txt").write_bytes(drawn[1])
    _opened(source / "train.txt", folder)
    _opened(source, folder)


def check_csv(drawn: tuple[tuple[list[list[str]], str, str, str], list[str]], folder: Path) -> None:
    """A CSV and a TSV of any cells."""
    source = _with_images(folder)
    for suffix in (".csv", ".tsv"):
        (source / f"x{suffix}").write_bytes(_text_of(drawn[0], [drawn[1]]))
        _opened(source / f"x{suffix}", folder)
        _opened(source / f"x{suffix}", folder, group="group")


def check_labels(labels: list[str], folder: Path) -> None:
    """A well-formed CSV whose labels are hostile: each is a class, under a name that is its own."""
    source = _with_images(folder)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["path", "label"])
    writer.writerows([("a.png", "b.png")[i % 2], label] for i, label in enumerate(labels))
    (source / "x.csv").write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    _opened(source / "x.csv", folder)


def check_names(data: bytes, folder: Path) -> None:
    """cat_to_name.json of any bytes."""
    source = folder / "source"
    for label in ("1", "2"):
        (source / label).mkdir(parents=True)
        (source / label / "a.png").write_bytes(b"x")
    (source / "cat_to_name.json").write_bytes(data)
    _opened(source, folder)


CIFAR_FILES = (
    "data_batch_1.bin",
    "test_batch.bin",
    "train.bin",
    "test.bin",
    "batches.meta.txt",
    "fine_label_names.txt",
)
CIFAR_CONTENTS = (bytes(3073), b"\1" + bytes(3072) + b"\2" + bytes(3072), bytes(3074), b"a\nb\n", b"")


def check_archive(data: tuple[bytes, bool], folder: Path) -> None:
    """A tar that should hold CIFAR, gzipped or not."""
    path = folder / ("x.tar.gz" if data[1] else "x.tar")
    path.write_bytes(gzip.compress(data[0], 1) if data[1] else data[0])
    _opened(path, folder)


VALUE: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        name,
        st.sampled_from([10**400, -1, 0, "auto", "head", "all", "cosine", "resnet50", "../x.py:f", 1e308]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(name, inner, max_size=3),
    max_leaves=4,
)


def check_shards(drawn: tuple[bytes, bytes, bool], folder: Path) -> None:
    """A tar of images and labels, by itself, and beside an index of any bytes: refused, or every image is read."""
    from linnaeus.data.readers.shards import INDEX, open_shards

    source = folder / "source"
    source.mkdir()
    (source / "x.tar").write_bytes(drawn[0])
    if drawn[2]:
        (source / INDEX).write_bytes(drawn[1])
    with watched(folder, cache_dir()):
        table = open_shards(str(source), source)
        check_table(table, folder)
        for i in range(len(table)):
            with watched(folder, cache_dir()):
                assert isinstance(table.image(i), bytes)


def _index(drawn: list[tuple[int, str, Any]]) -> bytes:
    """An index of two images in x.tar, with these values at these keys of these lines."""
    lines: list[dict[str, Any]] = [
        {"format": 1, "classes": ["a", "b"], "names": ["a", "b"], "shards": [{"file": "x.tar", "bytes": 10240}]},
        *(
            {"name": f"{i}", "label": i, "split": "", "shard": 0, "offset": 512, "size": 3, "crc32": 0}
            for i in range(2)
        ),
    ]
    for line, key, value in drawn:
        lines[line][key] = value
    return "\n".join(json.dumps(line) for line in lines).encode("utf-8", "surrogatepass")


INDEX_LINES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(
            ["format", "classes", "names", "shards", "name", "label", "split", "shard", "offset", "size", "crc32"]
        ),
        VALUE | st.just([{"file": "../x.tar", "bytes": 1}]),
    ),
    max_size=3,
).map(_index)


def check_unpack(data: bytes, folder: Path) -> None:
    """An archive that is written to disk: whatever its members are called, nothing leaves the folder."""
    from linnaeus.data.readers.flowers import unpack

    (folder / "in").mkdir()
    (folder / "in" / "102flowers.tgz").write_bytes(gzip.compress(data, 1))
    with watched(folder / "in"):
        unpack(folder / "in" / "102flowers.tgz", folder / "in" / "jpg")


def _idx(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(range(math.prod(shape) % 251 or 1))


@cache
def idx_seeds() -> tuple[bytes, ...]:
    def file(shape: tuple[int, ...]) -> bytes:
        data = (np.arange(math.prod(shape)) % 3).astype(np.uint8).tobytes()
        return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + data

    whole = (file((4, 3, 3)), file((4,)), file((2, 3, 3, 3)), b"")
    return (*whole, *(gzip.compress(data, 1) for data in whole))


def check_idx(drawn: list[tuple[str, bytes]], folder: Path) -> None:
    """IDX files of any bytes."""
    for file, data in drawn:
        (folder / "source").mkdir(exist_ok=True)
        (folder / "source" / file).write_bytes(data)
    if drawn:
        _opened(folder / "source", folder)
        _opened(folder / "source" / drawn[0][0], folder)


def check_matlab(data: tuple[bytes, bytes], folder: Path) -> None:
    """The files of flowers102 of any bytes."""
    from linnaeus.data.readers.flowers import open_flowers

    (folder / "imagelabels.mat").write_bytes(data[0])
    (folder / "setid.mat").write_bytes(data[1])
    (folder / "102flowers.tgz").write_bytes(b"")
    with watched(folder):
        open_flowers(folder)


@cache
def matlab_seeds() -> tuple[bytes, ...]:
    from scipy.io import savemat

    found = []
    for values in ({"labels": np.arange(8189)[None] % 102 + 1}, {"trnid": [[1, 2]], "valid": [[3]], "tstid": [[4]]}):
        for compressed in (False, True):
            stream = io.BytesIO()
            savemat(stream, values, do_compression=compressed)
            found.append(stream.getvalue())
    return tuple(found)


KEYS = (
    st.sampled_from(
        [
            "name",
            "seed",
            "best",
            "precision",
            "model",
            "model.name",
            "model.weights",
            "model.arguments",
            "model.head",
            "model.head.stages",
            "model.head.windows",
            "data",
            "data.resize",
            "data.size",
            "data.fit",
            "data.split",
            "data.split.valid",
            "data.split.groups",
            "data.train",
            "phase",
            "phase.1",
            "phase.1.lr",
            "phase.1.train",
            "phase.1.epochs",
            "phase.1.betas",
            "phase.1.schedule",
            "phase.1.schedule.name",
            "phase.1.augment",
            "phase.1.augment.scale",
            "phase.0.lr",
            "phase.9999999999999999999.lr",
            "phase.-1.lr",
            "phase.",
            ".lr",
            "..",
        ]
    )
    | name
)


def check_recipe(drawn: tuple[list[tuple[str, Any]], list[tuple[str, str]], bytes], folder: Path) -> None:
    """A recipe with any values at any keys, --set of any text, and a file of any bytes."""
    from linnaeus.recipe import load_recipe, parse_setting

    values, texts, data = drawn
    with watched(folder):
        found = load_recipe("digits", dict(values))
        again = folder / "again.toml"
        again.write_text(found.to_toml(), encoding="utf-8")
        assert load_recipe(str(again)) == found
    with watched(folder):
        load_recipe("digits", dict(parse_setting(f"{key}={text}") for key, text in texts))
    (folder / "recipe.toml").write_bytes(data)
    with watched(folder):
        load_recipe(str(folder / "recipe.toml"))
    for key, _ in values:
        with watched(folder):
            load_recipe(key)


def check_space(drawn: tuple[list[tuple[str, Any]], bytes], folder: Path) -> None:
    """The space of a sweep: any values at any keys, and a file of any bytes."""
    from linnaeus.recipe import load_recipe
    from linnaeus.sweeps.space import combinations, load_space

    recipe = load_recipe("digits")
    with watched(folder):
        combinations(load_space(dict(drawn[0]), recipe, {}))
    (folder / "space.toml").write_bytes(drawn[1])
    with watched(folder):
        load_space(folder / "space.toml", recipe, {})


RANGES = st.fixed_dictionaries({}, optional=dict.fromkeys(("low", "high", "log", "step", "choices"), VALUE))


@cache
def recipe_seed() -> bytes:
    from linnaeus.recipe import recipe_text

    return recipe_text("digits")[1].encode()


@cache
def model_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_tiny_model(Path(folder) / "model.safetensors").read_bytes()


def with_header(changes: list[tuple[str, Any]]) -> bytes:
    """A model file whose description has these values at these dotted keys."""
    data = model_seed()
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["linnaeus"])
    for dotted, value in changes:
        *path, last = dotted.split(".")
        at = header
        for part in path:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[last] = value
    outer["__metadata__"]["linnaeus"] = json.dumps(header)
    text = json.dumps(outer, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


MODEL_KEYS = st.sampled_from(
    [
        "format",
        "arch",
        "arch.name",
        "arch.classes",
        "arch.channels",
        "arch.arguments",
        "arch.arguments.widths",
        "classes",
        "names",
        "preprocessing",
        "preprocessing.resize",
        "preprocessing.size",
        "preprocessing.mean",
        "preprocessing.std",
        "preprocessing.fit",
        "preprocessing.channels",
        "calibration",
        "calibration.temperature",
        "calibration.abstention",
        "calibration.threshold",
        "calibration.curve",
        "metrics",
        "data",
        "recipe",
        "versions",
        "sha256",
    ]
)


def check_model(data: bytes, folder: Path) -> None:
    """A model file of any bytes is refused, or predicts."""
    from linnaeus.inference.classifier import load
    from linnaeus.modelfile.safetensors import read_header

    path = folder / "model.safetensors"
    path.write_bytes(data)
    with watched(folder):
        read_header(path)
    with watched(folder):
        model = load(path, device="cpu")
        said = model.predict(np.zeros((SIDE, SIDE, 3), np.uint8)).top(3)
        assert all(isinstance(label, str) and 0 <= probability <= 1 for label, probability in said)


ANY = st.binary(max_size=200)
TOML_BOMBS = (
    b"a=" + b"[" * 50_000,
    b"a" + b".a" * 50_000,
    b"a=" + b"9" * 5000,
    b"[model]\nname='resnet18'\narguments={a=" + b"[" * 150 + b"]" * 150 + b"}",
)
PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Property]] = {
    "decode": (image_bytes(), check_decode),
    "folder": (TREE, check_folder),
    "list": (st.tuples(TEXT, ANY | TEXT.map(lambda t: _text_of(t, []))), check_list),
    "csv": (st.tuples(TEXT, st.permutations(["path", "label", "split", "group"])), check_csv),
    "labels": (st.lists(name, min_size=2, max_size=6), check_labels),
    "names": (
        ANY
        | st.dictionaries(name, VALUE, max_size=4).map(lambda d: json.dumps(d).encode())
        | st.sampled_from([b"[" * 100_000, b'{"1":' * 5000, b"9" * 10_000]),
        check_names,
    ),
    "archive": (st.tuples(archives(CIFAR_FILES, CIFAR_CONTENTS), st.booleans()), check_archive),
    "shards": (
        st.tuples(
            archives(("a.jpg", "a.cls", "a.json", "b.png", "b.cls"), (b"x", b"1", b'{"label": "rose"}')),
            INDEX_LINES | st.binary(max_size=200),
            st.booleans(),
        ),
        check_shards,
    ),
    "unpack": (archives(("image_00001.jpg", "image_00002.jpg"), (b"x",)), check_unpack),
    "idx": (
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "train-images-idx3-ubyte",
                        "train-labels-idx1-ubyte",
                        "t10k-images-idx3-ubyte.gz",
                        "t10k-labels-idx1-ubyte.gz",
                        "emnist-letters-mapping.txt",
                        "classes.txt",
                    ]
                ),
                st.sampled_from(idx_seeds()).flatmap(mutated),
            ),
            max_size=4,
        ),
        check_idx,
    ),
    "matlab": (
        st.tuples(*[st.sampled_from(matlab_seeds()).flatmap(mutated) for _ in range(2)]),
        check_matlab,
    ),
    "recipe": (
        st.tuples(
            st.lists(st.tuples(KEYS, VALUE), max_size=3),
            st.lists(st.tuples(KEYS, name), max_size=3),
            st.deferred(lambda: mutated(recipe_seed())) | ANY | st.sampled_from(TOML_BOMBS),
        ),
        check_recipe,
    ),
    "space": (st.tuples(st.lists(st.tuples(KEYS, RANGES), max_size=3), ANY), check_space),
    "model": (
        st.deferred(lambda: mutated(model_seed()))
        | st.lists(st.tuples(MODEL_KEYS, VALUE), max_size=3).map(with_header),
        check_model,
    ),
}

assert images()
