"""The operator's calls: invites, status, settings, bans, stop. Only for the key that `init` wrote into the run folder.

Decides nothing; touches the registry, `settings.toml` and, to stop a run or to change a setting, the pump. Always: the
file is written after the change is durable.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable

from coordinator.edge.pages import PAGE_ROWS, PageKind, Query, StatusReader
from coordinator.edge.served import RunContext
from coordinator.edge.service import clean_reason
from coordinator.edge.sessions import CallerSession
from coordinator.edge.status import WorkerState
from coordinator.engine.arithmetic import caution_after
from coordinator.engine.events import RunStopped, SettingChanged
from coordinator.engine.phases import Phase
from coordinator.run.changing import SettingsFile, first_round, planned
from coordinator.run.inviting import InviteTerms, make_links
from coordinator.run.standings import Act, StandingOrder, planned_standing
from protocol.errors import MalformedMessage
from protocol.local_socket import Caller
from protocol.v1 import barnraise_pb2 as pb


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

    async def create_invite(self, _: CallerSession | Caller, request: pb.CreateInviteRequest) -> pb.CreateInviteReply:
        """New join links."""
        terms = InviteTerms.checked(
            count=request.count,
            trusted=request.trusted,
            life_s=request.expires_in_s,
            owner=request.owner,
            uses=request.uses,
        )
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

    async def get_status(self, _: CallerSession | Caller, __: pb.GetStatusRequest) -> pb.GetStatusReply:
        """The run at this moment, in short."""
        return pb.GetStatusReply(status_json=self._status.summary().model_dump_json())

    async def list_status(self, _: CallerSession | Caller, request: pb.ListStatusRequest) -> pb.ListStatusReply:
        """A page of what there may be many of."""
        page = self._status.page(_query(request))
        return pb.ListStatusReply(rows_json=page.rows, next=page.next)

    async def stop_run(self, who: CallerSession | Caller, request: pb.StopRunRequest) -> pb.StopRunReply:
        """End the run after its last validation and checkpoint; again is fine."""
        state = self._run.pump.engine.state
        if state.stop_reason is None and state.phase not in {Phase.FINISHING, Phase.OVER}:
            reason = clean_reason(request.reason)
            stopped = RunStopped(at_s=self._run.run_time(), actor=actor_of(who), reason=reason)
            await self._run.pump.submit(stopped)
        return pb.StopRunReply()

    async def change_setting(
        self, who: CallerSession | Caller, request: pb.ChangeSettingRequest
    ) -> pb.ChangeSettingReply:
        """Change a setting of the rounds; the same value again changes nothing."""
        pump = self._run.pump
        async with self._changing:
            key, before, value = planned(pump.engine.state, request.key, request.value)
            if value != before:
                changed = SettingChanged(
                    at_s=self._run.run_time(), actor=actor_of(who), key=key, value=json.dumps(value)
                )
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

    async def change_standing(
        self, who: CallerSession | Caller, request: pb.ChangeStandingRequest
    ) -> pb.ChangeStandingReply:
        """Ban, unban or pardon; where it is so already, nothing changes."""
        pump, at_s = self._run.pump, self._run.run_time()
        act = _act(request)
        order = StandingOrder.checked(
            act=act, worker=request.worker, owner=request.owner, invite=request.invite, why=request.why
        )
        async with self._changing:
            event, change = planned_standing(pump.engine.state, order, at_s, actor_of(who))
            if event is not None:
                await pump.submit(event)
        return pb.ChangeStandingReply(change_json=json.dumps(dataclasses.asdict(change)))


def actor_of(who: CallerSession | Caller) -> str:
    """The account behind a call: over the socket the system names it; over gRPC the run's own key signed it."""
    return who.name if isinstance(who, Caller) else "the operator's key"


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
