"""Prediction with several processes: each predicts a share of the images, and rank 0 gets all predictions in order.

Rank 0 hands the images out in rounds of one batch per process, so that only rank 0 lists a folder or reads standard
input. A process decodes the next round while its network computes this one. Batches hold the same images whatever the
number of processes, so the predictions are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice

from linnaeus.distributed.group import ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.classifier import BATCH, Classifier, Prediction


class _StoppedError(Exception):
    """Rank 0 takes no more predictions."""


class _Rounds:
    """This process's images, handed out by rank 0. Iterating is a collective operation."""

    def __init__(self, group: ProcessGroup, images: Iterable[str], keep_pixels: Callable[[], bool] | None):
        self.group, self.images, self.keep_pixels = group, iter(images), keep_pixels
        self.count = 0  # rounds handed out so far
        self.complete = False
        """Whether the last round was handed out: only that one is smaller than a batch per process."""
        self.pixels_wanted: list[bool] = []  # for each round, whether the predictions are to have the images' pixels
        self.error: UserError | None = None
        """The error that ended the images, raised by rank 0 after the predictions of the images before it."""

    def __iter__(self) -> Iterator[str]:
        group = self.group
        while not self.complete:
            assignment = group.broadcast(self._next_round)
            if assignment is None:
                raise _StoppedError
            paths, pixels_wanted = assignment
            self.count += 1
            self.complete = len(paths) < group.world_size * BATCH
            self.pixels_wanted.append(pixels_wanted)
            yield from paths[group.rank * BATCH : (group.rank + 1) * BATCH]

    def _next_round(self) -> tuple[list[str], bool] | None:
        """On rank 0: the paths of a round for all processes, and whether the pixels are wanted."""
        paths: list[str] = []
        try:
            for path in islice(self.images, self.group.world_size * BATCH):
                paths.append(path)  # one by one: those before an error are predicted
        except UserError as error:
            self.error = error
        return paths, self.keep_pixels is None or self.keep_pixels()


def predictions(
    classifier: Classifier,
    group: ProcessGroup,
    images: Iterable[str],
    keep_pixels: Callable[[], bool] | None = None,
) -> Generator[Prediction]:
    """Yield the predictions of all processes, in the order of the images, on rank 0, and nothing on the other ranks.

    `images` and `keep_pixels` count on rank 0 only. `keep_pixels`, asked once per round, says whether predictions are
    to have the pixels that the network saw; None: always. Close the generator if not all predictions are taken, so
    that the other processes end too. At most three rounds are in memory. A UserError of `images` is raised on rank 0
    after the predictions of the images before it.
    """
    rounds = _Rounds(group, images, keep_pixels)
    local = classifier.stream(rounds)
    gathered = 0
    # Every rank takes part in as many rounds as rank 0 has batches, also without images of its own.
    while gathered < rounds.count or not rounds.complete:
        try:
            batch = list(islice(local, BATCH))
        except _StoppedError:
            return
        # Pixels are large; they are sent only where rank 0 will draw them.
        if group.world_size > 1 and not rounds.pixels_wanted[gathered]:
            batch = [replace(prediction, image=None) for prediction in batch]
        batches = group.gather(batch)
        gathered += 1
        try:
            yield from chain.from_iterable(batches)
        except GeneratorExit:
            # The caller on rank 0 has stopped reading; the other ranks wait for a batch and must be told.
            _stop(group, rounds, gathered)
            raise
    if rounds.error is not None:
        raise rounds.error


def _stop(group: ProcessGroup, rounds: _Rounds, gathered: int) -> None:
    """Let the other processes end: they wait for the next round, or to deliver the predictions of the last ones."""
    with suppress(RuntimeError):  # a process that is gone cannot be told
        if not rounds.complete:
            group.broadcast(lambda: None)
            return
        for _ in range(gathered, rounds.count):
            group.gather([])
