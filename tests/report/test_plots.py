"""Plots are legible, true to the numbers, and written completely or not at all."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from linnaeus.errors import JobError, UserError
from linnaeus.report.canvas import shorten, text_width, wrap
from linnaeus.report.confusion import confusion, shares
from linnaeus.report.curves import curves
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.image_grid import PredictedImage, _columns, fit_square, image_grid
from linnaeus.report.palette import BLUE, GREEN, ORANGE, RED
from linnaeus.report.range_test import ranges
from linnaeus.runs.history import Row, read_history, write_rows

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph is a warning of matplotlib's
LONG = "Lepidoptera_nymphalidae cyclamen subspecies (Linnaeus, 1758) with a very long name"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def history(*epochs: int) -> list[Row]:
    """Rows of `history.csv` with so many epochs in each phase."""
    n = itertools.count(1)
    return [
        Row(
            phase=phase,
            epoch=epoch,
            lr=1e-3,
            train_loss=3 / next(n),
            train_accuracy=0.8 + 0.001 * epoch,  # the same as in validation: the labels compete for the same place
            valid_loss=0.5 + 1 / epoch,
            valid_accuracy=0.8 + 0.001 * epoch,
            seconds=1.5,
        )
        for phase, count in enumerate(epochs, 1)
        for epoch in range(1, count + 1)
    ]


def texts(figure: Figure) -> list[Text]:
    """The texts of a figure that are drawn."""
    shown: list[Text] = []

    def collect(artist: Artist) -> None:
        if not artist.get_visible():
            return
        if isinstance(artist, Text) and artist.get_text():
            shown.append(artist)
        elif isinstance(artist, Axes) and not artist.axison:
            shown.extend(text for text in artist.texts if text.get_text())
        elif isinstance(artist, Axis):
            low, high = sorted(artist.get_view_interval())
            ticks = [tick for tick in artist.get_major_ticks() if low <= tick.get_loc() <= high]
            for label in (artist.label, *(tick.label1 for tick in ticks)):
                collect(label)
        else:
            for child in artist.get_children():
                collect(child)

    collect(figure)
    return shown


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def near(path: Path, color: str) -> int:
    """Number of pixels with about this color."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - 255 * np.array(to_rgb(color))).max(axis=2) < 8).sum())


def assert_legible(figure: Figure, of: list[Text] | None = None) -> None:
    """Every text lies on the figure, and no two overlap."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in (texts(figure) if of is None else of)]
    assert boxes
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} overlaps {other!r}"


# Curves


@pytest.mark.parametrize("epochs", [(1,), (2, 1), (20, 10), (200,), (1, 1, 1, 40, 1)])
def test_curves_are_legible_at_any_length(epochs: tuple[int, ...], tmp_path: Path, figures: list[Figure]) -> None:
    rows = history(*epochs)
    assert curves(rows, tmp_path / "curves.png", best=len(rows) - 1, title=LONG * 3) == ""
    assert_legible(figures[0])
    assert near(tmp_path / "curves.png", BLUE) > 100  # one epoch is a point, and it is seen
    assert near(tmp_path / "curves.png", ORANGE) > 20


def test_curves_mark_phases_and_the_best_epoch(tmp_path: Path, figures: list[Figure]) -> None:
    curves(history(5, 3), tmp_path / "curves.png", best=6)
    words = written(figures[0])
    assert words.count("phase 1") == words.count("phase 2") == 2  # in both panels
    assert "best epoch 7: 80.20\u202f% on validation" in words
    curves(history(5), tmp_path / "curves.png")
    assert not [t for t in written(figures[1]) if "phase" in t or "best" in t]


def test_a_phase_too_narrow_for_its_name_has_none(tmp_path: Path, figures: list[Figure]) -> None:
    curves(history(1, 60), tmp_path / "curves.png")
    assert [t for t in written(figures[0]) if "phase" in t] == ["phase 2"] * 2
    curves(history(*[1] * 60), tmp_path / "curves.png")
    assert not [t for t in written(figures[1]) if "phase" in t]


def test_curves_take_what_a_csv_file_holds(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [replace(row, train_accuracy=None) for row in history(4, 2)]  # mixed labels: nothing to count
    rows[2] = replace(rows[2], valid_loss=float("nan"))
    rows[3] = replace(rows[3], train_loss=float("inf"))
    with (tmp_path / "history.csv").open("w") as file:
        write_rows(file, rows, header=True)
    curves(read_history(tmp_path / "history.csv"), tmp_path / "curves.png", best=2)
    assert written(figures[0]).count("training") == 1
    assert written(figures[0]).count("validation") == 2
    assert_legible(figures[0])


def test_curves_without_validation_or_without_an_epoch(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [replace(row, valid_loss=float("nan"), valid_accuracy=float("nan")) for row in history(3)]
    curves(rows, tmp_path / "curves.png", best=0)
    assert "validation" not in written(figures[0])
    nothing = [replace(row, train_loss=float("nan"), train_accuracy=None) for row in rows]
    curves(nothing, tmp_path / "nothing.png")
    assert written(figures[1]).count("not measured") == 2
    curves([], tmp_path / "none.png")
    assert "no epoch was finished" in written(figures[2])


def test_a_loss_that_starts_high_does_not_flatten_the_rest(tmp_path: Path, figures: list[Figure]) -> None:
    rows = history(10)
    rows[0] = replace(rows[0], train_loss=400.0)
    curves(rows, tmp_path / "curves.png")
    assert [axes.get_yscale() for axes in figures[0].axes] == ["log", "linear"]
    assert "log scale" in written(figures[0])
    assert_legible(figures[0])


def test_a_range_test_is_legible(tmp_path: Path, figures: list[Figure]) -> None:
    rates = np.logspace(-6, 0, 40)
    smoothed = np.r_[np.linspace(2.3, 0.5, 30), np.linspace(0.6, 90, 10)]
    ranges(rates, smoothed + 0.01, smoothed, 1e-2, "a tenth of the rate with the lowest loss", tmp_path / "range.png")
    assert_legible(figures[0])
    assert figures[0].axes[0].get_ylim()[1] < 3, "a loss that diverges does not flatten the rest"
    assert near(tmp_path / "range.png", ORANGE) > 100


# Image grid


def image(height: int = 60, width: int = 80, *channels: int) -> np.ndarray:
    return np.full((height, width, *channels), 128, dtype=np.uint8)


@pytest.mark.parametrize(
    ("n", "name"), [(1, LONG), (2, r"$\frac{$"), (5, "rose"), (7, LONG.replace(" ", "_")), (64, LONG), (16, "rose")]
)
def test_names_never_overlap(n: int, name: str, tmp_path: Path, figures: list[Figure]) -> None:
    shown = [PredictedImage(image(), name, 0.999, name if i % 2 else "other", "unsure") for i in range(n)]
    assert image_grid(shown, tmp_path / "grid.png", title="Test images" if n > 2 else LONG) == ""
    assert_legible(figures[0])


def test_right_and_wrong_differ_in_color_and_in_mark(tmp_path: Path, figures: list[Figure]) -> None:
    path = tmp_path / "grid.png"
    verdicts: list[tuple[str | None, str, str]] = [("rose", "✓", GREEN), ("lily", "✗", RED)]
    for true, mark, color in verdicts:
        image_grid([PredictedImage(image(), "rose", 0.5, true)], path)
        named = [t for t in texts(figures[-1]) if t.get_text() in ("rose", mark)]
        assert [t.get_color() for t in named] == [color, color]
        assert near(path, color) > 1000
        assert f"true: {true}" in written(figures[-1])
    image_grid([PredictedImage(image(), "rose", 0.5)], path)
    assert not {"✓", "✗"} & set("".join(written(figures[-1])))
    assert near(path, GREEN) == near(path, RED) == 0


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (28, 28, 3), (1, 1), (1, 900), (900, 1, 3), (500, 667, 3)])
def test_any_image_fits_its_square(shape: tuple[int, ...]) -> None:
    assert fit_square(np.zeros(shape, np.uint8), 255).shape == (255, 255, 3)


def test_small_images_keep_their_pixels() -> None:
    checks = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    large = fit_square(checks, 256)
    np.testing.assert_array_equal(large[..., 0], checks.repeat(32, axis=0).repeat(32, axis=1))


def test_images_are_the_right_way_up(tmp_path: Path) -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:32, :, 0] = 255  # red above
    image_grid([PredictedImage(half, "red above", 1.0)], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    red = np.argwhere((pixels == (255, 0, 0)).all(axis=2))
    black = np.argwhere((pixels == 0).all(axis=2))
    assert red[:, 0].max() < black[:, 0].min()
    assert len(red) > 10_000


def test_more_images_than_an_image_holds_are_counted(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linnaeus.report.image_grid.MAX_PIXELS", 1000)
    image_grid([PredictedImage(image(), "a", 0.5)] * 30, tmp_path / "grid.png", columns=4)
    assert "22 more are left out" in written(figures[0])
    image_grid([], tmp_path / "none.png", title="none")


def test_columns_fill_their_rows() -> None:
    assert [_columns(n) for n in (0, 1, 2, 4, 12, 16, 64)] == [1, 1, 2, 2, 4, 4, 8]


# Confusion


@pytest.mark.parametrize("classes", [1, 2, 10, 20, 21, 102, 300])
def test_confusion_is_legible_at_any_number_of_classes(classes: int, tmp_path: Path, figures: list[Figure]) -> None:
    generator = np.random.default_rng(classes)
    matrix = generator.integers(0, 3, (classes, classes)) + 12345 * np.eye(classes, dtype=int)
    names = [LONG[: 5 + i % 60] for i in range(classes)]
    assert confusion(matrix, names, tmp_path / "confusion.png", title=LONG * 3) == ""
    everything = texts(figures[0])
    assert_legible(figures[0], [text for text in everything if text.get_rotation() == 0])
    boxes = [text.get_window_extent() for text in everything]
    assert min(box.x0 for box in boxes) >= 0
    assert min(box.y0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figures[0].bbox.x1
    assert max(box.y1 for box in boxes) <= figures[0].bbox.y1


def test_confusion_rows_are_true_classes(tmp_path: Path, figures: list[Figure]) -> None:
    counts = np.array([[30, 10, 0], [0, 5, 0], [0, 0, 0]])
    confusion(counts, ["a", "b", "c"], tmp_path / "confusion.png")
    words = written(figures[0])
    assert "35 of 45 correct, 77.8\u202f%" in words
    assert [word for word in words if word in ("30 of 40", "5 of 5", "no images")] == [
        "30 of 40",
        "5 of 5",
        "no images",
    ]
    where = {text.get_text(): text.get_position() for text in texts(figures[0])}
    assert where["10"][1] == where["30"][1]  # in the row of the true class ...
    assert where["10"][0] == where["5"][0]  # ... and in the column of the predicted one
    assert words.count("0") == 0


def test_confusion_shares() -> None:
    counts = np.array([[8, 2, 0], [2, 2, 0], [0, 5, 0]])
    np.testing.assert_allclose(shares(counts, counts.sum(1)), [[0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert shares(np.zeros((2, 2), int), np.zeros(2, int)).tolist() == [[0, 0], [0, 0]]


def test_many_classes_list_the_most_confused(tmp_path: Path, figures: list[Figure]) -> None:
    counts = 50 * np.eye(102, dtype=int)
    counts[3, 90] = 7
    confusion(counts, [f"class {i}" for i in range(102)], tmp_path / "confusion.png")
    words = written(figures[0])
    assert "→ class 90" in words
    assert "7 of 57" in words


# Files


def draw_all(folder: Path) -> list[bytes]:
    folder.mkdir()
    curves(history(3, 2), folder / "curves.png", best=3, title="−1 évêque")
    image_grid([PredictedImage(image(), "rose", 0.5, "lily")] * 3, folder / "grid.png")
    confusion(np.eye(4, dtype=int), list("abcd"), folder / "confusion.png")
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.long
def test_threads_draw_the_same_and_no_setting_changes(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    expected = draw_all(tmp_path / "alone")
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw_all, [tmp_path / f"thread{i}" for i in range(4)]))
    assert all(one == expected for one in drawn)
    assert dict(matplotlib.rcParams) == before


def test_pyplot_and_torch_are_not_imported() -> None:
    drawn = ("confusion", "curves", "image_grid", "penalty_curve", "range_test", "sweep_plot")
    modules = ", ".join(f"linnaeus.report.{name}" for name in drawn)
    code = f"import sys, {modules}; print({{'matplotlib.pyplot', 'torch'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_plot_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "месяц 月.png"
    curves(history(1), path)
    before = path.read_bytes()

    def full(figure: Figure, file: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(JobError, match="no space left"):
        curves(history(2), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".svg", ".pdf", ""])
def test_the_suffix_is_the_format(suffix: str, tmp_path: Path) -> None:
    image_grid([PredictedImage(image(), "rose", 0.5)], tmp_path / f"grid{suffix}")
    head = (tmp_path / f"grid{suffix}").read_bytes()[:12]
    assert {".jpg": b"\xff\xd8", ".webp": b"RIFF", ".svg": b"<?xml", ".pdf": b"%PDF", "": b"\x89PNG"}[suffix] in head


def test_a_format_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grid\.docx: .*png"):
        image_grid([PredictedImage(image(), "rose", 0.5)], tmp_path / "grid.docx")


def test_missing_glyphs_are_returned_and_raise_no_warning(tmp_path: Path) -> None:
    unknown = "\U000e0f00\U0010fffd"  # unassigned and private: in no font
    draws: list[Callable[[str, Path], str]] = [
        lambda text, path: curves(history(1), path, title=text),
        lambda text, path: image_grid([PredictedImage(image(), "a", 0.5, None, text)], path),
        lambda text, path: confusion(np.eye(2, dtype=int), ["a", text], path),
    ]
    for draw in draws:
        assert draw(f"rose {unknown}", tmp_path / "plot.png") == unknown
        draw("月季 バラ 장미 🌹", tmp_path / "plot.png")  # whatever this machine has


@pytest.mark.parametrize("text", ["a", LONG, "月季花" * 20, LONG.replace(" ", "")])
def test_text_is_cut_to_its_room(text: str) -> None:
    fonts: Fonts = families_for([text])
    for width in (0.5, 1.0, 3.0):
        assert text_width(shorten(text, fonts, 9, width), fonts, 9) <= width
        lines = wrap(text, fonts, 9, width, 3)
        assert len(lines) <= 3
        assert all(text_width(line, fonts, 9) <= width for line in lines)
    assert wrap("giant white arum lily", fonts, 9, 1.0, 2) == ["giant white", "arum lily"]
