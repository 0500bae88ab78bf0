"""The operator's calls: invites, status, stop. Only for the key that `init` wrote into the run folder.

Decides nothing; touches the registry and, to stop a run, the pump.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coordinator.edge.pages import PAGE_ROWS, PageKind, Query, StatusReader
from coordinator.edge.served import RunContext
from coordinator.edge.service import clean_reason
from coordinator.edge.sessions import CallerSession
from coordinator.edge.status import WorkerState
from coordinator.engine.events import RunStopped
from coordinator.engine.phases import Phase
from coordinator.run.inviting import InviteTerms, make_links
from protocol.errors import MalformedMessage
from protocol.v1 import barnraise_pb2 as pb


class OperatorService:
    """Answers the operator."""

    def __init__(self, run: RunContext, port: Callable[[], int], status: StatusReader) -> None:
        self._run = run
        self._port = port
        self._status = status

    async def create_invite(self, _: CallerSession, request: pb.CreateInviteRequest) -> pb.CreateInviteReply:
        """New join links."""
        terms = InviteTerms.checked(
            count=request.count, trusted=request.trusted, life_s=request.expires_in_s, owner=request.owner
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
        )

    async def get_status(self, _: CallerSession, __: pb.GetStatusRequest) -> pb.GetStatusReply:
        """The run at this moment, in short."""
        return pb.GetStatusReply(status_json=self._status.summary().model_dump_json())

    async def list_status(self, _: CallerSession, request: pb.ListStatusRequest) -> pb.ListStatusReply:
        """A page of what there may be many of."""
        page = self._status.page(_query(request))
        return pb.ListStatusReply(rows_json=page.rows, next=page.next)

    async def stop_run(self, _: CallerSession, request: pb.StopRunRequest) -> pb.StopRunReply:
        """End the run after its last validation and checkpoint; again is fine."""
        state = self._run.pump.engine.state
        if state.stop_reason is None and state.phase not in {Phase.FINISHING, Phase.OVER}:
            await self._run.pump.submit(RunStopped(at_s=self._run.run_time(), reason=clean_reason(request.reason)))
        return pb.StopRunReply()


def _query(request: pb.ListStatusRequest) -> Query:
    try:
        kind = PageKind(pb.ListStatusRequest.Kind.Name(request.kind))
        states = frozenset(map(WorkerState, request.states))
    except ValueError as error:
        raise MalformedMessage(f"the coordinator has no such page: {error}") from error
    return Query(kind=kind, after=request.after, most=request.most or PAGE_ROWS, states=states)
