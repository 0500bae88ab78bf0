"""The operator's side of the run folder's socket, for the command line: status, invites, settings, bans, holds, stop.

Decides what is answered without a coordinator: a status comes from the journal then, join links from the registry,
and a setting is changed under the folder's lock. What the run advertises plays no part: the socket is in its folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from pydantic import ValidationError

from coordinator.edge.pages import EVERYTHING, Page, Query, Wanted, put_together
from coordinator.edge.status import RunStatus, RunSummary
from coordinator.edge.stopped import status_of_journal
from coordinator.run.changing import Change, change_while_stopped
from coordinator.run.folder import RunFolder
from coordinator.run.holding import hold_while_stopped
from coordinator.run.inviting import InviteTerms, make_links_while_stopped
from coordinator.run.reaching import CoordinatorStopped, control_path, unreached
from coordinator.run.standings import StandingChange, StandingOrder, change_standing_while_stopped
from protocol.errors import MalformedMessage, Unavailable
from protocol.local_socket import Json, NobodyListens, ask
from protocol.v1 import barnraise_pb2 as pb

Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")

_OTHER_VERSION = "does a coordinator of another version run there? Restart it with this one"


class OperatorClient:
    """Orders and questions to the coordinator of one run folder, over its socket."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._folder = run_folder

    async def order(self, verb: str, text: str = "") -> Json:
        """`pause`, `drain`, `resume` or `announce`: how the run was held before, and is now."""
        return await self._ask({"verb": verb, "text": text})

    async def summary(self) -> RunSummary:
        """The run at this moment, in short."""
        reply = await self._call("GetStatus", pb.GetStatusRequest(), pb.GetStatusReply)
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
        reply = await self._call("ListStatus", request, pb.ListStatusReply)
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
        reply = await self._call("CreateInvite", request, pb.CreateInviteReply)
        return list(reply.join_links)

    async def stop_run(self, reason: str) -> None:
        """End the run."""
        await self._call("StopRun", pb.StopRunRequest(reason=reason), pb.StopRunReply)

    async def change_setting(self, key: str, value: str) -> Change:
        """Change a setting of the rounds. `value` as in TOML, or a bare word."""
        request = pb.ChangeSettingRequest(key=key, value=value)
        reply = await self._call("ChangeSetting", request, pb.ChangeSettingReply)
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
        reply = await self._call("ChangeStanding", request, pb.ChangeStandingReply)
        try:
            found = json.loads(reply.change_json)
            return StandingChange(**{**found, "workers": tuple(found["workers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedMessage(f"the coordinator's answer makes no sense: {_OTHER_VERSION}") from error

    async def _call(self, verb: str, request: Message, kind: type[Reply]) -> Reply:
        message = MessageToDict(request, preserving_proto_field_name=True)
        answer = await self._ask({"verb": verb, "message": message})
        try:
            return ParseDict(answer, kind())
        except (ParseError, TypeError, AttributeError, ValueError, SystemError) as error:  # the last: as in desk.py
            raise MalformedMessage(f"the answer is not a {kind.DESCRIPTOR.name}: {_OTHER_VERSION}") from error

    async def _ask(self, request: Json) -> Json:
        try:
            return await ask(control_path(self._folder), request)
        except NobodyListens:
            raise unreached(self._folder) from None


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


def hold_run(run_folder: RunFolder, verb: str, text: str = "") -> Json:
    """Pause, drain or resume the run, or announce something to its volunteers; a stopped one finds it when it runs."""
    try:
        return _with_client(run_folder, lambda client: client.order(verb, text))
    except CoordinatorStopped:
        return hold_while_stopped(run_folder, verb, text)


def _with_client(run_folder: RunFolder, use: Callable[[OperatorClient], Coroutine[Any, Any, Result]]) -> Result:
    return asyncio.run(use(OperatorClient(run_folder)))
