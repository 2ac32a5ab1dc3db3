"""The page in a real browser: Debian's Chromium, driven by Playwright, against a server on a loopback port."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Threaded, png, write_model_with_opinions

from linnaeus.inference.classifier import Classifier, load
from linnaeus.serve.limits import Limits
from linnaeus.serve.pages import words

pytestmark = pytest.mark.long

EN, ZH = words()["en"], words()["zh"]
EVIL = '=HYPERLINK("http://evil","x"),<img src=x onerror=alert(1)>.png'
PHONE = {"width": 390, "height": 844}
READABLE = 4.5  # contrast of text (WCAG 2.2, 1.4.3)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(write_model_with_opinions(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def server(classifier: Classifier) -> Iterator[Threaded]:
    with Threaded(classifier, Limits(request_bytes=20_000), report="<h1>the report</h1>") as found:
        yield found


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, server: Threaded) -> Iterator[Open]:
    """open_page(**options of a browser context) -> the page; at the end nothing came from elsewhere, or complained."""
    contexts, said, fetched, addresses = [], [], [], {server.address}

    def refuse(dialog: Any) -> None:
        said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def open_one(address: str = server.address, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        addresses.add(address)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", refuse)
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(address)
        return page

    yield open_one
    for context in contexts:
        context.close()
    # Chromium itself notes every answer that is an error, and every request that fails.
    assert [each for each in said if not each.startswith("Failed to load resource")] == []
    there = tuple(f"{address}/" for address in addresses)
    assert [url for url in fetched if not url.startswith((*there, "data:", "blob:"))] == []


def known(page: Any) -> Any:
    """The page, once it knows the model."""
    page.locator("#model").wait_for()
    return page


def give(page: Any, *files: tuple[str, bytes]) -> None:
    page.set_input_files("#files", [{"name": n, "mimeType": "image/png", "buffer": data} for n, data in files])


def answered(page: Any, n: int) -> Any:
    """All answers, once there are n of them, failed ones too."""
    done = page.locator(".answer.answered, .answer.unsure, .answer.failed")
    done.nth(n - 1).wait_for()
    return done


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


def test_chosen_pasted_and_dropped_images_are_answered_as_by_predict(open_page: Open, classifier: Classifier):
    page = known(open_page())
    images = [png(seed, seed % 3) for seed in range(4)]
    give(page, ("a.png", images[0]), ("b.png", images[1]))
    answered(page, 2)
    page.evaluate(PASTE, ["image.png", list(images[2])])
    answered(page, 3)
    page.evaluate(DROP, ["d.png", list(images[3])])
    answered(page, 4)
    names = page.locator(".path span").all_inner_texts()
    assert names == ["d.png", "clipboard-1.png", "a.png", "b.png"], "the newest first"
    expected = [classifier.predict(images[i]) for i in (3, 2, 0, 1)]
    assert page.locator(".headline b").all_inner_texts() == [each.name for each in expected]
    shares = page.locator(".bars li:first-child .number").all_inner_texts()
    assert shares == [f"{each.probability:.1%}" for each in expected]
    assert page.locator(".answer").first.locator(".bars li").count() == 3
    widths = page.eval_on_selector_all(".track i", "all => all.map(e => parseFloat(e.style.width))")
    assert widths[:3] == pytest.approx([100 * p for _, p in expected[0].top(3)], abs=0.01)
    assert "over" not in (page.locator("body").get_attribute("class") or "")


def test_a_broken_and_a_huge_file_are_said_and_the_rest_answered(open_page: Open):
    page = known(open_page())
    give(page, ("good.png", png()), ("broken.png", png()[:80]), ("huge.png", bytes(30_000)), ("text.png", b"text"))
    answered(page, 4)
    failed = page.locator(".answer.failed .wrong-word").all_inner_texts()
    assert len(failed) == 3
    assert "truncated" in failed[0] or "cut short" in failed[0]
    assert failed[1] == EN["too_large"].format(size="30 KiB", most="20 KiB"), "without asking the server"
    assert failed[2] == "not an image, or in an unsupported format"
    assert page.locator("#progress").inner_text() == "1 of 4 answered, 3 failed"


def test_the_table_is_copied_and_downloaded_without_harm(open_page: Open, classifier: Classifier):
    page = known(open_page(permissions=["clipboard-read", "clipboard-write"]))
    give(page, (EVIL, png(1)), ('a "quoted", name.png', png(2)), ("broken.png", b"no"))
    answered(page, 3)
    with page.expect_download() as download:
        page.locator("#csv").click()
    assert download.value.suggested_filename == "predictions.csv"
    raw = Path(download.value.path()).read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf"), "or a spreadsheet takes it for something else than UTF-8"
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"))))
    assert [each["path"] for each in rows] == [f"'{EVIL}", 'a "quoted", name.png', "broken.png"]
    best = classifier.predict(png(1))
    assert (rows[0]["name_1"], rows[0]["probability_1"]) == (best.name, f"{best.probability:.6f}")
    assert rows[2]["error"] == "not an image, or in an unsupported format"
    page.locator("#copy").click()
    page.get_by_role("button", name=EN["copied"]).wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["path", f"'{EVIL}", 'a "quoted", name.png', "broken.png"]


def test_the_heat_map_comes_and_goes(open_page: Open):
    page = known(open_page())
    give(page, ("a.png", png()))
    answered(page, 1)
    button = page.get_by_role("button", name=EN["heat"])
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    page.keyboard.press("Enter")
    page.locator(".image img").wait_for()
    assert page.locator(".image img").evaluate("e => e.complete && e.naturalWidth") == 28
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.act") == "heat", "the focus stays where it was"
    page.keyboard.press("Space")
    page.locator(".image canvas").wait_for()
    assert page.locator(".image img").count() == 0


def test_many_files_are_asked_a_few_at_a_time(open_page: Open):
    page = known(open_page())
    flying, most = set(), [0]

    def started(request: Any) -> None:
        flying.add(request)
        most[0] = max(most[0], len(flying))

    page.on("request", started)
    page.on("requestfinished", lambda request: flying.discard(request))
    give(page, *[(f"{i}.png", png(i)) for i in range(40)])
    answered(page, 40)
    assert 1 < most[0] <= 4
    assert page.locator("#progress").inner_text() == "40 of 40 answered"
    page.get_by_role("button", name=EN["clear"]).click()
    assert page.locator(".answer").count() == 0
    assert not page.locator("#all").is_visible()


def test_a_server_that_goes_is_missed_and_found_again(browser: Any, classifier: Classifier):
    service = Threaded(classifier)
    with service:
        page = browser.new_page()
        page.goto(service.address)
        known(page)
    give(page, ("a.png", png(1)), ("b.png", png(2)))
    page.locator("#trouble").wait_for()
    assert "cannot be reached" in page.locator("#trouble").inner_text()
    assert page.locator("#trouble").get_attribute("role") == "alert"
    page.wait_for_timeout(2500)
    assert page.locator(".answer.failed").count() == 0, "it waits, and forgets nothing"
    with Threaded(classifier, port=service.port):
        page.get_by_role("button", name=EN["now"]).click()
        answered(page, 2)
        assert not page.locator("#trouble").is_visible()
    page.close()


def test_a_full_server_is_asked_again(browser: Any, classifier: Classifier):
    with Threaded(classifier, Limits(queue=2, images=2)) as server:
        page = browser.new_page()
        page.goto(server.address)
        known(page)
        with server.server.service.batcher.room(2):
            give(page, ("a.png", png(1)))
            page.get_by_text("busy").wait_for()
        answered(page, 1)
        assert page.locator(".answer.failed").count() == 0
        page.close()


def test_the_language_switches_and_stays(open_page: Open):
    page = known(open_page(locale="en-US"))
    give(page, ("a.png", png()))
    answered(page, 1)
    page.locator("#language").click()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("#drop-h").inner_text() == ZH["drop"]
    assert page.get_by_role("button", name=ZH["heat"]).count() == 1, "answers speak it too"
    assert ZH["lead_plain"].format(classes=3) in page.locator("#lead").inner_text()
    page.reload()
    assert known(page).locator("#drop-h").inner_text() == ZH["drop"]
    other = known(open_page(locale="zh-CN"))
    assert other.locator("#drop-h").inner_text() == ZH["drop"], "as the browser asks"
    other.locator("#language").click()
    assert other.locator("#drop-h").inner_text() == EN["drop"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(open_page: Open, scheme: str):
    page = known(open_page(color_scheme=scheme))
    give(page, ("a.png", png()), ("b.png", b"broken"))
    answered(page, 2)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 60) == (scheme == "dark")
    for selector in (
        "#lead",
        ".kicker",
        ".headline b",
        ".bars li:last-child",
        ".wrong-word",
        ".facts dt",
        "#drop .small",
    ):
        assert contrast(page, selector) >= READABLE, selector
    assert contrast(page, "button.primary", "button.primary") >= READABLE


def contrast(page: Any, selector: str, on: str = "body") -> float:
    """Between the text of the first such element and the ground of another (WCAG 2.2, contrast ratio)."""
    colors = page.evaluate(
        "([s, on]) => [getComputedStyle(document.querySelector(s)).color, "
        "getComputedStyle(document.querySelector(on)).backgroundColor]",
        [selector, on],
    )
    lights = []
    for color in colors:
        channels = [float(v) / 255 for v in color[color.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        lights.append(0.2126 * r + 0.7152 * g + 0.0722 * b)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_a_phone_scrolls_in_one_direction_and_offers_its_camera(open_page: Open):
    page = known(open_page(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True))
    give(page, ("a name that is longer than a phone is wide, or nearly so, and has_no_blanks_at_its_end.png", png()))
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.get_by_role("button", name=EN["photograph"]).is_visible()
    assert page.locator("#camera").get_attribute("capture") == "environment"
    small = page.eval_on_selector_all(
        "button",
        "all => all.filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.textContent)",
    )
    assert small == [], "a target is at least 24 pixels high (WCAG 2.2, 2.5.8)"
    assert not known(open_page()).get_by_role("button", name=EN["photograph"]).is_visible()


def test_it_can_be_read_by_ear_and_used_by_keyboard(open_page: Open):
    page = known(open_page())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == EN["skip"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.locator("#choose:focus").wait_for()
    with page.expect_file_chooser() as chooser:
        page.wait_for_timeout(300)  # until the browser knows that somebody waits for it
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "a.png", "mimeType": "image/png", "buffer": png()}])
    answered(page, 1)
    name = page.locator(".headline b").inner_text()
    page.locator("#live", has_text=f"a.png: {name}").wait_for(state="attached")
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    nameless = page.eval_on_selector_all(
        "button, [role=img], img, [tabindex]",
        "all => all.filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') "
        "|| e.textContent.trim() || e.alt)).map(e => e.outerHTML)",
    )
    assert nameless == []
    page.get_by_role("button", name=EN["remove"].format(path="a.png")).press("Enter")
    assert page.locator(".answer").count() == 0


def test_the_token_is_asked_for_once(browser: Any, classifier: Classifier):
    with Threaded(classifier, token="geheim", report="<h1>the report</h1>") as server:
        page = browser.new_page()
        page.goto(server.address)
        dialog = page.get_by_role("dialog", name=EN["token_title"])
        dialog.wait_for()
        assert "tiny" not in page.content()
        for token, done in (("falsch", False), ("geheim", True)):
            page.get_by_role("textbox", name=EN["token_label"]).fill(token)
            page.keyboard.press("Enter")
            if done:
                dialog.wait_for(state="hidden")
            else:
                page.get_by_text(EN["token_wrong"]).wait_for()
        known(page)
        give(page, ("a.png", png()))
        answered(page, 1)
        page.reload()
        known(page)
        page.locator("#report").click()
        assert page.get_by_role("heading", name="the report").is_visible(), "links work too"
        page.close()


def test_an_unsure_answer_looks_unsure(browser: Any, classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Classifier, "threshold", 0.9999)
    with Threaded(classifier) as server:
        page = browser.new_page()
        page.goto(server.address)
        known(page)
        give(page, ("a.png", png()))
        answered(page, 1)
        name = classifier.predict(png()).name
        said = page.locator(".headline").inner_text().splitlines()
        assert said == [EN["unsure"], EN["unsure_of"].format(name=name)]
        page.close()


def test_it_is_light(open_page: Open):
    page = known(open_page())
    sizes = page.evaluate("performance.getEntriesByType('resource').map(e => e.transferSize)")
    start = page.evaluate("performance.getEntriesByType('navigation')[0].transferSize")
    assert len(sizes) >= 7
    assert start + sum(sizes) < 100_000


def test_the_documentation_needs_no_network(open_page: Open, server: Threaded):
    page = open_page(f"{server.address}/docs")
    assert page.locator("h2 code").all_inner_texts()[:2] == ["POST /predict", "GET /model"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
