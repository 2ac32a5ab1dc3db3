"""predictions.csv and history.csv are read back as they were written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from linnaeus.errors import UserError
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row, read_history
from linnaeus.runs.parsing import recorded_source
from linnaeus.runs.predictions import PredictionRow, prediction_rows, read_predictions, write_predictions


def test_predictions_are_read_back(tmp_path: Path):
    """Names with commas, quotes, line ends and Unicode line separators survive."""
    names = ["a,b.png", 'c"d.png', "e\nf.png", "g\u2028h.png", "玫瑰.png"]
    outputs = Outputs(np.array([0, 1, 0, 1, 0]), np.log([[3.0, 1.0]] * 5).astype(np.float32), np.array([0, 0, 2, 3, 4]))
    rows = list(prediction_rows("valid", names, outputs, ["x", "y"]))
    assert [row.correct for row in rows] == [True, False, True, False, True]
    write_predictions(tmp_path / "predictions.csv", rows)
    for row, again in zip(rows, read_predictions(tmp_path / "predictions.csv"), strict=True):
        assert again.probability == pytest.approx(row.probability, abs=1e-9)
        assert again == PredictionRow(
            row.sample, "valid", row.true, "x", again.probability, again.probability_of_true, row.group
        )


def test_a_damaged_row_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "history.csv"
    RunFolder(tmp_path).add(Row(1, 1, 1e-3, 1.5, None, 2.5, 0.25, 1.5))
    assert read_history(path) == [Row(1, 1, 1e-3, 1.5, None, 2.5, 0.25, 1.5)]
    with path.open("a") as file:
        file.write("1,2,0.1\n")
    with pytest.raises(UserError, match=re.escape("history.csv:3: invalid row ['1', '2', '0.1'")):
        read_history(path)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"source": null}', '{"source": {"path": ""}}'])
def test_a_source_that_is_not_recorded_is_none(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    assert recorded_source(tmp_path) is None
    (tmp_path / "metrics.json").write_text('{"source": {"path": "photos"}}')
    assert recorded_source(tmp_path) == "photos"
