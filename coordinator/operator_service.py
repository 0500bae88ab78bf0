"""The operator's calls: invites, status, stop. Only for the key that `init` wrote into the run folder.

Decides nothing; touches the registry and, to stop a run, the pump.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from coordinator.engine.events import RunStopped
from coordinator.engine.phases import Phase
from coordinator.invites import DEFAULT_INVITE_LIFE_S
from coordinator.membership import clean_name
from coordinator.run import RunContext
from coordinator.service import clean_reason
from coordinator.sessions import Session
from coordinator.status import RunStatus
from protocol.errors import MalformedMessage
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb

MAX_INVITES = 1000
"""In one call: as many join links as fit into a control message, with room to spare."""
MAX_INVITE_LIFE_S = 366 * 24 * 3600.0


class OperatorService:
    """Answers the operator."""

    def __init__(self, run: RunContext, port: Callable[[], int], status: Callable[[], RunStatus]) -> None:
        self._run = run
        self._port = port
        self._status = status

    async def create_invite(self, _: Session, request: pb.CreateInviteRequest) -> pb.CreateInviteReply:
        """New join links."""
        count, life_s = request.count or 1, request.expires_in_s or DEFAULT_INVITE_LIFE_S
        if count > MAX_INVITES:
            raise MalformedMessage(f"at most {MAX_INVITES} invites are made at a time, asked for {count}")
        if not math.isfinite(life_s) or not 0 < life_s <= MAX_INVITE_LIFE_S:
            most_h = MAX_INVITE_LIFE_S / 3600.0
            raise MalformedMessage(f"an invite lives above 0 and up to {most_h:g} hours, asked for {life_s / 3600.0:g}")
        owner = clean_name(request.owner) if request.owner else ""
        links = await asyncio.to_thread(
            self.make_links, count=count, trusted=request.trusted, life_s=life_s, owner=owner
        )
        return pb.CreateInviteReply(join_links=links)

    def make_links(self, *, count: int, trusted: bool, life_s: float, owner: str = "") -> list[str]:
        """Join links with fresh invites."""
        run = self._run
        expires_at_s = run.wall_time() + life_s
        return [
            str(
                JoinLink(
                    host=run.settings.join_host(),
                    port=self._port(),
                    fingerprint=run.authority.fingerprint,
                    invite=run.registry.create_invite(trusted=trusted, expires_at_s=expires_at_s, owner=owner),
                )
            )
            for _ in range(count)
        ]

    async def get_status(self, _: Session, __: pb.GetStatusRequest) -> pb.GetStatusReply:
        """The run at this moment."""
        return pb.GetStatusReply(status_json=self._status().model_dump_json())

    async def stop_run(self, _: Session, request: pb.StopRunRequest) -> pb.StopRunReply:
        """End the run after its last validation and checkpoint; again is fine."""
        state = self._run.pump.engine.state
        if state.stop_reason is None and state.phase not in {Phase.FINISHING, Phase.OVER}:
            await self._run.pump.submit(RunStopped(at_s=self._run.run_time(), reason=clean_reason(request.reason)))
        return pb.StopRunReply()
