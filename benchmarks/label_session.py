"""One session of `linnaeus label` with a browser, by the clock: what docs/labelling.md tells.

500 images of a folder of class folders are copied without their classes. A script that knows the classes presses one
key every `--pace` seconds in the page, accepts one batch after its sample was verified, and trains the model. All other
images evaluate the model. Needs Playwright and Chromium, and weights on this machine (`linnaeus weights import`).

    OMP_NUM_THREADS=1 python benchmarks/label_session.py flowers16 [--answers 160] [--images 500] [--pace 2]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

EVERY = 40  # answers between two rows


class User:
    """A person who knows the class of every image and presses one key every `pace` seconds."""

    def __init__(self, page: Any, truth: dict[str, str], pace: float, started: float):
        self.page, self.truth, self.pace, self.started = page, truth, pace, started

    def say(self, event: str) -> None:
        state = self.page.evaluate("app.state")
        seconds, accuracy = round(time.perf_counter() - self.started), state["accuracy"]
        shown = "too few to tell"
        if accuracy:
            low, high = accuracy["ci95"]
            shown = f"{accuracy['correct']} / {accuracy['n']} = {accuracy['accuracy']:.0%} ({low:.0%}–{high:.0%})"
        read, load = state["features"]["done"], os.getloadavg()[0]
        print(
            f"| {seconds // 60}:{seconds % 60:02} | {event} | {read} | {state['labelled']} | {shown} |  load {load:.0f}"
        )
        sys.stdout.flush()

    def shown(self) -> str:
        self.page.locator("#single:not(.pending) #image").wait_for()
        return str(self.page.locator("#image").get_attribute("alt"))

    def answer(self, task: str = "question") -> None:
        """Press the key of the right class, or Enter where the page has named it."""
        path, due = self.shown(), time.perf_counter() + self.pace
        name, page = self.truth[path], self.page
        page.evaluate("document.activeElement.blur()")
        button = page.locator(f'.class[data-name="{name}"]')
        if task == "batch" and page.evaluate("current().label") == name:
            page.keyboard.press("Enter")
        elif button.count():
            page.keyboard.press(button.get_attribute("aria-keyshortcuts"))
        else:
            page.keyboard.press("n")
            page.locator("#name").fill(name)
            page.keyboard.press("Enter")
        changed = "([old, task]) => app.task.name !== task || document.getElementById('image').alt !== old"
        page.wait_for_function(changed, arg=[path, task])
        time.sleep(max(0.0, due - time.perf_counter()))

    def session(self, answers: int) -> None:
        self.shown()
        self.page.wait_for_function("() => app.state !== null")
        self.say("first image on the page")
        for n in range(1, answers + 1):
            self.answer()
            if n % EVERY == 0:
                self.say("")
        self.page.wait_for_function("() => outbox.entries.length === 0 && app.state.features.done >= app.state.images")
        time.sleep(self.pace)
        self.page.locator("#go-batch").click()
        self.page.locator("#panel:not([hidden])").wait_for()
        print(self.page.locator("#panel-title").inner_text(), "|", self.page.locator("#panel-text").inner_text())
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("() => app.task.name === 'batch'")
        while self.page.evaluate("app.task.name") == "batch":
            self.answer("batch")
        self.page.locator("#panel:not([hidden])").wait_for()
        print(self.page.locator("#panel-text").inner_text())
        self.page.keyboard.press("Enter")
        time.sleep(self.pace)
        self.say("batch accepted")
        self.page.locator("#open-finish").click()
        self.page.locator("#train").click()
        done = "() => app.state.finish.run && !app.state.finish.running"
        self.page.wait_for_function(done, timeout=3_600_000)
        self.say("model trained")
        print(self.page.locator("#finish").inner_text())


def copy_images(source: Path, folder: Path, n: int) -> dict[str, str]:
    """Copy n images as 0001.jpg …, the others below `other/CLASS`. Returns the class of each of the n, by its name."""
    files = sorted(source.rglob("*.jpg"))
    random.Random(0).shuffle(files)
    truth = {}
    for i, file in enumerate(files):
        place = folder / "photos" / f"{i:04}.jpg" if i < n else folder / "other" / file.parent.name / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        if i < n:
            truth[place.name] = f"kind {file.parent.name}"
    for kind in (folder / "other").iterdir():
        kind.rename(kind.with_name(f"kind {kind.name}"))
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--answers", type=int, default=160)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pace", type=float, default=2.0, help="seconds from one key to the next")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        truth = copy_images(options.source, folder, options.images)
        started = time.perf_counter()
        command = [sys.executable, "-m", "linnaeus", "label", str(folder / "photos"), "--port", "0"]
        server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            address = next(m[0] for line in server.stderr if (m := re.search(r"http://\S+", line)))
            page = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"]).new_page()
            page.goto(address)
            User(page, truth, options.pace, started).session(options.answers)
        finally:
            server.terminate()
            server.communicate(timeout=60)
        labels = (folder / "photos" / "labels.csv").read_text().splitlines()[1:]
        wrong = [line for line in labels if "accepted" in line and truth[line.split(",")[0]] != line.split(",")[1]]
        print(f"{sum('accepted' in line for line in labels)} accepted, {len(wrong)} of them wrong")
        command = [sys.executable, "-m", "linnaeus", "evaluate", "runs/label-1", "other", "--split", "all"]
        print("\n".join(subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.splitlines()[:5]))


if __name__ == "__main__":
    main()
