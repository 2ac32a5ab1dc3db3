"""The page in Chromium, driven by Playwright, without a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fabricate import fabricate, write_source
from watching import Watcher
from wcag import contrast
from wording import broken_words

from linnaeus.report.page import write_report

pytestmark = pytest.mark.long

EVIL = "</script><img src=x onerror=alert(1)>"
NAMES = (
    *(f"class {i}" for i in (*range(7), 10)),
    *("snapdragon", "hippeastrum"),
    "玫瑰",
    EVIL,
    "a class whose name is longer than a phone is wide, or nearly so",
)
READABLE = 4.5  # contrast of text (WCAG 2.2, 1.4.3)
PHONE = {"width": 390, "height": 844}
LISTS = ".gallery, .classes, .confused, .findings, .charts"
PAPER = 688  # CSS pixels of A4 between margins of 14 mm


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    fabricate(write_source(folder / "source", NAMES, (4, 4, 5)), folder / "run", skill=1.5)
    pair = '{"kind": "leak", "severity": "error", "paths": ["pictures/000-000.png", "pictures/000-004.png"]}'
    (folder / "run" / "check.json").write_text(f"[{pair}]")
    return write_report(folder / "run")[0].as_uri()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """open_page(**options of a browser context) -> the page. It must print nothing and ask for nothing."""
    watcher = Watcher(browser)
    yield partial(watcher.open, address)
    watcher.close()
    assert watcher.messages == []
    assert set(watcher.urls_outside("data:")) == {address}


def column(page: Any, number: int) -> list[str]:
    return page.eval_on_selector_all(
        f"table.sortable tbody tr > :nth-child({number})", "all => all.map(e => e.dataset.v)"
    )


WORST_TEXT = """(selector) => {
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const page = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll(selector)].map((e) => light(getComputedStyle(e).fill))
    .map((text) => (Math.max(page, text) + 0.05) / (Math.min(page, text) + 0.05)));
}"""
"""The lowest contrast of all such texts with the background of the page."""


def test_it_opens_whole_with_every_image_in_it(open_page: Any):
    page = open_page()
    assert page.locator("section").count() == 11
    broken = page.eval_on_selector_all("img", "all => all.filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    assert page.locator("img").count() > 60
    assert page.get_by_text(EVIL, exact=True).count() > 0, "the injection attempt is shown as text"


@pytest.mark.parametrize("way", ["click", "Enter", "Space"])
def test_the_table_sorts_both_ways(open_page: Any, way: str):
    page = open_page()
    assert column(page, 5) == sorted(column(page, 5), key=float), "the worst F1 first"
    names = column(page, 1)
    for name, at, numeric in (("recall", 3, True), ("class", 1, False)):
        button = page.locator("table.sortable thead").get_by_role("button", name=name, exact=True)
        for order in ("ascending", "descending"):
            if way == "click":
                button.click()
            else:
                button.focus()
                page.keyboard.press(way)
            found = column(page, at)
            assert page.locator("[aria-sort]").get_attribute("aria-sort") == order
            assert page.locator("[aria-sort]").inner_text().startswith(name)
            if numeric:
                assert found == sorted(found, key=float, reverse=order == "descending")
            elif order == "ascending":
                some = [v for v in found if v.startswith("class")]
                assert some == [f"class {i}" for i in (*range(7), 10)], "numbers in names by value"
    assert sorted(column(page, 1)) == sorted(names), "no row is lost"


def test_without_scripts_the_table_is_there_and_the_matrix_zooms(open_page: Any):
    page = open_page(java_script_enabled=False)
    assert page.locator("table.sortable tbody tr").count() == len(NAMES)
    assert page.locator("table.sortable button").count() == 0
    before = page.locator("svg.matrix").bounding_box()["width"]
    page.get_by_label("2×").check()
    assert page.locator("svg.matrix").bounding_box()["width"] == pytest.approx(2 * before, rel=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(open_page: Any, scheme: str):
    page = open_page(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 60) == (scheme == "dark")
    for selector in ("p.summary", ".small", ".big", ".right-word", ".wrong-word", ".badge.error", "nav a", "thead th"):
        assert contrast(page, selector) >= READABLE, selector
    worst = page.evaluate(WORST_TEXT, "svg.chart text, svg.matrix :not(.count) > text")
    assert worst >= READABLE, "words of the charts"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_counts_can_be_read_on_their_cells(open_page: Any, scheme: str):
    page = open_page(color_scheme=scheme)
    worst = page.evaluate("""() => {
      const rgb = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const fill = (e) => rgb(getComputedStyle(e).fill);
      const ground = fill(document.querySelector("svg.matrix .ground path"));
      const cells = document.querySelectorAll("svg.matrix .cell path");
      const counts = document.querySelectorAll("svg.matrix .count text");
      if (cells.length !== counts.length || !cells.length) return 0;
      return Math.min(...[...counts].map((count, k) => {
        const s = +getComputedStyle(cells[k]).fillOpacity;
        const cell = light(fill(cells[k]).map((v, i) => s * v + (1 - s) * ground[i])), text = light(fill(count));
        return (Math.max(cell, text) + 0.05) / (Math.min(cell, text) + 0.05);
      }));
    }""")
    assert worst >= 3.5, "at the change of color, both colors have this contrast"


def test_a_phone_scrolls_in_one_direction(open_page: Any):
    page = open_page(viewport=PHONE, device_scale_factor=2, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = page.evaluate(
        "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll, pre, .hidden') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"
    )
    assert wide == []
    page.locator(".narrow th[scope=row]").first.evaluate(
        "e => { e.textContent = 'a_class_with_a_name_wider_than_phones'; }"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    size = "e => parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)"
    letters = page.eval_on_selector_all("svg.chart text", f"all => Math.min(...all.map({size}))")
    assert letters >= 9, "words of a chart, in CSS pixels"
    assert broken_words(page, "th, td, dt, dd, h1, h2, h3, .class-head") == []
    assert set(broken_words(page, ".prediction p:first-of-type")) <= {"script><img"}


def test_it_prints_light_and_complete(open_page: Any, tmp_path: Path):
    page = open_page(color_scheme="dark")
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4", print_background=True)
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 3
    assert page.locator("details").get_attribute("open") is not None, "details are open in print"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    table = page.locator("#classes .scroll")
    assert table.evaluate("e => e.scrollHeight - e.clientHeight") <= 1, "no row is cut off"
    header = page.locator("#classes thead button").first
    assert header.evaluate("e => getComputedStyle(e).display") == "contents", "Chromium repeats a button as a blank"
    kept = "all => all.slice(0, 3).map(e => getComputedStyle(e).breakAfter)"
    assert page.eval_on_selector_all("#classes :is(thead, tbody tr)", kept) == ["avoid"] * 3, "no row alone"
    page.set_viewport_size({"width": PAPER, "height": 900})
    wide = f"all => all.filter(e => e.getBoundingClientRect().right > {PAPER} + 1).map(e => e.outerHTML)"
    assert page.eval_on_selector_all(":is(main, header) :not(.stack *)", wide) == [], "no column is cut off"
    grids = page.eval_on_selector_all(LISTS, "all => all.filter(e => getComputedStyle(e).display === 'grid').length")
    assert grids == 0, "Chromium leaves a heading alone before a grid on the next page"
    breaks = page.eval_on_selector_all("section", "all => all.map(e => getComputedStyle(e).breakBefore)")
    assert "page" in breaks, "the matrix takes its heading along"


def test_it_works_with_a_screen_reader_and_the_keyboard(open_page: Any):
    page = open_page()
    assert page.eval_on_selector_all("img", "all => all.filter(i => !i.alt).length") == 0
    assert page.eval_on_selector_all("svg", "all => all.filter(s => !s.getAttribute('aria-label')).length") == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    links = page.eval_on_selector_all("nav a, a.skip", "all => all.map(a => a.getAttribute('href').slice(1))")
    assert set(links) <= set(ids)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the report"
    scrolls = page.eval_on_selector_all(".scroll, pre", "all => all.filter(e => e.tabIndex !== 0).length")
    assert scrolls == 0, "scrolling areas can be scrolled with the keyboard"
