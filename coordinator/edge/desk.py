"""The operator's local door: orders and questions that come over the run folder's socket (protocol/local_socket.py).

Decides nothing: calls of the operator's service arrive as protobuf's JSON, a hold or an announcement as a few words;
each with the account that the system names, which goes into the event. The coordinator's own user, and root, are the
operator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from coordinator.edge.operator_service import OperatorService
from coordinator.edge.service import clean_reason
from coordinator.edge.standby_desk import StandbyDesk
from coordinator.engine.events import Announced, Event, HoldLifted, RunHeld
from coordinator.engine.hold import HoldKind
from coordinator.engine.phases import Phase
from coordinator.run.pump import Pump
from protocol.errors import ConfigError, MalformedMessage
from protocol.local_socket import Caller, Json
from protocol.text import printable
from protocol.v1 import barnraise_pb2 as pb

MOST_TEXT = 200
"""Characters of a reason or an announcement: two lines of a terminal."""


class Desk:
    """Answers one run's operator."""

    def __init__(
        self,
        service: OperatorService,
        pump: Pump,
        run_time: Callable[[], float],
        standby: StandbyDesk | None = None,
    ) -> None:
        self._standby = standby
        self._pump = pump
        self._run_time = run_time
        self._calls: dict[str, tuple[type[Message], Callable[[Any, Any], Awaitable[Message]]]] = {
            "CreateInvite": (pb.CreateInviteRequest, service.create_invite),
            "GetStatus": (pb.GetStatusRequest, service.get_status),
            "ListStatus": (pb.ListStatusRequest, service.list_status),
            "StopRun": (pb.StopRunRequest, service.stop_run),
            "ChangeSetting": (pb.ChangeSettingRequest, service.change_setting),
            "ChangeStanding": (pb.ChangeStandingRequest, service.change_standing),
        }

    async def answer(self, request: Json, caller: Caller) -> Json:
        """One request; MalformedMessage where there is no such one."""
        verb = request.get("verb")
        if isinstance(verb, str) and verb in self._calls:
            return await self._call(verb, request.get("message"), caller)
        at_s, actor, text = self._run_time(), caller.name, _text(request)
        match verb:
            case "pause" | "drain":
                self._require_going_on()
                kind = HoldKind.PAUSED if verb == "pause" else HoldKind.DRAINING
                return await self._order(RunHeld(at_s=at_s, actor=actor, kind=kind, why=text))
            case "resume":
                return await self._order(HoldLifted(at_s=at_s, actor=actor))
            case "standby" if self._standby is not None:
                return await self._standby.answer(request)
            case "announce":
                return await self._order(Announced(at_s=at_s, actor=actor, text=text))
        raise MalformedMessage(f"the coordinator knows no {printable(str(verb))[:40]!r}: is it of another version?")

    async def _call(self, verb: str, message: Any, caller: Caller) -> Json:
        kind, handle = self._calls[verb]
        try:
            parsed = ParseDict(message, kind())
        except (ParseError, TypeError, AttributeError, ValueError, SystemError) as error:  # last: a name of surrogates
            raise MalformedMessage(f"this is no {verb}: is the coordinator of another version?") from error
        return MessageToDict(await handle(caller, parsed), preserving_proto_field_name=True)

    async def _order(self, event: Event) -> Json:
        before = held(self._pump.engine.state.hold)
        await self._pump.submit(event)
        return {"before": before, "now": held(self._pump.engine.state.hold)}

    def _require_going_on(self) -> None:
        if self._pump.engine.state.phase in {Phase.FINISHING, Phase.OVER}:
            raise ConfigError("the run has taken its last step: there is nothing to hold")


def held(hold: Any) -> str:
    """`paused`, `draining` or `running`."""
    return "running" if hold is None else str(hold.kind)


def _text(request: Json) -> str:
    text = request.get("text", "")
    if not isinstance(text, str) or len(text) > MOST_TEXT or not text.isprintable():
        raise MalformedMessage(f"a text has at most {MOST_TEXT} printable characters")
    return clean_reason(text) if text else ""
