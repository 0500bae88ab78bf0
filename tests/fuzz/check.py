"""What must hold of a decoder for any input: a declared refusal or a value, in little memory and little time."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator
from typing import Any

from tests.fuzz.targets import Target

MOST_S = 5.0
"""A decoder that is still at it after this long hangs; honest inputs take microseconds, a shared machine may stall."""


class Hung(BaseException):
    """The input kept its decoder busy for too long."""


class Broken(AssertionError):
    """A decoder did what it never should; the message holds the input."""


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
        raise Broken(f"{target.name}: {error!r} for {data!r}") from error
    return True


def check_memory(target: Target, data: bytes) -> bool:
    """The same, and that it allocates within the bound."""
    tracemalloc.start()
    try:
        taken = check(target, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = target.base_bytes + target.growth * len(data)
    if peak > most:
        raise Broken(f"{target.name}: allocated {peak} bytes, at most {most}, for {len(data)} bytes {data[:200]!r}")
    return taken
