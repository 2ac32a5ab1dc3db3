"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import ThreadServer, png
from watching import Watcher
from wcag import contrast
from wording import broken_words

from linnaeus.explain.saliency import Explanation
from linnaeus.inference.classifier import Classifier
from linnaeus.serve.examples import read_examples
from linnaeus.serve.limits import Limits
from linnaeus.serve.pages import translations
from linnaeus.text import probability_percent, typeset_percent

pytestmark = pytest.mark.long

EN, ZH = translations()["en"], translations()["zh"]
EVIL = '=HYPERLINK("http://evil","x"),<img src=x onerror=alert(1)>.png'
PHONE = {"width": 390, "height": 844}
MIN_CONTRAST = 4.5  # of text (WCAG 2.2, 1.4.3)


@pytest.fixture(scope="module")
def server(classifier: Classifier) -> Iterator[ThreadServer]:
    with ThreadServer(classifier, Limits(request_bytes=20_000), report="<h1>the report</h1>") as server:
        yield server


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, server: ThreadServer) -> Iterator[Open]:
    """open_page(**options of a browser context) -> the page.

    At the end there must be no message on the console and no request to another server.
    """
    watcher, addresses = Watcher(browser), {server.address}

    def open_one(address: str = server.address, **options: Any) -> Any:
        addresses.add(address)
        return watcher.open(address, **options)

    yield open_one
    watcher.close()
    assert watcher.script_messages() == []
    assert watcher.urls_outside(*(f"{address}/" for address in addresses), "data:", "blob:") == []


def wait_for_model(page: Any) -> Any:
    """The page, once it shows the model."""
    page.locator("#model").wait_for()
    return page


def add_files(page: Any, *files: tuple[str, bytes]) -> None:
    page.set_input_files("#files", [{"name": n, "mimeType": "image/png", "buffer": data} for n, data in files])


def wait_for_answers(page: Any, n: int) -> None:
    """Wait until n images are answered or have failed."""
    page.locator(".answer.answered, .answer.unsure, .answer.failed").nth(n - 1).wait_for()


PASTE = """([name, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(data)], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""
DROP = """([name, data]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([Uint8Array.from(data)], name, { type: "image/png" }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}"""


def test_chosen_pasted_and_dropped_images_get_the_predictions_of_the_classifier(
    open_page: Open, classifier: Classifier
):
    page = wait_for_model(open_page())
    images = [png(seed, seed % 3) for seed in range(4)]
    add_files(page, ("a.png", images[0]), ("b.png", images[1]))
    wait_for_answers(page, 2)
    page.evaluate(PASTE, ["image.png", list(images[2])])
    wait_for_answers(page, 3)
    page.evaluate(DROP, ["d.png", list(images[3])])
    wait_for_answers(page, 4)
    names = page.locator(".path span").all_inner_texts()
    assert names == ["d.png", "clipboard-1.png", "a.png", "b.png"], "newest first"
    expected = [classifier.predict(images[i]) for i in (3, 2, 0, 1)]
    assert page.locator(".headline b").all_inner_texts() == [prediction.name for prediction in expected]
    probabilities = page.locator(".bars li:first-child .number").all_inner_texts()
    assert probabilities == [typeset_percent(prediction.probability, 1) for prediction in expected]
    assert page.locator(".answer").first.locator(".bars li").count() == 3
    widths = page.eval_on_selector_all(".track i", "all => all.map(e => parseFloat(e.style.width))")
    assert widths[:3] == pytest.approx([100 * p for _, p in expected[0].top(3)], abs=0.01)
    assert "dragging" not in (page.locator("body").get_attribute("class") or "")


def test_the_table_begins_with_what_needs_a_look(open_page: Open):
    page = wait_for_model(open_page())
    add_files(page, ("broken.png", b"no image"))
    wait_for_answers(page, 1)
    add_files(page, ("good.png", png()))
    wait_for_answers(page, 2)
    assert page.locator(".path span").all_inner_texts() == ["good.png", "broken.png"], "newest first"
    page.locator("#rows tr").nth(1).wait_for()
    assert page.locator("#rows th").all_inner_texts() == ["broken.png", "good.png"]


@pytest.mark.parametrize(
    ("p", "text"), [(0.9996, ">99.9"), (0.99996, ">99.9"), (1, "100.0"), (0.0004, "<0.1"), (0, "0.0"), (0.934, "93.4")]
)
def test_percentages_of_the_page_are_those_of_the_package(open_page: Open, p: float, text: str):
    page = wait_for_model(open_page())
    shown = page.evaluate("async (p) => (await import('/i18n.js')).percent(p)", p)
    assert shown == typeset_percent(p, 1) == f"{text}\u202f%"
    probable = page.evaluate("async (p) => (await import('/i18n.js')).probabilityPercent(p)", p)
    assert probable == probability_percent(p, typeset=True)
    exact = page.evaluate("async (p) => (await import('/i18n.js')).percent(p, true)", p)
    assert exact == typeset_percent(p, 1, exact=True)


def test_broken_and_huge_files_fail_and_the_others_are_answered(open_page: Open):
    page = wait_for_model(open_page())
    add_files(page, ("good.png", png()), ("broken.png", png()[:80]), ("huge.png", bytes(30_000)), ("text.png", b"text"))
    wait_for_answers(page, 4)
    failed = page.locator(".answer.failed .error").all_inner_texts()
    assert len(failed) == 3
    assert "truncated" in failed[0] or "cut short" in failed[0]
    assert failed[1] == EN["too_large"].format(size="30 KiB", limit="20 KiB"), "without a request"
    assert failed[2] == EN["unreadable"].format(reason="not an image, or in an unsupported format")
    assert page.locator("#progress").inner_text() == "1 of 4 done, 3 failed"


def test_the_table_is_copied_and_downloaded_without_formulas(open_page: Open, classifier: Classifier):
    page = wait_for_model(open_page(permissions=["clipboard-read", "clipboard-write"]))
    add_files(page, (EVIL, png(1)), ('a "quoted", name.png', png(2)), ("broken.png", b"no"))
    wait_for_answers(page, 3)
    with page.expect_download() as download:
        page.locator("#csv").click()
    assert download.value.suggested_filename == "predictions.csv"
    raw = Path(download.value.path()).read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf"), "spreadsheets need the byte order mark"
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"))))
    assert [row["path"] for row in rows] == [f"'{EVIL}", 'a "quoted", name.png', "broken.png"]
    best = classifier.predict(png(1))
    assert (rows[0]["name_1"], rows[0]["probability_1"]) == (best.name, f"{best.probability:.6f}")
    assert rows[2]["error"].endswith("not an image, or in an unsupported format")
    page.locator("#copy").click()
    page.get_by_role("button", name=EN["copied"]).wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["path", f"'{EVIL}", 'a "quoted", name.png', "broken.png"]


def test_the_heat_map_can_be_switched_on_and_off(open_page: Open):
    page = wait_for_model(open_page())
    add_files(page, ("a.png", png()))
    wait_for_answers(page, 1)
    button = page.get_by_role("button", name=EN["heat"])
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    page.keyboard.press("Enter")
    page.locator(".image img").wait_for()
    assert page.locator(".image img").evaluate("e => e.complete && e.naturalWidth") == 28
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.action") == "heat", "the focus stays on the button"
    page.keyboard.press("Space")
    page.locator(".image canvas").wait_for()
    assert page.locator(".image img").count() == 0


@pytest.mark.parametrize(("locale", "texts"), [("en", EN), ("zh-CN", ZH)])
def test_examples_are_classified_with_a_click(
    browser: Any, classifier: Classifier, tmp_path: Path, locale: str, texts: dict[str, str]
):
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(png(i, i % 3))
    examples = read_examples(str(tmp_path), classifier.preprocessing)
    with ThreadServer(classifier, token="geheim", examples=examples) as server:
        page = browser.new_page(locale=locale, viewport=PHONE)
        page.goto(server.address)
        page.get_by_role("textbox", name=texts["token_label"]).fill("geheim")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="02.png").click()
        wait_for_answers(page, 1)
        assert page.locator("#examples p").inner_text() == texts["examples"]
        assert page.locator(".path span").all_inner_texts() == ["02.png"]
        assert page.locator(".headline b").inner_text() == classifier.predict(png(2, 2)).name
        answer = page.locator(".headline").bounding_box()
        assert 0 <= answer["y"] <= PHONE["height"] - answer["height"], "the answer is seen without scrolling"
        shown = page.eval_on_selector_all("#example-list canvas", "all => all.map(e => [e.width, e.height])")
        assert shown == [[28, 28]] * 12
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.close()


def test_without_examples_the_page_offers_none(open_page: Open):
    assert not wait_for_model(open_page()).locator("#examples").is_visible()


def test_many_files_are_sent_a_few_at_a_time(open_page: Open):
    page = wait_for_model(open_page())
    active, most = set(), [0]

    def started(request: Any) -> None:
        active.add(request)
        most[0] = max(most[0], len(active))

    page.on("request", started)
    page.on("requestfinished", lambda request: active.discard(request))
    add_files(page, *[(f"{i}.png", png(i)) for i in range(40)])
    wait_for_answers(page, 40)
    assert 1 < most[0] <= 4
    assert page.locator("#progress").inner_text() == "40 of 40 done"
    page.get_by_role("button", name=EN["clear"]).click()
    assert page.locator(".answer").count() == 0
    page.locator("#all").wait_for(state="hidden")  # in the next animation frame


def test_a_server_that_restarts_is_found_again(browser: Any, classifier: Classifier):
    server = ThreadServer(classifier)
    with server:
        page = browser.new_page()
        page.goto(server.address)
        wait_for_model(page)
    add_files(page, ("a.png", png(1)), ("b.png", png(2)))
    page.locator("#trouble").wait_for()
    assert "cannot be reached" in page.locator("#trouble").inner_text()
    assert page.locator("#trouble").get_attribute("role") == "alert"
    assert page.locator("#retry").inner_text() == EN["now"]
    page.wait_for_timeout(2500)
    assert page.locator(".answer.failed").count() == 0, "the images wait for the server"
    with ThreadServer(classifier, port=server.port):
        page.locator("#retry").dispatch_event("click")  # hidden if the page has just asked again by itself
        wait_for_answers(page, 2)
        page.locator("#trouble").wait_for(state="hidden")
    page.close()


def test_a_busy_server_is_asked_again(browser: Any, classifier: Classifier):
    with ThreadServer(classifier, Limits(queue=2, images=2)) as server:
        page = browser.new_page()
        page.goto(server.address)
        wait_for_model(page)
        with server.server.service.batcher.admission.admit(2):
            add_files(page, ("a.png", png(1)))
            page.get_by_text("busy").wait_for()
        wait_for_answers(page, 1)
        assert page.locator(".answer.failed").count() == 0
        page.close()


def test_the_language_can_be_switched_and_is_remembered(open_page: Open):
    page = wait_for_model(open_page(locale="en-US"))
    add_files(page, ("a.png", png()))
    wait_for_answers(page, 1)
    page.locator("#language").click()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("#drop-h").inner_text() == ZH["drop"]
    assert page.get_by_role("button", name=ZH["heat"]).count() == 1, "answers are translated too"
    assert ZH["lead_plain"].format(classes=3) in page.locator("#lead").inner_text()
    shown = page.evaluate("async () => (await import('/i18n.js')).percent(0.934)")
    assert shown == "93.4%", "Chinese text has no space before a percent sign"
    page.reload()
    assert wait_for_model(page).locator("#drop-h").inner_text() == ZH["drop"]
    other = wait_for_model(open_page(locale="zh-CN"))
    assert other.locator("#drop-h").inner_text() == ZH["drop"], "as the browser prefers"
    other.locator("#language").click()
    assert other.locator("#drop-h").inner_text() == EN["drop"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(open_page: Open, scheme: str):
    page = wait_for_model(open_page(color_scheme=scheme))
    add_files(page, ("a.png", png()), ("b.png", b"broken"))
    wait_for_answers(page, 2)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) < 60) == (scheme == "dark")
    for selector in (
        "#lead",
        ".kicker",
        ".headline b",
        ".bars li:last-child",
        ".error",
        ".facts dt",
        "#drop .small",
    ):
        assert contrast(page, selector) >= MIN_CONTRAST, selector
    assert contrast(page, "button.primary", "button.primary") >= MIN_CONTRAST


def test_a_phone_scrolls_vertically_only_and_offers_its_camera(open_page: Open):
    page = wait_for_model(open_page(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True))
    add_files(page, ("a name that is longer than a phone is wide_and_has_no_spaces_at_its_end_to_break_at.png", png()))
    wait_for_answers(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.get_by_role("button", name=EN["photograph"]).is_visible()
    assert page.locator("#drop-h").inner_text() == EN["drop_touch"]
    assert page.locator("#camera").get_attribute("capture") == "environment"
    assert EN["paste"] not in page.locator("#drop").inner_text(), "a phone has no key for it"
    small = page.eval_on_selector_all(
        "button",
        "all => all.filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.textContent)",
    )
    assert small == [], "targets are at least 24 pixels high (WCAG 2.2, 2.5.8)"
    add_files(page, ("img_01.jpg", png()))
    wait_for_answers(page, 2)
    assert broken_words(page, "#rows th, #rows td, thead th, .bars .name") == []
    tops = page.eval_on_selector_all("#copy, #csv", "all => all.map(e => e.getBoundingClientRect().top)")
    assert tops[0] == tops[1], "the buttons stay beside each other"
    assert (
        page.locator("#rows").evaluate("e => e.closest('.scroll').scrollWidth - e.closest('.scroll').clientWidth") <= 1
    )
    assert not wait_for_model(open_page()).get_by_role("button", name=EN["photograph"]).is_visible()


def test_screen_readers_and_keyboards_are_supported(open_page: Open):
    page = wait_for_model(open_page())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == EN["skip"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.locator("#choose:focus").wait_for()
    with page.expect_file_chooser() as chooser:
        page.wait_for_timeout(300)  # until the browser knows that the test intercepts the dialog
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "a.png", "mimeType": "image/png", "buffer": png()}])
    wait_for_answers(page, 1)
    name = page.locator(".headline b").inner_text()
    page.locator("#live", has_text=f"a.png: {name}").wait_for(state="attached")
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    unnamed = page.eval_on_selector_all(
        "button, [role=img], img, [tabindex]",
        "all => all.filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') "
        "|| e.textContent.trim() || e.alt)).map(e => e.outerHTML)",
    )
    assert unnamed == []
    page.get_by_role("button", name=EN["remove"].format(path="a.png")).press("Enter")
    assert page.locator(".answer").count() == 0


def test_the_token_is_requested_once(browser: Any, classifier: Classifier):
    with ThreadServer(classifier, token="geheim", report="<h1>the report</h1>") as server:
        page = browser.new_page()
        page.goto(server.address)
        dialog = page.get_by_role("dialog", name=EN["token_title"])
        dialog.wait_for()
        assert "tiny" not in page.content()
        for token, valid in (("falsch", False), ("geheim", True)):
            page.get_by_role("textbox", name=EN["token_label"]).fill(token)
            page.keyboard.press("Enter")
            if valid:
                dialog.wait_for(state="hidden")
            else:
                page.get_by_text(EN["token_invalid"]).wait_for()
        wait_for_model(page)
        add_files(page, ("a.png", png()))
        wait_for_answers(page, 1)
        page.reload()
        wait_for_model(page)
        page.locator("#report").click()
        assert page.get_by_role("heading", name="the report").is_visible(), "the cookie authorizes links"
        page.close()


def test_an_unsure_answer_looks_unsure(browser: Any, classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Classifier, "threshold", 0.9999)
    with ThreadServer(classifier) as server:
        page = browser.new_page()
        page.goto(server.address)
        wait_for_model(page)
        add_files(page, ("a.png", png()))
        wait_for_answers(page, 1)
        name = classifier.predict(png()).name
        lines = page.locator(".headline").inner_text().splitlines()
        assert lines == [EN["unsure"], EN["unsure_of"].format(name=name)]
        assert color_of_first_bar(page) == variable(page, "--alert")
        page.close()


def alter_answers(page: Any, **changes: Any) -> None:
    """The answers of the server to this page, with `changes`."""

    def respond(route: Any) -> None:
        response = route.fetch()
        body = response.json()
        body["predictions"][0] |= changes
        route.fulfill(response=response, json=body)

    page.route("**/predict*", respond)


def test_the_percentages_of_an_unknown_image_are_no_verdict(open_page: Open, classifier: Classifier):
    """Beside "none of these", 99 % of a class would be read as the certainty of that."""
    page = wait_for_model(open_page())
    alter_answers(page, unknown=True)
    add_files(page, ("a.png", png()))
    wait_for_answers(page, 1)
    best = classifier.predict(png())
    assert page.locator(".headline b").inner_text() == EN["unknown"]
    assert EN["unknown_note"] in page.locator(".content").inner_text()
    assert color_of_first_bar(page) == variable(page, "--accent-light")
    cells = page.locator("#rows td").all_inner_texts()
    assert cells == [EN["unknown"], "", f"{best.name} {typeset_percent(best.probability, 1)}"]


@pytest.mark.parametrize("width", [390, 768])
def test_names_of_similar_images_are_whole_words(open_page: Open, width: int):
    page = wait_for_model(open_page(viewport={"width": width, "height": 844}))
    similar = {"name": "hippeastrum", "path": "a.jpg", "thumbnail": "data:,", "similarity": 0.9}
    alter_answers(page, like=[similar] * 5)
    add_files(page, ("image_04173.jpg", png()))
    wait_for_answers(page, 1)
    page.get_by_role("button", name=EN["heat"]).click()
    page.locator(".image img").wait_for()
    assert page.locator(".similar li").count() == 5
    assert broken_words(page, ".similar .small, #rows th", 24) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def color_of_first_bar(page: Any) -> str:
    return page.locator(".bars .track i").first.evaluate("bar => getComputedStyle(bar).backgroundColor")


def variable(page: Any, name: str) -> str:
    """A color of the theme as the browser computes it."""
    return page.evaluate(
        "name => { const probe = document.body.appendChild(document.createElement('i'));"
        " probe.style.color = `var(${name})`; const color = getComputedStyle(probe).color;"
        " probe.remove(); return color; }",
        name,
    )


def test_a_sure_answer_has_the_color_of_the_page(open_page: Open):
    page = wait_for_model(open_page())
    add_files(page, ("a.png", png()))
    wait_for_answers(page, 1)
    assert page.locator(".answer.answered").count() == 1
    assert color_of_first_bar(page) == variable(page, "--accent") != variable(page, "--alert")
    page.close()


def test_an_empty_heat_map_is_called_empty(open_page: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Explanation, "empty", True)
    page = wait_for_model(open_page())
    add_files(page, ("a.png", png()))
    wait_for_answers(page, 1)
    page.get_by_role("button", name=EN["heat"]).click()
    page.get_by_text("the heat map is empty").wait_for()
    page.close()


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_facts_and_figures_of_the_model_fit_a_phone(open_page: Open, locale: str):
    figures = {"n": 18_000, "correct": 17_951, "accuracy": 0.9973, "accuracy_ci95": [0.9964, 0.998]}

    network = {"network": "timm/tf_efficientnet_lite0"}

    def with_figures(route: Any) -> None:
        model = route.fetch()
        route.fulfill(response=model, json={**model.json(), "metrics": {"valid": figures, "test": figures}, **network})

    page = open_page(viewport=PHONE, locale=locale)
    page.route("**/model", with_figures)
    page.reload()
    wait_for_model(page).eval_on_selector_all("#model details", "all => all.forEach(e => { e.open = true; })")
    assert page.locator("#figures tbody tr").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert broken_words(page, "#facts dd", 24) == []
    gap = "all => all[1].getBoundingClientRect().top - all[0].getBoundingClientRect().bottom"
    assert page.eval_on_selector_all("#model details", gap) >= 8


@pytest.mark.parametrize(("locale", "texts"), [("en", EN), ("zh-CN", ZH)])
def test_a_model_that_was_stopped_says_so(open_page: Open, locale: str, texts: dict[str, str]):
    page = open_page(locale=locale)
    assert texts["unfinished"] not in wait_for_model(page).locator("#lead").inner_text()

    def stopped(route: Any) -> None:
        model = route.fetch()
        route.fulfill(response=model, json={**model.json(), "unfinished": True})

    page.route("**/model", stopped)
    page.reload()
    assert texts["unfinished"] in wait_for_model(page).locator("#lead").inner_text()


def test_the_page_is_small(open_page: Open):
    page = wait_for_model(open_page())
    sizes = page.evaluate("performance.getEntriesByType('resource').map(e => e.transferSize)")
    start = page.evaluate("performance.getEntriesByType('navigation')[0].transferSize")
    assert len(sizes) >= 7
    assert start + sum(sizes) < 100_000


def test_the_documentation_loads_nothing_from_elsewhere(open_page: Open, server: ThreadServer):
    page = open_page(f"{server.address}/docs")
    assert page.locator("h2 code").all_inner_texts()[:2] == ["POST /predict", "GET /model"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
