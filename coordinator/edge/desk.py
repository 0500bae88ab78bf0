"""The operator's desk: orders and questions that come as JSON, over the run folder's socket or from the page.

Decides nothing: calls of the operator's service arrive as protobuf's JSON, each with who it is from, which goes into
the event. Over the socket the system names the account: the coordinator's own user, and root, are operators. Operators'
keys are given and taken, and the standby ordered, there alone.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from coordinator.edge.operator_calls import OPERATOR_CALLS, carried_out
from coordinator.edge.operator_keys import KeyKeeper
from coordinator.edge.operator_service import OperatorService
from coordinator.edge.operators import Orderer
from coordinator.edge.standby_desk import StandbyDesk
from protocol.errors import MalformedMessage
from protocol.local_socket import Caller, Json
from protocol.text import printable


class Desk:
    """Answers one run's operators."""

    def __init__(self, service: OperatorService, keys: KeyKeeper, standby: StandbyDesk | None = None) -> None:
        self._service = service
        self._keys = keys
        self._standby = standby

    async def answer(self, request: Json, caller: Caller) -> Json:
        """One request over the socket; MalformedMessage where there is no such one."""
        verb, who = request.get("verb"), Orderer(name=caller.name)
        match verb:
            case "AddOperatorKey":
                return await self._keys.add(who, request)
            case "RevokeOperatorKey":
                return await self._keys.revoke(who, request)
            case "ListOperatorKeys":
                return await self._keys.list()
            case "standby" if self._standby is not None:
                return await self._standby.answer(request)
            case str():
                return await self.call(verb, request.get("message"), who)
        raise _unknown(verb)

    async def call(self, verb: str, message: Any, who: Orderer) -> Json:
        """One call of the operator's service."""
        if verb not in OPERATOR_CALLS:
            raise _unknown(verb)
        try:
            parsed = ParseDict(message, OPERATOR_CALLS[verb].request())
        except (ParseError, TypeError, AttributeError, ValueError, SystemError) as error:  # last: a name of surrogates
            raise MalformedMessage(f"this is no {verb}: is the coordinator of another version?") from error
        answer = await carried_out(self._service, verb, who, parsed)
        return MessageToDict(answer, preserving_proto_field_name=True)


def _unknown(verb: Any) -> MalformedMessage:
    return MalformedMessage(f"the coordinator knows no {printable(str(verb))[:40]!r}: is it of another version?")
