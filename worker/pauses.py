"""How long a worker pauses before it tries again, by what went wrong: plain data, which the session reads, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds before the next try, by what went wrong."""

    failure_s: float = 5.0
    """After a lease that failed here, times the failures in a row."""
    refused_s: float = 2.0
    """Before a submission that was refused, but not for good, is offered again; then twice as long, and so on."""
    most_refused_s: float = 300.0
    upload_s: float = 1.0
    """Before a broken upload is resumed, growing, with full jitter."""
    most_upload_s: float = 60.0
    unwanted_s: float = 120.0
    """After a lease that the volunteer's rules do not accept: the next one is likely to be the same."""
    disk_s: float = 5.0
    """How often a disk that took no writes is tried again: a volunteer who makes room sees work go on at once."""
    kept_after_deadline_s: float = 7200.0
    """After its lease's deadline a submission still counts in the round that follows its own; a round lasts an hour at
    most unless the operator has said otherwise."""
