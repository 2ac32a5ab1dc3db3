"""Whatever a file holds comes out as the right pixels, or is refused with a reason."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from linnaeus.data.images.decode import RowSpec, UnreadableError, decode, fit_row, inspect, load_row
from linnaeus.data.images.resize import RESAMPLING, UprightImage, with_channels
from linnaeus.errors import UserError

H, W = 60, 80
ORIENTATION = 0x0112


def smooth(channels: int = 3, height: int = H, width: int = W) -> np.ndarray:
    """(height, width, channels) uint8 that survives JPEG and shows every flip and swap of channels."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = [255 * x / (width - 1), 255 * y / (height - 1), 120 + 100 * np.sin(x / 9 + y / 17), 255 - 200 * x / width]
    return np.stack(ramps[:channels], axis=2).round().astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, in 255ths."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


RGB = smooth()
GRAY = RGB[:, :, 1]
LUMA = RGB @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "TGA", "PPM", "GIF", "WEBP", "JPEG", "JPEG2000", "AVIF"])
def test_every_format(kind: str):
    """RGB is read back, exactly where the format is lossless; and as luma."""
    all_options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = all_options.get(kind, {})
    tolerance = {"JPEG": 1.5, "AVIF": 4, "GIF": 8}.get(kind, 0)  # GIF has 256 colors
    data = encode(Image.fromarray(RGB), kind, **options)
    assert distance(decode(data), RGB) <= tolerance
    assert distance(decode(data, channels=1)[:, :, 0], LUMA) <= tolerance + 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(kind: str, orientation: int):
    """The stored pixels, by the table of EXIF of what row 0 and column 0 mean."""
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB.transpose(1, 0, 2)[::-1],
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: RGB.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert distance(decode(data), RGB) < 1.5


@pytest.mark.parametrize("side", ["Landscape", "Portrait"])
def test_real_orientations_agree(shared_data: Path, side: str):
    """All eight show the same photograph, except for the number printed on each."""
    folder = shared_data / "dirty" / "exif-orientation"
    rows = [load_row(folder / f"{side}_{k}.jpg", RowSpec(200)) for k in range(9)]
    assert {row.shape for row in rows} == {(200, 300, 3) if side == "Landscape" else (300, 200, 3)}
    assert max(distance(row, rows[0]) for row in rows) < 3
    assert min(distance(rows[0][:, ::-1], rows[0]), distance(rows[0][::-1], rows[0])) > 20


def test_sixteen_bit_gray_is_scaled():
    """Not clipped to white: 65535 is white, 32768 is middle gray."""
    values = (GRAY.astype(np.uint16) << 8) | GRAY
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000"):
        assert np.array_equal(decode(encode(Image.fromarray(values), kind), channels=1)[:, :, 0], GRAY), kind
    big_endian = Image.frombytes("I;16B", (W, H), values.astype(">u2").tobytes())
    assert np.array_equal(decode(encode(big_endian, "TIFF"))[:, :, 0], GRAY)


def test_sixteen_bit_color_is_scaled():
    """A 16-bit RGB PNG, written by hand since Pillow cannot."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = W.to_bytes(4, "big") + H.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    values = (RGB.astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + values[y].tobytes() for y in range(H))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(data), RGB)


def test_white_is_zero():
    """TIFF may store white as 0, in 8 and in 16 bits."""
    values = 65535 - ((GRAY.astype(np.uint16) << 8) | GRAY)
    data = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode(data, channels=1)[:, :, 0], GRAY)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GRAY.astype(np.float32), GRAY),
        (GRAY.astype(np.float32) / 255, GRAY),
        (GRAY.astype(np.float32) * 257, GRAY),
        (GRAY.astype(np.int32) * 257, GRAY),
        (GRAY.astype(np.float32) * 1e6 - 3e6, GRAY),
        (np.where(GRAY > 250, np.nan, GRAY).astype(np.float32), np.where(GRAY > 250, 0, GRAY)),
        (np.full((H, W), np.nan, np.float32), np.zeros((H, W))),
        (np.full((H, W), -7, np.float32), np.zeros((H, W))),
    ],
    ids=["0..255", "0..1", "0..65535", "integers", "other", "a hole", "all holes", "flat"],
)
def test_floats_and_integers(values: np.ndarray, expected: np.ndarray):
    """The range is inferred from the values; other ranges are stretched."""
    assert distance(decode(encode(Image.fromarray(values), "TIFF"), channels=1)[:, :, 0], expected) < 0.6


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[:, :, None] / 255
    return color * opacity + 255 * (1 - opacity)


ALPHA = smooth(4)[:, :, 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TGA", "WEBP", "JPEG2000"])
def test_alpha_lies_over_white(kind: str):
    rgba = np.dstack([RGB, ALPHA])
    data = encode(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert distance(decode(data), over_white(RGB, ALPHA)) < 0.5
    gray = encode(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), "PNG")
    expected = over_white(GRAY[:, :, None], ALPHA)
    assert distance(decode(gray, channels=1), expected) < 0.5
    assert distance(decode(gray), np.repeat(expected, 3, 2)) < 0.5


def test_palettes_and_named_transparent_colors():
    """Palette; palette with one or with graded transparent entries; gray, RGB and 1-bit with a transparent color."""
    image = Image.fromarray(GRAY // 64)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]])[GRAY // 64]
    assert np.array_equal(decode(encode(image)), colors)
    assert np.array_equal(decode(encode(image, "GIF")), colors)
    first = (GRAY // 64 == 0)[:, :, None]
    assert np.array_equal(decode(encode(image, transparency=0)), np.where(first, 255, colors))
    assert np.array_equal(decode(encode(image, "GIF", transparency=0)), np.where(first, 255, colors))
    graded = encode(image, transparency=bytes([0, 128, 255, 255]))
    alpha = np.array([0, 128, 255, 255])[GRAY // 64]
    assert distance(decode(graded), over_white(colors, alpha)) < 0.5
    named = encode(Image.fromarray(RGB), transparency=tuple(int(v) for v in RGB[5, 5]))
    assert tuple(decode(named)[5, 5]) == (255, 255, 255)
    assert np.array_equal(decode(named)[6, 6], RGB[6, 6])
    sixteen = encode(Image.fromarray(GRAY.astype(np.uint16) * 257), transparency=int(GRAY[3, 3]) * 257)
    expected = np.where(GRAY[3, 3] == GRAY, 255, GRAY)
    assert np.array_equal(decode(sixteen, channels=1)[:, :, 0], expected)
    bits = Image.fromarray(GRAY > 100)
    assert np.array_equal(decode(encode(bits), channels=1)[:, :, 0], np.where(GRAY > 100, 255, 0))


def test_cmyk():
    """Ink on paper, in TIFF as it is, in JPEG inverted as Adobe does, and as YCCK."""
    ink = np.dstack([255 - RGB, np.zeros((H, W), np.uint8)])
    assert distance(decode(encode(Image.fromarray(ink, "CMYK"), "TIFF")), RGB) == 0
    jpeg = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=98)
    assert distance(decode(jpeg), RGB) < 2
    # YCCK: the planes hold YCbCr of the ink and K, inverted; byte 11 of the Adobe segment says so.
    ycc = np.asarray(Image.fromarray(255 - RGB).convert("YCbCr"))
    planes = np.dstack([ycc, np.full((H, W), 255, np.uint8)])
    raw = bytearray(encode(Image.fromarray(255 - planes, "CMYK"), "JPEG", quality=98))
    raw[raw.index(b"Adobe") + 11] = 2
    assert distance(decode(bytes(raw)), RGB) < 3


def test_other_color_spaces():
    """YCbCr and LAB; HSV has no file format of its own, so its conversion is tried on the image."""
    ycc = encode(Image.fromarray(RGB).convert("YCbCr"), "TIFF")
    try:
        Image.open(io.BytesIO(ycc)).load()
    except OSError:  # some builds of Pillow write YCbCr as a JPEG inside the TIFF that they cannot read themselves
        ycc = b""
    assert not ycc or distance(decode(ycc), RGB) < 1.5
    lab = Image.merge("LAB", [Image.new("L", (W, H), v) for v in (255, 128, 128)])  # L = 100, a = b = 0
    assert decode(encode(lab, "TIFF")).min() > 250
    hsv = Image.fromarray(RGB).convert("HSV")
    assert distance(np.asarray(with_channels(hsv, 3)), RGB) < 3


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((H, W, 3), v, np.uint8)) for v in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert abs(int(decode(data).mean()) - 10) < 2, kind


def test_draft_keeps_twice_the_target():
    """1000 x 800 may be decoded at 250 x 200, twice the target of 100, and no smaller."""
    data = encode(Image.fromarray(smooth(3, 800, 1000)), "JPEG")
    assert decode(data).shape == (800, 1000, 3)
    assert decode(data, at_least=100).shape == (200, 250, 3)
    assert decode(data, at_least=101).shape == (400, 500, 3)
    assert decode(data, at_least=500).shape == (800, 1000, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_row_from_a_draft_is_the_row_of_the_whole(fit: str, orientation: int):
    """Same shape, no shift: 1003 x 805 drafts to 126 x 101, an eighth rounded up; forgetting that costs over 4."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(smooth(3, 805, 1003)), "JPEG", quality=95, exif=exif)
    spec = RowSpec(64, fit)
    assert distance(load_row(data, spec), fit_row(decode(data), spec)) < 1.3


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (375, 500, 256, (256, 341)),  # int(256 * 500 / 375) = 341, as torchvision's Resize
        (500, 667, 256, (256, 341)),
        (667, 500, 256, (341, 256)),
        (10, 10, 256, (256, 256)),
        (100, 1000, 50, (50, 200)),  # the central 4:1
        (1000, 1, 8, (32, 8)),
    ],
)
def test_crop_keeps_the_short_side(height: int, width: int, size: int, expected: tuple[int, int]):
    picture = smooth(3, height, max(width, 2))[:, :width]
    assert fit_row(picture, RowSpec(size)).shape == (*expected, 3)


def test_crop_is_central():
    """Of a 1 x 16 strip the middle quarter stays."""
    strip = np.zeros((10, 160, 3), np.uint8)
    strip[:, 60:100] = 255
    assert fit_row(strip, RowSpec(10)).min() == 255


def test_rows_equal_pillow():
    """The resize is Pillow's, antialiased; for each interpolation."""
    for name, how in RESAMPLING.items():
        expected = np.asarray(Image.fromarray(RGB).resize((40, 30), how))
        assert np.array_equal(fit_row(RGB, RowSpec(30, "crop", name)), expected)
    expected = np.asarray(Image.fromarray(RGB).resize((30, 30), Image.Resampling.BILINEAR))
    assert np.array_equal(fit_row(RGB, RowSpec(30, "squash")), expected)
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    assert abs(int(fit_row(checks.astype(np.uint8), RowSpec(16))[8, 8, 0]) - 128) < 3  # gray: not one of its pixels


def test_pad_is_centered_on_black():
    row = fit_row(np.full((20, 40, 3), 200, np.uint8), RowSpec(41, "pad"))
    assert row.shape == (41, 41, 3)
    assert (row[:10] == 0).all()
    assert (row[31:] == 0).all()
    assert (row[11:30] == 200).all()


def test_images_of_the_right_size_are_not_changed():
    for fit, picture in (("crop", RGB), ("squash", RGB[:, :H]), ("pad", RGB[:, :H])):
        assert fit_row(picture, RowSpec(H, fit)) is picture
    assert np.shares_memory(fit_row(GRAY, RowSpec(H, channels=1)), GRAY)


def test_channels_of_arrays():
    """Gray is repeated; color becomes luma, as for files; (H, W) and (H, W, 1) are the same."""
    assert np.array_equal(fit_row(GRAY, RowSpec(H)), np.repeat(GRAY[:, :, None], 3, 2))
    assert distance(fit_row(RGB, RowSpec(H, channels=1))[:, :, 0], LUMA) < 0.51
    assert np.array_equal(load_row(GRAY, RowSpec(20, channels=1)), load_row(GRAY[:, :, None], RowSpec(20, channels=1)))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"fit": "stretch"}, {"interpolation": "cubic"}, {"channels": 4}])
def test_wrong_specifications_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RowSpec(**({"size": 32} | wrong))


# Refusals


def test_truncated_images_are_refused():
    """Cut anywhere behind the header, in every format that can tell; never half an image."""
    noisy = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF"):
        data = encode(Image.fromarray(noisy), kind)
        for part in (0.3, 0.6, 0.95):
            with pytest.raises(UnreadableError) as refused:
                decode(data[: int(len(data) * part)])
            assert "\n" not in str(refused.value)
    progressive = encode(Image.fromarray(noisy), "JPEG", progressive=True)
    with pytest.raises(UnreadableError, match=": image file is truncated"):
        decode(progressive[: len(progressive) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a document"),
        (b"%PDF-1.7\n", "a document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\xd8\xff\xe0", "its header is damaged"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str):
    with pytest.raises(UnreadableError) as refused:
        decode(data)
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (encode(Image.fromarray(RGB), "JPEG")[:900], "truncated"),
        (encode(Image.fromarray(RGB))[:600], "truncated"),
        (b"no image", "unreadable"),
        (b"P6 100000 100000 255\n" + bytes(1000), "too-large"),
    ],
)
def test_the_kind_of_failure(data: bytes, kind: str):
    with pytest.raises(UnreadableError) as caught:
        decode(data)
    assert caught.value.kind == kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_inspecting_gives_pixels_size_and_format(kind: str):
    data = encode(Image.fromarray(RGB), kind)
    found = inspect(data)
    assert (found.size, found.format) == ((W, H), kind)
    np.testing.assert_array_equal(np.asarray(found.image), decode(data))


def test_inspecting_a_large_jpeg_decodes_a_fraction_and_returns_the_full_size():
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    data = encode(Image.fromarray(smooth(3, 1600, 3200)), "JPEG", exif=turned)
    found = inspect(data)
    assert found.size == (1600, 3200)  # upright
    assert found.image.size == (400, 800)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [20, 96, 256, 300, 1100])
@pytest.mark.parametrize("height", [90, 384, 770, 1000, 1600])
def test_a_row_shows_the_image_as_inspecting_decodes_it(height: int, size: int, fit: str):
    """Where it would be decoded at another fraction, nothing is shown."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    image = Image.fromarray(smooth(3, height, 2 * height + 1))
    for kind, more in (("JPEG", {"exif": turned}), ("PNG", {})):
        data = encode(image, kind, **more)
        shown: list[UprightImage] = []
        row = load_row(data, RowSpec(size, fit), shown.append)
        np.testing.assert_array_equal(row, load_row(data, RowSpec(size, fit)))
        expected = inspect(data)
        if kind == "PNG" or size == 256:
            assert shown
        for upright in shown:
            np.testing.assert_array_equal(np.asarray(upright.image), np.asarray(expected.image))
            assert (upright.size, upright.format) == (expected.size, expected.format)


def test_rows_of_other_colors_are_not_shown():
    data = encode(Image.fromarray(RGB), "PNG")
    for spec in (RowSpec(8, channels=1), RowSpec(8, bits=12)):
        load_row(data, spec, lambda upright: pytest.fail("shown"))


def test_paths_are_named(tmp_path: Path):
    """One line that names the file; a folder, a pipe and a missing file are refused and do not hang."""
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    empty = tmp_path / "blank ü 花.jpg"
    empty.touch()
    for path, reason in ((tmp_path, "a folder"), (pipe, "not a file"), (empty, "empty file")):
        with pytest.raises(UnreadableError, match=reason) as refused:
            decode(path)
        assert str(refused.value) == f"{path}: {reason}"
    with pytest.raises(UnreadableError, match="No such file") as refused:
        decode(tmp_path / "none.jpg")
    assert refused.value.passing
    with pytest.raises(UnreadableError):
        decode("zero\0byte.jpg")
    good = tmp_path / "花 und Blüte.png"
    good.write_bytes(encode(Image.fromarray(RGB)))
    assert np.array_equal(decode(str(good)), RGB)


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch):
    """By the size in the header, before anything is decoded, whatever Pillow's own limit is."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    bomb = bytearray(encode(Image.new("L", (8, 8)), "BMP"))
    bomb[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadableError, match="too large"):
        decode(bytes(bomb))
    with pytest.raises(UnreadableError, match="too large"):  # and a real one: 100 million zeros in 100 kB
        decode(encode(Image.new("L", (10_000, 10_000))))


@pytest.mark.parametrize(("size", "fits"), [((1, 6_000_000), False), ((6_000_000, 1), True), ((16, 400_000), True)])
def test_rows_of_one_pixel_take_as_much_memory_as_longer_ones(size: tuple[int, int], fits: bool):
    """Each has a pointer, of which the decoder makes copies: 60 million pixels in a column took 1.2 GB."""
    image = encode(Image.new("L", size))
    with nullcontext() if fits else pytest.raises(UnreadableError, match="1 x 6000000 pixels in PNG need too much"):
        assert load_row(image, RowSpec(8)).size


def test_quiet_even_in_threads(capfd: pytest.CaptureFixture[str], shared_data: Path):
    """Pillow's warnings and libtiff's messages are suppressed, also where warnings are errors."""
    noisy = [*(shared_data / "dirty" / "pillow-tests").glob("crash-*.tif")]
    noisy += [shared_data / "dirty" / "pillow-tests" / "apng" / "syntax_num_frames_zero_default.png"]

    def reason(path: Path) -> str:
        try:
            decode(path)
        except UnreadableError as refused:
            return refused.reason
        return ""

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            reasons = set(pool.map(reason, noisy * 5))
    assert reasons == {"", "truncated or damaged (decoder error -2)"}
    assert capfd.readouterr() == ("", "")


def test_several_threads_give_the_result_of_one():
    data = [encode(Image.fromarray(np.roll(RGB, k, 1)), "JPEG") for k in range(16)]
    alone = [decode(each) for each in data]
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(a, b) for a, b in zip(alone, pool.map(decode, data), strict=True))
    assert threading.active_count() < 20


DIRTY = """
import json, resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000, 1_000_000_000))
from linnaeus.data.images.decode import RowSpec, UnreadableError, decode, load_row
outcome, slowest = {}, 0.0
for path in sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file()):
    started = time.process_time()
    try:
        pixels = decode(path)
        assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3, path
        assert load_row(path, RowSpec(64, channels=1)).shape[2] == 1
        outcome[str(path)] = [int(pixels.shape[0]), int(pixels.shape[1]), float(pixels.mean())]
    except UnreadableError as refused:
        outcome[str(path)] = refused.reason
    slowest = max(slowest, time.process_time() - started)
peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
print(json.dumps({"outcome": outcome, "slowest": slowest, "peak": peak}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_odd_and_broken_files_decode_or_are_refused(shared_data: Path):
    """508 odd files in 1 GB of address space: each decodes or is refused; none hangs, crashes or writes to stderr."""
    command = [sys.executable, "-W", "always", "-c", DIRTY, str(shared_data / "dirty")]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    outcome = {Path(path).name: found for path, found in result["outcome"].items()}
    assert len(result["outcome"]) >= 500
    assert result["slowest"] < 20
    assert result["peak"] < 500
    refused = {name: reason for name, reason in outcome.items() if isinstance(reason, str)}
    assert sum(not isinstance(found, str) for found in result["outcome"].values()) >= 380
    assert all(reason and "\n" not in reason and len(reason) < 160 for reason in refused.values())
    for name in ("reallybig.bmp", "truncated_image.png", "drawing.emf", "zero_bb.eps", "shortfile.bmp"):
        assert name in refused, name
    # The same portrait in many forms: the mean of its pixels agrees (palettes and 1 bit a little less).
    hopper = outcome["hopper.jpg"]
    for name in ("hopper.webp", "hopper.pnm", "hopper_lzw.tif", "hopper.iccprofile.tif", "hopper_8bit.ppm"):
        assert outcome[name][:2] == hopper[:2]
        assert abs(outcome[name][2] - hopper[2]) < 2, name
    for name in ("hopper_16bit.pgm", "hopper.pfm", "hopper_be.pfm", "hopper_gray.jpg"):
        assert abs(outcome[name][2] - outcome["hopper_gray.jpg"][2]) < 3, name
    assert abs(outcome["hopper.Lab.tif"][2] - hopper[2]) < 4
    assert 20 < outcome["monkey16.png"][2] < 200


@pytest.mark.parametrize("k", range(2, 9))
def test_real_small_orientations(shared_data: Path, k: int):
    folder = shared_data / "dirty" / "pillow-tests"
    assert distance(decode(folder / f"hopper_orientation_{k}.jpg"), decode(folder / "hopper.jpg")) < 8


def test_real_palette_cmyk_and_alpha(shared_data: Path):
    """Expected by eye: white where transparent, red letters on black in CMYK, black on white in bilevel fax."""
    folder = shared_data / "dirty" / "pillow-tests"
    assert tuple(decode(folder / "transparent.gif")[0, 0]) == (255, 255, 255)
    assert tuple(decode(folder / "rgb_trns.png")[32, 32]) == (255, 255, 255)
    red, green, blue = decode(folder / "tiff_strip_cmyk_jpeg.tif").reshape(-1, 3).max(axis=0)
    assert red > 230
    assert max(green, blue) < 90
    page = decode(folder / "pport_g4.tif", channels=1)
    assert page.mean() > 200
    rdf = decode(folder / "rdf.tif")  # palette with alpha
    assert np.median(rdf) == 255
    assert distance(decode(folder / "g4_orientation_5.tif"), decode(folder / "g4_orientation_1.tif")) < 1
    flat = decode(folder / "lab-green.tif")
    assert flat[5, 5, 1] > flat[5, 5, 0] + 100


def test_an_address_that_holds_the_image_is_clipped_in_the_message():
    with pytest.raises(UnreadableError, match="AAA…: an address, and images are read from files") as caught:
        decode(f"data:image/png;base64,{'A' * 3000}")
    assert len(str(caught.value)) < 250
