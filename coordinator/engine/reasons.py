"""Why things came out as they did: stable keys with figures for the books, and the sentences that are made of them.

Decides which verdicts count against a worker, and the words for each case. Holds always: records, journal and
snapshots hold a `Reason`, never a sentence of ours, so that changing one needs no new engine version; `told` is pure
and makes a sentence of any reason, one that an older release wrote included. A person's or a worker's own words, and
those of an error, are kept as they were given (`Reason.about`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MALFORMED = "malformed"
NON_FINITE = "non_finite"
NORM_TOO_LARGE = "norm_too_large"
NORM_TOO_SMALL = "norm_too_small"
HELDOUT_LOSS_ROSE = "heldout_loss_rose"
HELDOUT_GAIN_TOO_SMALL = "heldout_gain_too_small"
LATE = "late"
INCOMPLETE = "incomplete"
DUPLICATE = "duplicate"
UNMEASURABLE = "unmeasurable"
UNAGGREGATABLE = "unaggregatable"
UNUSABLE = "unusable"
BANNED = "banned"
UNANSWERED = "unanswered"
"""Of a worker, not of a submission: it was here and owed something that never came."""
AUDIT_FAILED = "audit_failed"

BLAMED_KEYS = frozenset(
    {
        MALFORMED,
        NON_FINITE,
        NORM_TOO_LARGE,
        NORM_TOO_SMALL,
        HELDOUT_LOSS_ROSE,
        HELDOUT_GAIN_TOO_SMALL,
        DUPLICATE,
        UNAGGREGATABLE,
    }
)
"""Keys that count towards quarantine. Being late, slow or gone never does, nor does a failure of ours."""
REFUSAL_KEYS = BLAMED_KEYS | {LATE, INCOMPLETE, UNMEASURABLE, UNUSABLE, BANNED, AUDIT_FAILED}
"""All that a submission is refused, or taken back, for."""


class Case(StrEnum):
    """What a reason is about: one sentence each. A value, once released, keeps its meaning."""

    AS_TOLD = "as_told"
    """A sentence of an engine that kept sentences: all there is."""

    # what screening found
    UNSCREENED = "unscreened"
    GAIN = "gain"
    NOT_AS_LEASED = "not_as_leased"
    NORM_NOT_FINITE = "norm_not_finite"
    NORM_OVER_WEIGHTS = "norm_over_weights"
    NORM_OVER_MEDIAN = "norm_over_median"
    NORM_UNDER_MEDIAN = "norm_under_median"
    GAIN_NOT_FINITE = "gain_not_finite"
    GAIN_UNDER_LEAST = "gain_under_least"
    GAIN_UNDER_MEDIAN = "gain_under_median"
    FULL_STEP_HARMS = "full_step_harms"

    # what came too late, or may not count
    RUN_TOOK_LAST_STEP = "run_took_last_step"
    AFTER_DEADLINE = "after_deadline"
    COMMITTED_ROUNDS_LATE = "committed_rounds_late"
    BYTES_ROUNDS_LATE = "bytes_rounds_late"
    JUDGED_ROUNDS_LATE = "judged_rounds_late"
    LEASED_ANEW = "leased_anew"
    SEAT_TAKEN = "seat_taken"
    STEPS_MISSING = "steps_missing"
    SAME_BYTES = "same_bytes"
    BYTES_AFTER_ITS_TIME = "bytes_after_its_time"
    BYTES_AFTER_THE_RUN = "bytes_after_the_run"
    NOT_JUDGED = "not_judged"
    NO_ROUND_LEFT = "no_round_left"

    # what we could not do
    NOT_MEASURED = "not_measured"
    BREAKS_AGGREGATION = "breaks_aggregation"
    BYTES_LOST = "bytes_lost"
    ROUND_GIVEN_UP = "round_given_up"

    # what the trust region withheld
    WORSE_VERSION = "worse_version"
    HARMS_ALONE = "harms_alone"
    SUSPECTED_OF_HARM = "suspected_of_harm"
    NOT_VOUCHED_FOR = "not_vouched_for"
    ROUND_WITHHELD = "round_withheld"
    NOBODY_HEARD = "nobody_heard"

    # why a lease came to nothing, or an accepted submission counts nowhere
    HANDED_BACK = "handed_back"
    SILENT = "silent"
    NO_SUBMISSION = "no_submission"
    ROUND_WENT_ON = "round_went_on"
    ASKED_AFTER_ROUND = "asked_after_round"
    ASKED_AFTER_DEADLINE = "asked_after_deadline"
    STARTS_OVER = "starts_over"
    SUPERSEDED = "superseded"
    WORKER_BANNED = "worker_banned"
    WITHOUT_WEIGHT = "without_weight"
    VERSION_ABANDONED = "version_abandoned"

    # what audits found
    NOT_REPRODUCED = "not_reproduced"
    COMPARED = "compared"
    WEIGHTLESS = "weightless"

    # why a worker gets no lease
    SET_ASIDE = "set_aside"
    SHARE_REFUSED = "share_refused"
    BANNED = "banned"
    AUDITS_FAILED = "audits_failed"

    # why credit was taken back, where no verdict says it
    ROLLED_BACK = "rolled_back"

    # why a round closed, or published nothing
    ROUND_DEADLINE = "round_deadline"
    UNDER_QUORUM = "under_quorum"
    ALL_RESOLVED = "all_resolved"
    GRACE_OVER = "grace_over"
    NONE_IN_TIME = "none_in_time"
    NOTHING_ACCEPTABLE = "nothing_acceptable"
    ALL_LEFT_OUT = "all_left_out"

    # why the run ended
    ENDED = "ended"
    """By the operator, in whose words `about` is, or else for good."""
    ALL_ROUNDS_DONE = "all_rounds_done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something came out as it did, for the books; `told` makes a sentence of it."""

    case: Case
    figures: dict[str, float] = field(default_factory=dict)
    about: str = ""
    """What the figures are about (a block, a lease), or words that somebody else gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judgement of one submission: a stable key for counting (empty: accepted), and why."""

    accepted: bool
    key: str
    why: Reason

    @property
    def reason(self) -> str:
        """Why, in words."""
        return told(self.why)


def reason(case: Case, about: str = "", /, **figures: float) -> Reason:
    """A reason."""
    return Reason(case=case, figures=figures, about=about)


def accepted(case: Case, about: str = "", /, **figures: float) -> Verdict:
    """An acceptance."""
    return Verdict(accepted=True, key="", why=Reason(case=case, figures=figures, about=about))


def rejected(key: str, case: Case, about: str = "", /, **figures: float) -> Verdict:
    """A refusal."""
    return Verdict(accepted=False, key=key, why=Reason(case=case, figures=figures, about=about))


class _Figures(dict[str, float | str]):
    """A figure that an older release did not write reads as nan: better than no sentence."""

    def __missing__(self, key: str) -> float:
        return float("nan")


def told(why: Reason) -> str:
    """The sentence, without a full stop at its end."""
    if why.case in {Case.GAIN, Case.GAIN_UNDER_LEAST, Case.GAIN_UNDER_MEDIAN, Case.FULL_STEP_HARMS}:
        return _gain(why)
    figures = _Figures(why.figures, about=why.about)
    figures["ending"] = f"the operator stopped the run: {why.about}" if why.about else "the run is over"
    figures["still_out"] = f", {why.figures['awaited']:.0f} still out" if why.figures.get("awaited") else ""
    figures["said"] = f": {why.about}" if why.about else ""
    figures["under_quorum"] = (
        f"; {why.figures['short']:.0f} columns stay under quorum" if why.figures.get("short") else ""
    )
    return _SENTENCES[why.case].format_map(figures)


def _gain(why: Reason) -> str:
    """What a part of a submission, or all of it, does to held-out loss: a gain, a rise, or neither that can be told."""
    figures = _Figures(why.figures)
    gain, error, doubt = (float(figures[name]) for name in ("gain", "error", "doubt"))
    effect = f"{'lowers' if gain >= 0.0 else 'raises'} held-out loss by {abs(gain):.4g}"
    effect += (f" ± {error:.2g}" if error > 0.0 else "") + " nats a token"
    if why.case is Case.GAIN and (gain == 0.0 or abs(gain) <= doubt):
        return f"part of a step along it {effect}: no more than the error of measuring it, so neither a gain nor a loss"
    if why.case is Case.GAIN:
        return f"part of a step along it {effect}"
    if why.case is Case.FULL_STEP_HARMS:
        return f"all of it, as the round may take it, {effect}; more than {-float(figures['least']):.4g} is too much"
    if why.case is Case.GAIN_UNDER_LEAST:
        return f"part of a step along it {effect}; it must be lowered by at least {figures['least']:g}"
    return (
        f"part of a step along it {effect}; it must be lowered by {figures['least']:.4g}, which is "
        f"{figures['share']:g} of the round's median {figures['median']:.4g} for its share of the steps"
    )


_SENTENCES: Mapping[Case, str] = {
    Case.AS_TOLD: "{about}",
    Case.UNSCREENED: "screening is off",
    Case.NOT_AS_LEASED: "the payload is not what was leased: {about}",
    Case.NORM_NOT_FINITE: "{about} holds values that are not finite (norm {norm:g})",
    Case.NORM_OVER_WEIGHTS: "norm {norm:.4g} of {about} is over {most:g} times that of the weights it would change "
    "({base:.4g})",
    Case.NORM_OVER_MEDIAN: "norm {norm:.4g} of {about}, at common steps, is {ratio:.3g} times the running median "
    "{median:.4g} (at most {most:g})",
    Case.NORM_UNDER_MEDIAN: "norm {norm:.4g} of {about}, at common steps, is {ratio:.3g} times the running median "
    "{median:.4g} (at least {least:g})",
    Case.GAIN_NOT_FINITE: "part of a step along it takes held-out loss to {gain:g}",
    Case.RUN_TOOK_LAST_STEP: "the run took its last step",
    Case.AFTER_DEADLINE: "committed {late_s:.1f} s after the lease's deadline",
    Case.COMMITTED_ROUNDS_LATE: "committed {rounds:.0f} rounds after its own; at most {most:.0f} late counts",
    Case.BYTES_ROUNDS_LATE: "committed in time, but its bytes came {rounds:.0f} rounds late",
    Case.JUDGED_ROUNDS_LATE: "judged {rounds:.0f} rounds after its own",
    Case.LEASED_ANEW: "the worker was silent, then asked anew and was given lease {about} instead",
    Case.SEAT_TAKEN: "the worker was silent; another machine of {about} was given column {column:.0f}",
    Case.STEPS_MISSING: "{done:.0f} of {leased:.0f} inner steps were done",
    Case.SAME_BYTES: "another lease already rests on exactly these bytes",
    Case.BYTES_AFTER_ITS_TIME: "committed in time, but round {round:.0f} closed without it, and at most {most:.0f} "
    "rounds late still counts",
    Case.BYTES_AFTER_THE_RUN: "committed in time, but {ending}",
    Case.NOT_JUDGED: "not judged any more: {ending}",
    Case.NO_ROUND_LEFT: "accepted, but no round takes it any more: {ending}",
    Case.NOT_MEASURED: "set aside: we could not measure it in {tries:.0f} tries ({about}); no fault of the worker",
    Case.BREAKS_AGGREGATION: "left out of round {round:.0f}: aggregating it fails, even alone ({about})",
    Case.BYTES_LOST: "left out of round {round:.0f}: its bytes were lost here ({about}); no fault of the worker",
    Case.ROUND_GIVEN_UP: "round {round:.0f} could not be aggregated and publishes nothing ({about}); no fault of the "
    "worker",
    Case.WORSE_VERSION: "withheld a version that raises held-out loss over version {version:.0f} by {rise:.4g} "
    "± {error:.2g} nats a token (at most {most:.3g})",
    Case.HARMS_ALONE: "left out of round {round:.0f}: a model made of it alone is worse on held-out data",
    Case.SUSPECTED_OF_HARM: "left out of round {round:.0f}, in which something made the model worse, and this may "
    "have; nobody is blamed for it",
    Case.NOT_VOUCHED_FOR: "left out of round {round:.0f}, whose version was worse on held-out data and took only what "
    "is trusted or audited; no fault of the worker",
    Case.ROUND_WITHHELD: "round {round:.0f} publishes nothing: whatever is made of it is worse on held-out data than "
    "what there was; nobody is blamed for it",
    Case.NOBODY_HEARD: "fewer than three independent people hold each block of it, and nobody of them is trusted or "
    "was audited",
    Case.HANDED_BACK: "handed back: {about}",
    Case.SILENT: "silent for {silent_s:.0f} s (at most {most_s:.0f} s)",
    Case.NO_SUBMISSION: "no submission within {given_s:.0f} s, the lease's deadline",
    Case.ROUND_WENT_ON: "round {round:.0f} closed without it, and at most {most:.0f} rounds late still counts",
    Case.ASKED_AFTER_ROUND: "its worker asked for work anew after round {round:.0f} closed",
    Case.ASKED_AFTER_DEADLINE: "its worker asked for work anew after the deadline",
    Case.STARTS_OVER: "its worker starts over and needs {needed_s:.0f} s; {left_s:.0f} s of grace are left",
    Case.SUPERSEDED: "a newer one of its worker, or of its owner, counts",
    Case.WORKER_BANNED: "its worker is banned",
    Case.WITHOUT_WEIGHT: "accepted, and weighs nothing: its worker is on probation",
    Case.VERSION_ABANDONED: "version {version:.0f}, which it builds on, was taken back",
    Case.ROLLED_BACK: "the version that it counted in was taken back",
    Case.NOT_REPRODUCED: "whoever computed the lease again came to something else; nothing is final before somebody "
    "else has, too",
    Case.COMPARED: "accepted: it shows whether another worker's lease was computed as it should be",
    Case.WEIGHTLESS: "accepted, but without weight: no audit has vouched for it",
    Case.ROUND_DEADLINE: "the round's deadline of {deadline_s:.0f} s has passed{still_out}",
    Case.UNDER_QUORUM: "every lease is resolved; {columns:.0f} columns stay under quorum and nobody idle can serve "
    "them",
    Case.ALL_RESOLVED: "every lease is resolved and every column has its quorum",
    Case.NONE_IN_TIME: "the {out:.0f} leases still out are not waited for: overdue, or of workers that lost their "
    "last ones{under_quorum}",
    Case.GRACE_OVER: "every column is settled and the grace for {stragglers:.0f} stragglers is over",
    Case.NOTHING_ACCEPTABLE: "nobody returned anything acceptable",
    Case.ALL_LEFT_OUT: "no accepted submission could be aggregated",
    Case.ENDED: "{ending}",
    Case.ALL_ROUNDS_DONE: "all {rounds:.0f} rounds are done",
    Case.SET_ASIDE: "{in_row:.0f} submissions refused in a row (the last: {about}); no leases for {rounds:.0f} rounds "
    "or {seconds:.0f} s, whichever ends first",
    Case.SHARE_REFUSED: "{refused:.0f} of its last {judged:.0f} submissions were refused (the latest: {about}); no "
    "leases for {rounds:.0f} rounds or {seconds:.0f} s, whichever ends first",
    Case.BANNED: "the operator banned it{said}",
    Case.AUDITS_FAILED: "{auditors:.0f} independent auditors computed lease {about} again, and it is not what was sent",
}
