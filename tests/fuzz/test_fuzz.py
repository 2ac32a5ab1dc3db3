"""A short version of `benchmarks/fuzz.py`: the same properties, with the same examples every time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hostile import EscapeError, watched
from hypothesis import HealthCheck, Phase, given, settings
from properties import PROPERTIES

from linnaeus.errors import UserError

EXAMPLES = {"decode": 60, "model": 25, "recipe": 30, "matlab": 15}


@pytest.mark.parametrize("kind", PROPERTIES)
def test_every_property_holds_for_a_few_examples(kind: str):
    strategy, holds = PROPERTIES[kind]

    @settings(
        max_examples=EXAMPLES.get(kind, 40),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            holds(drawn, Path(folder))

    run()


def test_violations_of_the_properties_are_detected(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    with watched(inside):
        (inside / "x").write_text("fine")
        (inside / "y").mkdir()
    for escape in (
        lambda: outside.write_text("x"),
        lambda: outside.mkdir(),
        lambda: (inside / ".." / "x").write_text("x"),
        lambda: os.rename(inside / "x", outside),  # noqa: PTH104
        lambda: outside.symlink_to("x"),
    ):
        with pytest.raises(EscapeError), watched(inside):
            escape()
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(EscapeError), watched(inside):
        (inside / "link" / "z").write_text("x")

    def turn() -> None:
        while True:
            pass

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(TimeoutError), watched(inside, seconds=0.05):
        turn()
    with pytest.raises(ValueError, match="not ours"), watched(inside):
        fail(ValueError("not ours"))
    long = UserError("x" * 6000)
    with pytest.raises(AssertionError, match="a person reads"), watched(inside):
        fail(long)
    with watched(inside) as said:
        raise UserError("fine")
    assert len(said) == 1
