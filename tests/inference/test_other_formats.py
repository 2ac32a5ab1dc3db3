"""Training images that were saved in another format are not unseen, however small, also in arrays and shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from scenes import scene, write_scenes
from tiny import samples, write_idx, write_images, write_recipe

import linnaeus
from linnaeus.console import Console
from linnaeus.data.readers.shardwriter import write_shards
from linnaeus.data.sources import open_source

QUIET = Console(quiet=True)


def run_on(folder: Path, source: Path) -> Path:
    recipe = write_recipe(folder / "r.toml", {"epochs": 1})
    return linnaeus.train(source, str(recipe), out=folder / "run", console=QUIET, draw=False).path


def evaluated(say, folder: Path, run: Path, source: Path) -> tuple[dict, str]:
    """(figures, standard error) of `evaluate` with the model alone."""
    shutil.copy(run / "model.safetensors", folder / "alone.safetensors")
    said = say("evaluate", folder / "alone.safetensors", source, "--json", folder / "e.json", "--device", "cpu")
    assert said.status == 0, said.err
    (figures,) = json.loads((folder / "e.json").read_text()).values()
    return figures, said.err


def test_small_images_in_another_format(tmp_path: Path, say):
    source = write_images(tmp_path / "old", each=8)
    run = run_on(tmp_path, source)
    for k, path in enumerate(sorted(source.glob("*/*.png"))):
        place = tmp_path / "new" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:  # gray, gray with three channels, with an alpha channel
            image.convert(("L", "RGB", "RGBA")[k % 3]).save(place / f"{k}.{('bmp', 'png', 'tiff')[k % 3]}")
    figures, said = evaluated(say, tmp_path, run, tmp_path / "new")
    assert f"all of these {figures['n']} images have a copy in an earlier split: these scores are optimistic" in said
    write_images(tmp_path / "new", each=2, seed=9)
    figures, said = evaluated(say, tmp_path, run, tmp_path / "new")
    assert (figures["n"], figures["without_leaks"]["n"]) == (30, 6)


def test_arrays_as_files_and_files_as_arrays(tmp_path: Path, say):
    source = write_idx(tmp_path / "idx", train=60, test=12)
    run = run_on(tmp_path, source)
    for seed, name in ((1, "old"), (7, "new")):
        for k, (image, label) in enumerate(zip(*samples(30, seed=seed), strict=True)):
            (tmp_path / "files" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "files" / str(label) / f"{name} {k}.png")
    figures, said = evaluated(say, tmp_path, run, tmp_path / "files")
    assert "have a copy in an earlier split" in said
    assert (figures["n"], figures["without_leaks"]["n"]) == (60, 30)
    shutil.rmtree(run)
    run = run_on(tmp_path, tmp_path / "files")
    figures, said = evaluated(say, tmp_path, run, write_idx(tmp_path / "again", train=60, test=12))
    assert "have a copy in an earlier split" not in said  # its test images are others
    (tmp_path / "again" / "t10k-images-idx3-ubyte").write_bytes(_first(tmp_path / "idx", 12))
    figures, said = evaluated(say, tmp_path, run, tmp_path / "again")
    assert "all of these 12 images have a copy in an earlier split" in said


def _first(folder: Path, n: int) -> bytes:
    """The IDX file of the first training images."""
    import struct

    images = (folder / "train-images-idx3-ubyte").read_bytes()[16:][: n * 28 * 28]
    return struct.pack(">IIII", 0x803, n, 28, 28) + images


@pytest.mark.parametrize("turn", [False, True], ids=["copies in files", "copies in shards"])
def test_altered_copies_in_shards(tmp_path: Path, say, turn: bool):
    source, copies = write_scenes(tmp_path / "old"), tmp_path / "new"
    for k, path in enumerate(sorted(source.glob("*/*.jpg"))):
        (copies / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            ImageOps.mirror(image).save(copies / path.parent.name / f"{k}.jpg", quality=70)
        scene(900 + k).save(copies / path.parent.name / f"other {k}.jpg")
    place = copies if turn else source
    write_shards(open_source(place), tmp_path / "shards")
    run = run_on(tmp_path, source if turn else tmp_path / "shards")
    figures, said = evaluated(say, tmp_path, run, tmp_path / "shards" if turn else copies)
    assert "12 of these 24 images have a copy in an earlier split" in said
    assert (figures["n"], figures["without_leaks"]["n"]) == (24, 12)


def test_altered_copies_in_two_splits_of_shards(tmp_path: Path, say):
    source = write_scenes(tmp_path / "all" / "train")
    for k, path in enumerate(sorted(source.glob("*/*.jpg"))):
        place = tmp_path / "all" / "valid" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            (scene(900 + k) if k % 2 else image.rotate(90, expand=True)).save(place / f"{k}.jpg", quality=70)
    write_shards(open_source(tmp_path / "all"), tmp_path / "shards")
    run = run_on(tmp_path, tmp_path / "shards")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["valid"]["without_leaks"]["n"] == 6


def test_test_images_of_the_run_that_are_altered_copies(tmp_path: Path, say):
    """Given alone, without the training images that they are copies of."""
    source = write_scenes(tmp_path / "all" / "train")
    for k, path in enumerate(sorted(source.glob("*/*.jpg"))):
        place = tmp_path / "all" / "test" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            (scene(900 + k) if k % 2 else image.resize((120, 100))).save(place / f"{k}.jpg", quality=70)
    run = run_on(tmp_path, tmp_path / "all")
    figures, _ = evaluated(say, tmp_path, run, tmp_path / "all" / "test")
    assert (figures["n"], figures["without_leaks"]["n"]) == (12, 6)


def test_altered_copies_and_classes_among_images_of_none_of_the_classes(tmp_path: Path, say):
    """Of the run, of the evaluated source, and a folder that is named like a class."""
    source = write_scenes(tmp_path / "old")
    run = run_on(tmp_path, source)
    test, far = write_scenes(tmp_path / "test", seed=5), tmp_path / "far" / "stones"
    far.mkdir(parents=True)
    for k, place in enumerate((source, test)):
        for i, path in enumerate(sorted(place.glob("*/*.jpg"))[:3]):
            with Image.open(path) as image:
                image.rotate(90, expand=True).save(far / f"{k} {i}.jpg", quality=70)
    said = say("evaluate", run, test, "--outside", tmp_path / "far", "--device", "cpu")
    assert said.status == 2
    assert "all of its 6 images are images of the run or of the evaluated source, or altered copies" in said.err
    for i in range(4):
        scene(700 + i).save(far / f"new {i}.jpg")
    said = say("evaluate", run, test, "--outside", tmp_path / "far", "--device", "cpu")
    assert said.status == 0, said.err
    assert "6 of 10 images are images of the run or of the evaluated source, or altered copies of them" in said.err
    assert "4 images of none of the classes, against 12 known ones" in said.out
    assert "name of a class" not in said.err
    write_scenes(tmp_path / "far", ("Oaks",), each=2, seed=8)
    said = say("evaluate", run, test, "--outside", tmp_path / "far", "--device", "cpu")
    assert "folder 'Oaks' has the name of a class of the model" in said.err
