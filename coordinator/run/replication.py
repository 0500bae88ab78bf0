"""A leader's side of a standby, at work: what the pump waits for, what a follower is given, and whom the witness names.

Carries out what `coordinator/standby/leading.py` decides. Always: the seat is on disk before anything follows from it;
the pump is let go on only as far as `answerable` says; once fenced, never again. A run without a follower and a witness
waits for nothing. Touches `seat.json`, the journal (to read) and, through what it is given, the witness.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from coordinator.run.base import RunBase, clear_bases, take_base
from coordinator.run.folder import RunFolder
from coordinator.run.seats import keep_seat, new_name, read_seat
from coordinator.run.shipping import HeldRecords, Shipment
from coordinator.standby.leading import AskWitness, Fence, Keep, Leading, LeadingCommand, LetGo
from coordinator.standby.seat import Mode, Request, Seat, SeatRole, WitnessAnswer
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from protocol.causes import Cause
from protocol.errors import BarnraiseError, ConfigError, LocalError, RemoteError, Unavailable

TICK_S = 2.0
"""How often the witness is asked, and a silent follower hears that its leader lives."""
LONG_S = 3.0
"""An answer that waits for so long is told as trouble: a follower that is there takes milliseconds."""
AWAY_S = 600.0
"""For so long what a follower missed is held for it in memory; then it reads the journal, or begins anew."""

_log = structlog.get_logger("coordinator")
AskHer = Callable[[Request], Awaitable[WitnessAnswer]]
"""Asks the witness; Unavailable where it does not answer."""


class Fenced(Unavailable):
    """Another machine leads this run: this one acknowledges nothing any more."""

    def __init__(self) -> None:
        super().__init__(
            "FENCED: another machine leads this run now; keep what you have, and ask there", cause=Cause.FENCED
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyState:
    """For the operator."""

    mode: Mode
    epoch: int
    follower: str
    """Its name; empty: none has ever been here."""
    attached: bool
    behind: int
    """Records that it has not acknowledged."""
    trouble: str


class Replication:
    """One served run's. `start` once, `close` once."""

    def __init__(
        self, folder: RunFolder, journal: Journal, store: ArtifactStore, versions: Versions, ask: AskHer | None = None
    ) -> None:
        self._folder, self._journal = folder, journal
        seat = read_seat(folder.root)
        self._is_kept = seat is not None
        self._ask = ask
        self._leading = Leading(
            seat or Seat(me=new_name()), committed=journal.last_position, has_witness=ask is not None
        )
        self.shipment = Shipment(folder.root, store, versions)
        self._due: deque[LeadingCommand] = deque()
        """Not carried out yet: the first of them is a seat that the disk does not take."""
        self._seat_trouble: ConfigError | None = None
        self._let_go: list[asyncio.Future[None]] = []
        self.news = asyncio.Event()
        """Set whenever there may be something for the follower."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._left_at_s = 0.0
        self._waiting_since_s: float | None = None

    # ---- for the pump and the edge ----------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of this leader."""
        return self._leading.seat.epoch

    @property
    def state(self) -> StandbyState:
        """As it is now."""
        view = self._leading
        return StandbyState(
            mode=view.seat.mode,
            epoch=view.seat.epoch,
            follower=view.attached or view.follower,
            attached=bool(view.attached),
            behind=view.lag,
            trouble=view.trouble if self._has_waited or view.seat.role is not SeatRole.LEADS else "",
        )

    def gate(self) -> None:
        """Fenced where this machine leads no more: asked before any call is answered."""
        if self._leading.seat.role is not SeatRole.LEADS:
            raise Fenced

    async def settled(self, records: Sequence[str], position: int) -> None:
        """The journal holds `records`, up to `position`; returns when whoever waits may be answered."""
        if self.shipment.begun_at is not None:
            first = position - len(records) + 1
            try:
                self.shipment.add(await asyncio.to_thread(self.shipment.hold, first, records, self._journal.chain))
            except (OSError, BarnraiseError) as error:  # a commit is made all the same: the follower begins anew
                self._not_held(error)
        self._do(self._leading.on_committed(position))
        self.news.set()
        while self._due or self._leading.answerable < position:
            self._waiting_since_s = self._waiting_since_s or asyncio.get_running_loop().time()
            self.gate()
            if self._closed:
                raise LocalError("the coordinator stopped before its follower had acknowledged this")
            waiting = asyncio.get_running_loop().create_future()
            self._let_go.append(waiting)
            await waiting
        self._waiting_since_s = None

    def start(self) -> None:
        """Begin to ask the witness, if there is one."""
        clear_bases(self._folder.root)
        self._tasks.add(asyncio.create_task(self._tick()))

    def close(self) -> None:
        """Whoever waits is told so; what is held goes."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self._release()
        self.shipment.end()

    @property
    def _has_waited(self) -> bool:
        since_s = self._waiting_since_s
        return since_s is not None and asyncio.get_running_loop().time() - since_s > LONG_S

    # ---- for the operator -------------------------------------------------------------------------------------------

    def order(self, mode: str, *, confirmed: bool) -> StandbyState:
        """Wait for the follower (`sync`), or do not (`async`); ConfigError where that cannot be."""
        view = self._leading
        if mode == "sync":
            if not view.attached and not view.seat.waits:
                raise ConfigError("no follower is there: start one with `barnraise coordinator follow` first")
            self._keep_once()
            self._do(view.on_sync_ordered())
        elif mode == "async":
            if view.seat.waits and self._ask is None and not confirmed:
                raise ConfigError(
                    "without a witness nobody knows whether the follower leads already: make sure that its machine is "
                    "off, and say so with --other-machine-is-off"
                )
            self._keep_once()
            self._do(view.on_async_ordered(confirmed=confirmed))
        else:
            raise ConfigError(f"a run is async or sync, not {mode!r}")
        if self._seat_trouble is not None:
            raise self._seat_trouble  # it is tried again
        return self.state

    def use_witness(self, ask: AskHer) -> None:
        """Ask this one from now on."""
        self._keep_once()
        self._ask = ask
        self._leading.on_witness_named()
        self._do(self._leading.on_tick())

    # ---- for the follower's call ------------------------------------------------------------------------------------

    async def attach(self, follower: str, epoch: int, position: int, chain: bytes) -> RunBase | None:
        """A follower is there and has so much; a base, whose pins the caller closes, where it cannot go on from that.

        RemoteError where it is not wanted. However it ends, `detached` is called.
        """
        self.gate()
        view = self._leading
        if epoch > view.seat.epoch:
            self._do(view.on_higher_epoch(epoch))
            raise Fenced
        self._keep_once()
        goes_on = position > 0 and await self._goes_on(position, chain)
        refused = view.on_attached(follower, position if goes_on else 0)
        if refused:
            raise Unavailable(f"the leader cannot be followed: {refused}")
        _log.info("follower_attached", follower=follower, position=position, anew=not goes_on)
        if goes_on:
            self.acknowledged(follower, position)
            return None
        self.shipment.begin(view.committed)
        taking = asyncio.ensure_future(asyncio.to_thread(take_base, self._folder))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # the thread goes on, and pins what nobody waits for
            taking.add_done_callback(put_away)
            raise

    def acknowledged(self, follower: str, position: int) -> None:
        """The follower has everything up to `position`, durably."""
        self.shipment.acknowledged(position)
        self._do(self._leading.on_acked(follower, position))
        self.news.set()

    def detached(self, follower: str) -> None:
        """Its call has ended; fine where it never was attached."""
        if self._leading.attached != follower:
            return
        self._leading.on_detached(follower)
        self._left_at_s = asyncio.get_running_loop().time()
        _log.info("follower_detached", follower=follower)

    @property
    def committed(self) -> int:
        """The journal's last position."""
        return self._leading.committed

    # ---- what follows -----------------------------------------------------------------------------------------------

    async def _goes_on(self, position: int, chain: bytes) -> bool:
        """Whether what the follower has is the beginning of this journal, and the rest can still be told."""
        begun, committed = self.shipment.begun_at, self._leading.committed
        if position > committed:
            return False
        known = begun is not None and begun <= position
        if not known:
            self.shipment.begin(committed)
        try:
            found = await asyncio.to_thread(self._read_between, position, committed if not known else position)
        except (OSError, BarnraiseError) as error:
            self._not_held(error)
            raise Unavailable("the leader cannot be followed: its disk refuses what is held for a follower") from None
        if found is None or found[0] != chain:
            return False
        if found[1] is not None:
            self.shipment.add(found[1], before=True)
        return True

    def _read_between(self, position: int, until: int) -> tuple[bytes, HeldRecords | None] | None:
        """The chain at `position`, and the records from there to `until`; None where they were cut away."""
        journal = Journal.open(self._folder.journal_path, writable=False)
        try:
            chain = journal.chain_at(position)
            if chain is None:
                return None
            if until <= position:
                return chain, None
            records = [(at, record) for at, record in journal.read(position) if at <= until]
            if not records or records[0][0] != position + 1:
                return None
            last = journal.chain_at(until)
            if last is None:
                return None
            return chain, self.shipment.hold(position + 1, [record for _, record in records], last)
        finally:
            journal.close()

    def _not_held(self, error: Exception) -> None:
        _log.error("follower_not_held", error=str(error))
        self.shipment.end()

    def _do(self, commands: list[LeadingCommand]) -> None:
        """Carry out what is due, in its order; what follows from a seat that cannot be kept waits for the next try."""
        self._due += commands
        while self._due:
            match self._due[0]:
                case Keep(seat=seat):
                    if not self._kept(seat):
                        return
                    _log.info("seat_kept", role=seat.role.value, epoch=seat.epoch, mode=seat.mode.value)
                case AskWitness(request=request):
                    self._tasks.add(task := asyncio.create_task(self._asked(request)))
                    task.add_done_callback(self._tasks.discard)
                case LetGo():
                    self._release()
                case Fence(why=why):
                    _log.error("fenced", reason=why)
                    self._release()
            self._due.popleft()

    def _kept(self, seat: Seat) -> bool:
        before, self._seat_trouble = self._seat_trouble, None
        try:
            keep_seat(self._folder.root, seat)
        except ConfigError as error:
            self._seat_trouble = error
            if before is None or str(before) != str(error):
                _log.error("seat_not_kept", reason=str(error))
        return self._seat_trouble is None

    def _release(self) -> None:
        waiting, self._let_go = self._let_go, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _asked(self, request: Request) -> None:
        if self._ask is None:
            return
        try:
            answer = await self._ask(request)
        except RemoteError as error:
            _log.warning("witness_silent", reason=str(error))
            return
        self._do(self._leading.on_witness(request, answer))
        if self._leading.seat.role is not SeatRole.LEADS:
            self._release()

    async def _tick(self) -> None:
        while True:
            self._do([] if self._due else self._leading.on_tick())
            self.news.set()
            gone_s = asyncio.get_running_loop().time() - self._left_at_s
            if not self._leading.attached and self.shipment.begun_at is not None and gone_s > AWAY_S:
                self.shipment.end()
            await asyncio.sleep(TICK_S)

    def _keep_once(self) -> None:
        if not self._is_kept:
            keep_seat(self._folder.root, self._leading.seat)
            self._is_kept = True


def put_away(taking: asyncio.Future[Any]) -> None:
    """For a base, or none, that nobody waits for any more."""
    if not taking.cancelled() and taking.exception() is None and (base := taking.result()) is not None:
        taking.get_loop().run_in_executor(None, base.pins.close)
