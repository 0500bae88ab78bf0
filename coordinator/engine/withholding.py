"""A version that was withheld: what becomes of its round.

Decides what is tried instead, in this order: all contributions but those that `FindHarmful` found; those alone that are
vouched for; of the same a shorter step. Each is compared as the first was, but on the whole draw, and nothing worse is
ever published. After `MOST_IN_ROW` rounds in which the search did not help it is left out: the recipe is at fault then,
or nearly everybody. Holds always: at the end of this the round is over; who is blamed made a model alone that is worse,
and stands against others that did not: where most of a round's contributions harm, and nobody vouched for stands among
the rest, the learning rate is the likelier culprit, and nobody is blamed; whoever is left out stands in the round's
record and is to be audited, where there are audits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from coordinator.engine import audits, closing, pacing, vouching
from coordinator.engine import contributions as votes
from coordinator.engine.commands import AggregateRound, Contribution, FindHarmful, Remedy
from coordinator.engine.reasons import HELDOUT_LOSS_ROSE, UNUSABLE, Case, Reason, Verdict, reason, rejected
from coordinator.engine.rescue import leave_out, not_contradicted
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId

MOST_IN_ROW = 3
"""Rounds in a row, withheld and not saved by leaving somebody out, after which nobody is looked for any more."""
SHORTER = 0.25
"""Of an outer step that makes the model worse, what is tried; its square after one such round, its cube after two."""


def withhold(turn: Turn, command: AggregateRound, why: Reason) -> None:
    """The command is settled, and its version is not published: try the next thing."""
    state = turn.state
    state.update_round(withheld=(*state.round.withheld, why))
    if command.remedy is Remedy.SHORT:
        _give_up(turn, command)
    elif command.remedy is Remedy.VOUCHED:
        _shorten(turn, command)
    elif command.remedy is Remedy.WITHOUT_HARMFUL or state.withheld_in_row >= MOST_IN_ROW:
        _only_vouched(turn, command)
    else:
        region = state.config.region
        turn.emit(
            FindHarmful(
                command_id=f"harm:{command.command_id.removeprefix('aggregate:')}",
                attempt=command,
                suspects=_suspects(turn, command),
                margin=region.margin,
                tolerance=region.tolerance,
                passes=region.passes,
            )
        )


def without_harmful(
    turn: Turn, attempt: AggregateRound, harmful: Collection[LeaseId], suspected: Collection[LeaseId]
) -> None:
    """Go on without whom the search found, if it found some among others; otherwise with the vouched for alone."""
    found = {*harmful, *suspected}
    if not found or not _stand_out(turn, attempt, found):
        _only_vouched(turn, attempt)
        return
    for one in attempt.contributions:
        if one.lease_id in harmful:
            _leave_out(turn, one, rejected(HELDOUT_LOSS_ROSE, Case.HARMS_ALONE, round=attempt.round))
        elif one.lease_id in suspected:
            _leave_out(turn, one, rejected(UNUSABLE, Case.SUSPECTED_OF_HARM, round=attempt.round))
    _again(turn, attempt, [one for one in attempt.contributions if one.lease_id not in found], Remedy.WITHOUT_HARMFUL)


def _stand_out(turn: Turn, attempt: AggregateRound, found: Collection[LeaseId]) -> bool:
    """Whether those who harm are the exception: at most half, or at odds with one that is vouched for."""
    voices = [one for one in attempt.contributions if one.weight > 0.0]
    if 2 * len(found) <= len(voices):
        return True
    return any(_is_vouched(turn, one) for one in voices if one.lease_id not in found)


def _suspects(turn: Turn, command: AggregateRound) -> tuple[LeaseId, ...]:
    """Nobody's word first, then whose gain was the least for its steps: liars who stand together fall together."""
    state = turn.state

    def doubt(one: Contribution) -> tuple[bool, float]:
        record = state.leases[one.lease_id]
        return _is_vouched(turn, one), record.heldout_gain / max(pacing.steps_share(state, record.lease), 1e-9)

    voices = [one for one in command.contributions if one.weight > 0.0]
    return tuple(one.lease_id for one in sorted(voices, key=doubt))


def _only_vouched(turn: Turn, command: AggregateRound) -> None:
    others = [one for one in command.contributions if not _is_vouched(turn, one)]
    vouched = [one for one in command.contributions if one not in others]
    if not others or not any(one.weight > 0.0 for one in vouched):
        _shorten(turn, command)
        return
    for one in others:
        _leave_out(turn, one, rejected(UNUSABLE, Case.NOT_VOUCHED_FOR, round=command.round))
    _again(turn, command, vouched, Remedy.VOUCHED)


def _shorten(turn: Turn, command: AggregateRound) -> None:
    """However high a learning rate: along the mean of honest work some step makes no model worse."""
    share = SHORTER ** (1 + min(turn.state.withheld_in_row, MOST_IN_ROW - 1))
    _again(turn, replace(command, step_share=share), command.contributions, Remedy.SHORT)


def _again(turn: Turn, command: AggregateRound, rest: Sequence[Contribution], remedy: Remedy) -> None:
    rest = not_contradicted(turn, rest)
    if not any(one.weight > 0.0 for one in rest):
        _give_up(turn, replace(command, contributions=tuple(rest)))
        return
    records = [turn.state.leases[one.lease_id] for one in rest]
    turn.emit(
        replace(
            command,
            command_id=f"aggregate:r{command.round}:{remedy}",
            contributions=tuple(rest),
            clips=votes.clips_of(turn.state, records, rest),
            early=None,
            remedy=remedy,
        )
    )


def _give_up(turn: Turn, command: AggregateRound) -> None:
    turn.state.withheld_in_row += 1
    verdict = rejected(UNUSABLE, Case.ROUND_WITHHELD, round=command.round)
    for one in command.contributions:
        _leave_out(turn, one, verdict)
    closing.publish_nothing(turn, reason(Case.ROUND_WITHHELD, round=command.round))


def _leave_out(turn: Turn, one: Contribution, verdict: Verdict) -> None:
    audits.call(turn, one.lease_id)
    leave_out(turn, one, verdict)


def _is_vouched(turn: Turn, one: Contribution) -> bool:
    return vouching.is_vouched(turn.state, turn.state.leases[one.lease_id])
