"""Events that reach a worker's session and commands that leave it: frozen data, no behaviour.

Every command that goes over the network carries a `ticket` and the lane in which it goes on, and the event that answers
it repeats that ticket. In each lane only the latest ticket is live; an answer to an older one is old news. The same
holds for training and its own counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from protocol.causes import Cause
from protocol.ids import LeaseId
from protocol.lease import Lease
from worker.lease import ReceivedLease

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_DEVICE_LOST = 75
"""The device has to be opened anew, which takes another process; the lease is kept. EX_TEMPFAIL of sysexits.h."""


class Lane(Enum):
    """What goes on beside each other, one call at a time in each."""

    WORK = auto()
    """Sessions, and a lease from asking for it to committing to what came of it."""
    LINE = auto()
    """Sending what was committed to."""


class News(Enum):
    """What a session has to tell; worker/sentences.py puts it into words."""

    SESSION_LOST = auto()
    LEASE_ENDED = auto()
    LEASE_FAILED = auto()
    SUBMISSION_REFUSED = auto()
    SUBMISSION_KEPT = auto()
    """Refused, but not for good: it is offered again."""
    HELD_UP = auto()
    """Finished work is trained faster than it is sent: nothing new is asked for until the line is free."""
    LEASE_UNWANTED = auto()
    """The volunteer's rules do not accept it."""
    PAUSED = auto()
    RESUMED = auto()
    OUT_OF_TIME = auto()
    """A lease that waited for a pause's end cannot be done in time any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent:
    """Base of everything that can happen to a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(SessionEvent):
    """The process is up. `unsent` names submissions that an earlier process left on disk, the oldest first."""

    enrolled: bool
    unsent: tuple[LeaseId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(SessionEvent):
    """Base of answers to a command over the network."""

    ticket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled(Reply):
    """The key is registered with the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Reply):
    """A session is open; until it is lost, every call may be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted(Reply):
    """Work. The same lease again, when the coordinator still holds one open for this worker."""

    lease: ReceivedLease
    unwanted: str = ""
    """Why the volunteer's rules do not accept it; empty: they do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldToWait(Reply):
    """No work just now."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Reply):
    """The run is over."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched(Reply):
    """Blocks and sequences of the lease are on this machine and checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Reply):
    """The coordinator knows the digest and has this many of the bytes. `settled`: it needs none."""

    offset: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded(Reply):
    """The coordinator has every byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadBroken(Reply):
    """The upload ended early; committing again tells where to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Reply):
    """The lease is back with the coordinator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused(Reply):
    """The call came to nothing, and not for want of a connection."""

    reason: str
    cause: Cause | None = None
    detail: str = ""
    """The raw text, where `reason` is ours."""
    final: bool = False
    """What was offered will never be taken. Otherwise it may be, and is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed(Reply):
    """What came is not what was promised, or does not fit this machine."""

    reason: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLost(SessionEvent):
    """The coordinator does not know session number `session` any more (it was restarted, say)."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(SessionEvent):
    """Training number `training` ended well, and its submission is on disk."""

    training: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailed(SessionEvent):
    """Training number `training` ended without a submission. `detail` is the raw text, for diagnosis."""

    training: int
    reason: str
    cause: Cause | None = None
    detail: str = ""
    device_lost: bool = False
    """This process can train no more; another one may go on from what was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCancelled(SessionEvent):
    """The lease is worth nothing any more: the coordinator said so, or kept its data back until the deadline."""

    lease_id: LeaseId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(SessionEvent):
    """The volunteer's policy: no work now. `stops_training`: not even what is in training, which waits."""

    reason: str
    stops_training: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(SessionEvent):
    """The volunteer's policy: work is welcome again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfTime(SessionEvent):
    """A lease that waits for a pause's end would not be done before its deadline any more."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRequested(SessionEvent):
    """The volunteer wants their machine back."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveTimedOut(SessionEvent):
    """The coordinator did not take the lease back in time; it will find out by silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCommand:
    """Base of everything a session asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(SessionCommand):
    """Base of commands over the network. A new one replaces any that is still going on in its lane."""

    ticket: int
    lane: Lane = Lane.WORK


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrol(Call):
    """Redeem the invite. Ends in `Enrolled` or `CallRefused`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession(Call):
    """Prove the key, learn the run. It is number `session`. Ends in `Opened` or `CallRefused`."""

    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireLease(Call):
    """Ask for work after `after_s`. Ends in `LeaseGranted`, `ToldToWait` or `RunEnded`."""

    after_s: float
    may_wait: bool
    """False: answer at once, no long poll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchShard(Call):
    """Bring blocks and sequences here. Ends in `Fetched` or `FetchFailed`."""

    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSubmission(Call):
    """After `after_s`, commit to the digest of the submission on disk. Ends in `Committed` or `CallRefused`."""

    lease_id: LeaseId
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSubmission(Call):
    """Send the submission's bytes from `offset`. Ends in `Uploaded`, `UploadBroken` or `CallRefused`."""

    lease_id: LeaseId
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnLease(Call):
    """Hand the lease back. Ends in `Returned` or `CallRefused`."""

    lease_id: LeaseId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCall(SessionCommand):
    """Give up the call that is going on in `lane`; no event follows."""

    lane: Lane = Lane.WORK


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTraining(SessionCommand):
    """Train. Ends in `Trained` or `TrainingFailed` with the same number, unless it is stopped."""

    training: int
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining(SessionCommand):
    """Stop as soon as a micro-step ends; no event follows."""

    training: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSubmission(SessionCommand):
    """The submission on disk is needed no more."""

    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell(SessionCommand):
    """Show this to the volunteer. `reason` may be raw; `detail`, where there is one, is rawer."""

    news: News
    reason: str
    cause: Cause | None = None
    detail: str = ""
    trains_on: bool = False
    suspends: bool = False
    """What was in training waits at its last saved step."""
    pause_s: float = 0.0
    """Until it is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(SessionCommand):
    """Nothing follows; the process leaves with `exit_code`. `keeps`: finished work stays on the disk. `run_over`: there
    is no more work in this run for anybody."""

    exit_code: int
    reason: str
    cause: Cause | None = None
    keeps: bool = False
    run_over: bool = False
