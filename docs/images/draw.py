"""Draw the images of README.md and of the pages: `python docs/images/draw.py WORK [--flowers RUN]`.

Needs Chromium and, for its photographs, scikit-image (`pip install scikit-image`), in addition to what `make test`
installs. Runs, test data and requests are kept in WORK. Everything uses one thread and the instructions
of AVX2, so that the digits run has the same bits each time, unless the machine is so slow that a run tries other
precisions.

RUN is a run of the recipe `flowers` on the Oxford flowers. Without it, `explained.jpg` does not change.

The photographs: flower.jpg (vultilion) and china.jpg (danielbuechele), CC BY 2.0, from scikit-learn; chelsea (Stefan
van der Walt) and coffee (Rachel Michetti), CC0, from scikit-image. The digits are scikit-learn's (Alpaydin 1998).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from linnaeus.theme import PRINT

HERE = Path(__file__).resolve().parent
MOST_BYTES = 200_000
# AVX2: without the bfloat16 of newer processors, which a trial of its speed may choose or not.
PROCESSOR = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
SCALE = 1.6  # screenshot pixels per CSS pixel
INK, PAPER, ACCENT = PRINT["text"], PRINT["background"], PRINT["accent"]


def linnaeus(work: Path, *words: str) -> str:
    """Run a command in `work` and return its output."""
    environment = os.environ | PROCESSOR | {"LINNAEUS_CACHE": str(work / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "linnaeus", *words], cwd=work, env=environment, capture_output=True, text=True
    )
    if result.returncode not in (0, 1):
        sys.exit(result.stdout + result.stderr)
    return result.stdout


def save(image: Image.Image, name: str, colors: int = 128) -> None:
    """Save a small file in this folder: a PNG with a palette, or a JPEG."""
    path = HERE / name
    if path.suffix == ".png":
        quantized = image.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        quantized.save(path, optimize=True)
    else:
        image.convert("RGB").save(path, quality=82, optimize=True)
    size = path.stat().st_size
    print(f"{name}: {image.width}x{image.height}, {size // 1000} kB")
    assert size < MOST_BYTES, f"{name} is too large: {size}"


def fit(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def photographs() -> dict[str, Image.Image]:
    """Free photographs that are included in packages."""
    from sklearn.datasets import load_sample_image

    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        sys.exit("needs the photographs of scikit-image: pip install scikit-image")
    folder = Path(next(iter(package.submodule_search_locations))) / "data"
    return {
        "flower": Image.fromarray(load_sample_image("flower.jpg")),
        "temple": Image.fromarray(load_sample_image("china.jpg")),
        "cat": Image.open(folder / "chelsea.png").convert("RGB"),
        "cup": Image.open(folder / "coffee.png").convert("RGB"),
    }


def plant(folder: Path) -> None:
    """Write four classes into train/ and valid/, with defects: copies, contradictory labels, a truncated file."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, image in photographs().items():
        for split in ("train", "valid"):
            (folder / split / name).mkdir(parents=True)
        side = image.height * 2 // 3
        crop = image.crop((0, 0, side, side))
        image.save(folder / "train" / name / f"{name}-1.jpg", quality=90)
        crop.save(folder / "train" / name / f"{name}-2.jpg", quality=90)
        image.crop((image.width - side, image.height - side, *image.size)).save(
            folder / "valid" / name / f"{name}-3.jpg", quality=90
        )
    photos = photographs()
    small = photos["cat"].resize((photos["cat"].width // 2, photos["cat"].height // 2), Image.Resampling.LANCZOS)
    small.save(folder / "valid" / "cat" / "from-the-phone.jpg", quality=60)
    ImageOps.mirror(photos["flower"]).save(folder / "train" / "flower" / "mirrored.jpg", quality=85)
    photos["cup"].save(folder / "train" / "temple" / "IMG_0042.jpg", quality=80)
    data = (folder / "train" / "cup" / "cup-1.jpg").read_bytes()
    (folder / "train" / "cup" / "cut-short.jpg").write_bytes(data[: len(data) // 3])


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


def open_page(running: Any, address: str, width: int = 900) -> Any:
    context = running.new_context(
        viewport={"width": width, "height": 1400}, device_scale_factor=SCALE, color_scheme="light", locale="en"
    )
    page = context.new_page()
    page.goto(address)
    return page


def screenshot(page: Any) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(full_page=True, timeout=180_000))).convert("RGB")


def edge(page: Any, selector: str, side: str = "top") -> int:
    """The top or bottom of an element, in screenshot pixels from the top of the page, wherever it is scrolled to."""
    element = page.locator(selector).first
    return int(element.evaluate("(element, side) => element.getBoundingClientRect()[side] + scrollY", side) * SCALE)


@contextmanager
def served(work: Path, run: str, port: int = 8765) -> Iterator[str]:
    """Run `linnaeus serve` inside the with block; yields its URL."""
    environment = os.environ | PROCESSOR | {"LINNAEUS_CACHE": str(work / "cache")}
    command = [sys.executable, "-m", "linnaeus", "serve", run, "--port", str(port)]
    server = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urlopen(f"{address}/ready").close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def write_images(folder: Path) -> list[Path]:
    """Write a validation image of the digits run, and the photograph of a cat, as files."""
    from sklearn.datasets import load_digits

    folder.mkdir(exist_ok=True)
    digit, cat = folder / "digit.png", folder / "cat.jpg"
    Image.fromarray((load_digits().images[64] * 255 / 16).astype(np.uint8)).save(digit)
    photographs()["cat"].save(cat, quality=92)
    return [digit, cat]


def draw_check(running: Any, work: Path) -> None:
    """The findings in the folder with defects: the table, and beside it the two worst pairs."""
    page = open_page(running, (work / "check.html").as_uri(), 440)
    shown = screenshot(page)
    starts = [int(heading.bounding_box()["y"] * SCALE) for heading in page.locator("h2").all()]
    table = shown.crop((0, 0, shown.width, starts[0] - 20))
    pairs = shown.crop((0, starts[1] - 10, shown.width, starts[3] - 30))
    sheet = Image.new("RGB", (table.width + pairs.width, max(table.height, pairs.height)), PAPER)
    sheet.paste(table, (0, 0))
    sheet.paste(pairs, (table.width, 20))
    save(fit(sheet, 1100), "check.jpg")


def ask(running: Any, address: str, files: list[Path], width: int) -> Any:
    """The served page of that width, after it has answered all files, with the heat map of the first one."""
    page = open_page(running, address, width)
    page.locator("#model").wait_for()
    page.locator("#language").evaluate("element => element.remove()")  # its Chinese font may be missing here
    page.set_input_files("#files", [str(path) for path in files])
    page.locator(".answer.answered, .answer.unsure").nth(len(files) - 1).wait_for()
    page.get_by_role("button", name="Heat map").first.click()
    page.get_by_text("not how strongly").wait_for()
    page.wait_for_timeout(1000)
    return page


def part(page: Any, first: str, last: str) -> Image.Image:
    """The page from the top of an element to the bottom of another, with a margin."""
    bottom = edge(page, last, "bottom") + int(8 * SCALE)
    top = max(0, edge(page, first) - int(20 * SCALE))
    return screenshot(page).crop((0, top, int(page.viewport_size["width"] * SCALE), bottom))


def draw_page(running: Any, work: Path) -> list[Image.Image]:
    """The served page with a right answer, its heat map, and a photograph of no digit. Returns narrow answers."""
    with served(work, "runs/digits-1") as address:
        files = write_images(work / "asked")
        save(part(ask(running, address, files, 900), "body", ".answer >> nth=1"), "page.png")
        page = ask(running, address, files, 660)
        return [part(page, f".answer >> nth={i} >> .image", f".answer >> nth={i} >> .bars") for i in range(2)]


def draw_report(running: Any, work: Path) -> None:
    """The top of the report, down to the first figures."""
    page = open_page(running, (work / "runs" / "digits-1" / "report.html").as_uri())
    shown = screenshot(page)
    save(shown.crop((0, 30, shown.width, edge(page, "#figures table") + 350)), "report.png")


def font(size: int, family: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{family}.ttf", size)


def heading(sheet: Image.Image, left: int, top: int, words: str) -> None:
    ImageDraw.Draw(sheet).text((left, top), words, INK, font(30, "DejaVuSans-Bold"))


def framed(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    sheet.paste(image, (left, top))
    box = (left - 1, top - 1, left + image.width, top + image.height)
    ImageDraw.Draw(sheet).rectangle(box, outline="#c9d1da", width=2)


def terminal(work: Path, width: int) -> Image.Image:
    """The command and its last lines of output."""
    output = (work / "train.txt").read_text().splitlines()
    lines = ["$ linnaeus train digits --recipe digits"]
    for word in ("valid ", "test ", "unknown ", "time ", "model ", "report "):
        line = next(line for line in output if line.startswith(word)).replace(" %", "\u00a0%")
        lines += textwrap.wrap(line, 65, subsequent_indent=" " * 10, drop_whitespace=True)
    image = Image.new("RGB", (width, 33 * len(lines) + 36), "#f3f5f7")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((20, 18 + 33 * i), line, ACCENT if i == 0 else INK, font(24, "DejaVuSansMono"))
    return image


def folders(width: int) -> Image.Image:
    """Ten folders, each with its name and some of its images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = Image.new("RGB", (width, 470), PAPER)
    for kind in range(10):
        left, top = kind // 5 * (width // 2 + 15), kind % 5 * 94
        ImageDraw.Draw(image).text((left, top + 20), f"{kind}/", ACCENT, font(24, "DejaVuSansMono"))
        for i, index in enumerate(np.flatnonzero(digits.target == kind)[:3]):
            small = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
            image.paste(small.resize((78, 78), Image.Resampling.BICUBIC), (left + 42 + 84 * i, top))
    return image


def draw_strip(work: Path, answers: list[Image.Image]) -> None:
    """The image at the top of README.md, which is shown half as large: folders, one command, the page with answers."""
    right, wrong = (fit(answer, 790) for answer in answers)
    shown = terminal(work, 990)
    middle = max(470, shown.height) + 130
    sheet = Image.new("RGB", (1660, middle + max(right.height, wrong.height) + 90), PAPER)
    heading(sheet, 30, 24, "1  Images in folders")
    sheet.paste(folders(590), (30, 82))
    heading(sheet, 640, 24, "2  One command")
    framed(sheet, shown, 640, 82)
    heading(sheet, 30, middle, "3  A page that answers, shows why, and says when an image is none of these")
    framed(sheet, right, 30, middle + 58)
    framed(sheet, wrong, 840, middle + 58)
    save(sheet, "overview.png", 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--flowers", type=Path, help="a run of the recipe flowers")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    run = work / "runs" / "digits-1"
    if not (run / "report.html").is_file():
        (work / "train.txt").write_text(linnaeus(work, "train", "digits", "--recipe", "digits"))
    plant(work / "photos")
    print(linnaeus(work, "check", "photos", "--gallery", "check.html"))
    if arguments.flowers:
        photographs()["flower"].save(work / "flower.jpg", quality=95)
        linnaeus(work, "explain", str(arguments.flowers.resolve()), "flower.jpg", "--out", "explained")
        save(Image.open(work / "explained" / "flower-explained.png"), "explained.jpg")
    save(fit(Image.open(run / "curves.png"), 1400), "curves.png", 64)
    grid = Image.open(run / "predictions.png")
    save(grid.crop((0, 0, grid.width, grid.height * 26 // 50)), "predictions.png", 64)
    with browser() as running:
        draw_check(running, work)
        draw_report(running, work)
        draw_strip(work, draw_page(running, work))


if __name__ == "__main__":
    main()
