"""The images of a JSON body, decoded while it arrives.

Forty megabytes of `[],[],…` become a gigabyte of lists in `json.loads`, and a base64 text is held three times until it
is an image. Here only the strings that contain images may be long: they are decoded piece by piece. Everything else,
the outline, is short, and is parsed at the end.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets

LONG = 2048  # bytes of a string that stay in the outline; at least those of a name in \uXXXX
OUTLINE = 64 << 10  # bytes of the outline, besides its strings
_BASE64URL = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"
# The text of a string up to its closing quote, or up to an escape sequence that the piece contains in part only.
_TEXT = re.compile(rb'(?>[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
_ESCAPE_LENGTH = 6  # of \u0041


class MalformedError(Exception):
    """The body is not what it should be; the message says in which way."""


class Base64Text:
    """Decodes a base64 text, or a data: URL that contains one, from pieces of a JSON string.

    Line breaks are ignored, since MIME encoders insert them. Both alphabets of RFC 4648 are accepted, without padding
    too.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._rest = b""
        self._started = False
        self._ended = False
        self._valid = True

    def feed(self, text: bytes) -> None:
        """Decode the next piece."""
        if not self._valid:
            return
        if not self._started:
            self._started = True
            if text[:5].lower() == b"data:":
                header, comma, text = text.partition(b",")
                self._valid = bool(comma) and header.rstrip().lower().endswith(b";base64")
        text = self._rest + text.translate(_BASE64URL, _SPACE)
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        self._decode(text[:whole])

    def _decode(self, text: bytes) -> None:
        if not text:
            return
        try:
            self._pieces.append(binascii.a2b_base64(text, strict_mode=True))
        except binascii.Error:
            self._valid = False
        self._valid = self._valid and not self._ended  # nothing may follow the padding
        self._ended = text.endswith(b"=")

    def finish(self) -> bytes | None:
        """The decoded bytes; None if the text is not valid base64."""
        self._decode(self._rest + b"=" * (-len(self._rest) % 4))
        return b"".join(self._pieces) if self._valid else None


def _unescaped(text: bytes) -> bytes:
    """A part of a JSON string, with its escape sequences replaced, as UTF-8. Raises MalformedError."""
    if b"\\" not in text:
        return text
    try:
        return json.loads(b'"%b"' % text, strict=False).encode("utf-8", "backslashreplace")
    except ValueError:
        raise MalformedError("a string of it contains an invalid escape sequence or character") from None


class JsonBody:
    """A JSON document that arrives in pieces; see the module.

    `max_strings`: long strings in the document.
    """

    def __init__(self, max_strings: int):
        self._max_outline, self._max_strings = OUTLINE + 2 * LONG * max_strings, max_strings
        self._outline = bytearray()
        self._string: bytearray | None = None  # the start of the string that is being read
        self._long: Base64Text | None = None  # the rest of it, if it is long
        self._unfinished = b""  # an escape sequence of which only the start has arrived
        self._texts: dict[str, tuple[str, Base64Text]] = {}
        self._marker = secrets.token_hex(8)  # unknown to the client, who could otherwise name a string of its own so

    def feed(self, piece: bytes) -> None:
        """Read the next piece. Raises MalformedError."""
        piece, self._unfinished = self._unfinished + piece, b""
        position = 0
        while position < len(piece):
            if self._string is None:
                # Outside strings only quotes matter; `find` passes over the rest at the speed of memory.
                quote = piece.find(b'"', position)
                end = len(piece) if quote < 0 else quote
                self._extend_outline(piece[position:end])
                position = end + 1
                if quote >= 0:
                    self._string = bytearray()
                continue
            match = _TEXT.match(piece, position)
            assert match is not None
            self._extend_string(match[0])
            position = match.end()
            if piece[position : position + 1] == b'"':
                self._end_string()
                position += 1
            elif len(piece) - position >= _ESCAPE_LENGTH:
                # A longer rest than any escape sequence: more bytes would not complete it.
                raise MalformedError("a string of it contains an invalid escape sequence")
            else:
                # The piece may end inside an escape sequence, which the next one completes.
                self._unfinished, position = piece[position:], len(piece)

    def finish(self) -> object:
        """The document. `text` and `decoded` read its strings. Raises MalformedError."""
        if self._string is not None:
            raise MalformedError("it ends inside a string")
        try:
            return json.loads(self._outline.decode("utf-8-sig"), strict=False)
        except (ValueError, RecursionError):
            raise MalformedError("it cannot be parsed as JSON in UTF-8") from None

    def text(self, string: str) -> str:
        """The text of a string of the document, or the start of it if it is long."""
        return self._texts[string][0] if string in self._texts else string

    def decoded(self, string: str) -> bytes | None:
        """The bytes that a string of the document encodes; None if it is not valid base64."""
        if string in self._texts:
            return self._texts[string][1].finish()
        short = Base64Text()
        short.feed(string.encode("utf-8", "backslashreplace"))
        return short.finish()

    def _extend_outline(self, text: bytes) -> None:
        self._outline += text
        if len(self._outline) > self._max_outline:
            raise MalformedError(f"besides its images it has more than {self._max_outline:,} bytes")

    def _extend_string(self, text: bytes) -> None:
        assert self._string is not None
        if self._long is not None:
            self._long.feed(_unescaped(text))
            return
        self._string += text
        if len(self._string) > LONG:
            if len(self._texts) == self._max_strings:
                raise MalformedError(f"it has more than {self._max_strings} long strings")
            # From here on the string is decoded while it arrives and never held as text.
            self._long = Base64Text()
            start = _unescaped(bytes(self._string))
            self._texts[f"{self._marker} {len(self._texts)}"] = start[:LONG].decode(errors="replace"), self._long
            self._long.feed(start)

    def _end_string(self) -> None:
        assert self._string is not None
        text = bytes(self._string) if self._long is None else f"{self._marker} {len(self._texts) - 1}".encode()
        self._extend_outline(b'"%b"' % text)
        self._string = self._long = None
