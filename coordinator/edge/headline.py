"""The run in one sentence: healthy, waiting for what, or in trouble and what to do.

Decides which of several things that could be said is said. Reads the state, writes nothing.
"""

from __future__ import annotations

from coordinator.edge.publicly import round_reasons
from coordinator.edge.status import RunSummary
from coordinator.engine.phases import OPEN_PHASES, Phase
from coordinator.engine.state import EngineState
from coordinator.engine.withholding import MOST_IN_ROW
from coordinator.page.view import Headline, Tone

_FAILED_OFTEN = 3


def headline_of(state: EngineState, summary: RunSummary, stalled: str | None) -> Headline:
    """What matters most at this moment."""
    return _trouble(state, summary, stalled) or _held(state) or _ordinary(state, summary)


def sentence_of(state: EngineState, summary: RunSummary, stalled: str | None) -> str:
    """The same as text."""
    said = headline_of(state, summary, stalled)
    return f"{said.text.rstrip('.')}.{f' {said.advice}' if said.advice else ''}"


def _held(state: EngineState) -> Headline | None:
    hold, number = state.hold, state.round.round
    if hold is None or state.phase in {Phase.FINISHING, Phase.OVER}:
        return None
    why = f" ({hold.why.rstrip('.')})" if hold.why else ""
    if state.paused:
        return Headline(
            tone=Tone.WAITING,
            text=f"The run is paused{why}: time stands in round {number}, nothing is granted, what is sent is taken",
            advice="`barnraise coordinator resume` lets it go on.",
        )
    if state.phase is Phase.GATHERING and not state.index.tally.live:
        return Headline(
            tone=Tone.WAITING,
            text=f"The run is drained{why}: no lease is out, and round {number} does not begin",
            advice="The coordinator may be stopped; `barnraise coordinator resume` lets it go on.",
        )
    return Headline(
        tone=Tone.WAITING,
        text=f"The run is draining{why}: round {number} ends with the leases that are out, and none begins after it",
        advice="`barnraise coordinator resume` lets it go on.",
    )


def _trouble(state: EngineState, summary: RunSummary, stalled: str | None) -> Headline | None:
    if stalled is not None:
        return Headline(
            tone=Tone.TROUBLE,
            text="Nothing can be recorded: the coordinator's disk takes no writes",
            advice="Make room on it; the run goes on by itself, and nothing that was accepted is lost.",
        )
    if summary.standby is not None and summary.standby.trouble:
        return Headline(
            tone=Tone.TROUBLE,
            text=f"Nothing is acknowledged: {summary.standby.trouble}",
            advice="Workers keep what they have. `barnraise coordinator standby` says what can be done.",
        )
    failing = [one for one in state.failures.values() if one.count >= _FAILED_OFTEN]
    if failing:
        return Headline(
            tone=Tone.TROUBLE,
            text=f"Work of the coordinator's own failed {max(one.count for one in failing)} times and is tried again",
            advice="`barnraise status` names it and the error.",
        )
    if state.withheld_in_row >= MOST_IN_ROW:
        return Headline(
            tone=Tone.TROUBLE,
            text=f"{state.withheld_in_row} rounds in a row made the model worse and were withheld",
            advice="Lower the learning rate, or look at who is refused: `barnraise coordinator audit-log`.",
        )
    return None


def _ordinary(state: EngineState, summary: RunSummary) -> Headline:
    number, of = state.round.round, state.config.max_rounds
    if state.phase is Phase.OVER:
        return Headline(tone=Tone.OVER, text=f"The run is over: {state.end_reason}")
    if state.phase is Phase.GATHERING:
        reasons = round_reasons(state, summary.waits)
        why = f": {reasons[0][1]}" if reasons else ""
        return Headline(tone=Tone.WAITING, text=f"Round {number} of {of} waits for workers{why}")
    if state.phase not in OPEN_PHASES:
        doing = "is being merged into the next version" if state.phase is Phase.AGGREGATING else "was the last"
        return Headline(tone=Tone.HEALTHY, text=f"Round {number} of {of} {doing}")
    tally = state.index.tally
    open_leases, here = tally.live - tally.accepted_leases, tally.accepted_leases
    text = f"Round {number} of {of} is being trained: {here} submissions accepted, {max(0, open_leases)} on the way"
    return Headline(tone=Tone.HEALTHY, text=text)
