"""What a volunteer is told who waits for a lease: plain, in the second person, and with how long it should take.

Decides nothing. An estimate is made of what the engine knows: the grace that is left, when the leases that are out
should end by their workers' own speeds, and the round's deadline, which is a promise and not a guess. Nothing in here
is state: words may change without a new engine version.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.engine import dispatch, pacing, quorum, rounds
from coordinator.engine.dispatch import Hindrance
from coordinator.engine.phases import Phase
from coordinator.engine.rows import Ban, BanOf, LeaseRecord, WorkerRecord
from coordinator.engine.stages import told_to_worker
from coordinator.engine.state import EngineState

SOON_S = 5.0
"""An estimate below this is `any moment`: nobody plans by it."""


def wait_sentence(state: EngineState, record: WorkerRecord, now_s: float) -> str:
    """Why this worker has no lease as of `now_s`, and when it may have one."""
    at = state.seen_at(max(state.now_s, now_s))
    hindrance = dispatch.hindrance_of(at, record)
    if hindrance is None and at.phase not in rounds.RUNNING_PHASES:
        return _between_rounds(at, record)
    hindrance = hindrance or dispatch.refusal_now(at, quorum.Standings(at), pacing.pace_of(at), record)
    if hindrance is None:
        return f"Round {at.round.round} is handing out its work; your turn comes at once."
    return _hindered(at, record, hindrance)


def banned_sentence(ban: Ban) -> str:
    """What whoever is shut out is told, and whom to ask."""
    whose = {
        BanOf.KEY: "This machine's key is",
        BanOf.OWNER: "All machines of this owner are",
        BanOf.INVITE: "All machines that came with this invite are",
    }[ban.of]
    return (
        f"{whose} banned from this run: {told_to_worker(ban.why)}. If that is wrong, write to the operator, who can "
        "look at the audits and take it back"
    )


def about(seconds: float) -> str:
    """A duration as people say it: `about 40 s`, `about 3 min`, `about 2 h`."""
    if seconds < 90.0:
        return f"about {max(10, 10 * round(seconds / 10)):d} s"
    return f"about {round(seconds / 60):d} min" if seconds < 5400.0 else f"about {round(seconds / 3600):d} h"


def _between_rounds(state: EngineState, record: WorkerRecord) -> str:
    number = state.round.round
    if state.phase is Phase.AGGREGATING:
        return f"The work for round {number} is complete and is being merged; the next round opens right after."
    if state.phase is not Phase.GATHERING:
        return (
            "The run took its last step; the model is being checked and saved. Nothing more is asked of your machine."
        )
    others = sum(1 for one in dispatch.workers_here(state) if one.worker != record.worker)
    wanted, left_s = rounds.workers_wanted(state), rounds.gathering_left_s(state)
    if others + 1 < wanted:
        return f"Round {number} begins as soon as {wanted} machines are ready; with yours there are {others + 1}."
    if left_s < SOON_S:
        return f"Round {number} begins any moment."
    return f"Round {number} begins in {about(left_s)}; until then others may still come."


def _hindered(state: EngineState, record: WorkerRecord, hindrance: Hindrance) -> str:
    number, following = state.round.round, _next_round(state)
    cooling_s = record.cooling_until_s - state.now_s
    aside = told_to_worker(record.quarantine.why) if record.quarantine else ""
    held = state.hold.why if state.hold else ""
    why = f": {held.rstrip('.')}." if held else "."
    words = {
        Hindrance.PAUSED: f"The operator has paused the run{why} Nothing is lost; your machine is asked then.",
        Hindrance.DRAINING: f"The operator is bringing the run to a halt{why} Your machine is asked when it goes on.",
        Hindrance.BANNED: f"{banned_sentence(record.ban)}." if record.ban else "",
        Hindrance.SET_ASIDE: f"Your machine is set aside for now: {aside}. If that is a surprise, ask the operator.",
        Hindrance.OFFERS_TOO_LITTLE: f"Your machine offers to hold {record.max_columns} expert columns, and this run "
        f"needs {state.config.min_columns}: allow it more (--memory, --columns), or it is given nothing.",
        Hindrance.COOLING: f"Your machine lost more than one lease in round {number}; it is given the next in "
        f"{about(cooling_s)}.",
        Hindrance.REFUSED: f"Your work for round {number} was not accepted. {following}",
        Hindrance.PAST_DEADLINE: f"The time for round {number} is over. {following}",
        Hindrance.PART_IS_DONE: f"Your part of round {number} is done. {following}",
        Hindrance.SAME_OWNER: f"Your other machines hold what this one could take of round {number}. {following}",
        Hindrance.QUORUM_REACHED: f"Round {number} has all the work that it needs. {following}",
        Hindrance.TOO_LITTLE_TIME: f"Too little time is left in round {number} for another lease. {following}",
    }
    return words[hindrance]


def _next_round(state: EngineState) -> str:
    """When the next round is expected; the present one is running."""
    limits = [limit for limit in (quorum.deadline_s(state), state.round.grace_until_s) if limit is not None]
    if not limits:
        return "The next round opens when this one closes."
    latest_s = min(limits) - state.now_s
    expected_s = _closes_in_s(state)
    if expected_s is not None and SOON_S <= expected_s < latest_s:
        return f"The next round is expected in {about(expected_s)}."
    if latest_s < SOON_S:
        return "The next round is expected any moment."
    if expected_s is None:
        return f"The next round opens in {about(latest_s)} at the latest."
    return f"The next round is expected any moment, in {about(latest_s)} at the latest."


def _closes_in_s(state: EngineState) -> float | None:
    """Seconds until the last lease that is waited for should be in; None where nobody's speed is known yet."""
    pace = pacing.pace_of(state)
    ends = [_end_s(state, pace, record) for record in _awaited(state)]
    known = [end for end in ends if end is not None]
    return max(known, default=state.now_s) - state.now_s if len(known) == len(ends) else None


def _awaited(state: EngineState) -> Iterator[LeaseRecord]:
    """Leases of the round that something may come of in time."""
    return (record for record in state.leases_of_round() if state.is_awaited(record) and not record.overdue)


def _end_s(state: EngineState, pace: pacing.Pace, record: LeaseRecord) -> float | None:
    took_s = pacing.expected_end_s(state.workers[record.lease.worker], pace, record.lease.inner_steps)
    return None if took_s is None else min(record.lease.granted_at_s + took_s, record.lease.deadline_s)
