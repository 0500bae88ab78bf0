"""One file to documents, as UTF-8 bytes; and the books on what was left out, and why.

Decides what of a file is text. Nothing in a file ends the work on the others: what cannot be used is counted, and the
first few are named. Holds always: memory holds one document; a file that is opened is a regular one, so that reading
never waits; no text is cut inside a character.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAX_DOCUMENT_BYTES = 64 << 20
"""A file beyond this is cut into pieces, rather than read whole."""

PIECE_BYTES = 16 << 10
"""Target length of the documents that a single file is cut into."""

_PEEK_BYTES = 64 << 10
"""By so much of its beginning a file is known to be binary."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz", ".zip", ".7z", ".tar", ".tgz", ".lz4", ".parquet", ".arrow"})
_JSON_LINES = frozenset({".jsonl", ".ndjson", ".jsonlines"})

_NAMED = 3
"""Examples that are named of each reason."""


@dataclass(slots=True)
class Tally:
    """What a source gave no document of, counted while it is read."""

    skipped: int = 0
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """Reason to the first few names; `counts` has how many there were."""
    counts: dict[str, int] = field(default_factory=dict)

    def skip(self, name: str, why: str) -> None:
        """Leave something out."""
        self.skipped += 1
        self.counts[why] = self.counts.get(why, 0) + 1
        named = self.reasons.setdefault(why, [])
        if len(named) < _NAMED:
            named.append(name)

    @property
    def in_words(self) -> str:
        """`3 skipped: 2 not text (a.zip, b.png), 1 empty (c.txt)`; nothing where nothing was."""
        parts = []
        for why, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            named = ", ".join(self.reasons[why]) + (", …" if count > _NAMED else "")
            parts.append(f"{count:,} {why} ({named})")
        return f"{self.skipped:,} skipped: {', '.join(parts)}" if parts else ""


def legible(name: str) -> str:
    """A name, perhaps of a file that is not named in UTF-8, as text that can be written down: `caf\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_json_lines(path: Path) -> bool:
    """Whether the file holds a document a line, by its name in capitals or not."""
    return path.suffix.lower() in _JSON_LINES


def whole_file(path: Path, name: str, tally: Tally) -> Iterator[bytes]:
    """The file as one document; one that is too long for that is cut into pieces."""
    if not _begins_as_text(path, name, tally):
        return
    try:
        with path.open("rb") as file:
            document = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        tally.skip(name, _unreadable(error))
        return
    if len(document) > MAX_DOCUMENT_BYTES:
        yield from _pieces(path, name, tally)
        return
    try:
        text = document.decode("utf-16").encode("utf-8") if document.startswith(_UTF16) else document
    except UnicodeError:
        tally.skip(name, "not UTF-16, though it begins so")
        return
    yield from counted(text.removeprefix(codecs.BOM_UTF8), name, tally)


def pieces(path: Path, name: str, tally: Tally) -> Iterator[bytes]:
    """The file cut at line ends, at a blank line where one comes soon enough."""
    if _begins_as_text(path, name, tally):
        yield from _pieces(path, name, tally)


def _pieces(path: Path, name: str, tally: Tally) -> Iterator[bytes]:
    piece: list[bytes] = []
    piece_bytes = 0
    begins = 1
    for number, line in _numbered_lines(path, name, tally):
        piece.append(line)
        piece_bytes += len(line)
        if piece_bytes >= 2 * PIECE_BYTES or (piece_bytes >= PIECE_BYTES and not line.strip()):
            yield from counted(b"".join(piece), f"{name} from line {begins}", tally)
            piece, piece_bytes, begins = [], 0, number + 1
    if piece:
        yield from counted(b"".join(piece), f"{name} from line {begins}", tally)


def json_lines(path: Path, name: str, tally: Tally) -> Iterator[bytes]:
    """What stands under "text", a document a line."""
    for number, line in _numbered_lines(path, name, tally):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            tally.skip(where, "not JSON")
            continue
        text = entry.get("text") if isinstance(entry, dict) else None
        if isinstance(text, str):
            yield from counted(encoded(text), where, tally)
        else:
            tally.skip(where, 'without a "text"')


def encoded(text: str) -> bytes:
    """A document as UTF-8; lone surrogates stay, so that it counts as no text."""
    return text.encode("utf-8", errors="surrogatepass")


def counted(document: bytes, name: str, tally: Tally) -> Iterator[bytes]:
    """The document, if it is text: UTF-8 with something in it and no NUL, which only binary files have."""
    if not document.strip():
        tally.skip(name, "empty")
    elif b"\0" in document:
        tally.skip(name, "not text")
    elif _is_utf8(document, whole=True):
        yield document
    else:
        tally.skip(name, "not UTF-8")


def _begins_as_text(path: Path, name: str, tally: Tally) -> bool:
    """Whether a look at its beginning leaves hope; else the file is counted as what it is."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
    except OSError as error:
        tally.skip(name, _unreadable(error))
        return False
    if head.startswith(_UTF16):
        return True
    if b"\0" not in head and _is_utf8(head, whole=len(head) < _PEEK_BYTES):
        return True
    if path.suffix.lower() in _COMPRESSED:
        tally.skip(name, "compressed or packed: unpack it first")
    else:
        tally.skip(name, "not text" if b"\0" in head else "not UTF-8")
    return False


def _is_utf8(text: bytes, *, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _numbered_lines(path: Path, name: str, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Lines as UTF-8 from 1 on; what cannot be read of the file is counted, and ends it."""
    try:
        with path.open("rb") as file:
            is_utf16 = file.peek(2).startswith(_UTF16)
            yield from enumerate(_utf16_lines(file) if is_utf16 else _utf8_lines(file), start=1)
    except UnicodeError:
        tally.skip(name, "not UTF-16, though it begins so")
    except OSError as error:
        tally.skip(name, _unreadable(error))


def _utf16_lines(file: io.BufferedReader) -> Iterator[bytes]:
    with io.TextIOWrapper(file, encoding="utf-16", newline="") as text:
        for line in iter(lambda: text.readline(MAX_DOCUMENT_BYTES // 4), ""):
            yield encoded(line)


def _utf8_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines; one longer than a document may be is cut between two characters."""
    rest = b""
    is_first = True
    while line := file.readline(MAX_DOCUMENT_BYTES):
        line = rest + line
        rest = b""
        if not line.endswith(b"\n") and len(line) >= MAX_DOCUMENT_BYTES:
            whole = len(line) - _begun_bytes(line)
            line, rest = line[:whole], line[whole:]
        yield line.removeprefix(codecs.BOM_UTF8) if is_first else line
        is_first = False
    if rest:
        yield rest


def _begun_bytes(text: bytes) -> int:
    """How many bytes at its end begin a character that goes on behind it."""
    for count in range(1, min(4, len(text)) + 1):
        byte = text[-count]
        if byte & 0xC0 != 0x80:  # the first of a character
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return count if length > count else 0
    return 0


def _unreadable(error: OSError) -> str:
    return f"unreadable: {os.strerror(error.errno) if error.errno else 'no reason given'}"
