"""Why a call came to nothing, as a word that both sides know: what sentences for people are chosen by.

A coordinator sends the word beside a refusal (in the trailing metadata `barnraise-cause`), so that nobody has to guess
from the text of a status, which may be gRPC's own. An unknown word counts as a missing one: versions may differ.
"""

from __future__ import annotations

from enum import StrEnum

CAUSE_KEY = "barnraise-cause"


class Cause(StrEnum):
    """What was in the way."""

    # Found out by whoever calls.
    CONNECTION_REFUSED = "connection-refused"
    NAME_UNKNOWN = "name-unknown"
    NO_ROUTE = "no-route"
    NO_ANSWER = "no-answer"
    """Not in time."""
    NOT_A_COORDINATOR = "not-a-coordinator"
    """No TLS, or the answer of something else, such as a proxy."""
    WRONG_CERTIFICATE = "wrong-certificate"
    """Somebody answers, but not the run that the link names."""
    BROKEN_OFF = "broken-off"
    UNREACHABLE = "unreachable"
    """For a reason that has no word."""

    # Sent by a coordinator.
    INVITE_UNKNOWN = "invite-unknown"
    INVITE_USED = "invite-used"
    INVITE_EXPIRED = "invite-expired"
    INVITE_REVOKED = "invite-revoked"
    NOT_ENROLLED = "not-enrolled"
    OTHER_VERSION = "other-version"
    BANNED = "banned"
    """Shut out by the operator, or after audits; the text says why and whom to write to."""
    TOO_MANY = "too-many"
    """As many as the run takes from one place are enrolled."""
    TOO_SMALL = "too-small"
    """The machine offers too little for any lease of the run."""
    SESSION_ENDED = "session-ended"
    OVERLOADED = "overloaded"
    FENCED = "fenced"
    """Another machine leads the run."""
    OUT_OF_STORAGE = "out-of-storage"
    """The coordinator's disk."""
    FAILED = "failed"
    """A fault over there."""
    LEASE_ENDED = "lease-ended"
    REFUSED = "refused"
    """Understood, and refused for a reason that only the text tells."""

    # Found out on this machine.
    MALFORMED = "malformed"
    """What came from the other side is not what was agreed or signed."""
    LOCAL_STORAGE = "local-storage"
    OUT_OF_MEMORY = "out-of-memory"
    DEVICE_FAILED = "device-failed"
    TRAINING_FAILED = "training-failed"


def cause_named(name: str | bytes | None) -> Cause | None:
    """The cause of this name; None where it is unknown here."""
    try:
        return Cause(name.decode("ascii", "replace") if isinstance(name, bytes) else name or "")
    except ValueError:
        return None
