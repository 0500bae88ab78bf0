"""What a worker's time went to between one lease and the next, for the volunteer.

Decides nothing; its clock comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocol.ids import LeaseId
from worker import sentences


class TimeSpent:
    """Seconds since the latest lease was granted. Sending goes on beside the next one's training."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s: float | None = None
        self._trained_lease: LeaseId | None = None
        self.trained_s = self.fetched_s = self.sent_s = 0.0

    def trained(self, lease_id: LeaseId, seconds: float) -> None:
        """A lease's training took so long; told again, it counts once."""
        if lease_id != self._trained_lease:
            self._trained_lease, self.trained_s = lease_id, self.trained_s + seconds

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """While it lasts, blocks and sequences come."""
        began_s = self._clock()
        try:
            yield
        finally:
            self.fetched_s += self._clock() - began_s

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While it lasts, a submission goes up."""
        began_s = self._clock()
        try:
            yield
        finally:
            self.sent_s += self._clock() - began_s

    def next_lease(self) -> str | None:
        """Another lease was granted: what became of the time since the one before, None where nothing was trained."""
        now_s, since_s = self._clock(), self._since_s
        told = None
        if since_s is not None and self.trained_s > 0.0 and now_s > since_s:
            told = sentences.spent(now_s - since_s, self.trained_s, self.fetched_s, self.sent_s)
        self._since_s, self.trained_s, self.fetched_s, self.sent_s = now_s, 0.0, 0.0, 0.0
        return told
