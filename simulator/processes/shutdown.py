"""Ctrl-C, SIGTERM and a closed terminal, as a flag that the simulation looks at: no handler tears anything down.

Decides that the first signal asks for an orderly end and that the second one ends the process at once, except for a
hang-up, which is often sent twice. While the context is open, what is printed to a terminal that is gone is dropped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from protocol.terminal import EXIT_INTERRUPTED, ending_signals, is_hangup, outliving_terminal


class StopRequest:
    """Whether somebody asked to stop; a context that holds the signal handlers while it is open."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._output = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._output.enter_context(outliving_terminal())
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._output.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and is_hangup(number):
            return
        if self.requested:
            os._exit(EXIT_INTERRUPTED)  # children notice that their parent is gone, and end
        self.requested = True
