"""The stage at which a submission was judged, and what its worker is told of it: a sentence, and never a figure.

Decides which reasons may be said to a worker as they stand: those about time, steps and rounds, which its lease names
anyway. Of what was measured it hears the stage and what kind of thing was wrong: with figures and thresholds a liar
would see how far it may go. The operator has them all (`told`, `barnraise coordinator audit-log`). A reason that is not
listed here is told in words that fit any. Pure; sentences may change without a new engine version.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from coordinator.engine.reasons import (
    AUDIT_FAILED,
    BANNED,
    DUPLICATE,
    HELDOUT_GAIN_TOO_SMALL,
    HELDOUT_LOSS_ROSE,
    INCOMPLETE,
    LATE,
    MALFORMED,
    NON_FINITE,
    NORM_TOO_LARGE,
    NORM_TOO_SMALL,
    UNAGGREGATABLE,
    UNANSWERED,
    UNMEASURABLE,
    UNUSABLE,
    Case,
    Reason,
    Verdict,
    told,
)


class Stage(StrEnum):
    """Where a submission, or a worker, was judged, in their order."""

    ENVELOPE = "envelope"
    """Form, size, steps, finiteness, time: before anything is compared with others."""
    NORMS = "norms"
    """Each block's length."""
    GAIN = "gain"
    """What it does to the loss on text that only the run has."""
    REVIEW = "review"
    """With the whole round, when it closes, or when its version is made."""
    AUDIT = "audit"
    """Its lease, computed again."""
    TRUST = "trust"
    """The worker's whole record."""


_BY_KEY: Mapping[str, Stage] = {
    MALFORMED: Stage.ENVELOPE,
    NON_FINITE: Stage.ENVELOPE,
    LATE: Stage.ENVELOPE,
    INCOMPLETE: Stage.ENVELOPE,
    DUPLICATE: Stage.ENVELOPE,
    UNMEASURABLE: Stage.ENVELOPE,
    UNANSWERED: Stage.ENVELOPE,
    NORM_TOO_LARGE: Stage.NORMS,
    NORM_TOO_SMALL: Stage.NORMS,
    HELDOUT_LOSS_ROSE: Stage.GAIN,
    HELDOUT_GAIN_TOO_SMALL: Stage.GAIN,
    UNAGGREGATABLE: Stage.REVIEW,
    UNUSABLE: Stage.REVIEW,
    AUDIT_FAILED: Stage.AUDIT,
    BANNED: Stage.TRUST,
}

_AS_IT_STANDS = frozenset(
    {
        Case.UNSCREENED,
        Case.NOT_AS_LEASED,
        Case.RUN_TOOK_LAST_STEP,
        Case.AFTER_DEADLINE,
        Case.COMMITTED_ROUNDS_LATE,
        Case.BYTES_ROUNDS_LATE,
        Case.JUDGED_ROUNDS_LATE,
        Case.LEASED_ANEW,
        Case.SEAT_TAKEN,
        Case.STEPS_MISSING,
        Case.SAME_BYTES,
        Case.BYTES_AFTER_ITS_TIME,
        Case.BYTES_AFTER_THE_RUN,
        Case.NOT_JUDGED,
        Case.NO_ROUND_LEFT,
        Case.HANDED_BACK,
        Case.SILENT,
        Case.NO_SUBMISSION,
        Case.ROUND_WENT_ON,
        Case.ASKED_AFTER_ROUND,
        Case.ASKED_AFTER_DEADLINE,
        Case.STARTS_OVER,
        Case.SUPERSEDED,
        Case.ENDED,
        Case.ALL_ROUNDS_DONE,
        Case.ROUND_DEADLINE,
        Case.ALL_RESOLVED,
        Case.UNDER_QUORUM,
        Case.GRACE_OVER,
        Case.NOTHING_ACCEPTABLE,
        Case.ALL_LEFT_OUT,
        Case.WORKER_BANNED,
        Case.WITHOUT_WEIGHT,
        Case.VERSION_ABANDONED,
        Case.ROLLED_BACK,
        Case.COMPARED,
        Case.WEIGHTLESS,
        Case.BANNED,
        Case.SUSPECTED_OF_HARM,
        Case.NOT_VOUCHED_FOR,
        Case.ROUND_WITHHELD,
        Case.NOBODY_HEARD,
    }
)
"""What is in them, the worker's lease says, or its own clock, or a decoder of this program about its bytes."""

_IN_OTHER_WORDS: Mapping[Case, str] = {
    Case.GAIN: "nothing was found against it",
    Case.NORM_NOT_FINITE: "it holds values that are not finite",
    Case.NORM_OVER_WEIGHTS: "it is far larger than what it would change",
    Case.NORM_OVER_MEDIAN: "its size is unlike that of honest work on such a lease",
    Case.NORM_UNDER_MEDIAN: "its size is unlike that of honest work on such a lease",
    Case.GAIN_NOT_FINITE: "the model breaks with it",
    Case.GAIN_UNDER_LEAST: "the model learns nothing from it",
    Case.GAIN_UNDER_MEDIAN: "the model learns far less from it than from others' work",
    Case.NOT_MEASURED: "it could not be looked at here; no fault of yours",
    Case.BREAKS_AGGREGATION: "it cannot be merged with the others' work",
    Case.BYTES_LOST: "its bytes were lost here; no fault of yours",
    Case.NOT_REPRODUCED: "whoever computed its lease again came to something else; nothing is final before somebody "
    "else has, too",
    Case.AUDITS_FAILED: "independent auditors computed one of its leases again, and it is not what was sent",
    Case.FULL_STEP_HARMS: "the model breaks with it, taken in full",
    Case.HARMS_ALONE: "a model made of it alone is worse",
    Case.WORSE_VERSION: "its round made the model worse and was withheld; nobody is blamed for that",
    Case.NONE_IN_TIME: "its round closed: what was still out is not waited for",
    Case.ROUND_GIVEN_UP: "its round could not be merged; no fault of yours",
}
_OF_ANY = "it did not pass the run's checks"


def stage_of(verdict: Verdict) -> Stage:
    """Where a verdict was reached; an acceptance is screening's last word."""
    if verdict.accepted:
        return Stage.AUDIT if verdict.why.case is Case.COMPARED else Stage.GAIN
    return _BY_KEY.get(verdict.key, Stage.REVIEW)


def told_to_worker(why: Reason) -> str:
    """What the worker that it is about may read of it: no measurement, no threshold. Without a full stop."""
    if why.case in {Case.SET_ASIDE, Case.SHARE_REFUSED}:
        return _set_aside(why)
    return told(why) if why.case in _AS_IT_STANDS else _IN_OTHER_WORDS.get(why.case, _OF_ANY)


def verdict_told(verdict: Verdict) -> str:
    """A verdict for its worker: a sentence, and for a refusal the stage."""
    if verdict.accepted:
        return told_to_worker(verdict.why)
    return f"{told_to_worker(verdict.why)} (stage: {stage_of(verdict)})"


def _set_aside(why: Reason) -> str:
    """How long, since its owner plans by that; not how many refusals it takes."""
    spans = []
    if "rounds" in why.figures:
        spans.append(f"{why.figures['rounds']:.0f} rounds")
    if "seconds" in why.figures:
        spans.append(f"{why.figures['seconds']:.0f} s")
    stage = f" (the last at stage {_BY_KEY[why.about]})" if why.about in _BY_KEY else ""
    until = f": no leases for {' or '.join(spans)}, whichever ends first" if spans else ""
    return f"too much of its work was refused{stage}{until}"
