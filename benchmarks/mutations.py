"""Mutate a model file: every mutation is refused with one line, or the file still gives the same answer.

    python benchmarks/mutations.py --count 100000 [--seed 1] [MODEL]

Mutations: a flipped bit or byte in the length, the JSON or the tensors; a cut; a piece deleted, repeated or inserted.
`load`, `predict`, `serve` and `export` read a model through the one reader that is tried here. The exit status is 1 if
another exception came out, or another answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "format1" / "color.safetensors"


def mutate(raw: bytes, draw: np.random.Generator) -> bytes:
    """The file with one change; two of three lie before the tensors, where a small change may have a large effect."""
    data, header = bytearray(raw), 8 + int.from_bytes(raw[:8], "little")
    at = int(draw.integers(header if draw.random() < 2 / 3 else len(data)))
    kind = int(draw.integers(8))
    piece = int(draw.integers(1, 40))
    if kind < 4:
        data[at] ^= 1 << int(draw.integers(8))
    elif kind == 4:
        data[at] = int(draw.integers(256))
    elif kind == 5:
        del data[at : at + piece]
    elif kind == 6:
        data[at:at] = data[at : at + piece]
    else:
        del data[at:]
    return bytes(data)


def main() -> None:
    from linnaeus.errors import UserError
    from linnaeus.inference.classifier import load
    from linnaeus.modelfile.safetensors import read_model, write_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=GOLDEN)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        network, about = read_model(given.model)
        write_model(path, network.state_dict(), about)  # as this version writes it
        raw, draw = path.read_bytes(), np.random.default_rng(given.seed)
        side, channels = about.preprocessing.resize, about.preprocessing.channels
        image = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
        image = image if channels == 3 else image[:, :, 0]

        def answer() -> tuple[object, ...]:
            model = load(path, device="cpu")
            found = model.predict(image)
            assert found.probabilities is not None
            return found.probabilities.tobytes(), found.unsure, model.classes, model.names, model.about.metrics

        expected = answer()
        for _ in range(given.count):
            mutation = mutate(raw, draw)
            path.write_bytes(mutation)
            try:
                outcome = "same answer" if answer() == expected else "ANOTHER ANSWER"
            except UserError as error:
                outcome = "refused" if "\n" not in str(error) else "SEVERAL LINES"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}".upper()[:120]
            outcomes[outcome if mutation != raw else "unchanged"] += 1
    for outcome, n in outcomes.most_common():
        print(f"{n:8d}  {outcome}")
    print(f"{given.count} mutations, {time.monotonic() - started:.0f} s")
    raise SystemExit(bool(outcomes.keys() - {"refused", "same answer", "unchanged"}))


if __name__ == "__main__":
    main()
