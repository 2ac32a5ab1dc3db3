"""Attacks on `linnaeus serve`, each in a process of its own: python benchmarks/serve_attacks.py NAME HOST:PORT [BOMBS]

An attack repeats one act in several threads until the process gets SIGTERM.
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

MIB = 1 << 20
HOLD = 8.0  # seconds that a held connection is kept
Act = Callable[["Target"], None]


class Target:
    """The server under attack."""

    def __init__(self, address: str, bombs: list[bytes]):
        host, _, port = address.rpartition(":")
        self.host, self.port, self.bombs = host, int(port), bombs

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=30)

    def send(self, data: bytes, read: bool = True) -> None:
        """Send a request over a connection of its own, and read the start of the response."""
        with self.connect() as connection:
            connection.sendall(data)
            if read:
                connection.recv(1000)

    def hold(self, data: bytes) -> None:
        """Send `data` and keep the connection, without reading, until the server closes it or `HOLD` is over."""
        with self.connect() as connection:
            connection.sendall(data)
            time.sleep(HOLD)


def post(body: bytes, kind: str = "image/png", path: str = "/predict", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))


def multipart(*images: bytes, disposition: str = 'name="a"; filename="b"') -> bytes:
    parts = (f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + i + b"\r\n" for i in images)
    return b"".join(parts) + b"--x--\r\n"


FORM = "multipart/form-data; boundary=x"
JSON = "application/json"


def json_items() -> Iterator[bytes]:
    yield post(b'{"images": [' + b"[]," * (40 * MIB // 3) + b"[]]}", JSON)


def json_depth() -> Iterator[bytes]:
    yield post(b"[" * (40 * MIB), JSON)


def json_keys() -> Iterator[bytes]:
    yield post(b"{" + b",".join(b'"%d":{}' % i for i in range(3_000_000)) + b"}", JSON)


def json_strings() -> Iterator[bytes]:
    yield post(b'{"images": ["' + rb"\n" * (20 * MIB) + b'"]}', JSON)


def multipart_names() -> Iterator[bytes]:
    yield post(multipart(b"", disposition='name=""; filename=""') * 400_000, FORM)


def multipart_empty() -> Iterator[bytes]:
    yield post(b'--x\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n' * 500_000 + b"--x--\r\n", FORM)


def tiny_chunks() -> Iterator[bytes]:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield head + b"1\r\nx\r\n" * (4 * MIB)


def many_headers() -> Iterator[bytes]:
    yield b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 60_000 + b"\r\n"


def long_query() -> Iterator[bytes]:
    yield b"GET /model?" + b"a&" * 30_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def pipelining() -> Iterator[bytes]:
    yield b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000


def explanations() -> Iterator[bytes]:
    yield post(multipart(*[encoded(noise(28, 28), "PNG")] * 32), FORM, "/predict?explain=1")


def held_uploads() -> Iterator[bytes]:
    yield post(bytes(30 * MIB), length=30 * MIB + 1)


def slow_readers() -> Iterator[bytes]:
    yield post(multipart(*[encoded(noise(28, 28), "PNG")] * 32), FORM, "/predict?top=1000") * 20
    yield b"GET /report HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50


def many_images() -> Iterator[bytes]:
    yield post(multipart(*[encoded(noise(64, 64), "PNG")] * 32), FORM)


def half_requests() -> Iterator[bytes]:
    yield post(b"x" * 5000, length=100_000)


def idle() -> Iterator[bytes]:
    yield b""


def slow_images() -> Iterator[bytes]:
    """Images within the limits that take long to decode."""
    yield encoded(Image.new("L", (8000, 8000)), "PNG")
    yield encoded(noise(4000, 4000), "JPEG", progressive=True, quality=95)
    yield encoded(noise(4900, 4900), "JPEG", quality=100)
    first, *others = (Image.new("L", (3000, 3000), i) for i in range(20))
    yield encoded(first, "GIF", save_all=True, append_images=others)
    yield encoded(Image.new("RGB", (7000, 7000)), "TIFF", compression="tiff_deflate")
    yield encoded(noise(2400, 2400), "JPEG2000")
    yield encoded(noise(2400, 2400).convert("RGB"), "WEBP", lossless=True)
    progressive = encoded(noise(1500, 1500), "JPEG", progressive=True)
    start, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    yield progressive[:end] + 50 * progressive[start:end] + progressive[end:]


def long_headers() -> Iterator[bytes]:
    """Small images between millions of markers, chunks or strips."""
    jpeg, png = encoded(noise(28, 28), "JPEG"), encoded(noise(28, 28), "PNG")
    yield jpeg[:2] + b"\xff\xe9\0\2" * (7 * MIB) + jpeg[2:]
    chunk = b"\0\0\0\0aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    for name in (b"IDAT", b"IEND"):
        place = png.index(name) - 4
        yield png[:place] + chunk * (2 * MIB) + png[place:]
    strips, ifd = 3 * MIB, 14
    offsets = ifd + 2 + 9 * 12 + 4
    tags = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (273, offsets), (277, 1), (278, 1)]
    tags.append((279, offsets + 4 * strips))
    counts = {273: strips, 279: strips}
    entries = b"".join(struct.pack("<HHII", tag, 4, counts.get(tag, 1), value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", ifd) + bytes(6) + struct.pack("<H", len(tags)) + entries + bytes(4)
    yield head + struct.pack("<I", 8) * strips + struct.pack("<I", 1) * strips


def send(target: Target) -> None:
    target.send(random.choice(REQUESTS))


def hold(target: Target) -> None:
    target.hold(random.choice(REQUESTS))


def hang_up(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(random.choice(REQUESTS))
        time.sleep(0.1)


def garbage(target: Target) -> None:
    whole = post(multipart(b"abc"), FORM)
    damaged = bytearray(whole)
    for _ in range(3):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    for data in (os.urandom(2000), b"\x16\x03\x01\x02\x00" + os.urandom(200), bytes(damaged), whole + os.urandom(99)):
        target.send(data, read=False)
    time.sleep(0.01)


def bombs(target: Target) -> None:
    target.send(post(random.choice(target.bombs)))
    time.sleep(0.05)


ATTACKS: dict[str, tuple[Act, int, Callable[[], Iterator[bytes]]]] = {
    "json items": (send, 5, json_items),
    "json depth": (send, 2, json_depth),
    "json keys": (send, 2, json_keys),
    "json strings": (send, 2, json_strings),
    "multipart names": (send, 2, multipart_names),
    "multipart empty": (send, 2, multipart_empty),
    "tiny chunks": (send, 2, tiny_chunks),
    "many headers": (send, 2, many_headers),
    "long query": (send, 2, long_query),
    "pipelining": (hold, 4, pipelining),
    "hang up": (hang_up, 8, explanations),
    "explanations": (send, 8, explanations),
    "held uploads": (hold, 60, held_uploads),
    "slow readers": (hold, 60, slow_readers),
    "many images": (send, 8, many_images),
    "slow images": (send, 8, lambda: map(post, slow_images())),
    "long headers": (send, 8, lambda: map(post, long_headers())),
    "garbage": (garbage, 4, idle),
    "half requests": (hold, 50, half_requests),
    "bombs": (bombs, 2, idle),
    "idle": (hold, 500, idle),
}
"""Name -> (act, number of threads that repeat it, the requests from which it chooses)."""
REQUESTS: list[bytes] = []
"""Of the attack of this process, made once: an attacker must not take the processors from the server."""


def _repeat(act: Act, target: Target) -> None:
    while True:
        with suppress(OSError):
            act(target)
        time.sleep(0.001)


def main() -> None:
    name, address, *folder = sys.argv[1:]
    act, threads, requests = ATTACKS[name]
    files = [p for f in folder for p in sorted(Path(f).rglob("*")) if p.is_file() and 0 < p.stat().st_size < 5_000_000]
    target = Target(address, [p.read_bytes() for p in files] or [b"\x89PNG"])
    REQUESTS.extend(requests())
    print("ready", flush=True)
    for _ in range(threads):
        threading.Thread(target=_repeat, args=(act, target), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
