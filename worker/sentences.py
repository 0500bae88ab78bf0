"""Which sentence of the catalogue tells a volunteer of trouble: what happened, what became of the work, what to do.

Decides by a `Cause` and by what the worker is doing; the words are in worker/catalogue.py. Holds always: no text of a
library, no exception's class and no status of a call is in a sentence; where the coordinator's own words are the only
reason there is, they are quoted, made printable and bounded. Touches nothing.
"""

from __future__ import annotations

import re
from enum import Enum

from protocol.causes import Cause
from worker import messages as m
from worker.catalogue import SENTENCES
from worker.lease import printable
from worker.messages import News
from worker.words import Words, foreign, say

MAX_QUOTED_CHARACTERS = 300


class InHand(Enum):
    """What the worker has in hand while it cannot reach the coordinator."""

    NOTHING = "nothing"
    LEASED = "hand.leased"
    TRAINING = "hand.training"
    UNSENT = "hand.unsent"


<<<<<<< HEAD
=======
_UNREACHED = {
    Cause.CONNECTION_REFUSED: "Nobody answers at {address}: the coordinator is not running there just now",
    Cause.NAME_UNKNOWN: "The name in {address} cannot be looked up: either this machine is offline, or it is mistyped",
    Cause.NO_ROUTE: "There is no way to {address} from this network: look at this machine's connection",
    Cause.NO_ANSWER: "The coordinator at {address} does not answer in time",
    Cause.NOT_A_COORDINATOR: "What answers at {address} is not a coordinator of Barnraise",
    Cause.WRONG_CERTIFICATE: "The coordinator at {address} is not that of the run that you joined",
    Cause.BROKEN_OFF: "The connection to {address} broke off",
    Cause.OVERLOADED: "The coordinator at {address} has too much to do, or is being stopped",
    Cause.OUT_OF_STORAGE: "The coordinator at {address} has no room on its disk; its operator has to make some",
    Cause.FAILED: "Something failed at the coordinator ({address}); its operator finds out what",
}
"""Trouble that may pass: what happened."""

_NEW_LINK = "Ask the run's operator for a new join link."
_FINAL = {
    Cause.INVITE_UNKNOWN: f"The invite in this join link is not one of the run's. {_NEW_LINK}",
    Cause.INVITE_USED: "This join link is used up: most links are for one machine. Ask the run's operator for"
    " a link of your own.",
    Cause.INVITE_EXPIRED: f"This join link has expired. {_NEW_LINK}",
    Cause.INVITE_REVOKED: f"The run's operator took this join link back. {_NEW_LINK}",
    Cause.NOT_ENROLLED: f"The run does not know this machine, or does not any more. {_NEW_LINK}",
    Cause.OTHER_VERSION: "This barnraise and the coordinator's do not understand each other: update the older.",
    Cause.BANNED: "{said}.",
    Cause.TOO_MANY: "{said}.",
    Cause.TOO_SMALL: "This machine offers too little for this run: {said}.",
    Cause.WRONG_CERTIFICATE: "The coordinator at {address} is not the one that the join link names, so nothing was sent"
    " to it. Compare the link with what the operator sent you; if it is the same, ask for a new one.",
    Cause.MALFORMED: "What the coordinator at {address} sent is not what was agreed, so none of it was used. Tell the"
    " run's operator.",
    Cause.LOCAL_STORAGE: "A file of the worker's cannot be read or written: make room on this machine's disk, or see"
    " whether it is sound, and join again.",
    Cause.SESSION_ENDED: f"The coordinator at {{address}} does not let this machine in. {_NEW_LINK}",
    Cause.REFUSED: "The coordinator refused this machine: {said}.",
}
"""Trouble that does not pass by trying again: what happened, and what to do."""

_FAILED_LEASE = {
    Cause.OUT_OF_MEMORY: "This machine ran out of memory in training. Close other programs, or offer less of it with"
    " --memory or --columns.",
    Cause.DEVICE_FAILED: "The GPU failed in training. If that happens again, update its driver, or train without it:"
    " --device cpu.",
    Cause.TRAINING_FAILED: "Training failed on this machine.",
    Cause.LOCAL_STORAGE: "This machine's disk failed in the middle of a lease; make room on it, or look at its health.",
    Cause.MALFORMED: "What the coordinator sent for this lease is not what the run has signed, so none of it was used."
    " Tell the run's operator.",
    Cause.LEASE_ENDED: "The coordinator ended this lease before its data was here.",
}
DEVICE_LOST = (
    "The GPU went away: its driver was reset, or this machine slept. It is opened anew by another process, which goes"
    " on with the lease from what is kept of it."
)
STARTED_TOO_OFTEN = (
    "The GPU went away {times} times in a row, so the worker is not started again. Update the GPU's driver, see whether"
    " it gets too hot, or train without it: --device cpu."
)
>>>>>>> h17a
_REPORTS = {
    Cause.OUT_OF_MEMORY: "out of memory",
    Cause.DEVICE_FAILED: "the GPU failed",
    Cause.TRAINING_FAILED: "training failed on that machine",
    Cause.LOCAL_STORAGE: "the disk of that machine failed",
}
"""For the operator, in the operator's language: not in the catalogue."""


def unreached(cause: Cause | None, address: str, work: InHand, lasting_s: float = 0.0) -> Words:
    """The coordinator cannot be reached, or cannot serve: it is tried again until it can."""
    since = say("unreached.since", span=duration(lasting_s)) if lasting_s > 0.0 else Words("")
    if work is InHand.NOTHING:
        return say("unreached.idle", what=_unreached(cause, address), since=since)
    return say("unreached", what=_unreached(cause, address), since=since, work=say(work.value))


def reached_again(address: str, lasted_s: float) -> Words:
    """After `unreached`."""
    return say("reached_again", address=address, span=duration(lasted_s))


def broken_upload(cause: Cause | None, address: str) -> Words:
    """An upload that ended early; the rest follows."""
    known = cause if cause and f"unreached.{cause}" in SENTENCES else Cause.BROKEN_OFF
    return say("broken_upload", what=_unreached(known, address))


def refusal(cause: Cause | None, detail: str, address: str) -> str:
    """Trouble that ends the worker. Without a cause, `detail` is a sentence of our own."""
    if cause is None:
        return Words(printable(detail))
    if f"final.{cause}" in SENTENCES:
        return say(f"final.{cause}", address=address, said=foreign(said(detail)))
    return say("final.passing", what=_unreached(cause, address))


def finished(finish: m.Finish, address: str) -> str:
    """Why the worker leaves."""
    if finish.exit_code == m.EXIT_DEVICE_LOST:
        return say("device_lost")
    text = finish.reason if finish.exit_code != m.EXIT_REFUSED else refusal(finish.cause, finish.reason, address)
    return say("kept_for_later", why=Words(text)) if finish.keeps else text


def told(tell: m.Tell) -> Words:
    """Something that the session decided."""
    match tell.news:
        case News.SESSION_LOST:
            return say("session_lost.training" if tell.trains_on else "session_lost")
        case News.LEASE_ENDED:
            return say("lease_ended", why=_quoted(tell))
        case News.LEASE_FAILED:
            known = tell.cause is not None and f"failed.{tell.cause}" in SENTENCES
            what = say(f"failed.{tell.cause}") if known else say("failed.here", why=_quoted(tell))
            return say("failed", what=what)
        case News.SUBMISSION_REFUSED:
            return say("submission_refused", why=_quoted(tell))
        case News.SUBMISSION_KEPT:
            return say("submission_kept", why=_quoted(tell), span=duration(tell.pause_s))
        case News.HELD_UP:
            return say("held_up")
        case News.PAUSED:
            name = "paused.waits" if tell.suspends else "paused.finishes" if tell.trains_on else "paused"
            return say(name, why=Words(said(tell.reason)))
        case News.RESUMED:
            return say("resumed")
        case News.LEASE_UNWANTED:
            return say("lease_unwanted", why=Words(said(tell.reason)), span=duration(tell.pause_s))
        case News.OUT_OF_TIME:
            return say("out_of_time", why=Words(said(tell.reason)))


def waiting(reason: str, lasting_s: float = 0.0) -> Words:
    """No lease now, in the coordinator's words."""
    if lasting_s > 0.0:
        return say("still_waiting", span=duration(lasting_s), why=foreign(reason))
    return say("waiting", why=foreign(reason))


def spent(lasted_s: float, trained_s: float, fetched_s: float, sent_s: float) -> Words:
    """What became of the time from one lease to the next."""
    return say(
        "time_spent",
        span=duration(lasted_s),
        trained=duration(trained_s),
        share=f"{min(1.0, trained_s / lasted_s):.0%}",
        fetched=duration(fetched_s),
        sent=duration(sent_s),
    )


def step(done: int, total: int, loss: float | None, tokens_per_s: float) -> Words:
    """How far training is."""
    speed = f"{tokens_per_s:,.0f}"
    if loss is None:
        return say("step", done=done, total=total, speed=speed)
    return say("step.loss", done=done, total=total, speed=speed, loss=f"{loss:.3f}")


def trained(tokens: int, train_s: float, first: float, last: float) -> Words:
    """A lease was trained to its end; losses of its first step and its last."""
    return say("trained", tokens=tokens, span=f"{train_s:.1f} s", first=f"{first:.3f}", last=f"{last:.3f}")


def verdict(outcome: str, lease: str, reason: str) -> Words:
    """What became of a submission: `accepted`, `rejected` or `pending`."""
    return say(f"verdict.{outcome}", lease=lease, why=foreign(reason))


def report(cause: Cause | None, detail: str) -> str:
    """Why a lease comes back, for the operator: nothing of a library's there either."""
    return _REPORTS.get(cause, detail) if cause else detail


def said(detail: str) -> str:
    """What the coordinator said, from the text of an error: without the call's name, printable and bounded."""
    return printable(re.sub(r"^[A-Z][A-Za-z]+: ", "", detail), MAX_QUOTED_CHARACTERS).strip().rstrip(".")


def _unreached(cause: Cause | None, address: str) -> Words:
    name = f"unreached.{cause}" if cause else ""
    return say(name if name in SENTENCES else "unreached.unreachable", address=address)


def _quoted(tell: m.Tell) -> Words:
    """The reason in brackets, where it is the coordinator's words or ours."""
    own = tell.cause in {None, Cause.REFUSED, Cause.LEASE_ENDED, Cause.TOO_SMALL} and tell.reason
    return say("why", why=foreign(said(tell.reason))) if own else Words("")


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h`."""
    if seconds < 90.0:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400.0 else f"{round(seconds / 3600)} h"
