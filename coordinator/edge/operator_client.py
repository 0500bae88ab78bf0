"""The operator's side of the wire, for the command line: status, invites, settings, stop.

Decides what is answered without a coordinator: a status comes from the journal then, join links from the registry,
and a setting is changed under the folder's lock. Reads the run folder for address, CA and the operator's key, so it
works on the coordinator's machine; the calls themselves are the same signed gRPC calls as everybody's, dialled as
`coordinator/run/reaching.py` says. No sentence of gRPC's gets out of here: those that the coordinator itself sent are
marked as such.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from coordinator.edge.pages import EVERYTHING, Page, Query, Wanted, put_together
from coordinator.edge.status import RunStatus, RunSummary
from coordinator.edge.stopped import status_of_journal
from coordinator.run.changing import Change, change_while_stopped
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import InviteTerms, make_links_while_stopped
from coordinator.run.reaching import CoordinatorStopped, reach
from coordinator.run.standings import StandingChange, StandingOrder, change_standing_while_stopped
from protocol.causes import CAUSE_KEY
from protocol.errors import MalformedMessage, Refused, RemoteError, Unauthenticated, Unavailable
from protocol.hosts import dial_target
from protocol.limits import CALL_TIMEOUT_S, PROTOCOL_VERSION, channel_options
from protocol.signing import CallSigner
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb

Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")

_OPEN_SESSION = "/barnraise.protocol.v1.Coordinator/OpenSession"
_OPERATOR = "/barnraise.protocol.v1.Operator/"
_OTHER_VERSION = "does a coordinator of another version run there? Restart it with this one"


class OperatorClient:
    """One operator's session. `async with OperatorClient(run) as client`."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._folder = run_folder
        self._identity = run_folder.operator_identity()
        authority = run_folder.authority()
        self._audience = bytes.fromhex(authority.fingerprint)
        self._credentials = grpc.ssl_channel_credentials(root_certificates=authority.cert_pem)
        self._signer = CallSigner(self._identity, audience=self._audience)

    async def __aenter__(self) -> OperatorClient:
        target = dial_target(*await asyncio.to_thread(reach, self._folder, self._audience.hex()))
        options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        self._channel: Any = grpc.aio.secure_channel(target, self._credentials, options=options)
        try:
            request = pb.OpenSessionRequest(
                protocol_version=PROTOCOL_VERSION, public_key=self._identity.public_key, nonce=secrets.token_bytes(16)
            )
            opened = await self._call(_OPEN_SESSION, request, pb.OpenSessionReply)
        except BaseException:
            await self._channel.close(None)
            raise
        self._signer = CallSigner(self._identity, opened.session_id, audience=self._audience)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def summary(self) -> RunSummary:
        """The run at this moment, in short."""
        reply = await self._call(_OPERATOR + "GetStatus", pb.GetStatusRequest(), pb.GetStatusReply)
        try:
            return RunSummary.model_validate_json(reply.status_json)
        except ValidationError as error:
            raise MalformedMessage(f"the coordinator's status is invalid: {_OTHER_VERSION}") from error

    async def page(self, query: Query) -> Page:
        """One page of rows."""
        request = pb.ListStatusRequest(
            kind=query.kind.value,
            after=query.after,
            most=query.most,
            states=sorted(query.states),
        )
        reply = await self._call(_OPERATOR + "ListStatus", request, pb.ListStatusReply)
        return Page(rows=tuple(reply.rows_json), next=reply.next)

    async def status(self, wanted: Wanted = EVERYTHING) -> RunStatus:
        """The run at this moment, with the rows that are wanted."""
        return await put_together(await self.summary(), self.page, wanted)

    async def create_invites(self, terms: InviteTerms) -> list[str]:
        """New join links."""
        request = pb.CreateInviteRequest(
            trusted=terms.trusted,
            expires_in_s=terms.life_s,
            count=terms.count,
            owner=terms.owner,
            uses=terms.uses,
        )
        reply = await self._call(_OPERATOR + "CreateInvite", request, pb.CreateInviteReply)
        return list(reply.join_links)

    async def stop_run(self, reason: str) -> None:
        """End the run."""
        await self._call(_OPERATOR + "StopRun", pb.StopRunRequest(reason=reason), pb.StopRunReply)

    async def change_setting(self, key: str, value: str) -> Change:
        """Change a setting of the rounds. `value` as in TOML, or a bare word."""
        request = pb.ChangeSettingRequest(key=key, value=value)
        reply = await self._call(_OPERATOR + "ChangeSetting", request, pb.ChangeSettingReply)
        try:
            return Change(
                key=reply.key,
                before=json.loads(reply.before_json),
                value=json.loads(reply.value_json),
                from_round=reply.from_round,
                file_trouble=reply.file_trouble,
                caution=reply.caution,
            )
        except ValueError as error:
            raise MalformedMessage(f"the coordinator's answer makes no sense: {_OTHER_VERSION}") from error

    async def change_standing(self, order: StandingOrder) -> StandingChange:
        """Ban, unban or pardon."""
        request = pb.ChangeStandingRequest(
            act=order.act.name, worker=order.worker, owner=order.owner, invite=order.invite, why=order.why
        )
        reply = await self._call(_OPERATOR + "ChangeStanding", request, pb.ChangeStandingReply)
        try:
            found = json.loads(reply.change_json)
            return StandingChange(**{**found, "workers": tuple(found["workers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedMessage(f"the coordinator's answer makes no sense: {_OTHER_VERSION}") from error

    async def _call(self, method: str, request: Message, kind: type[Reply]) -> Reply:
        body = request.SerializeToString()
        try:
            reply = await self._channel.unary_unary(method)(
                body, timeout=CALL_TIMEOUT_S, metadata=self._signer.metadata(method, body)
            )
        except grpc.aio.AioRpcError as error:
            raise _error_of(error, self._folder) from None
        try:
            return kind.FromString(reply)
        except DecodeError as error:
            raise MalformedMessage(f"the answer is not a {kind.DESCRIPTOR.name}: {_OTHER_VERSION}") from error


def fetch_status(run_folder: RunFolder, wanted: Wanted = EVERYTHING) -> RunStatus:
    """What is wanted of the run's status: from its coordinator, and where none answers, from its journal."""
    try:
        return _with_client(run_folder, lambda client: client.status(wanted))
    except Unavailable as error:
        return asyncio.run(status_of_journal(run_folder, str(error), wanted))


def create_invites(run_folder: RunFolder, terms: InviteTerms) -> tuple[list[str], bool]:
    """Join links, and whether a coordinator is there to take them: a stopped one takes them when it runs again."""
    try:
        return _with_client(run_folder, lambda client: client.create_invites(terms)), True
    except CoordinatorStopped:
        return make_links_while_stopped(run_folder, terms), False


def stop_run(run_folder: RunFolder, *, reason: str = "stopped by the operator") -> None:
    """End the run: its last version is validated and exported, then the coordinator is done."""
    _with_client(run_folder, lambda client: client.stop_run(reason))


def change_setting(run_folder: RunFolder, key: str, value: str) -> tuple[Change, bool]:
    """What was changed, and whether a coordinator is there for which it counts; a stopped one finds it when it runs."""
    try:
        return _with_client(run_folder, lambda client: client.change_setting(key, value)), True
    except CoordinatorStopped:
        return change_while_stopped(run_folder, key, value), False


def change_standing(run_folder: RunFolder, order: StandingOrder) -> tuple[StandingChange, bool]:
    """What a ban, unban or pardon did, and whether a coordinator is there; a stopped one finds it when it runs."""
    try:
        return _with_client(run_folder, lambda client: client.change_standing(order)), True
    except CoordinatorStopped:
        return change_standing_while_stopped(run_folder, order), False


def _with_client(run_folder: RunFolder, use: Callable[[OperatorClient], Awaitable[Result]]) -> Result:
    async def call() -> Result:
        async with OperatorClient(run_folder) as client:
            return await use(client)

    return asyncio.run(call())


def _error_of(error: grpc.aio.AioRpcError, folder: RunFolder) -> RemoteError:
    code, said = error.code(), CAUSE_KEY in dict(error.trailing_metadata() or ())
    details = error.details() or code.name
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        if said:
            return Unavailable(details)
        return Unavailable(
            f"the coordinator of {folder.root} stopped answering in the middle of this call: look with "
            f"`barnraise status {folder.root}`, then try again"
        )
    if not said:
        return MalformedMessage(f"the coordinator's answer makes no sense ({code.name}): {_OTHER_VERSION}")
    return Unauthenticated(details) if code is grpc.StatusCode.UNAUTHENTICATED else Refused(details)
