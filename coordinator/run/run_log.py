"""What a run's coordinator said, kept in its folder: one JSON line for each thing that happened, the oldest dropped.

Decides how much is kept and what of a line is not: addresses, which are forgotten after a fortnight elsewhere and would
not be here; names stand in no line either (worker ids do, and the registry tells whose they are). Always: a line that
cannot be written costs the line, never the run. Touches `log/` in the run folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

LOG_FILE = "coordinator.jsonl"
FILE_BYTES = 8 << 20
"""A file of about 40,000 lines; a thousand workers' rounds of an hour fill one in some two days."""
KEPT_FILES = 8
_NOT_KEPT = ("address",)


class RunLog:
    """Appends to a run's log, as a processor of structlog. Safe for several threads, for one process."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, kept_files: int = KEPT_FILES) -> None:
        self._path = folder / LOG_FILE
        self._file_bytes, self._kept_files = file_bytes, kept_files
        self._lock = threading.Lock()

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Write `event` down, and hand it on as it is."""
        kept = {name: value for name, value in event.items() if name not in _NOT_KEPT}
        line = json.dumps(kept, separators=(",", ":"), default=str) + "\n"
        with self._lock, contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size + len(line) > self._file_bytes:
                self._turn_over()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        return event

    def _turn_over(self) -> None:
        for number in range(self._kept_files - 1, 0, -1):
            older = self._path.with_name(f"{LOG_FILE}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{LOG_FILE}.{number - 1}")
            if newer.exists():
                newer.replace(older)


def last_lines(folder: Path, count: int) -> list[dict[str, Any]]:
    """The newest `count` lines, the oldest first."""
    found: list[dict[str, Any]] = []
    for path in (folder / LOG_FILE, *(folder / f"{LOG_FILE}.{number}" for number in range(1, KEPT_FILES))):
        with contextlib.suppress(OSError):
            found[:0] = _read(path.read_bytes())
        if len(found) >= count:
            break
    return found[-count:]


class LogTail:
    """What is added to a run's log from now on, over a turn-over, too."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._file = self._opened()
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def news(self) -> Iterator[dict[str, Any]]:
        """Whole lines that came since the last time."""
        while True:
            if self._file is None and (opened := self._opened()) is not None:
                self._file = opened
            if self._file is None:
                return
            at = self._file.tell()
            whole, end, _ = self._file.read().rpartition(b"\n")
            self._file.seek(at + len(whole) + len(end))
            yield from _read(whole)
            if end or not self._turned_over():
                return
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> Any:
        with contextlib.suppress(OSError):
            return self._path.open("rb")
        return None

    def _turned_over(self) -> bool:
        with contextlib.suppress(OSError):
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        return False


def _read(content: bytes) -> list[dict[str, Any]]:
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # torn by a full disk
            entry = json.loads(line)
            if isinstance(entry, dict) and "event" in entry:
                found.append(entry)
    return found
