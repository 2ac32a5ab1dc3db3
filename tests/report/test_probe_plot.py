"""The plot of a probe: every backbone is named, and no name covers another text."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from linnaeus.report import probe_plot as module
from linnaeus.report.probe_plot import ProbedBackbone, probe_plot


@pytest.mark.parametrize("count", [1, 3, 15, 40])
def test_no_name_covers_another(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even where all backbones are about equally accurate and fast."""
    figures: list[Figure] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    backbones = [
        ProbedBackbone(f"timm/a_long_name_of_an_architecture_{k}", 0.95 - k / 1e4, (0.9, 0.98), 10 + k / 100, k == 0)
        for k in range(count)
    ]
    probe_plot(backbones, "Backbones", "accuracy", tmp_path / "probe.png")
    figure = figures[0]
    figure.draw_without_rendering()
    listed = figure.axes[1].texts
    assert [text.get_text() for text in listed[0::3]] == [str(k + 1) for k in range(count)]
    boxes = [text.get_window_extent() for text in listed]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    whole = figure.bbox
    assert all(whole.x0 < box.x0 and box.x1 < whole.x1 and whole.y0 < box.y0 and box.y1 < whole.y1 for box in boxes)
    assert figure.axes[0].get_window_extent().x1 < min(box.x0 for box in boxes)
