"""The operators' calls: invites, status, settings, bans, holds, announcements, stop, orders, the page's login.

Decides nothing (who may call what: `operator_calls.py`); touches the registry, `settings.toml` and, for the event that
says who ordered it, the pump. Always: the file is written after the change is durable; an invite is worth nothing
before its revocation is noted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable

from coordinator.edge.operators import Orderer
from coordinator.edge.ordered import order_row
from coordinator.edge.pages import PAGE_ROWS, PageKind, Query, StatusReader
from coordinator.edge.served import RunContext
from coordinator.edge.service import clean_reason
from coordinator.edge.status import WorkerState
from coordinator.engine.arithmetic import caution_after
from coordinator.engine.events import InviteRevoked, RunStopped, SettingChanged
from coordinator.engine.phases import Phase
from coordinator.page.access import TICKET_S
from coordinator.run.changing import SettingsFile, first_round, planned
from coordinator.run.holding import checked_text, held, order_of
from coordinator.run.inviting import InviteTerms, made, make_links
from coordinator.run.standings import Act, StandingOrder, digest_of_invite, planned_standing
from protocol.errors import ConfigError, MalformedMessage
from protocol.v1 import barnraise_pb2 as pb

MOST_INVITES_SHOWN = 2000
"""In one answer: half of what a control message takes."""


class OperatorService:
    """Answers the operator."""

    def __init__(
        self, run: RunContext, settings_file: SettingsFile, port: Callable[[], int], status: StatusReader
    ) -> None:
        self._run = run
        self._file = settings_file
        self._changing = asyncio.Lock()
        """One change at a time: each is written before the next is made."""
        self._port = port
        self._status = status
        self.page_login: Callable[[Orderer], tuple[str, ...]] | None = None
        """Makes addresses that log somebody in; None while no page is shown."""

    async def create_invite(self, who: Orderer, request: pb.CreateInviteRequest) -> pb.CreateInviteReply:
        """New join links."""
        terms = InviteTerms.checked(
            count=request.count,
            trusted=request.trusted,
            life_s=request.expires_in_s,
            owner=request.owner,
            uses=request.uses,
        )
        await self._run.pump.submit(made(terms, self._run.run_time(), who.name))
        return pb.CreateInviteReply(join_links=await asyncio.to_thread(self.make_links, terms))

    def make_links(self, terms: InviteTerms) -> list[str]:
        """Join links with fresh invites."""
        run = self._run
        return make_links(
            terms,
            settings=run.settings,
            fingerprint=run.authority.fingerprint,
            registry=run.registry,
            port=self._port(),
            now_s=run.wall_time(),
            through=() if run.whereabouts is None else run.whereabouts.through,
        )

    async def get_status(self, _: Orderer, __: pb.GetStatusRequest) -> pb.GetStatusReply:
        """The run at this moment, in short."""
        return pb.GetStatusReply(status_json=self._status.summary().model_dump_json())

    async def list_status(self, _: Orderer, request: pb.ListStatusRequest) -> pb.ListStatusReply:
        """A page of what there may be many of."""
        page = self._status.page(_query(request))
        return pb.ListStatusReply(rows_json=page.rows, next=page.next)

    async def stop_run(self, who: Orderer, request: pb.StopRunRequest) -> pb.StopRunReply:
        """End the run after its last validation and checkpoint; again is fine."""
        state = self._run.pump.engine.state
        if state.stop_reason is None and state.phase not in {Phase.FINISHING, Phase.OVER}:
            reason = clean_reason(request.reason)
            stopped = RunStopped(at_s=self._run.run_time(), actor=who.name, reason=reason)
            await self._run.pump.submit(stopped)
        return pb.StopRunReply()

    async def change_setting(self, who: Orderer, request: pb.ChangeSettingRequest) -> pb.ChangeSettingReply:
        """Change a setting of the rounds; the same value again changes nothing."""
        pump = self._run.pump
        async with self._changing:
            key, before, value = planned(pump.engine.state, request.key, request.value)
            if value != before:
                changed = SettingChanged(at_s=self._run.run_time(), actor=who.name, key=key, value=json.dumps(value))
                await pump.submit(changed)
            state = pump.engine.state.seen_at(self._run.run_time())
            trouble = await asyncio.to_thread(self._file.write, state, key)
        return pb.ChangeSettingReply(
            key=key,
            before_json=json.dumps(before),
            value_json=json.dumps(value),
            from_round=first_round(state),
            file_trouble=trouble,
            caution=caution_after(state.chosen_config, key),
        )

    async def change_standing(self, who: Orderer, request: pb.ChangeStandingRequest) -> pb.ChangeStandingReply:
        """Ban, unban or pardon; where it is so already, nothing changes."""
        pump, at_s = self._run.pump, self._run.run_time()
        act = _act(request)
        order = StandingOrder.checked(
            act=act, worker=request.worker, owner=request.owner, invite=request.invite, why=request.why
        )
        async with self._changing:
            event, change = planned_standing(pump.engine.state, order, at_s, who.name)
            if event is not None:
                await pump.submit(event)
        return pb.ChangeStandingReply(change_json=json.dumps(dataclasses.asdict(change)))

    async def hold_run(self, who: Orderer, request: pb.HoldRunRequest) -> pb.HoldRunReply:
        """Pause, drain or resume; where it is so already, nothing changes."""
        pump = self._run.pump
        try:
            verb = pb.HoldRunRequest.Kind.Name(request.kind).lower()
        except ValueError as error:
            raise MalformedMessage("the coordinator knows no such hold: is it of another version?") from error
        before = held(pump.engine.state.hold)
        await self._order(who, verb, request.why)
        return pb.HoldRunReply(before=before, now=held(pump.engine.state.hold))

    async def announce(self, who: Orderer, request: pb.AnnounceRequest) -> pb.AnnounceReply:
        """A line for every volunteer."""
        await self._order(who, "announce", request.text)
        return pb.AnnounceReply()

    async def _order(self, who: Orderer, verb: str, text: str) -> None:
        text = checked_text(text)
        text = clean_reason(text) if text else ""
        pump = self._run.pump
        await pump.submit(order_of(pump.engine.state, verb, text, self._run.run_time(), who.name))

    async def list_invites(self, _: Orderer, __: pb.ListInvitesRequest) -> pb.ListInvitesReply:
        """What there is of each invite: never the invite."""
        rows = await asyncio.to_thread(self._run.registry.invites.rows, self._run.wall_time())
        shown = [json.dumps(dataclasses.asdict(one)) for one in rows[:MOST_INVITES_SHOWN]]
        return pb.ListInvitesReply(rows_json=shown, more=len(rows) - len(shown))

    async def revoke_invite(self, who: Orderer, request: pb.RevokeInviteRequest) -> pb.RevokeInviteReply:
        """Nobody else comes in by it."""
        invite = digest_of_invite(request.invite)
        async with self._changing:
            changed = await asyncio.to_thread(self._run.registry.invites.revoke, invite)
            if changed:
                await self._run.pump.submit(InviteRevoked(at_s=self._run.run_time(), actor=who.name, invite=invite))
        return pb.RevokeInviteReply(invite=invite, changed=changed)

    async def list_orders(self, _: Orderer, __: pb.ListOrdersRequest) -> pb.ListOrdersReply:
        """What was ordered, and who did."""
        state = self._run.pump.engine.state
        rows = [order_row(one, state.wall_at_s(one.at_s)) for one in state.orders]
        return pb.ListOrdersReply(rows_json=[json.dumps(row) for row in rows])

    async def login(self, who: Orderer, _: pb.LoginRequest) -> pb.LoginReply:
        """Addresses under which the page takes whoever comes first for `who`."""
        if self.page_login is None:
            raise ConfigError("this coordinator shows no page: start it without --no-http")
        return pb.LoginReply(urls=self.page_login(who), good_for_s=TICKET_S)


def _act(request: pb.ChangeStandingRequest) -> Act:
    try:
        return Act(pb.ChangeStandingRequest.Act.Name(request.act).lower())
    except ValueError as error:
        raise MalformedMessage(f"the coordinator knows no such act: {error}") from error


def _query(request: pb.ListStatusRequest) -> Query:
    try:
        kind = PageKind(pb.ListStatusRequest.Kind.Name(request.kind))
        states = frozenset(map(WorkerState, request.states))
    except ValueError as error:
        raise MalformedMessage(f"the coordinator has no such page: {error}") from error
    return Query(kind=kind, after=request.after, most=request.most or PAGE_ROWS, states=states)
