"""What must hold of a decoder for any input: a declared refusal or a value, in little memory and little time."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator
from typing import Any

from tests.fuzz.target import Target

MOST_S = 5.0
"""A decoder that is still at it after this long hangs; honest inputs take microseconds, a shared machine may stall."""
SHOWN_BYTES = 2000


class Hung(BaseException):
    """The input kept its decoder busy for too long."""


class Broken(AssertionError):
    """A decoder did what it never should; the message begins the input."""


@contextlib.contextmanager
def alarm(most_s: float = MOST_S) -> Iterator[None]:
    """Raise `Hung` in the midst of whatever takes too long."""

    def ring(_number: int, _frame: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def check(target: Target, data: bytes) -> bool:
    """Decode `data`; whether it was taken. Raises `Broken` where the decoder did anything but take or refuse it."""
    try:
        target.decode(data)
    except target.refusals:
        return False
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Broken(f"{target.name}: {str(error)[:500]} ({type(error).__name__}) for {_shown(data)}") from error
    return True


def check_memory(target: Target, data: bytes) -> tuple[bool, int]:
    """The same, and that it allocates within the bound; also how many bytes it had allocated at most."""
    tracemalloc.start()
    try:
        taken = check(target, data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most_bytes = target.base_bytes + target.growth * len(data)
    if peak_bytes > most_bytes:
        raise Broken(f"{target.name}: allocated {peak_bytes} bytes, at most {most_bytes}, for {_shown(data)}")
    return taken, peak_bytes


def _shown(data: bytes) -> str:
    more = f"… ({len(data)} bytes)" if len(data) > SHOWN_BYTES else ""
    return f"{data[:SHOWN_BYTES]!r}{more}"
