"""Which planted copies the check finds, which pairs it finds that nobody planted, and how fast the search is.

Every image gets at most one copy, made in one of several ways; the check sees originals and copies together. A copy
counts as found if it stands in one group with its original. Each round draws again which image is copied how.

    python benchmarks/duplicates.py [--data DIR] [--each N] [--rounds N] [--weights NAME|none] [--search N]

`--search N` measures the search alone on N made-up images, of which a hundredth have a copy 5 bits away.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from linnaeus.cache import default_cache
from linnaeus.check.duplicates import COPY, EXACT, RELATIONS, SEARCH_RADIUS, find_duplicates
from linnaeus.console import Console
from linnaeus.data.images.hashing import CROWDED, ORIENTATIONS, WINDOWS, hamming_neighbors
from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.stores.embeddings import Embeddings, default_weights, embed
from linnaeus.stores.image_statistics import ImageStatistics, compute_statistics

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flowers16"
QUALITY = 92  # of a copy's JPEG, where nothing else is said


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Without these shares of the sides."""
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round(w * (1 - right)), round(h * (1 - bottom))))


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "half the size": (half, QUALITY),
    "quality 60": (lambda image: image, 60),
    "mirrored": (ImageOps.mirror, QUALITY),
    "cropped by 5 % a side": (lambda image: crop(image, 0.05, 0.05, 0.05, 0.05), QUALITY),
    "cropped by 8 % a side": (lambda image: crop(image, 0.08, 0.08, 0.08, 0.08), QUALITY),
    "without its lowest 10 %": (lambda image: crop(image, 0, 0, 0, 0.1), QUALITY),
    "mirrored, 5 %, half, 60": (lambda image: half(crop(ImageOps.mirror(image), 0.05, 0.05, 0.05, 0.05)), 60),
    "a third brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.33), QUALITY),
}


def copies_of(table: Table, chosen: dict[str, np.ndarray], folder: Path) -> Table:
    """A table of the copies of each kind, in order."""
    assert table.paths is not None
    copies = []
    for kind, samples in chosen.items():
        change, quality = KINDS[kind]
        for i in samples.tolist():
            copies.append(str(folder / f"{kind} {i}.jpg"))
            with Image.open(table.paths[i]) as image:
                change(image.convert("RGB")).save(copies[-1], quality=quality)
    of = np.concatenate(list(chosen.values()))
    return Table(
        "copies", "list", table.classes, table.names, table.labels[of], table.split[of], paths=tuple(copies), root=""
    )


def together(one: Embeddings | None, two: Embeddings | None, n: int) -> Embeddings | None:
    """The vectors of a table of n images and of another behind it."""
    if one is None or two is None:
        return None
    indices = np.concatenate([one.indices, two.indices + n])
    return Embeddings(np.concatenate([one.values, two.values]), indices, one.weights)


def measure(data: Path, each: int, rounds: int, weights: str | None) -> None:
    table = open_source(data, lenient=True)
    each = min(each, len(table) // len(KINDS))
    print(f"{data.name}: {len(table)} images, {rounds} x {each} copies of each kind; vectors: {weights or 'none'}")
    console = Console()
    right: dict[str, np.ndarray] = {kind: np.zeros(2, int) for kind in KINDS}
    wrong = 0
    base = compute_statistics(table, cache=default_cache())
    known = embed(table, weights, cache=default_cache(), console=console) if weights else None
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(table))
        chosen = {kind: order[k * each : (k + 1) * each] for k, kind in enumerate(KINDS)}
        with tempfile.TemporaryDirectory() as name:
            copies = copies_of(table, chosen, Path(name))
            more = compute_statistics(copies, cache=None)
            new = embed(copies, weights, cache=default_cache(), console=console) if weights else None
        assert not base.failed
        assert not more.failed
        looks = ImageStatistics(np.concatenate([base.full_rows(), more.full_rows()]), {})
        found = find_duplicates(looks, together(known, new, len(table)))
        groups = found.groups(EXACT, COPY), found.groups()
        origin = np.concatenate([np.arange(len(table)), *chosen.values()])
        places = len(table) + np.arange(each * len(KINDS)).reshape(len(KINDS), each)
        for kind, numbers in zip(KINDS, places, strict=True):
            right[kind] += [int((g[numbers] == g[origin[numbers]]).sum()) for g in groups]
        wrong += int((origin[found.pairs[:, 0]] != origin[found.pairs[:, 1]]).sum())
    for kind, (strict, loose) in right.items():
        n = rounds * each
        print(f"  {kind:24} found {strict / n:6.1%}, with same-scene {loose / n:6.1%} of {n}")
    print(f"  {wrong / rounds:.0f} pairs a round join other images than a copy and its original")
    report(table, weights, console)


def report(table: Table, weights: str | None, console: Console) -> None:
    """What is found where nothing was planted."""
    started = time.perf_counter()
    looks = compute_statistics(table, cache=None)
    looked = time.perf_counter() - started
    vectors = embed(table, weights, cache=default_cache(), console=console) if weights else None
    started = time.perf_counter()
    found = find_duplicates(looks, vectors)
    spent = time.perf_counter() - started
    print(f"  looking {looked:.1f} s ({len(table) / looked:.0f} images a second), {looks.rows.itemsize} bytes an image")
    print(f"  pairs that nobody planted: {len(found.pairs)}, in {spent:.2f} s")
    for (a, b), relation, score in zip(found.pairs.tolist(), found.relation.tolist(), found.score, strict=True):
        print(f"    {RELATIONS[relation]:15} {score:.4f}  {table.sample_id(a)}  {table.sample_id(b)}")


def search(n: int) -> None:
    """As the check searches: all windows of every image, asked for by every orientation of every image."""
    generator = np.random.default_rng(0)
    windows = generator.integers(0, 2**64, (n, len(WINDOWS)), dtype=np.uint64)
    copies = generator.choice(n, (n // 100, 2), replace=False)
    noise = np.zeros(len(copies), np.uint64)
    for bit in generator.permuted(np.tile(np.arange(64), (len(copies), 1)), axis=1)[:, :5].T:
        noise |= np.uint64(1) << bit.astype(np.uint64)
    windows[copies[:, 1], 0] = windows[copies[:, 0], 3] ^ noise
    turned = generator.integers(0, 2**64, n * (ORIENTATIONS - 1), dtype=np.uint64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    query, entry, _ = hamming_neighbors(
        windows.reshape(-1), np.concatenate([windows[:, 0], turned]), SEARCH_RADIUS, CROWDED
    )
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = set(zip((entry // len(WINDOWS)).tolist(), (query % n).tolist(), strict=True))
    right = sum((a, b) in found for a, b in copies.tolist())
    print(f"search among {n:,} images: {seconds:.1f} s, {grown:.0f} MB, {right} of {len(copies)} copies found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--each", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--weights", default=None, help="a name, or none; without it what is at hand")
    parser.add_argument("--search", type=int, action="append", default=[])
    arguments = parser.parse_args()
    for n in arguments.search:
        search(n)
    if not arguments.search:
        weights = None if arguments.weights == "none" else arguments.weights or default_weights()
        measure(arguments.data, arguments.each, arguments.rounds, weights)


if __name__ == "__main__":
    main()
