"""The labelling page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from labelling import new_server, photos
from tiny import write_images, write_tiny_model
from watching import Watcher
from wcag import contrast

import linnaeus
from linnaeus.console import Console
from linnaeus.label.backbone import of_run
from linnaeus.label.page import FOLDER
from linnaeus.label.server import Server
from linnaeus.serve.server import bind

pytestmark = pytest.mark.long

TEXTS = json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))
EN, ZH = TEXTS["en"], TEXTS["zh"]
WIDTHS = (390, 768, 1280)
MIN_CONTRAST = 4.5  # of text (WCAG 2.2, 1.4.3)
EVIL = "<img src=x onerror=alert(1)>"


class Running:
    """A labelling server of a folder in a thread of this process."""

    def __init__(self, folder: Path, port: int = 0, token: str | None = None, model: Path | None = None):
        self.label = new_server(folder, backbone=None if model is None else of_run(model, "cpu"))
        self.server = Server(self.label, bind("127.0.0.1", port), Console(silent=True), token)
        self.address, self.port = self.server.address, self.server.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_until_stopped)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server could not start"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)


Start = Callable[..., Running]
Open = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(folder) -> a running server, which is stopped at the end."""
    running: list[Running] = []

    def start_one(*arguments: Any, **options: Any) -> Running:
        running.append(Running(*arguments, **options))
        return running[-1]

    yield start_one
    for server in running:
        server.stop()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """open_page(address, **options of a browser context) -> the page; no script may fail, nothing leave the server."""
    watcher, addresses = Watcher(browser), set[str]()

    def open_one(address: str, context: Any = None, **options: Any) -> Any:
        addresses.add(address.split("#")[0].rstrip("/") + "/")
        return watcher.open(address, context, **options)

    yield open_one
    watcher.close()
    assert watcher.script_messages() == []
    assert watcher.urls_outside(*addresses, "data:") == []


def path_of(page: Any) -> str:
    """The path of the image that is asked about, once it can be seen."""
    page.locator("#single:not(.pending) #image").wait_for()
    return page.locator("#image").get_attribute("alt")


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript condition; an expression would need eval, which the policy of the page forbids."""
    page.wait_for_function(f"() => {condition}")


def wait_for_next(page: Any, path: str) -> None:
    page.wait_for_function("old => document.getElementById('image').alt !== old", arg=path)


def answer(page: Any, name: str | None = None) -> str:
    """Answer the question by keyboard with a class, by default the right one. Returns the path of its image."""
    path = path_of(page)
    name = name or path.split()[0]
    button = page.locator(f'.class[data-name="{name}"]')
    if button.count():
        page.keyboard.press(button.get_attribute("aria-keyshortcuts"))
    else:
        page.keyboard.press("n")
        page.locator("#name").fill(name)
        page.keyboard.press("Enter")
    wait_for_next(page, path)
    return path


def ready(page: Any) -> Any:
    """The page, with a question, the focus outside of the text field."""
    path_of(page)
    until(page, "app.state !== null")
    page.evaluate("document.activeElement.blur()")
    return page


def sent(page: Any) -> None:
    """Wait until the server has all answers."""
    until(page, "outbox.entries.length === 0")


def answer_reserved(running: Running) -> None:
    """Label the images that accuracy is measured on, from their names."""
    session = running.label.session
    for i in session.learner.audit.reserved:
        session.answer([i], session.features.paths[i].split()[0])


def whole(share: float) -> str:
    return f"{int(100 * share + 0.5)}\u202f%"


def rows(folder: Path, name: str = "labels.csv") -> dict[str, str]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def test_images_are_labelled_by_keyboard_while_the_figures_follow(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    folder = photos(tmp_path / "photos", each=40)
    running = start(folder)
    page = ready(open_page(running.address))
    assert page.locator("#too-few .few").inner_text() == EN["too_few_title"]
    for _ in range(30):
        random = page.evaluate("current().reason") == "random"
        shown = page.eval_on_selector_all(".guess", "all => all.some((bar) => parseFloat(bar.style.width) > 0)")
        assert not (random and shown), "the guess about a random question is hidden"
        answer(page)
    sent(page)
    labels = rows(folder)
    assert len(labels) == 30
    assert all(path.split()[0] == label for path, label in labels.items())
    until(page, "app.state.labelled === 30")
    assert page.locator("#labelled").inner_text() == "30 of 120 labelled"
    counts = page.locator(".class .n").all_inner_texts()
    names = page.evaluate("app.state.classes.map((c) => c.name)")
    assert counts == [str(sum(label == name for label in labels.values())) for name in names]
    answer_reserved(running)
    until(page, "app.state.accuracy !== null")
    answer(page)
    until(page, "app.state.course.length > 1")
    state = page.evaluate("app.state")
    assert page.locator("#accuracy-value").inner_text() == whole(state["accuracy"]["accuracy"])
    low, high = state["accuracy"]["ci95"]
    assert page.locator("#accuracy-interval").inner_text() == f"{whole(low)} to {whole(high)}"
    assert str(state["accuracy"]["n"]) in page.locator("#accuracy-n").inner_text()
    assert page.locator("#chart polyline").count() == 1


def test_answers_are_undone_skipped_unknown_and_of_new_classes(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=6)
    page = ready(open_page(start(folder).address))
    first = answer(page, "a")
    sent(page)
    assert rows(folder) == {first: "a"}
    page.keyboard.press("Backspace")
    page.locator(f'#image[alt="{first}"]').wait_for()
    sent(page)
    assert rows(folder) == {}
    page.keyboard.press("0")
    wait_for_next(page, first)
    skipped = path_of(page)
    page.keyboard.press("Space")
    wait_for_next(page, skipped)
    named = answer(page, "  Tulip   de luxe ".strip())
    again = answer(page, "b")
    sent(page)
    assert rows(folder) == {named: "Tulip de luxe", again: "b"}
    assert rows(folder, "labels-unknown.csv") == {first: "unknown"}
    until(page, "[...document.querySelectorAll('.class .name')].map((e) => e.textContent).join() === 'Tulip de luxe,b'")
    page.keyboard.press("n")
    page.locator("#name").fill("TULIP DE LUXE")  # of a class that exists
    other = path_of(page)
    page.keyboard.press("Enter")
    wait_for_next(page, other)
    sent(page)
    assert rows(folder)[other] == "Tulip de luxe"
    assert page.locator("#live").inner_text() == f"{other}: Tulip de luxe."


def test_alike_images_are_answered_at_once_without_the_deselected(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    folder = photos(tmp_path / "photos", each=9)
    page = ready(open_page(start(folder).address))
    for _ in range(3):
        answer(page)
    until(page, "app.state.features.done === app.state.images")
    sent(page)
    page.keyboard.press("g")
    page.locator(".tile").nth(11).wait_for()
    alike = page.evaluate("app.task.cards.filter((card) => card.same).map((card) => card.path)")
    assert 1 < len(alike) < 12
    chosen = [i.get_attribute("alt") for i in page.locator(".pick[aria-pressed=true] img").all()]
    assert chosen == alike
    page.keyboard.press("a")
    assert page.locator("#selected").inner_text() == "12 of 12 selected"
    left_out = page.locator(".tile img").nth(1).get_attribute("alt")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.locator("#selected").inner_text() == "11 of 12 selected"
    chosen = [i.get_attribute("alt") for i in page.locator(".pick[aria-pressed=true] img").all()]
    page.keyboard.press("1")
    path_of(page)
    sent(page)
    labels = rows(folder)
    assert len(labels) == 14
    assert left_out not in labels
    name = page.evaluate("app.state.classes[0].name")
    assert {labels[path] for path in chosen} == {name}
    with page.expect_response("**/api/undo"):
        page.keyboard.press("Control+z")
    assert len(rows(folder)) == 3
    until(page, "app.state.labelled === 3")


def test_a_key_does_nothing_while_its_image_cannot_be_seen(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=4)
    page = ready(open_page(start(folder).address))
    page.route("**/image/**", lambda route: None)
    first = answer(page, "a")
    page.locator("#single.pending").wait_for(state="attached")
    second = page.locator("#image").get_attribute("alt")
    for _ in range(3):
        page.keyboard.press("1")
    sent(page)
    assert rows(folder) == {first: "a"}
    page.unroute("**/image/**")  # which lets the requests go on
    assert path_of(page) == second
    answer(page, "a")
    sent(page)
    assert rows(folder) == {first: "a", second: "a"}


def test_a_label_is_corrected_and_removed_in_the_grid_of_its_class(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    folder = photos(tmp_path / "photos", each=4)
    page = ready(open_page(start(folder).address))
    paths = [answer(page, "a"), answer(page, "a"), answer(page, "b")]
    sent(page)
    until(page, "app.state.labelled === 3")
    page.locator("#rows button", has_text=re.compile("^a$")).click()
    page.locator(".tile").nth(1).wait_for()
    assert page.locator("#selected").inner_text() == "0 of 2 selected"
    page.locator(f'.tile img[alt="{paths[0]}"]').click()
    page.locator('.class[data-name="b"]').click()
    page.locator(f'.tile img[alt="{paths[1]}"]').click()
    page.keyboard.press("Delete")
    sent(page)
    assert rows(folder) == {paths[0]: "b", paths[2]: "b"}


def test_answers_given_without_a_server_are_kept_and_sent_later(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=8)
    running = start(folder)
    page = ready(open_page(running.address))
    before = answer(page)
    sent(page)
    until(page, "questions.length === 3")
    running.stop()
    offline = [answer(page, "x"), answer(page, "y")]
    page.locator("#offline").wait_for()
    until(page, "document.getElementById('offline').textContent.includes('2')")
    assert page.locator("#offline").inner_text() == EN["offline"].format(n=2)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith(OUTBOX_KEY)).length") == 2
    page.close()  # the answers are in the storage of the browser, not in the page
    write_images(folder / "0 new", ("c",), 3)  # the numbers of all images change
    again = open_page(start(folder, running.port).address, page.context)
    path_of(again)
    sent(again)
    assert rows(folder) == {before: before.split()[0], offline[0]: "x", offline[1]: "y"}
    assert again.locator("#offline").is_hidden()


def test_answers_that_the_disk_has_no_room_for_are_kept_and_sent_later(
    tmp_path: Path, start: Start, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos")
    server = start(folder)
    page = open_page(server.address)

    def full(handle: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("linnaeus.label.journal._write_all", full)
        kept = [answer(page, "x"), answer(page, "y")]
        until(page, "document.getElementById('offline').textContent.startsWith('2 answers are kept in this browser')")
        assert "no space left on the disk" in page.locator("#offline").inner_text()
        assert not (folder / "labels.csv").exists()
    page.locator("#offline").wait_for(state="hidden")
    assert rows(folder) == {kept[0]: "x", kept[1]: "y"}


def test_a_page_that_stays_open_over_a_restart_labels_the_image_that_it_shows(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    folder = photos(tmp_path / "photos", each=8)
    running = start(folder)
    page = ready(open_page(running.address))
    kept = answer(page, "a")
    sent(page)
    shown = path_of(page)
    running.stop()
    page.locator("#offline").wait_for()
    write_images(folder / "0 new", ("c",), 5)
    start(folder, running.port)
    page.locator("#offline").wait_for(state="hidden")
    assert path_of(page) == shown
    until(page, "questions.length === 3")
    later = [answer(page, "b"), answer(page, "a")]
    sent(page)
    assert rows(folder) == {kept: "a", shown: "b", later[1]: "a"}
    page.locator("#back").wait_for(state="hidden")


def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=8)
    port = bind("127.0.0.1", 0).getsockname()[1]

    def launch() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "linnaeus", "label", str(folder), "--backbone", "colors", "--port", str(port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LINNAEUS_CACHE": str(tmp_path / "cache")}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("labelling"):
                return process
        raise AssertionError("the server did not start")

    first = launch()
    page = ready(open_page(f"http://127.0.0.1:{port}"))
    paths = [answer(page) for _ in range(3)]
    sent(page)
    until(page, "questions.length === 3")
    first.send_signal(signal.SIGKILL)
    first.wait()
    paths.append(answer(page))
    second = launch()
    try:
        page.locator("#offline").wait_for(state="hidden")
        sent(page)
        paths.append(answer(page))
        sent(page)
        assert rows(folder) == {path: path.split()[0] for path in paths}
    finally:
        second.terminate()
        second.wait()


def test_a_batch_is_accepted_after_its_sample_was_verified(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=40)
    running = start(folder)
    answer_reserved(running)
    page = ready(open_page(running.address))
    for _ in range(24):
        answer(page)
    sent(page)
    before = len(rows(folder))
    until(page, f"app.state.accuracy && app.state.features.done === 120 && app.state.labelled === {before}")
    page.locator("#sure").select_option("0.95")
    page.locator("#go-batch").click()
    page.locator("#panel").wait_for()
    (n, *_) = map(int, re.findall(r"\d+", page.locator("#panel-title").inner_text()))
    assert n > 20
    (batch,) = running.label.session.batches.known.values()
    for language in (ZH, EN):  # the panel stays when the language is changed
        page.locator("#language").click()
        which = language["batch_these"].format(n=n)
        key = "batch_errors" if round(batch.errors()[0]) else "batch_errors_few"
        values = {"which": which, "expected": round(batch.errors()[0]), "most": batch.errors()[1]}
        assert language[key].format(**values) in page.locator("#panel-text").inner_text()
    page.locator("#panel-buttons button").first.focus()
    page.keyboard.press("Enter")
    page.locator("#keep").wait_for()
    for k in range(20):
        path = path_of(page)
        name = path.split()[0]
        if page.evaluate("current().label") == name:
            page.keyboard.press("Enter")
        else:
            page.locator(f'.class[data-name="{name}"]').click()
        if k < 19:
            wait_for_next(page, path)
    page.get_by_role("button", name=EN["batch_accept"].format(n=n - 20)).wait_for()
    assert EN["batch_others"].format(n=n - 20) in page.locator("#panel-text").inner_text()
    page.keyboard.press("Enter")
    until(page, f"app.state.labelled === {before + n}")
    with (folder / "labels.csv").open(newline="") as file:
        provenance = [row["provenance"] for row in csv.DictReader(file)]
    assert (provenance.count("human"), provenance.count("accepted")) == (before + 20, n - 20)
    page.keyboard.press("Backspace")
    until(page, f"app.state.labelled === {before + 20}")


def test_suspects_are_shown_again_and_leave_when_they_are_confirmed(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    running = start(photos(tmp_path / "photos", each=20))
    session = running.label.session
    images = [i for i in range(60) if i not in session.learner.audit.reserved]
    wrong = {"a": "b", "b": "c", "c": "a"}
    for k, i in enumerate(images):
        name = session.features.paths[i].split()[0]
        session.answer([i], wrong[name] if k in (0, 20) else name)
    page = ready(open_page(running.address))
    until(page, "app.state.suspects > 0 && app.state.features.done === app.state.images")
    page.wait_for_timeout(1500)  # the head has learned the last answers
    before = page.evaluate("app.state.suspects")
    page.locator("#go-suspects").click()
    page.locator("#keep").wait_for()
    label = page.evaluate("current().label")
    assert page.locator("#prompt").inner_text() == EN["suspect"].format(name=label)
    suggested = page.evaluate("current().suggested")
    assert page.locator(".class.proposed .name").inner_text() == suggested
    path_of(page)
    page.keyboard.press("Enter")
    until(page, f"app.state.suspects < {before}")


def test_the_answers_of_a_finished_model_are_reviewed(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=24)
    running = start(folder, model=write_tiny_model(tmp_path / "m.safetensors", classes=("a", "b", "c")))
    for name in "abc":
        running.label.session.add_class(name)
    page = ready(open_page(running.address))
    until(page, "app.state.features.done === 72 && app.state.reviews")
    page.reload()  # the first questions came before the features
    ready(page)
    kinds, expected = set(), {}
    for _ in range(9):
        path = path_of(page)
        card = page.evaluate("current()")
        kinds.add(card["reason"])
        if card["reason"] == "random":
            assert page.locator("#keep").is_hidden()
            assert page.locator(".class.proposed").count() == 0
            expected[path] = answer(page).split()[0]
            continue
        said = card["guesses"][0][0]
        assert page.locator("#prompt").inner_text() == EN["verify"].format(name=said)
        assert page.locator(".class.proposed .name").inner_text() == said
        assert page.locator("#keep").inner_text().endswith(EN["yes"].format(name=said))
        page.keyboard.press("Enter")
        expected[path] = said
        wait_for_next(page, path)
    sent(page)
    assert "random" in kinds
    assert len(kinds) > 1
    assert rows(folder) == expected
    answer_reserved(running)
    page.locator("#accuracy-h", has_text=EN["accuracy_model"]).wait_for()
    until(page, "app.state.accuracy !== null")
    n = page.evaluate("app.state.accuracy.n")
    correct = page.evaluate("app.state.accuracy.correct")
    until(page, "document.getElementById('accuracy-n').textContent !== ''")
    stated, measured = page.locator("#accuracy-n").inner_text(), page.evaluate("app.state.accuracy")
    assert stated.startswith(EN["accuracy_n_model"].format(correct=correct, n=n))
    # Said exactly where always answering the most frequent class might be as good.
    assert measured["no_better"] == (EN["no_better"].partition("{")[0] in stated)


def test_a_group_of_images_far_from_all_classes_is_named_at_once(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=20)
    running = start(folder)
    page = ready(open_page(running.address))
    known = [i for i, path in enumerate(running.label.session.features.paths) if path[0] in "ab"]
    for name in "ab":
        images = [i for i in known if running.label.session.features.paths[i][0] == name]
        running.label.session.answer(images, name)
    page.locator("#go-group").click()
    page.locator(".tile").nth(3).wait_for()
    n = page.locator(".tile").count()
    assert page.locator("#prompt").inner_text() == EN["group_title"].format(n=n)
    page.keyboard.type("c")
    page.keyboard.press("Enter")
    path_of(page)
    sent(page)
    assert list(rows(folder).values()).count("c") == n
    assert {path[0] for path, label in rows(folder).items() if label == "c"} == {"c"}


def test_skipped_images_can_be_answered_when_nothing_else_is_left(
    tmp_path: Path, start: Start, open_page: Open
) -> None:
    folder = photos(tmp_path / "photos", each=2, classes=("a", "b"))
    page = ready(open_page(start(folder).address))
    skipped = path_of(page)
    page.keyboard.press("Space")
    wait_for_next(page, skipped)
    for k in range(3):
        path = path_of(page)
        answer(page) if k < 2 else page.keyboard.press("1")
    page.locator("#show-skipped").click()
    page.locator(f'.tile img[alt="{skipped}"]').click()
    page.keyboard.press("1")
    page.locator("#nothing-text", has_text=EN["all_done"]).wait_for()
    sent(page)
    assert set(rows(folder)) == {"a 0.png", "a 1.png", "b 0.png", "b 1.png"}
    assert path in rows(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_scrolls_vertically_only_and_texts_have_contrast(
    tmp_path: Path, start: Start, open_page: Open, scheme: str
) -> None:
    folder = photos(
        tmp_path / "photos", each=4, classes=("a", "a class with a name that is wider than a phone is", "c")
    )
    address = start(folder).address
    for width in WIDTHS:
        page = ready(open_page(address, viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=True))
        for _ in range(3):
            answer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        path = path_of(page)
        page.locator(".class").first.tap()
        wait_for_next(page, path)
        page.locator("#undo").tap()
        page.wait_for_function("old => document.getElementById('image').alt === old", arg=path)
        sent(page)
        for selector, on in (
            ("h1", "body"),
            (".small", "body"),
            ("aside .small", "aside"),
            ("button.primary", "button.primary"),
        ):
            assert contrast(page, selector, on) >= MIN_CONTRAST, (selector, width)


def test_a_review_on_a_phone_begins_with_its_question(tmp_path: Path, start: Start, open_page: Open) -> None:
    running = start(photos(tmp_path / "photos", each=30))
    for i in range(0, 90, 3):  # a third of them wrong
        running.label.session.answer([i], "a" if i % 9 else "b")
    page = ready(open_page(running.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
    until(page, "app.state.suspects > 0")
    page.locator("#go-suspects").tap()
    until(page, "app.task.name === 'suspects'")
    assert page.locator("#prompt").bounding_box()["y"] >= 0


def test_on_a_phone_the_actions_stay_at_the_bottom(tmp_path: Path, start: Start, open_page: Open) -> None:
    """Under the thumb, whether there are no classes yet or many."""
    running = start(photos(tmp_path / "photos", each=3))
    for n in (0, 12):
        for i in range(n):
            running.label.session.add_class(f"class {i}")
        page = ready(open_page(running.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
        until(page, f"document.querySelectorAll('.class').length === {n}")
        actions = page.locator("#actions").bounding_box()
        assert 844 - 60 <= actions["y"] + actions["height"] <= 844


def test_what_could_be_accepted_follows_the_probability(tmp_path: Path, start: Start, open_page: Open) -> None:
    running = start(photos(tmp_path / "photos", each=20))
    answer_reserved(running)
    for i in range(0, 60, 3):  # of all classes, for the head to learn from
        running.label.session.answer([i], running.label.session.features.paths[i].split()[0])
    page = open_page(running.address)

    def answer_state(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"sure_at": sure})

    sure = {"0.95": 7, "0.98": 1, "0.99": 0, "0.999": 0}
    assert running.label.session.view.sure.keys() == {float(level) for level in sure}
    page.route("**/api/state", answer_state)
    ready(page)
    until(page, "app.state.accuracy !== null && app.state.sure_at['0.95'] === 7")
    for level, n in (("0.99", 0), ("0.95", 7), ("0.98", 1)):
        page.locator("#sure").select_option(level)
        key = "batch_n_1" if n == 1 else "batch_n"
        assert page.locator("#batch-text").inner_text() == EN[key].format(n=n)
        assert page.locator("#go-batch").is_disabled() == (n == 0)


WORDS_ON_SEVERAL_LINES = """selector => [...document.querySelectorAll(selector)].flatMap((place) => {
  const cut = [];
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    for (const { index, 0: word } of text.data.matchAll(/[^ _-]+/g)) {
      const range = new Range();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      const { right } = place.getBoundingClientRect();
      const boxes = [...range.getClientRects()];
      if (new Set(boxes.map(({ top }) => top)).size > 1 || boxes.some((box) => box.right > right + 1)) cut.push(word);
    }
  }
  return cut;
})"""


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_word_of_a_class_name_is_cut(tmp_path: Path, start: Start, open_page: Open, width: int) -> None:
    running = start(photos(tmp_path / "photos", each=3))
    names = ["Vergissmeinnicht", "internationalization of soup", "chimpanzee_with_a_banana", "a", "Löwenzahn", "蒲公英"]
    for name in (*names, "Donaudampfschifffahrtsgesellschaft"):
        running.label.session.add_class(name)
    running.label.session.answer([0], "Vergissmeinnicht")
    page = ready(open_page(running.address, viewport={"width": width, "height": 844}, has_touch=width < 800))
    until(page, "document.querySelectorAll('.class').length === 7")
    assert page.evaluate(WORDS_ON_SEVERAL_LINES, ".class .name") == []
    assert page.evaluate(WORDS_ON_SEVERAL_LINES, "#rows button:not(.full)") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_speaks_both_languages_and_names_are_never_html(tmp_path: Path, start: Start, open_page: Open) -> None:
    folder = photos(tmp_path / "photos", each=4)
    (folder / "a 0.png").rename(folder / f"{EVIL}.png".replace("/", "_"))
    page = ready(open_page(start(folder).address, locale="zh-CN"))
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("#prompt").inner_text() == ZH["which"]
    for _ in range(11):
        answer(page, EVIL if path_of(page).startswith("<") else None)
    page.locator("#language").click()
    assert page.locator("#open-finish").inner_text() == EN["finish"]
    page.keyboard.press("Escape")
    assert page.locator("main img[src=x]").count() == 0
    page.reload()
    assert page.locator("#open-finish").inner_text() == EN["finish"], "the choice is kept"


def test_finish_says_what_is_missing_and_help_shows_the_keys(tmp_path: Path, start: Start, open_page: Open) -> None:
    page = ready(open_page(start(photos(tmp_path / "photos", each=4)).address))
    answer(page)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.locator("#keys").uncheck()
    page.keyboard.press("Escape")
    path = path_of(page)
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert path_of(page) == path, "single keys are switched off"
    assert page.locator("#too-few-text").inner_text() == EN["too_small"].format(enough=20), "12 images"
    page.locator("#open-finish").click()
    assert EN["finish_few"].format(n=1, of=12) in page.locator("#finish-text").inner_text()
    page.locator("#train").click()
    page.locator("#finish-error", has_text="training needs two classes").wait_for()


def test_long_lines_of_a_training_are_readable_without_scrolling(tmp_path: Path, start: Start, open_page: Open) -> None:
    page = ready(open_page(start(photos(tmp_path / "photos", each=4)).address))
    page.locator("#open-finish").click()
    scrolls = """() => {
      const log = document.getElementById("finish-lines");
      log.hidden = false;
      log.textContent = "valid 96.5 % ".repeat(40);
      return log.scrollWidth > log.clientWidth;
    }"""
    assert not page.evaluate(scrolls)


def test_finish_writes_a_run_that_the_commands_on_the_page_work_with(
    tmp_path: Path, start: Start, open_page: Open, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is that of a small model for gray images; nothing else is replaced but the servers' loops."""
    folder = photos(tmp_path / "photos", each=24)
    running = start(folder, model=write_tiny_model(tmp_path / "small.safetensors", classes=("a", "b", "c")))
    session = running.label.session
    answer_reserved(running)
    for i in range(66):
        session.answer([i], session.features.paths[i].split()[0])
    left = [path for path in session.features.paths if path not in session.labels]
    page = ready(open_page(running.address))
    page.locator("#open-finish").click()
    page.locator("#train").click()
    until(page, "app.state.finish.running")
    assert page.locator("#train").is_disabled()
    page.locator("#finish-done").wait_for(timeout=300_000)
    assert page.locator("#finish-error").inner_text() == ""
    shown = page.locator("#finish-commands code").all_inner_texts()
    run = tmp_path / "runs" / "label-1"
    assert page.locator("#finish-run").inner_text() == EN["finished"].format(run=run)
    assert {"model.safetensors", "report.html", "metrics.json", "recipe.toml"} <= {file.name for file in run.iterdir()}
    model = linnaeus.load(run)
    assert model.classes == ("a", "b", "c")
    assert model.predict(folder / left[0]).top(1)[0][0] in "abc"
    served: list[Any] = []
    monkeypatch.setattr("linnaeus.serve.server.serve", lambda service, *others: served.append(service))
    monkeypatch.setattr("linnaeus.label.server.serve", lambda server, listener, *others: served.append(server))
    commands = [shlex.split(command) for command in shown]
    assert [command[1] for command in commands] == ["serve", "predict", "label"]
    for command in commands:
        place = ("--port", "0") if command[1] in ("serve", "label") else ()
        said = say(*command[1:], *place)
        assert said.status == 0, said.err
    assert len(served) == 2
    assert served[1].session.features.paths == left


def test_the_token_is_asked_for_and_leaves_the_address(tmp_path: Path, start: Start, open_page: Open) -> None:
    address = start(photos(tmp_path / "photos", each=4), token="correct horse battery").address
    page = open_page(address)
    page.locator("#token").fill("wrong")
    page.keyboard.press("Enter")
    page.locator("#token-error", has_text=EN["token_invalid"]).wait_for()
    page.locator("#token").fill("correct horse battery")
    page.keyboard.press("Enter")
    path_of(page)
    other = open_page(f"{address}/#token=correct%20horse%20battery")
    path_of(other)
    assert "token" not in other.url


def test_the_languages_have_the_same_texts_with_the_same_values() -> None:
    assert {key for key in EN if not key.endswith("_1")} == set(ZH)
    for key, text in ZH.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", EN[key])), key
