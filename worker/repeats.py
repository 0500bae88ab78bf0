"""What has been said already: the same news again is worth a line only after a while, with how long it has lasted.

Decides that from the words themselves; a duration in them that has grown or shrunk makes no news. Touches nothing, and
its clock is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable

AGAIN_AFTER_S = 600.0
"""Often enough to show that nothing hangs, rarely enough for a log of days."""
_DURATIONS = re.compile(r"\d+(\.\d+)? (s|min|h)\b")


class Repeats:
    """One kind of news: waiting, say."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key: str | None = None
        self._since_s = 0.0
        self._said_s = 0.0

    def lasting_s(self, text: str) -> float | None:
        """None where `text` was said lately; else how long it has lasted, 0 where it is new."""
        now_s, key = self._clock(), _DURATIONS.sub("#", text)
        if key != self._key:
            self._key, self._since_s, self._said_s = key, now_s, now_s
            return 0.0
        if now_s - self._said_s < AGAIN_AFTER_S:
            return None
        self._said_s = now_s
        return now_s - self._since_s

    def over(self) -> float | None:
        """It is over: how long it lasted since it was first said; None where nothing was."""
        if self._key is None:
            return None
        self._key = None
        return self._clock() - self._since_s
