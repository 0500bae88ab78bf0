"""How a worker is asked to leave by the system: signals, in words for the volunteer and the operator.

Decides that the first signal hands the lease back and that a second one ends the process at once; a hang-up is never
that second one, since a shell and its terminal may each send theirs. Touches the event loop's signal handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from protocol.terminal import ending_signals, is_hangup
from worker.words import say


class LeavingOnSignals(contextlib.AbstractContextManager[None]):
    """While inside, SIGTERM, SIGINT and SIGHUP (but under `nohup`) call `leave` with the reason in words."""

    def __init__(self, leave: Callable[[str], None]) -> None:
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._signals = ending_signals()
        self._asked: set[int] = set()

    def __enter__(self) -> None:
        for number in self._signals:
            # Not in the main thread, or on Windows: whoever runs us there stops us by other means.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.add_signal_handler(number, self._on_signal, number)

    def __exit__(self, *_: object) -> None:
        for number in self._signals:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self._asked and is_hangup(number):
            return
        if any(not is_hangup(earlier) for earlier in self._asked):
            os._exit(128 + number)
        first = not self._asked
        self._asked.add(number)
        if first:
            self._leave(reason_of(number))


def reason_of(number: int) -> str:
    """Why the worker leaves, as the operator reads it too."""
    if is_hangup(number):
        return say("leave.closed")
    return say("leave.ctrl_c" if number == signal.SIGINT else "leave.stopped")
