"""Removing images from the cache: from stores of pixels by row, with everything computed from them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.cache import Cache, Entry, OverBudgetError
from linnaeus.data.images.decode import RowSpec, UnreadableError
from linnaeus.stores.activations import IMAGES
from linnaeus.stores.contents import CONTENTS, FORM
from linnaeus.stores.pixels import open_store, store_key
from linnaeus.stores.rows import INDEX, ROWS, DamagedRowError, RowWriter, read_index, write_index

PIXELS, DERIVED = "pixels-", ("activations-", "vectors-")
OTHERS = ("contents-", "verdict-", "statistics-", "looks-")
"""Entries with a signature for each image; they are small, and removed as a whole. Earlier versions wrote `looks-`."""
ARCHIVES = "archive-"
"""Decompressed copies of archives, whose images are not looked at: they are removed as a whole, and made again."""
RECORDS = (CONTENTS, "statistics.npy", INDEX)  # the files with a column of signatures, of which an entry has one


@dataclass
class Purged:
    """What was removed from the cache."""

    rows: int = 0  # rows of pixels
    entries: int = 0  # entries that were computed from the images, or record them, and are removed as a whole
    # Entries that could not be removed, because another process holds them or the disk refuses.
    left: list[Path] = field(default_factory=list)

    def remove(self, cache: Cache, entry: Entry) -> None:
        """Remove an entry, and count it."""
        if not cache.remove(entry):
            self.left.append(entry.path)
        elif not entry.name.startswith(PIXELS):
            self.entries += 1


def signatures_of_contents(cache: Cache, contents: np.ndarray) -> np.ndarray:
    """(k,) uint64: the signatures of the files that had these content hashes, as far as the cache has recorded them.

    They find the rows of files that were changed or deleted since.
    """
    signatures: list[np.ndarray] = []
    for entry in cache.entries():
        if entry.about.get("form") == FORM:
            with suppress(OSError, ValueError):  # removed meanwhile, or damaged
                known = np.load(entry.path / CONTENTS)
                signatures.append(known["signature"][np.isin(known["content"], contents)])
    return np.unique(np.concatenate(signatures)) if signatures else np.zeros(0, np.uint64)


def purge_images(cache: Cache, signatures: np.ndarray) -> Purged:
    """Remove the rows of these images (k,) uint64 from all stores of pixels, which are written again without them.

    Signature 0 stands for no image. Entries that only record signatures are removed, and so are unfinished ones.
    """
    purged, wanted = Purged(), signatures[signatures != 0]
    # Records last: after a kill the next start finds the rows of deleted files by them.
    for entry in sorted(cache.entries(), key=lambda entry: entry.name.startswith(OTHERS)):
        # What an interrupted build holds is not indexed.
        if entry.unfinished:
            if entry.name.startswith((PIXELS, ARCHIVES, *DERIVED)):
                purged.remove(cache, entry)
        elif entry.name.startswith(ARCHIVES):
            purged.remove(cache, entry)
        elif entry.name.startswith((PIXELS, *OTHERS)):
            known = _signatures(entry)
            gone = np.isin(known, wanted) | (known == 0)  # 0: a file that was changed, or could not be read, just then
            # None of its images is to be removed.
            if len(known) and not gone.any():
                continue
            if entry.name.startswith(PIXELS):
                purged.rows += int(np.isin(known, wanted).sum())
                if not gone.all():
                    _write_again(cache, entry, np.flatnonzero(~gone))
            purged.remove(cache, entry)  # also one that cannot be read: what it holds is unknown
    return purged


def purge_derived(cache: Cache, purged: Purged) -> None:
    """Remove what was computed from stores of pixels that are gone.

    So are entries of earlier versions, which do not record the stores that they were computed from.
    """
    entries = cache.entries()
    present = {entry.name for entry in entries}
    for entry in entries:
        known = IMAGES in entry.about and present.issuperset(entry.about[IMAGES])
        if entry.name.startswith(DERIVED) and not known:
            purged.remove(cache, entry)
    purged.left += cache.remove_trash()


def _signatures(entry: Entry) -> np.ndarray:
    """(n,) uint64: the signatures that the entry records; empty where it cannot be read."""
    try:
        file = next(path for name in RECORDS if (path := entry.path / name).is_file())
        return np.array(np.load(file, mmap_mode="r")["signature"])
    except (OSError, ValueError, StopIteration):
        return np.zeros(0, np.uint64)


def _write_again(cache: Cache, entry: Entry, kept: np.ndarray) -> None:
    """Copy the rows `kept` (k,) of a store of pixels into another; nothing where a row is damaged or the room lacks."""
    form = entry.about["form"]
    spec = RowSpec(*form[2:])
    try:
        store, index = open_store(entry, spec), read_index(entry.path)
        name = f"{PIXELS}{store_key(spec, index.signatures[kept])}"
        with cache.lock(name):
            if cache.find(name, (ROWS,)) is not None:
                return
            with cache.building(name) as folder:
                cache.room(name, entry.bytes, (entry.name,))
                with RowWriter(folder, spec.channels) as writer:
                    for i in kept.tolist()[writer.done :]:
                        reason = store.failed.get(i)
                        writer.append(store.read(i) if reason is None else UnreadableError("", reason))
                    checksums = writer.finish()
                    write_index(folder, writer.index(index.signatures[kept]))
                cache.commit(name, {"form": form, "rows": len(kept)}, checksums)
    except (OSError, ValueError, TypeError, OverBudgetError, DamagedRowError):
        return  # the images that stay are decoded again when they are needed
