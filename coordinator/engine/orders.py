"""What operators order about the run as a whole: hold it, let it go on, announce something; and who ordered what.

Decides what a pause is: run time stands (`Engine.handle`), so no timer runs, nobody is late, silent or overdue, and no
round closes; nothing is granted (`dispatch.hindrance_of`); commits and uploads are taken and judged, and slow work goes
on. When it ends, every open moment moves by its length, as after a restart. A drain grants nothing either; its round
ends as rounds end. Holds always: said twice, an order changes nothing the second time, but for the words.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import gaps
from coordinator.engine import order_events as ordered
from coordinator.engine.history import remembered
from coordinator.engine.hold import Announcement, Hold, HoldKind, OrderRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn


def on_run_held(turn: Turn, event: ordered.RunHeld) -> None:
    """Paused after draining, and the other way round, it is held anew."""
    state, before = turn.state, turn.state.hold
    if before is not None and before.kind is event.kind:
        state.hold = replace(before, actor=event.actor, why=event.why or before.why)
        return
    _end_pause(turn, event.at_s)
    if state.round.granting:
        state.update_round(granting=False)  # the rest of a wave is not granted
    state.hold = Hold(kind=event.kind, since_s=state.now_s, actor=event.actor, why=event.why)


def on_hold_lifted(turn: Turn, event: ordered.HoldLifted) -> None:
    """Where nothing is held, nothing changes."""
    _end_pause(turn, event.at_s)
    turn.state.hold = None


def on_announced(turn: Turn, event: ordered.Announced) -> None:
    """One line at a time."""
    said = Announcement(text=event.text, at_s=turn.state.now_s, actor=event.actor)
    turn.state.announcement = said if event.text else None


def on_registry_changed(turn: Turn, event: ordered.Ordered) -> None:
    """Invites and operators' keys are the registry's; here is only noted who said so."""


def lift(turn: Turn, at_s: float) -> None:
    """Something else ends the hold: the run's end."""
    _end_pause(turn, at_s)
    turn.state.hold = None


def note(state: EngineState, event: ordered.Ordered) -> None:
    """Keep who ordered what."""
    about, detail = _in_short(event)
    row = OrderRecord(
        number=1 + (state.orders[-1].number if state.orders else 0),
        at_s=max(state.now_s, event.at_s),
        actor=event.actor,
        kind=type(event).__name__,
        about=about,
        detail=detail,
    )
    state.orders = remembered(state.orders, row)


def _end_pause(turn: Turn, at_s: float) -> None:
    state, hold = turn.state, turn.state.hold
    if hold is None or hold.kind is not HoldKind.PAUSED:
        return
    state.now_s = max(state.now_s, at_s)
    gaps.bridge(turn, state.now_s - hold.since_s, calls_broke=False)


def _in_short(event: ordered.Ordered) -> tuple[str, str]:
    match event:
        case ordered.SettingChanged():
            return event.key, event.value
        case ordered.RunHeld():
            return event.kind.value, event.why
        case ordered.Announced():
            return "", event.text
        case ordered.RunStopped():
            return "", event.reason
        case ordered.InvitesMade():
            trusted = ", trusted" if event.trusted else ""
            return f"{event.count} link{'s' * (event.count > 1)}", f"for {event.uses} each{trusted}"
        case ordered.OperatorKeyAdded():
            return event.operator, event.role
        case ordered.OperatorKeyRevoked():
            return event.operator, ""
        case _:
            whom = [getattr(event, name) for name in ("worker", "owner", "invite") if hasattr(event, name)]
            return "".join(whom), getattr(event, "why", "")
