"""A process whose terminal is closed: which signals ask it to end, and what becomes of what it goes on printing.

Decides that a hang-up (SIGHUP) ends a process as SIGTERM does, unless it was ignored when the process started: that is
how `nohup` says that it is to stay. Holds always: while its output is outlived, no print raises because nobody is there
to read it. Touches standard output and standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C, as shells tell it: 128 and the number of SIGINT."""


def ending_signals() -> tuple[signal.Signals, ...]:
    """Signals that ask this process to end in good order. Windows has no SIGHUP; SIGQUIT ends at once, as ever."""
    asking = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        asking.append(hangup)
    return tuple(asking)


def is_hangup(number: int) -> bool:
    """Whether signal `number` is a hang-up. It never hastens an end: a shell and its terminal may each send one."""
    return number == getattr(signal, "SIGHUP", None)


@contextlib.contextmanager
def outliving_terminal() -> Iterator[None]:
    """Inside, standard output and standard error may lose their reader without anybody here noticing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, LastingStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class LastingStream:
    """A text stream that turns silent when its terminal is hung up on, or its pipe has no reader any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_gone = False

    def write(self, text: str) -> int:
        """Write, or drop what nobody can read."""
        if not self._is_gone:
            try:
                return self._stream.write(text)
            except OSError:
                self._turn_silent()
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        if not self._is_gone:
            try:
                self._stream.flush()
            except OSError:
                self._turn_silent()

    def _turn_silent(self) -> None:
        self._is_gone = True
        # What is still in the buffer is written once more when the interpreter ends: to where that cannot fail.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
