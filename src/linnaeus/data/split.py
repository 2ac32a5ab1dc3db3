"""Split a table into train, valid and test: stratified by class, with groups and exact copies kept together."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archives.archive import MemberError
from linnaeus.data.class_names import listed
from linnaeus.data.images.content import UNKNOWN, content_hash
from linnaeus.data.table import SPLITS, Table, class_counts
from linnaeus.errors import UserError, visible
from linnaeus.files import csv_file
from linnaeus.metrics.stratification import iterative_stratification

CHUNK = 4096  # bytes in the middle of two files of the same size that are compared before the whole files are


def split_table(
    table: Table,
    *,
    valid: float,
    test: float,
    seed: int,
    valid_is_test: bool = False,
    trained: np.ndarray | None = None,
) -> Table:
    """Assign every sample to a split.

    Samples without a split are divided at random, stratified by class: the fractions `valid` and `test` of them (in
    [0, 1)), and the rest to train. A split that the source already has receives none of them. If the source is split
    but has no validation samples, the fraction `valid` of its training samples is set aside. With `valid_is_test` the
    test samples become the validation samples, and no test split remains. Samples that the initial weights were
    `trained` on, (n,) bool, and those with accepted labels are never set aside.

    The result depends on `seed` and on the ids of the samples, not on their order. The fractions are met exactly
    (rounded; at least one sample if the fraction is not 0). Within a class they are rounded up or down, and every class
    keeps a training sample. Groups and exact copies are never divided; with them a greedy choice comes as close as it
    can. Images with several labels are divided by iterative stratification, which spreads each label
    (metrics/stratification.py).
    """
    if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise UserError(f"valid = {valid} and test = {test}: each must be at least 0, and their sum less than 1")
    split = table.split.copy()
    has = {name: bool((split == name).any()) for name in (*SPLITS, "")}
    if valid_is_test:
        if not has["test"] or has["valid"]:
            why = "has validation samples of its own" if has["valid"] else "has no test samples"
            raise UserError(f'{table.source}: valid = "test", but the source {why}; remove the setting')
        split[split == "test"] = "valid"
        valid = test = 0.0
    elif has[""]:
        valid, test = (0.0 if has["valid"] else valid), (0.0 if has["test"] else test)
    else:
        valid, test = (0.0 if has["valid"] else valid), 0.0
    if not (has["train"] or has[""]):
        raise UserError(f"{table.source}: no training images; add a train split, or evaluate a model on it instead")
    pool = np.flatnonzero(split == ("" if has[""] else "train"))
    if table.accepted is not None:
        trained = table.accepted if trained is None else trained | table.accepted
    split[pool] = _divide(table, pool, {"test": test, "valid": valid}, seed, trained)
    kept = class_counts(table.labels[split == "train"], len(table.classes))
    seen = class_counts(table.labels, len(table.classes))
    lost = [table.classes[i] for i in np.flatnonzero((kept == 0) & (seen > 0))]
    if lost:  # only where groups tie unsplit samples to a part that the source itself set aside
        raise UserError(f"{table.source}: no training images of class {listed(lost)}; add some, or change the groups")
    return dataclasses.replace(table, split=split)


def _divide(
    table: Table, pool: np.ndarray, shares: dict[str, float], seed: int, trained: np.ndarray | None
) -> np.ndarray:
    """Splits (k,) "<U5" of the samples `pool` (k,): "train", a key of `shares`, or the split of its group."""
    copies = _copies(table, pool) if any(shares.values()) else {}
    units, fixed = _units(table, pool, trained, copies)
    choose = _choose_by_label if table.several else _choose
    chosen = choose(table, pool, units, fixed, shares, seed)
    for name, share in shares.items():
        if share > 0 and name not in chosen.values():
            raise UserError(
                f"{table.source}: no images can be set aside for {name} while every class keeps one to train on "
                f"({_reason(table, pool, trained, copies)}); add images, or set the share {name} = 0"
            )
    return np.array([chosen.get(index, "train") for index in pool.tolist()], dtype="<U5")


def _choose(
    table: Table,
    pool: np.ndarray,
    units: Mapping[str, list[int]],
    fixed: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int,
) -> dict[int, str]:
    """Sample of the pool -> its split, as far as it is not train; `units` and `fixed` come from `_units`."""
    labels = table.labels.tolist()
    trainable = table.split == "train"
    trainable[pool] = True
    spare = (np.bincount(table.labels[trainable], minlength=len(table.classes)) - 1).tolist()
    ranks = [_draw(seed, name) for name in table.classes]
    pooled = np.bincount(table.labels[pool], minlength=len(table.classes))
    need = {name: _targets(pooled, share, ranks) for name, share in shares.items() if share > 0}
    chosen: dict[int, str] = {}  # sample -> the split it is set aside for
    # Fixed units first. Then the largest, because a small unit still fits where a large one does not.
    for unit in sorted(units, key=lambda unit: (unit not in fixed, -len(units[unit]), _draw(seed, unit))):
        size = Counter(labels[index] for index in units[unit])  # samples of the unit, by class
        best = fixed.get(unit, "train")
        if unit not in fixed and all(spare[c] >= k for c, k in size.items()):
            best = _most_in_need(size, need)
        if best != "train":
            for c, k in size.items():
                spare[c] -= k
                if best in need:
                    need[best][c] -= k
            chosen |= dict.fromkeys(units[unit], best)
    return chosen


def _most_in_need(size: Mapping[int, int], need: Mapping[str, list[int]]) -> str:
    """The split that samples of these classes bring most closer to its targets; train if they bring none closer.

    `size`: number of samples by class; `need`: split -> missing samples of each class.
    """
    gains = {name: sum(k * (2 * missing[c] - k) for c, k in size.items()) for name, missing in need.items()}
    best = max(gains, key=gains.__getitem__, default="train")
    return best if gains.get(best, 0) > 0 else "train"


def _reason(table: Table, pool: np.ndarray, trained: np.ndarray | None, copies: Mapping[int, int]) -> str:
    """Why no samples of the pool can be set aside."""
    if table.accepted is not None and table.accepted[pool].all():
        return "all of their labels were accepted from a classifier"
    if trained is not None and trained[pool].any():
        return f"the initial weights were trained on {int(trained[pool].sum()):,} of {len(pool):,}"
    if table.groups is not None:
        return "the groups are too large"
    n = len(copies)
    return f"{n:,} of {len(pool):,} have exact copies, which stay together" if n else "there are too few"


def _draw(seed: int, name: str) -> bytes:
    """A random rank that depends on the seed and the name alone."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


def _choose_by_label(
    table: Table,
    pool: np.ndarray,
    units: Mapping[str, list[int]],
    fixed: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int,
) -> dict[int, str]:
    """As `_choose`, for images with several labels."""
    free = [unit for unit in units if unit not in fixed]
    counts = np.array([table.labels[units[unit]].sum(0) for unit in free], np.int64).reshape(-1, len(table.classes))
    sizes = np.array([len(units[unit]) for unit in free], np.int64)
    ranks = np.argsort(np.argsort([_draw(seed, unit).hex() for unit in free]))
    names = ["train", *(name for name, share in shares.items() if share > 0)]
    # The shares are those of the whole pool, and only these samples of it can be set aside.
    free_share = max(int(sizes.sum()) / len(pool), sum(shares.values()))
    apart = [shares[name] / free_share for name in names[1:]]
    wanted = np.array([1.0 - sum(apart), *apart])
    part = iterative_stratification(counts, sizes, wanted, ranks)
    _keep_one_in_training(part, counts, sizes)
    chosen = {**fixed, **{unit: names[p] for unit, p in zip(free, part.tolist(), strict=True)}}
    return {i: chosen[unit] for unit, members in units.items() for i in members}


def _keep_one_in_training(part: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> None:
    """Move the smallest unit with a label that no training image has to training, which is part 0."""
    for label in range(counts.shape[1]):
        having = np.flatnonzero(counts[:, label])
        if len(having) and (part[having] != 0).all():
            part[having[sizes[having].argmin()]] = 0


def _units(
    table: Table, pool: np.ndarray, trained: np.ndarray | None, copies: Mapping[int, int]
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """What must stay together: unit -> its samples in the pool; and unit -> its split, where that is decided already.

    A unit is a group, or else a sample with its `copies` (see `_copies`). An image that is listed twice is one unit, so
    that it cannot be in two splits.
    """

    def unit(i: int) -> str:
        group = table.groups[i] if table.groups is not None else ""
        return f"group {visible(group)}" if group else table.sample_id(copies.get(i, i))

    units: dict[str, list[int]] = {}
    for index in pool.tolist():
        units.setdefault(unit(index), []).append(index)
    seen = [] if trained is None else pool[trained[pool]].tolist()
    fixed = {unit(i): "train" for i in seen}
    if (table.split[pool] != "").any():
        return units, fixed  # the source's own splits are kept, even if they divide a group
    elsewhere = np.flatnonzero(table.split != "").tolist()
    return units, fixed | {unit(i): str(table.split[i]) for i in elsewhere}


def _copies(table: Table, pool: np.ndarray) -> dict[int, int]:
    """Each image of the pool, except those in groups, with an exact copy in it -> the one of them that is first by id.

    Few files are read: only those that agree in size and in a chunk from the middle are compared as a whole. Images in
    shards are not compared, because each would have to be fetched.
    """
    paths, images = table.paths, table.images
    alone = [i for i in pool.tolist() if table.groups is None or not table.groups[i]]
    if images is not None:
        alike = _divided([alone], lambda i: content_hash(images[i]))
    elif paths is not None:
        alike = _divided([alone], lambda i: tree.size(paths[i]))
        alike = _divided(alike, lambda i: _middle(paths[i]))
        alike = _divided(alike, lambda i: content_hash(paths[i]))
    else:
        return {}
    return {i: first for same in alike for first in [min(same, key=table.sample_id)] for i in same}


def _divided(sets: Iterable[list[int]], key: Callable[[int], int | bytes]) -> list[list[int]]:
    """The sets divided by a key that copies share; without what has no copy, or no key: 0, -1 or no bytes."""
    divided = []
    for members in sets:
        by_key: dict[int | bytes, list[int]] = {}
        for i in members:
            by_key.setdefault(key(i), []).append(i)
        divided += [same for value, same in by_key.items() if len(same) > 1 and value not in (UNKNOWN, -1, b"")]
    return divided


def _middle(path: str) -> bytes:
    try:
        with tree.open_binary(path) as file:
            file.seek(tree.size(path) // 2)
            return file.read(CHUNK)
    except (OSError, ValueError, MemberError):
        return b""


def _targets(counts: np.ndarray, share: float, ranks: list[bytes]) -> list[int]:
    """Samples to set aside per class: `share` of all, by the largest-remainder method; `ranks` break ties."""
    exact = counts * share
    floor = np.floor(exact + 1e-9).astype(np.int64)
    total = max(1, round(float(exact.sum())))
    order = sorted(range(len(counts)), key=lambda c: (round(float(floor[c] - exact[c]), 9), ranks[c]))
    order = [c for c in order if counts[c] > 1]  # a class with one image has none to spare
    floor[order[: max(0, total - int(floor.sum()))]] += 1
    return floor.tolist()


def write_split(table: Table, path: str | Path, contents: np.ndarray | None = None) -> None:
    """Write the samples as CSV with the columns path, label, split (and group), which the CSV reader reads.

    Several labels are one cell of the column `labels`, separated by |; a | at the end says that the rest is one label.

    `contents` (n,) adds a column with the content hash of each image: for a file the first 12 digits of its SHA-256.

    Paths are relative to the CSV if the images are beside or below it, else absolute. A sample of an array source has
    no path; its id is written instead, for information only.
    """
    beside = os.path.dirname(os.path.abspath(path)) + os.sep
    with csv_file(Path(path), errors="surrogateescape", line_end="\r\n") as writer:
        writer.writerow(
            ["path", "labels" if table.several else "label", "split"]
            + ["group"] * (table.groups is not None)
            + ["content"] * (contents is not None)
        )
        for i in range(len(table)):
            image = table.sample_id(i) if table.paths is None else table.paths[i].removeprefix(beside)
            group = [table.groups[i]] if table.groups is not None else []
            content = [] if contents is None else [f"{contents[i]:012x}" if contents[i] else ""]
            labels = table.labels_of(i)
            label = "|".join(labels) + "|" * (len(labels) == 1) if table.several else labels[0]
            writer.writerow([image, label, table.split[i], *group, *content])
