"""Orders about the run as a whole, as events: pause, drain, resume, announce; to a stopped run, too.

Decides what of an order is taken. Said while nobody serves the run, it is journalled, as of the journal's last moment,
and counts from the next start on. Touches the journal, under the folder's lock, and nothing else.
"""

from __future__ import annotations

from coordinator.engine.events import Announced, HoldLifted, RunHeld
from coordinator.engine.hold import Hold, HoldKind
from coordinator.engine.phases import Phase
from coordinator.engine.state import EngineState
from coordinator.run.folder import RunFolder
from coordinator.run.stopped_run import stopped_run
from protocol.errors import ConfigError, MalformedMessage
from protocol.local_place import own_name
from protocol.local_socket import Json
from protocol.text import printable

MOST_TEXT = 200
"""Characters of a reason or an announcement: two lines of a terminal."""


def order_of(state: EngineState, verb: str, text: str, at_s: float, actor: str) -> RunHeld | HoldLifted | Announced:
    """The event; ConfigError where there is nothing to hold any more, MalformedMessage where there is no such order."""
    match verb:
        case "pause" | "drain":
            if state.phase in {Phase.FINISHING, Phase.OVER}:
                raise ConfigError("the run has taken its last step: there is nothing to hold")
            kind = HoldKind.PAUSED if verb == "pause" else HoldKind.DRAINING
            return RunHeld(at_s=at_s, actor=actor, kind=kind, why=text)
        case "resume":
            return HoldLifted(at_s=at_s, actor=actor)
        case "announce":
            return Announced(at_s=at_s, actor=actor, text=text)
    raise MalformedMessage(f"the coordinator knows no {printable(verb)[:40]!r}: is it of another version?")


def held(hold: Hold | None) -> str:
    """`paused`, `draining` or `running`."""
    return "running" if hold is None else str(hold.kind)


def checked_text(text: object) -> str:
    """What an operator said, or MalformedMessage."""
    if not isinstance(text, str) or len(text) > MOST_TEXT or not text.isprintable():
        raise MalformedMessage(f"a text has at most {MOST_TEXT} printable characters")
    return text.strip()


def announce_while_stopped(folder: RunFolder, text: str) -> None:
    """A line for the volunteers of a run that nobody serves at present; ConfigError when somebody does."""
    hold_while_stopped(folder, "announce", text)


def hold_while_stopped(folder: RunFolder, verb: str, text: str) -> Json:
    """Order it of a run that nobody serves at present; ConfigError when somebody does."""
    text = checked_text(text)
    with stopped_run(folder) as run:
        before = held(run.state.hold)
        run.record(order_of(run.state, verb, text, run.now_s, own_name()))
        return {"before": before, "now": held(run.state.hold)}
