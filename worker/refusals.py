"""What a failed call means for the session: whether finished work is kept, and for how long.

Decides when a refusal is final. The coordinator says so; or there is nothing to offer any more; or it has refused until
the work would count no more, which bounds how long a worker is kept busy by a coordinator that never takes it. Anything
else leaves the work where it is. A coordinator that cannot be reached refuses nothing, however long. Touches nothing;
the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.errors import FinalRefusal
from protocol.ids import LeaseId
from worker import messages as m
from worker.lease import ReceivedLease, printable
from worker.trouble import trouble_of

MOST_LEASES = 3
"""One is sent, one is trained, and one more is granted again."""


class Refusals:
    """Turns errors into answers to the calls that they ended."""

    def __init__(self, clock: Callable[[], float], kept_after_deadline_s: float) -> None:
        self._clock = clock
        self._kept_after_deadline_s = kept_after_deadline_s
        # of work that an earlier process left, no deadline is known
        self._unknown_until_s = clock() + kept_after_deadline_s
        self._kept_until_s: dict[LeaseId, float] = {}

    def keep_for(self, lease: ReceivedLease) -> None:
        """What comes of `lease` is kept until some time after its deadline."""
        self._kept_until_s.pop(lease.lease_id, None)
        self._kept_until_s[lease.lease_id] = self._clock() + lease.ttl_s + self._kept_after_deadline_s
        while len(self._kept_until_s) > MOST_LEASES:
            del self._kept_until_s[next(iter(self._kept_until_s))]

    def answer(self, call: m.Call, error: Exception) -> m.SessionEvent:
        """`call` ended in `error`."""
        trouble = trouble_of(error)
        reason, cause = printable(trouble.detail), trouble.cause
        if isinstance(call, m.FetchShard):
            return m.FetchFailed(ticket=call.ticket, reason=reason, cause=cause)
        if isinstance(error, FinalRefusal):
            return m.CallRefused(ticket=call.ticket, reason=reason, cause=cause, final=True)
        if not isinstance(call, m.CommitSubmission | m.UploadSubmission):
            return m.CallRefused(ticket=call.ticket, reason=reason, cause=cause)
        if self._clock() < self._kept_until_s.get(call.lease_id, self._unknown_until_s):
            return m.CallRefused(ticket=call.ticket, reason=reason, cause=cause)
        hours = f"{self._kept_after_deadline_s / 3600:g} h"
        why = f"it was refused until {hours} after its deadline, and would not count any more"
        return m.CallRefused(ticket=call.ticket, reason=why, detail=reason, final=True)


def nothing_to_send(call: m.Call) -> m.SessionEvent:
    """The submission that `call` is about is not on disk."""
    return m.CallRefused(ticket=call.ticket, reason="the submission on disk is gone or damaged", final=True)
