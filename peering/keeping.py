"""The newest record of one run that this process knows: what it tells whoever asks, and what it goes by itself.

Decides which of two records stays: the newer, if it holds. Always: an older one is refused before its signatures are
looked at, so that passing on what everybody has costs nothing; one that a stranger sent is looked at as often as
`CHECKS_A_SECOND` allows, and no more. Touches nothing; time is given.
"""

from __future__ import annotations

from collections.abc import Callable

from peering.record import RunRecord, age_of, read_record
from protocol.errors import RateLimited, RemoteError
from protocol.ids import Digest

CHECKS_A_SECOND = 100.0
"""Of what strangers send: some 0.3 ms each, so that it costs a few hundredths of a core at most."""
MOST_CHECKS = 200.0


class RecordKeeper:
    """One run's. `on_newer` hears of each record that is newer than the one before, with its bytes."""

    def __init__(
        self,
        fingerprint: Digest,
        wall_s: Callable[[], float],
        clock: Callable[[], float],
        on_newer: Callable[[RunRecord, bytes], None] = lambda _record, _content: None,
    ) -> None:
        """`wall_s`: calendar time; `clock`: any that does not jump."""
        self.fingerprint = fingerprint
        self.wall_s, self._clock, self.on_newer = wall_s, clock, on_newer
        self.newest: RunRecord | None = None
        """It may have expired by now: still the best hint that there is."""
        self.content = b""
        self._checks, self._counted_s = MOST_CHECKS, clock()

    def recall(self, content: bytes) -> None:
        """Take what this machine wrote down once, expired or not; what does not hold is left out."""
        try:
            self.newest, self.content = read_record(content, self.fingerprint, None), content
        except RemoteError:
            return

    def offer(self, content: bytes) -> bool:
        """Whether `content` is newer than what was here, and now is; RemoteError where it does not hold."""
        if content == self.content:
            return False
        if self.newest is not None and age_of(content) <= self.newest.age:
            return False
        record = read_record(content, self.fingerprint, self.wall_s())
        self.newest, self.content = record, content
        self.on_newer(record, content)
        return True

    def offer_of_stranger(self, content: bytes) -> bool:
        """As `offer`; RateLimited where too many come."""
        now_s = self._clock()
        self._checks = min(MOST_CHECKS, self._checks + (now_s - self._counted_s) * CHECKS_A_SECOND)
        self._counted_s = now_s
        if self._checks < 1.0:
            raise RateLimited("too many records at once; come again")
        self._checks -= 1.0
        return self.offer(content)

    @property
    def told(self) -> bytes:
        """What is told to whoever asks: the newest, unless it has expired."""
        if self.newest is None or self.wall_s() >= self.newest.expires_s:
            return b""
        return self.content
