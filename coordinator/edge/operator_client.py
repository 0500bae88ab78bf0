"""The operator's side, for the command line: status, invites, settings, bans, holds, stop, what was ordered.

Decides what is answered without a coordinator: a status comes from the journal then, join links from the registry,
and a setting is changed under the folder's lock. Of a run folder, what the run advertises plays no part: the socket is
in it. A run elsewhere (`elsewhere.py`) has its coordinator or nobody to answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from pydantic import ValidationError

from coordinator.edge.elsewhere import Elsewhere, RemoteLine
from coordinator.edge.pages import EVERYTHING, Page, Query, Wanted, put_together
from coordinator.edge.status import RunStatus, RunSummary
from coordinator.edge.stopped import orders_of_journal, status_of_journal
from coordinator.run.changing import Change, change_while_stopped
from coordinator.run.folder import RunFolder
from coordinator.run.holding import announce_while_stopped, hold_while_stopped
from coordinator.run.inviting import InviteTerms, invites_of, make_links_while_stopped, revoke_while_stopped
from coordinator.run.operator_keys import KeyOrder, change_key_while_stopped
from coordinator.run.reaching import CoordinatorStopped, control_path, unreached
from coordinator.run.standings import StandingChange, StandingOrder, change_standing_while_stopped
from protocol.errors import ConfigError, MalformedMessage, Unavailable
from protocol.local_socket import Json, NobodyListens, ask
from protocol.v1 import barnraise_pb2 as pb

Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")
RunMeant = RunFolder | Elsewhere
"""The run that is meant: by its folder, or by its coordinator's address."""

_OTHER_VERSION = "does a coordinator of another version run there? Restart it with this one"


class OperatorClient:
    """Orders and questions to the coordinator of one run folder, over its socket, or to one elsewhere."""

    def __init__(self, where: RunFolder | RemoteLine) -> None:
        self._where = where

    async def hold(self, kind: str, why: str = "") -> Json:
        """`pause`, `drain` or `resume`: how the run was held before, and is now."""
        request = pb.HoldRunRequest(kind=kind.upper(), why=why)
        reply = await self._call("HoldRun", request, pb.HoldRunReply)
        return {"before": reply.before, "now": reply.now}

    async def announce(self, text: str) -> None:
        """Tell every volunteer; empty: nothing any more."""
        await self._call("Announce", pb.AnnounceRequest(text=text), pb.AnnounceReply)

    async def invites(self) -> list[Json]:
        """What there is of each invite."""
        return _rows(await self._call("ListInvites", pb.ListInvitesRequest(), pb.ListInvitesReply))

    async def revoke_invite(self, invite: str) -> tuple[str, bool]:
        """Its short digest, and whether that changed anything."""
        reply = await self._call("RevokeInvite", pb.RevokeInviteRequest(invite=invite), pb.RevokeInviteReply)
        return reply.invite, reply.changed

    async def orders(self) -> list[Json]:
        """What was ordered, the newest last."""
        return _rows(await self._call("ListOrders", pb.ListOrdersRequest(), pb.ListOrdersReply))

    async def login(self) -> tuple[list[str], float]:
        """Addresses that log in whoever opens one, and for how long they are good."""
        reply = await self._call("Login", pb.LoginRequest(), pb.LoginReply)
        return list(reply.urls), reply.good_for_s

    async def key_order(self, verb: str, **fields: str) -> Json:
        """`AddOperatorKey`, `RevokeOperatorKey` or `ListOperatorKeys`: over the run folder's socket alone."""
        return await self._ask({"verb": verb, **fields})

    async def order_standby(self, mode: str, witness: str, *, confirmed: bool) -> Json:
        """Of the standby: its mode, its witness, or neither."""
        return await self._ask({"verb": "standby", "mode": mode, "witness": witness, "confirmed": confirmed})

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
        if isinstance(self._where, RemoteLine):
            return await self._where.call(verb, request, kind)
        message = MessageToDict(request, preserving_proto_field_name=True)
        answer = await self._ask({"verb": verb, "message": message})
        try:
            return ParseDict(answer, kind())
        except (ParseError, TypeError, AttributeError, ValueError, SystemError) as error:  # the last: as in desk.py
            raise MalformedMessage(f"the answer is not a {kind.DESCRIPTOR.name}: {_OTHER_VERSION}") from error

    async def _ask(self, request: Json) -> Json:
        if isinstance(self._where, RemoteLine):
            raise ConfigError("this is done at the run folder alone, by whoever may read it")
        try:
            return await ask(control_path(self._where), request)
        except NobodyListens:
            raise unreached(self._where) from None


def fetch_status(where: RunMeant, wanted: Wanted = EVERYTHING) -> RunStatus:
    """What is wanted of the run's status: from its coordinator, and where none answers, from its journal."""
    try:
        return _with_client(where, lambda client: client.status(wanted))
    except Unavailable as error:
        if isinstance(where, Elsewhere):
            raise
        return asyncio.run(status_of_journal(where, str(error), wanted))


def create_invites(where: RunMeant, terms: InviteTerms) -> tuple[list[str], bool]:
    """Join links, and whether a coordinator is there to take them: a stopped one takes them when it runs again."""
    return _or_stopped(
        where, lambda client: client.create_invites(terms), lambda folder: make_links_while_stopped(folder, terms)
    )


def list_invites(where: RunMeant) -> list[Json]:
    """What there is of each invite, those first that still let somebody in."""
    found, _ = _or_stopped(
        where, lambda client: client.invites(), lambda folder: [dataclasses.asdict(one) for one in invites_of(folder)]
    )
    return found


def revoke_invite(where: RunMeant, invite: str) -> tuple[str, bool]:
    """The invite's short digest, and whether that changed anything."""
    found, _ = _or_stopped(
        where, lambda client: client.revoke_invite(invite), lambda folder: revoke_while_stopped(folder, invite)
    )
    return found


def list_orders(where: RunMeant) -> list[Json]:
    """What was ordered, with calendar times, the newest last: from elsewhere, or from a copy of the journal."""
    if isinstance(where, Elsewhere):
        return _with_client(where, lambda client: client.orders())
    return orders_of_journal(where)


def log_in(where: RunMeant) -> tuple[list[str], float]:
    """Addresses of the page that log in whoever opens one, and for how long they are good."""
    return _with_client(where, lambda client: client.login())


def change_operator_key(folder: RunFolder, order: KeyOrder) -> tuple[Json, bool]:
    """Add or revoke a key, and whether a coordinator is there for which it counts at once."""
    if order.public_key:
        verb, fields = "AddOperatorKey", {"public_key": order.public_key, "role": order.role}
    else:
        verb, fields = "RevokeOperatorKey", {}
    return _or_stopped(
        folder,
        lambda client: client.key_order(verb, name=order.name, **fields),
        lambda stopped: change_key_while_stopped(stopped, order, time.time()),
    )


def stop_run(where: RunMeant, *, reason: str = "stopped by the operator") -> None:
    """End the run: its last version is validated and exported, then the coordinator is done."""
    _with_client(where, lambda client: client.stop_run(reason))


def change_setting(where: RunMeant, key: str, value: str) -> tuple[Change, bool]:
    """What was changed, and whether a coordinator is there for which it counts; a stopped one finds it when it runs."""
    return _or_stopped(
        where,
        lambda client: client.change_setting(key, value),
        lambda folder: change_while_stopped(folder, key, value),
    )


def change_standing(where: RunMeant, order: StandingOrder) -> tuple[StandingChange, bool]:
    """What a ban, unban or pardon did, and whether a coordinator is there; a stopped one finds it when it runs."""
    return _or_stopped(
        where,
        lambda client: client.change_standing(order),
        lambda folder: change_standing_while_stopped(folder, order),
    )


def hold_run(where: RunMeant, kind: str, why: str = "") -> Json:
    """Pause, drain or resume the run; `served`: whether a coordinator is there. A stopped one finds it when it runs."""
    found, served = _or_stopped(
        where, lambda client: client.hold(kind, why), lambda folder: hold_while_stopped(folder, kind, why)
    )
    return {**found, "served": served}


def announce(where: RunMeant, text: str) -> bool:
    """Tell every volunteer something, and whether a coordinator is there; a stopped one finds it when it runs."""
    _, served = _or_stopped(
        where, lambda client: client.announce(text), lambda folder: announce_while_stopped(folder, text)
    )
    return served


def _or_stopped(
    where: RunMeant,
    use: Callable[[OperatorClient], Coroutine[Any, Any, Result]],
    stopped: Callable[[RunFolder], Result],
) -> tuple[Result, bool]:
    """What a coordinator answers, or, of a run folder that nobody serves, what is done without; and which it was."""
    try:
        return _with_client(where, use), True
    except CoordinatorStopped:
        if isinstance(where, Elsewhere):
            raise
        return stopped(where), False


def _with_client(where: RunMeant, use: Callable[[OperatorClient], Coroutine[Any, Any, Result]]) -> Result:
    async def used() -> Result:
        if isinstance(where, RunFolder):
            return await use(OperatorClient(where))
        async with RemoteLine(where) as line:
            return await use(OperatorClient(line))

    return asyncio.run(used())


def _rows(reply: pb.ListInvitesReply | pb.ListOrdersReply) -> list[Json]:
    try:
        return [dict(json.loads(row)) for row in reply.rows_json]
    except (ValueError, TypeError) as error:
        raise MalformedMessage(f"the coordinator's answer makes no sense: {_OTHER_VERSION}") from error


def order_standby(run_folder: RunFolder, *, mode: str, witness: str, confirmed: bool) -> Json:
    """How the standby is, after what was ordered."""
    return _with_client(run_folder, lambda client: client.order_standby(mode, witness, confirmed=confirmed))
