"""Predicting by several processes: each answers its share of the images, and the first has all answers in order.

The first process hands the images out in rounds of a batch for each process, so that nobody else lists a folder or
reads standard input. A process decodes the next round while its network answers this one. A batch holds the images
that it holds in one process, whatever the number of processes, and with them come the same answers.
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
    """The first process wants no more answers."""


class _Shares:
    """This process's images, as they are handed out; iterating takes part in handing out."""

    def __init__(self, peers: ProcessGroup, images: Iterable[str], seen: Callable[[], bool]):
        self.peers, self.images, self.seen = peers, iter(images), seen
        self.rounds = 0
        """Handed out so far."""
        self.last = False
        """Whether there are no more. Only the last round is smaller than a batch for each."""
        self.wanted: list[bool] = []
        """For each round whether the images are wanted with the answers."""
        self.wrong: UserError | None = None
        """What ended the images before their end; to be raised when those before it are answered."""

    def __iter__(self) -> Iterator[str]:
        peers = self.peers
        while not self.last:
            handed = peers.broadcast(self._round)
            if handed is None:
                raise _StoppedError
            paths, wanted = handed
            self.rounds += 1
            self.last = len(paths) < peers.world_size * BATCH
            self.wanted.append(wanted)
            yield from paths[peers.rank * BATCH : (peers.rank + 1) * BATCH]

    def _round(self) -> tuple[list[str], bool] | None:
        paths: list[str] = []
        try:
            for path in islice(self.images, self.peers.world_size * BATCH):
                paths.append(path)
        except UserError as error:
            self.wrong = error
        return paths, self.seen()


def predictions(
    classifier: Classifier, peers: ProcessGroup, images: Iterable[str], seen: Callable[[], bool] = lambda: True
) -> Generator[Prediction]:
    """Predictions of all processes, in the order of the images, in the first process; nothing in the others.

    `images` and `seen` are the first one's: which images, and whether what the network saw is still wanted with the
    answers. Close it where not all answers are taken, so that the others end too. At most three rounds are in memory.
    Raises the UserError of `images` in the first process, when what came before it is answered.
    """
    shares = _Shares(peers, images, seen)
    answers = classifier.stream(shares)
    gathered = 0
    while gathered < shares.rounds or not shares.last:
        try:
            mine = list(islice(answers, BATCH))
        except _StoppedError:
            return
        if peers.world_size > 1 and not shares.wanted[gathered]:
            mine = [replace(prediction, image=None) for prediction in mine]
        parts = peers.gather(mine)
        gathered += 1
        try:
            yield from chain.from_iterable(parts)
        except GeneratorExit:
            _stop(peers, shares, gathered)
            raise
    if shares.wrong is not None:
        raise shares.wrong


def _stop(peers: ProcessGroup, shares: _Shares, gathered: int) -> None:
    """Let the others end, who wait for the next round, or bring the answers to the last."""
    with suppress(RuntimeError):  # who is gone need not be told
        if not shares.last:
            peers.broadcast(lambda: None)
            return
        for _ in range(gathered, shares.rounds):
            peers.gather([])
