"""How commands speak: tables for people, JSON for machines, one sentence for an error.

Decides formats only; writes to standard output and standard error.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from protocol.text import printable

_WRITTEN_OUT = "barnraise.written_out"
_PLAIN = str.maketrans(
    {"→": "->", "±": "+/-", "×": "x", "–": "-", "…": "...", "·": "-", "θ": "theta"}
    | dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True))
)
"""Our own signs in ASCII, for terminals that have nothing else."""


def speak_in_any_encoding() -> None:
    """Let no character that a terminal lacks end a command: it is written out in the terminal's own."""
    codecs.register_error(_WRITTEN_OUT, _written_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_WRITTEN_OUT)


def _written_out(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    if lacking.isascii() or not all(ord(character) in _PLAIN for character in lacking):
        return codecs.backslashreplace_errors(error)
    return lacking.translate(_PLAIN), error.end


def say_error(sentence: str) -> None:
    """One line on standard error."""
    _say("barnraise", sentence)


def say_note(sentence: str) -> None:
    """One line on standard error about something that goes on, and that a person should know."""
    _say("note", sentence)


def _say(who: str, sentence: str) -> None:
    # It may quote what a stranger sent: nothing in it may steer the terminal.
    print(f"{who}: {' '.join(printable(sentence).split())}", file=sys.stderr)


def print_sample(text: str) -> None:
    """What a model wrote, which may be anything: lines and tabs stay, nothing else steers the terminal."""
    print(printable(text, keep="\n\t"))


class SpokenSample:
    """What a model writes, while it does; the line is ended whatever happens. Shown as `print_sample` shows it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        print(flush=True)

    def __call__(self, piece: str) -> None:
        """The next piece."""
        print(printable(piece, keep="\n\t"), end="", flush=True)


def print_json(value: object) -> None:
    """`value` as JSON on standard output."""
    exact = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not exact, default=str))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, aligned."""
    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


_PIPE_WIDTH = 200
"""Characters of a table's line in a pipe or a file."""


class ProgressLine:
    """One line on standard error that says what is being done, on a terminal only; gone when it is over."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, text: str) -> None:
        """Say `text` instead; ten times a second is what an eye can use."""
        now_s = time.monotonic()
        if self._shown and now_s >= self._next_s:
            self._next_s = now_s + 0.1
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def documents_told(tell: ProgressLine) -> Callable[[int, int], None]:
    """Progress of preparing text, for `tell`."""
    return lambda documents, tokens: tell(f"tokenizing: {documents:,} documents, {tokens:,} tokens")


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a table; columns whose values are numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows) and bool(rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # Where nobody looks at a terminal its width is unknown, and folded words are of no use to `grep`.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
