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
from coordinator.engine.events import Event
from coordinator.run.holding import checked_text, held, order_of
from coordinator.run.pump import Pump
from protocol.errors import MalformedMessage
from protocol.local_socket import Caller, Json
from protocol.v1 import barnraise_pb2 as pb


class Desk:
    """Answers one run's operator."""

    def __init__(self, service: OperatorService, pump: Pump, run_time: Callable[[], float]) -> None:
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
        text = checked_text(request.get("text", ""))
        text = clean_reason(text) if text else ""
        state = self._pump.engine.state
        return await self._order(order_of(state, str(verb), text, self._run_time(), caller.name))

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
        return {"before": before, "now": held(self._pump.engine.state.hold), "served": True}
