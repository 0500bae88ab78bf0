"""Every call that an operator may make, what answers it, and which a viewer may: one table for all ways in.

Decides that a viewer orders nothing. The local socket, gRPC and the page all come through `carried_out`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message

from coordinator.edge.operator_service import OperatorService
from coordinator.edge.operators import Orderer, with_key
from coordinator.edge.rpc import Endpoint, Handler
from coordinator.edge.sessions import CallerSession
from protocol.errors import Refused
from protocol.v1 import barnraise_pb2 as pb


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One method of the operator's service."""

    request: type[Message]
    answer: Callable[[OperatorService, Orderer, Any], Awaitable[Message]]
    orders: bool = True
    """False: it only tells something, so a viewer may ask."""
    remember: bool = False
    """Asked a second time by one request, over gRPC, it is answered as the first time."""


OPERATOR_CALLS: Mapping[str, OperatorCall] = {
    "CreateInvite": OperatorCall(pb.CreateInviteRequest, OperatorService.create_invite, remember=True),
    "GetStatus": OperatorCall(pb.GetStatusRequest, OperatorService.get_status, orders=False),
    "ListStatus": OperatorCall(pb.ListStatusRequest, OperatorService.list_status, orders=False),
    "StopRun": OperatorCall(pb.StopRunRequest, OperatorService.stop_run),
    "ChangeSetting": OperatorCall(pb.ChangeSettingRequest, OperatorService.change_setting),
    "ChangeStanding": OperatorCall(pb.ChangeStandingRequest, OperatorService.change_standing),
    "HoldRun": OperatorCall(pb.HoldRunRequest, OperatorService.hold_run),
    "Announce": OperatorCall(pb.AnnounceRequest, OperatorService.announce),
    "ListInvites": OperatorCall(pb.ListInvitesRequest, OperatorService.list_invites, orders=False),
    "RevokeInvite": OperatorCall(pb.RevokeInviteRequest, OperatorService.revoke_invite),
    "ListOrders": OperatorCall(pb.ListOrdersRequest, OperatorService.list_orders, orders=False),
    "Login": OperatorCall(pb.LoginRequest, OperatorService.login, orders=False),
}


async def carried_out(service: OperatorService, name: str, who: Orderer, request: Message) -> Message:
    """The answer to `who`; Refused where that is not for it to ask."""
    call = OPERATOR_CALLS[name]
    if call.orders and not who.may_order:
        raise Refused(f"{who.name} is a viewer here, who may look at everything and order nothing")
    return await call.answer(service, who, request)


def operator_handlers(calls: Endpoint, service: OperatorService) -> dict[str, Handler]:
    """Handlers by method, for gRPC."""

    async def in_session(name: str, session: CallerSession, request: Message) -> Message:
        return await carried_out(service, name, with_key(session.key), request)

    return dict(
        calls.unary(name, call.request, partial(in_session, name), operator=True, remember=call.remember)
        for name, call in OPERATOR_CALLS.items()
    )
