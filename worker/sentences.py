"""Every sentence that tells a volunteer of trouble, in one place: what happened, what became of the work, what to do.

Decides words only, from a `Cause` and what the worker is doing. Holds always: no text of a library, no exception's
class and no status of a call is in a sentence; where the coordinator's own words are the only reason there is, they are
quoted, made printable and bounded. Touches nothing.
"""

from __future__ import annotations

import re
from enum import Enum

from protocol.causes import Cause
from worker import messages as m
from worker.lease import printable
from worker.messages import News

MAX_QUOTED_CHARACTERS = 300


class InHand(Enum):
    """What the worker has in hand while it cannot reach the coordinator."""

    NOTHING = ""
    LEASED = "The lease is kept for as long as it lasts."
    TRAINING = "Training goes on meanwhile."
    UNSENT = "Your finished work is safe on this disk, and is sent as soon as the coordinator answers."


_UNREACHED = {
    Cause.CONNECTION_REFUSED: "Nobody answers at {address}: the coordinator is not running there just now",
    Cause.NAME_UNKNOWN: "The name in {address} cannot be looked up: either this machine is offline, or it is mistyped",
    Cause.NO_ROUTE: "There is no way to {address} from this network: look at this machine's connection",
    Cause.NO_ANSWER: "The coordinator at {address} does not answer in time",
    Cause.NOT_A_COORDINATOR: "What answers at {address} is not a coordinator of Barnraise",
    Cause.WRONG_CERTIFICATE: "The coordinator at {address} is not that of the run that you joined",
    Cause.BROKEN_OFF: "The connection to {address} broke off",
    Cause.FENCED: "The run has moved from {address} to another machine",
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
_REPORTS = {
    Cause.OUT_OF_MEMORY: "out of memory",
    Cause.DEVICE_FAILED: "the GPU failed",
    Cause.TRAINING_FAILED: "training failed on that machine",
    Cause.LOCAL_STORAGE: "the disk of that machine failed",
}
_HANDED_BACK = "The lease goes back, and another machine does it."


def unreached(cause: Cause | None, address: str, work: InHand, lasting_s: float = 0.0) -> str:
    """The coordinator cannot be reached, or cannot serve: it is tried again until it can."""
    what = _UNREACHED.get(cause or Cause.UNREACHABLE, "The coordinator at {address} cannot be reached")
    since = f" (for {duration(lasting_s)} now)" if lasting_s > 0.0 else ""
    parts = (what.format(address=address) + since + ".", work.value, "Trying again; Ctrl-C leaves.")
    return " ".join(part for part in parts if part)


def reached_again(address: str, lasted_s: float) -> str:
    """After `unreached`."""
    return f"The coordinator at {address} answers again, after {duration(lasted_s)}."


def broken_upload(cause: Cause | None, address: str) -> str:
    """An upload that ended early; the rest follows."""
    what = _UNREACHED.get(cause or Cause.BROKEN_OFF, _UNREACHED[Cause.BROKEN_OFF]).format(address=address)
    return f"{what}. Your finished work is safe on this disk; sending goes on where it stopped."


def refusal(cause: Cause | None, detail: str, address: str) -> str:
    """Trouble that ends the worker. Without a cause, `detail` is a sentence of our own."""
    if cause is None:
        return printable(detail)
    template = _FINAL.get(cause) or _UNREACHED.get(cause, "The coordinator at {address} cannot be reached") + "."
    return template.format(address=address, said=said(detail))


def finished(finish: m.Finish, address: str) -> str:
    """Why the worker leaves."""
    if finish.exit_code == m.EXIT_DEVICE_LOST:
        return DEVICE_LOST
    text = finish.reason if finish.exit_code != m.EXIT_REFUSED else refusal(finish.cause, finish.reason, address)
    return f"{text} Your finished work is kept on this disk, and sent when you join again." if finish.keeps else text


def told(tell: m.Tell) -> str:
    """Something that the session decided."""
    match tell.news:
        case News.SESSION_LOST:
            work = f" {InHand.TRAINING.value}" if tell.trains_on else ""
            return f"The coordinator was restarted, or this machine was away for long: signing in again.{work}"
        case News.LEASE_ENDED:
            return f"This lease is over{_quoted(tell)}. What was trained for it is lost; another is asked for."
        case News.LEASE_FAILED:
            what = _FAILED_LEASE.get(tell.cause) if tell.cause else None
            return f"{what or f'This lease cannot be done here{_quoted(tell)}.'} {_HANDED_BACK}"
        case News.SUBMISSION_REFUSED:
            return (
                f"The coordinator did not take this work{_quoted(tell)}, so it is dropped; another lease is asked for."
            )
        case News.SUBMISSION_KEPT:
            again = f"It is safe on this disk, and is offered again in {duration(tell.pause_s)}."
            return f"The coordinator did not take this work just now{_quoted(tell)}. {again}"
        case News.HELD_UP:
            return (
                "Two pieces of finished work wait for this machine's uplink; the next lease is asked for when one of "
                "them is sent."
            )
        case News.PAUSED:
            on = " What is in training is finished and sent first." if tell.trains_on else ""
            waits = " What was in training waits at its last saved step." if tell.suspends else ""
            return f"Paused: {said(tell.reason)}.{on}{waits}"
        case News.RESUMED:
            return "Work is welcome again: going on."
        case News.LEASE_UNWANTED:
            return f"This lease goes back: {said(tell.reason)}. Another is asked for in {duration(tell.pause_s)}."
        case News.OUT_OF_TIME:
            return f"{said(tell.reason)}. {_HANDED_BACK}"


def waiting(reason: str, lasting_s: float = 0.0) -> str:
    """No lease now, in the coordinator's words."""
    since = f"still waiting, for {duration(lasting_s)} now" if lasting_s > 0.0 else "waiting"
    return f"{since}: {reason}"


def spent(lasted_s: float, trained_s: float, fetched_s: float, sent_s: float) -> str:
    """What became of the time from one lease to the next."""
    share = min(1.0, trained_s / lasted_s)
    return (
        f"in the {duration(lasted_s)} since the lease before, this machine trained for {duration(trained_s)} "
        f"({share:.0%}), fetched for {duration(fetched_s)} and sent for {duration(sent_s)}"
    )


def report(cause: Cause | None, detail: str) -> str:
    """Why a lease comes back, for the operator: nothing of a library's there either."""
    return _REPORTS.get(cause, detail) if cause else detail


def said(detail: str) -> str:
    """What the coordinator said, from the text of an error: without the call's name, printable and bounded."""
    return printable(re.sub(r"^[A-Z][A-Za-z]+: ", "", detail), MAX_QUOTED_CHARACTERS).strip().rstrip(".")


def _quoted(tell: m.Tell) -> str:
    """The reason in brackets, where it is the coordinator's words or ours."""
    own = tell.cause in {None, Cause.REFUSED, Cause.LEASE_ENDED, Cause.TOO_SMALL} and tell.reason
    return f" ({said(tell.reason)})" if own else ""


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h`."""
    if seconds < 90.0:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400.0 else f"{round(seconds / 3600)} h"
