"""Which sentence of the catalogue tells a volunteer of trouble: what happened, what became of the work, what to do.

Decides by a `Cause` and by what the worker is doing; the words are in worker/catalogue.py. Holds always: no text of a
library, no exception's class and no status of a call is in a sentence; where the coordinator's own words are the only
reason there is, they are quoted, made printable and bounded. Touches nothing.
"""

from __future__ import annotations

import re
from enum import Enum

from protocol.causes import Cause
from protocol.errors import RemoteError
from worker import messages as m
from worker.catalogue import SENTENCES
from worker.lease import printable
from worker.messages import News
from worker.trouble import trouble_of
from worker.words import Words, foreign, say

MAX_QUOTED_CHARACTERS = 300


class InHand(Enum):
    """What the worker has in hand while it cannot reach the coordinator."""

    NOTHING = "nothing"
    LEASED = "hand.leased"
    TRAINING = "hand.training"
    UNSENT = "hand.unsent"


_REPORTS = {
    Cause.OUT_OF_MEMORY: "out of memory",
    Cause.DEVICE_FAILED: "the GPU failed",
    Cause.TRAINING_FAILED: "training failed on that machine",
    Cause.LOCAL_STORAGE: "the disk of that machine failed",
}
"""For the operator, in the operator's language: not in the catalogue."""


def unreached(cause: Cause | None, address: str, work: InHand, lasting_s: float = 0.0) -> Words:
    """The coordinator cannot be reached, or cannot serve: it is tried again until it can."""
    since = say("unreached.since", span=rough_duration(lasting_s)) if lasting_s > 0.0 else Words("")
    if work is InHand.NOTHING:
        return say("unreached.idle", what=_unreached(cause, address), since=since)
    return say("unreached", what=_unreached(cause, address), since=since, work=say(work.value))


def reached_again(address: str, lasted_s: float) -> Words:
    """After `unreached`."""
    return say("reached_again", address=address, span=rough_duration(lasted_s))


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


def in_words(error: RemoteError, address: str) -> RemoteError:
    """The same error as a volunteer reads it: for a command that asks once, and ends with it."""
    trouble = trouble_of(error)
    return type(error)(refusal(trouble.cause, trouble.detail, address), cause=trouble.cause)


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
            return say("submission_kept", why=_quoted(tell), span=rough_duration(tell.pause_s))
        case News.HELD_UP:
            return say("held_up")
        case News.PAUSED:
            name = "paused.waits" if tell.suspends else "paused.finishes" if tell.trains_on else "paused"
            return say(name, why=Words(said(tell.reason)))
        case News.RESUMED:
            return say("resumed")
        case News.LEASE_UNWANTED:
            return say("lease_unwanted", why=Words(said(tell.reason)), span=rough_duration(tell.pause_s))
        case News.OUT_OF_TIME:
            return say("out_of_time", why=Words(said(tell.reason)))


def waiting(reason: str, lasting_s: float = 0.0) -> Words:
    """No lease now, in the coordinator's words."""
    if lasting_s > 0.0:
        return say("still_waiting", span=rough_duration(lasting_s), why=foreign(reason))
    return say("waiting", why=foreign(reason))


def spent(lasted_s: float, trained_s: float, fetched_s: float, sent_s: float) -> Words:
    """What became of the time from one lease to the next."""
    return say(
        "time_spent",
        span=rough_duration(lasted_s),
        trained=rough_duration(trained_s),
        share=f"{min(1.0, trained_s / lasted_s):.0%}",
        fetched=rough_duration(fetched_s),
        sent=rough_duration(sent_s),
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


def rough_duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h`."""
    if seconds < 90.0:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400.0 else f"{round(seconds / 3600)} h"
