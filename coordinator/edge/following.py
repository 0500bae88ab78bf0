"""A follower, as a process: fetches a run, keeps up with it, and leads it when it is told to.

Carries out what `coordinator/standby/following.py` decides. Always: nothing is acknowledged before its files and its
records are durable here; the seat is on disk before anything follows from it. Touches its folder and the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from coordinator.edge.leader_line import LeaderLine
from coordinator.edge.witnessing import asking
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.folder import RunFolder
from coordinator.run.followed import (
    FOLLOWER_FILES,
    FollowedRun,
    begin_incoming,
    move_in,
    place_of,
)
from coordinator.run.lock import folder_lock
from coordinator.run.replication import AskHer
from coordinator.run.seats import FOLLOW_SCHEME, keep_seat, link_text, new_name, parse_link, read_seat, witness_of
from coordinator.standby.following import Following, FollowingCommand, NotPromoted, Promoted
from coordinator.standby.leading import AskWitness, Keep
from coordinator.standby.seat import Seat, SeatRole
from protocol.errors import ConfigError, MalformedMessage, RemoteError, StorageTrouble, Unavailable
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION
from protocol.private_files import read_private, write_private
from protocol.v1 import barnraise_pb2 as pb

AT_ONCE = 4
"""Files that are fetched at a time."""
PAUSE_S = 1.0
"""Before a leader that is not reached is dialled again."""

_log = structlog.get_logger("coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerState:
    """For the operator of the follower."""

    run_id: str
    epoch: int
    whole: bool
    position: int
    behind: int
    """Of what the leader has, as it said last."""
    leader_waits: bool
    silent_s: float
    trouble: str


class Follower:
    """One folder's. `run` until it is cancelled or promoted."""

    def __init__(self, root: Path, link: JoinLink | None, *, take_over_s: float | None = None) -> None:
        """`link`: None where the folder has one. `take_over_s`: after so much silence it asks to lead; None: never."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root, self._take_over_s = root, take_over_s
        self._lock = folder_lock(root)
        self._lock.acquire()
        try:
            self._link, self._identity = _own_files(root, link)
            self.following = following_of(root)
            self._run: FollowedRun | None = None
            if self.following.seat.whole:
                self._run = FollowedRun(RunFolder.open(root))
        except BaseException:
            self._lock.release()
            raise
        self._heard_s = time.monotonic()
        self._committed, self._waits, self.trouble = 0, False, ""
        self.promoted = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None

    @property
    def state(self) -> FollowerState:
        """As it is now."""
        position = 0 if self._run is None else self._run.position
        return FollowerState(
            run_id=RunFolder.open(self.root).run_id if self._run is not None else "",
            epoch=self.following.seat.epoch,
            whole=self.following.seat.whole,
            position=position,
            behind=max(0, self._committed - position),
            leader_waits=self._waits,
            silent_s=time.monotonic() - self._heard_s,
            trouble=self.trouble,
        )

    async def run(self) -> None:
        """Follow; returns when this machine has been promoted."""
        while not self.promoted.is_set():
            try:
                await self._follow_once()
            except (RemoteError, StorageTrouble) as error:  # a full disk has room again one day
                if str(error) != self.trouble:
                    _log.warning("leader_not_followed", reason=str(error))
                self.trouble = str(error)
                self.changed()
            if self._take_over_s is not None and time.monotonic() - self._heard_s > self._take_over_s:
                await self._try_to_lead()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.promoted.wait(), PAUSE_S)

    async def promote(self, *, confirmed: bool) -> int:
        """Lead from now on; the new epoch. ConfigError says why not."""
        epoch = await lead(self.root, self.following, confirmed=confirmed)
        self.promoted.set()
        return epoch

    def close(self) -> None:
        """Put everything away."""
        if self._run is not None:
            self._run.close()
            self._run = None
        self._lock.release()

    async def _try_to_lead(self) -> None:
        try:
            await self.promote(confirmed=False)
        except ConfigError as error:
            if str(error) != self.trouble:
                _log.warning("not_promoted", reason=str(error))
            self.trouble = str(error)

    async def _follow_once(self) -> None:
        line = LeaderLine(self._link, self._identity)
        try:
            await line.connect()
            call, batches = await line.follow(self._opening())
            async for batch in batches:
                if self.promoted.is_set():
                    return
                self._heard_s = time.monotonic()
                before = 0 if self._run is None else self._run.position
                await self._take(batch, line)
                self._committed, self._waits, self.trouble = batch.committed, batch.waits, ""
                if self._run is not None and (self._run.position > before or batch.is_base):
                    await line.acknowledge(call, self._run.position)
                self._heard_s = time.monotonic()
                self.changed()
            raise Unavailable("the leader ended the call")
        finally:
            await line.close()

    def _opening(self) -> pb.FollowRequest:
        run, seat = self._run, self.following.seat
        return pb.FollowRequest(
            protocol_version=PROTOCOL_VERSION,
            engine_version=ENGINE_VERSION,
            invite=self._link.invite or "",
            follower=seat.me,
            epoch=seat.epoch,
            position=0 if run is None else run.position,
            chain=b"" if run is None else run.chain,
        )

    async def _take(self, batch: pb.FollowBatch, line: LeaderLine) -> None:
        commands, refused = self.following.on_leader(batch.epoch)
        if refused:
            raise MalformedMessage(f"the leader is not followed: {refused}")
        self._keep(commands)
        if batch.is_base:
            await self._take_base(batch, line)
            return
        if self._run is None:
            raise MalformedMessage("records came before the run that they go on from")
        await self._fetch(batch.files, line, self.root)
        self._require_follows()
        if batch.records:
            # In this thread: nothing else is done here, and whoever is promoted must find a whole commit.
            self._run.append(batch.after, batch.records, batch.chain)

    def _require_follows(self) -> None:
        """Unavailable where it was promoted while files came, or is about to be: what is here is what it leads."""
        if self.promoted.is_set() or self.following.may_lead_soon:
            raise Unavailable("this machine is to lead the run itself")

    async def _take_base(self, batch: pb.FollowBatch, line: LeaderLine) -> None:
        """Fetch the whole run, and put it in the place of whatever was here."""
        incoming = begin_incoming(self.root)
        self.trouble = f"fetching the run: {len(batch.files)} files"
        await self._fetch(batch.files, line, incoming)
        self._require_follows()
        self._keep(self.following.on_base_begun())
        if self._run is not None:
            self._run.close()
            self._run = None
        await asyncio.to_thread(move_in, self.root)
        run = FollowedRun(RunFolder.open(self.root))
        if (run.position, run.chain) != (batch.after, batch.chain):
            run.close()
            raise MalformedMessage("the journal that came is not the one that the leader spoke of")
        self._run = run
        self._keep(self.following.on_base_whole())
        self.following = following_of(self.root)

    async def _fetch(self, files: Iterable[pb.HeldFile], line: LeaderLine, into: Path) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(file: pb.HeldFile) -> None:
            target, here = place_of(into, file.name), place_of(self.root, file.name)
            by_content = file.name.startswith("artifacts/") and here.name == file.digest.hex()
            if by_content and target.is_file() and target.stat().st_size == file.size_bytes:
                return
            if by_content and here.is_file() and here.stat().st_size == file.size_bytes:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                await asyncio.to_thread(_linked, here, target)
                return
            async with room:
                await line.fetch(file, target)
                self._heard_s = time.monotonic()

        ended = await asyncio.gather(*(one(file) for file in files), return_exceptions=True)
        for trouble in ended:
            if isinstance(trouble, BaseException):
                raise trouble

    def _keep(self, commands: list[FollowingCommand]) -> None:
        for command in commands:
            if isinstance(command, Keep):
                keep_seat(self.root, command.seat)


async def lead(root: Path, following: Following, *, confirmed: bool) -> int:
    """Carry out a promotion to its end; the epoch that was begun. ConfigError says why not, and what would do."""
    witness = witness_of(root)
    ask: AskHer | None = None if witness is None else asking(witness, RunFolder.open(root).run_id)
    following.has_witness = ask is not None
    commands = following.on_promotion_ordered(confirmed=confirmed)
    while True:
        asked: AskWitness | None = None
        for command in commands:
            match command:
                case Keep(seat=seat):
                    keep_seat(root, seat)
                case AskWitness():
                    asked = command
                case Promoted(epoch=epoch):
                    _log.info("promoted", epoch=epoch)
                    return epoch
                case NotPromoted(why=why):
                    raise ConfigError(f"not promoted: {why}")
        if asked is None or ask is None:
            raise ConfigError("not promoted: there is no witness to ask")
        try:
            commands = following.on_witness(asked.request, await ask(asked.request))
        except RemoteError as error:
            _log.warning("witness_silent", reason=str(error))
            commands = following.on_no_witness()


def following_of(root: Path) -> Following:
    """The view of a folder that follows, or is about to."""
    seat = read_seat(root)
    if seat is None:
        if any(path.name not in {FOLLOWER_FILES, "coordinator.lock", "lost+found"} for path in root.iterdir()):
            raise ConfigError(f"{root} is not empty, and no follower's folder: give a new or an empty one")
        seat = Seat(me=new_name(), role=SeatRole.FOLLOWS, epoch=0, whole=False)
        keep_seat(root, seat)
    if seat.role is not SeatRole.FOLLOWS:
        raise ConfigError(
            f"{root} does not follow: its machine {'leads the run' if seat.role is SeatRole.LEADS else 'was fenced'}, "
            f"in epoch {seat.epoch}"
        )
    return Following(seat, has_witness=(root / "secret").is_dir() and witness_of(root) is not None)


def _own_files(root: Path, link: JoinLink | None) -> tuple[JoinLink, PrivateIdentity]:
    """The link and the key of the follower in this folder; both kept there."""
    own = root / FOLLOWER_FILES
    place = own / "leader.link"
    if link is None:
        if not place.is_file():
            raise ConfigError(
                f"{root} follows nobody yet: give the link that `barnraise coordinator standby-link` made"
            )
        link = parse_link(read_private(place).decode("ascii", "replace"), FOLLOW_SCHEME)
    seat = read_seat(root)
    if seat is None and any(
        path.name not in {FOLLOWER_FILES, "coordinator.lock", "lost+found"} for path in root.iterdir()
    ):
        raise ConfigError(f"{root} is not empty, and no follower's folder: give a new or an empty one")
    own.mkdir(mode=0o700, exist_ok=True)
    if not (own / "follower.key").is_file():
        PrivateIdentity.generate().save(own / "follower.key")
    write_private(place, link_text(link, FOLLOW_SCHEME).encode("ascii"))
    return link, PrivateIdentity.load(own / "follower.key")


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def state_as_plain(state: FollowerState) -> dict[str, object]:
    """For JSON."""
    found: dict[str, object] = json.loads(json.dumps(asdict(state)))
    return found
