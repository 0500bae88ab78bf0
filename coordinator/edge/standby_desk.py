"""What the operator orders about a standby: a link for a follower, whether answers wait for it, which witness is asked.

Decides nothing; for a run that is served, and for one that is not. Touches the run folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

from coordinator.edge.status import StandbyStatus
from coordinator.edge.witnessing import asking
from coordinator.run.folder import RunFolder
from coordinator.run.lock import folder_lock
from coordinator.run.reaching import last_port
from coordinator.run.replication import Replication, StandbyState
from coordinator.run.seats import (
    FOLLOW_SCHEME,
    WITNESS_SCHEME,
    keep_seat,
    keep_witness,
    link_text,
    new_standby_invite,
    parse_link,
    require_leads,
    seat_of_leader,
    witness_of,
)
from coordinator.standby.seat import Mode
from protocol.errors import ConfigError, MalformedMessage
from protocol.joinlink import JoinLink
from protocol.local_socket import Json


class StandbyDesk:
    """Answers one served run's operator."""

    def __init__(self, folder: RunFolder, replication: Replication) -> None:
        self._folder, self._replication = folder, replication

    async def answer(self, request: Json) -> Json:
        """`mode`, `witness` and `confirmed` as they were given; how the standby is then."""
        mode, witness = request.get("mode") or "", request.get("witness") or ""
        if not isinstance(mode, str) or not isinstance(witness, str):
            raise MalformedMessage("a mode and a witness are texts")
        if witness:
            link = parse_link(witness, WITNESS_SCHEME)
            await asyncio.to_thread(keep_witness, self._folder.root, link)
            self._replication.use_witness(asking(link, self._folder.run_id))
        if mode:
            self._replication.order(mode, confirmed=request.get("confirmed") is True)
        return as_plain(self._replication.state)


def as_plain(state: StandbyState) -> Json:
    """For JSON."""
    return {**dataclasses.asdict(state), "mode": state.mode.value}


def status_of_standby(state: StandbyState | None) -> StandbyStatus | None:
    """As a status has it; None where the run has no follower and waits for none."""
    if state is None or (not state.follower and not state.trouble and state.mode is Mode.ASYNC):
        return None
    return StandbyStatus(
        mode=state.mode.value,
        epoch=state.epoch,
        follower=state.follower,
        attached=state.attached,
        behind=state.behind,
        trouble=state.trouble,
    )


def standby_link(folder: RunFolder) -> str:
    """A link by which one machine may follow the run, served or not; an earlier one is good no more."""
    require_leads(folder.root)
    settings = folder.settings()
    host, port = settings.join_address(settings.port or last_port(folder))
    if not port:
        raise ConfigError(
            "a standby link names a port, and this run takes a free one at its first start: start it with "
            f"`barnraise coordinator run {folder.root}`, then ask again"
        )
    seat_of_leader(folder.root)
    invite = new_standby_invite(folder.root, time.time())
    link = JoinLink(host=host, port=port, fingerprint=folder.authority().fingerprint, invite=invite)
    return link_text(link, FOLLOW_SCHEME)


def change_standby_while_stopped(folder: RunFolder, *, mode: str, witness: str, confirmed: bool) -> Json:
    """The same for a run that nobody serves: a witness, and the end of a wait on a person's word."""
    lock = folder_lock(folder.root)
    lock.acquire()
    try:
        require_leads(folder.root)
        seat = seat_of_leader(folder.root)
        if witness:
            keep_witness(folder.root, parse_link(witness, WITNESS_SCHEME))
        if mode and (mode != "async" or not (confirmed or not seat.waits)):
            raise ConfigError(
                "the coordinator is not running: start it to change this; or leave sync with --mode async "
                "--other-machine-is-off, where you know that the follower does not lead"
            )
        if mode:
            seat = dataclasses.replace(seat, mode=Mode.ASYNC, follower="")
            keep_seat(folder.root, seat)
        return as_plain(
            StandbyState(
                mode=seat.mode, epoch=seat.epoch, follower=seat.follower, attached=False, behind=0, trouble="not served"
            )
        )
    finally:
        lock.release()


def has_witness(folder: RunFolder) -> bool:
    """Whether the run asks one."""
    return witness_of(folder.root) is not None
