"""Where the run is, should it not answer where it was: looks for it, without anybody's giving this machine a new link.

Decides when to look (a coordinator does not answer), whom to ask, and which address is tried: those of the link, those
of the newest record, and what other workers, and the peer-to-peer network where it is on, say is newer. Always: what
anybody says is a hint; the run is where the certificate with its fingerprint answers. An older record never takes the
place of a newer one. Looking costs whoever is asked one small call, and comes `LONGEST_PAUSE_S` apart at most often
enough to find a run that comes back after days. Touches the network through its ports, and the run's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol

from peering import finding
from peering.keeping import RecordKeeper
from peering.line import may_dial
from peering.record import RunRecord
from protocol.bootstrap import fetch_ca
from protocol.causes import Cause
from protocol.errors import ConfigError, RemoteError, StorageTrouble
from protocol.ids import Digest
from protocol.joinlink import MOST_ADDRESSES, JoinLink
from protocol.v1 import barnraise_pb2 as pb
from worker.acquaintances import Acquaintance, Acquaintances, SmallFiles
from worker.background import Threads
from worker.timing import Timing

RECORD_FILE = "record"
PROBE_S = 5.0
"""For an address to answer with the run's certificate."""
MOST_ASKED = 8
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
AWAY = frozenset(
    {
        Cause.CONNECTION_REFUSED,
        Cause.NAME_UNKNOWN,
        Cause.NO_ROUTE,
        Cause.NO_ANSWER,
        Cause.NOT_A_COORDINATOR,
        Cause.WRONG_CERTIFICATE,
        Cause.BROKEN_OFF,
        Cause.FENCED,
        Cause.UNREACHABLE,
    }
)
"""What a coordinator that has moved looks like from here; one that is overloaded is where it was."""

Spot = tuple[str, int]
ProbeAddress = Callable[[str, int, str, float], bytes]
"""`protocol.bootstrap.fetch_ca`."""


class RecordNetwork(Protocol):
    """Another way to find records, and to pass them on: the peer-to-peer network."""

    async def start(self) -> None:
        """Join; nothing is waited for."""

    async def stop(self) -> None:
        """Leave."""

    async def find(self, fingerprint: Digest) -> bytes:
        """The newest record that it has; empty: none."""

    async def tell(self, record: bytes) -> None:
        """A newer one is known."""


Ask = Callable[[Acquaintance, bytes], Awaitable[bytes]]


class Finder:
    """One worker's, for one run. `moved` hears where the run is, whenever that changes."""

    def __init__(
        self,
        link: JoinLink,
        files: SmallFiles,
        timing: Timing,
        *,
        probe: ProbeAddress = fetch_ca,
        ask: Ask | None = None,
        elsewhere: RecordNetwork | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._link, self._files, self._timing = link, files, timing
        self._probe, self._ask, self.elsewhere = probe, ask or self._ask_over_grpc, elsewhere
        self._threads = Threads()
        self._place: Spot = (link.host, link.port)
        self._acquaintances = Acquaintances(files, link.host)
        self.keeper = RecordKeeper(Digest(link.fingerprint), wall_s, timing.clock, self._on_newer)
        with contextlib.suppress(ConfigError):
            self.keeper.recall(files.kept(RECORD_FILE) or b"")
        self._search: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Future[None]] = set()
        self._next_s, self._pause_s = timing.clock(), FIRST_PAUSE_S
        self._is_lost = False
        self.moved: Callable[[JoinLink], None] = lambda _link: None

    async def start(self) -> None:
        """Be ready to look."""
        if self.elsewhere is not None:
            await self.elsewhere.start()

    # ---- what is heard while the run is there -----------------------------------------------------------------------

    def heard(self, record: bytes) -> None:
        """The coordinator says where it is to be found from now on."""
        if record:
            with contextlib.suppress(RemoteError):  # a clock that is wrong here, say: it is a hint that is missing
                self.keeper.offer(record)

    def met(self, holders: Iterable[pb.Holder]) -> None:
        """The coordinator names others of the run."""
        found = [Acquaintance(host=one.host, port=one.port, certificate=one.certificate) for one in holders]
        if found:
            self._acquaintances.met(found)

    def answered(self) -> None:
        """The run is where it is looked for."""
        self._is_lost, self._pause_s = False, FIRST_PAUSE_S

    # ---- looking ----------------------------------------------------------------------------------------------------

    def missed(self, cause: Cause | None) -> None:
        """A call came to nothing for this reason; look for the run, if that may help and it was not just done."""
        if cause not in AWAY:
            return
        self._is_lost = True
        if self._timing.clock() >= self._next_s:
            self._begin(self._look())

    async def close(self) -> None:
        """Look no more."""
        if self._search is not None:
            self._search.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._search
        for task in tuple(self._telling):
            task.cancel()
        if self.elsewhere is not None:
            await self.elsewhere.stop()

    def _begin(self, search: Coroutine[Any, Any, None]) -> None:
        if self._search is not None and not self._search.done():
            search.close()
            return
        self._next_s = self._timing.clock() + self._pause_s * self._timing.draw.uniform(0.75, 1.25)
        self._pause_s = min(LONGEST_PAUSE_S, 2.0 * self._pause_s)
        self._search = asyncio.create_task(search)

    def _on_newer(self, record: RunRecord, content: bytes) -> None:
        with contextlib.suppress(StorageTrouble):  # a full disk: the next one may find room
            self._files.keep(RECORD_FILE, content)
        if self._is_lost:  # somebody told us: no need to wait for the next look
            self._begin(self._try_known())
        if self.elsewhere is not None:
            task = asyncio.ensure_future(self.elsewhere.tell(content))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _look(self) -> None:
        if await self._found_at(self._known()):
            return
        before = self.keeper.newest
        asked = [asyncio.ensure_future(one) for one in self._questions()]
        try:
            for answer in asyncio.as_completed(asked):
                self.heard(await answer)
                newest = self.keeper.newest
                if newest is before:
                    continue
                before = newest
                if await self._found_at(self._known()):
                    return
        finally:
            for task in asked:
                task.cancel()

    async def _try_known(self) -> None:
        await self._found_at(self._known())

    def _known(self) -> list[Spot]:
        """Where the run may be, but for where it is looked for already; the likeliest first."""
        newest, link = self.keeper.newest, self._link
        told = [] if newest is None else [place for place in newest.places if self._may_dial(place[0])]
        places = dict.fromkeys((*told, (link.host, link.port), *link.others))
        return [place for place in places if place != self._place]

    def _may_dial(self, host: str) -> bool:
        """As with other workers: a coordinator out in the world sends nobody round their own home network."""
        return not _is_literal(host) or may_dial(host, self._link.host)

    def _questions(self) -> list[Coroutine[Any, Any, bytes]]:
        known = list(self._acquaintances.known)
        self._timing.draw.shuffle(known)
        questions = [self._answer_of(self._ask(one, self.keeper.told)) for one in known[:MOST_ASKED]]
        if self.elsewhere is not None:
            questions.append(self._answer_of(self.elsewhere.find(self.keeper.fingerprint)))
        return questions

    async def _answer_of(self, question: Awaitable[bytes]) -> bytes:
        try:
            return await question
        except (RemoteError, ConfigError, OSError):
            return b""

    async def _ask_over_grpc(self, one: Acquaintance, own: bytes) -> bytes:
        return await finding.asked(one.host, one.port, one.certificate, self.keeper.fingerprint, own)

    async def _found_at(self, places: list[Spot]) -> bool:
        """Whether the run answers at one of these; the first that does is where it is from now on."""
        probes = [asyncio.ensure_future(self._answers_at(place)) for place in places]
        try:
            for probe in asyncio.as_completed(probes):
                place = await probe
                if place is not None:
                    self._place = place
                    self.moved(
                        JoinLink(
                            host=place[0],
                            port=place[1],
                            fingerprint=self._link.fingerprint,
                            invite=self._link.invite,
                            others=self._besides(place),
                            through=self._link.through,
                        )
                    )
                    return True
            return False
        finally:
            for task in probes:
                task.cancel()

    def _besides(self, place: Spot) -> tuple[Spot, ...]:
        """Where the link said that the run may be, but for where it is; for the next time that it is lost."""
        link = self._link
        given = dict.fromkeys(((link.host, link.port), *link.others))
        return tuple(one for one in given if one != place)[: MOST_ADDRESSES - 1]

    async def _answers_at(self, place: Spot) -> Spot | None:
        try:
            await self._threads.run(self._probe, *place, self._link.fingerprint, PROBE_S)
        except (RemoteError, OSError):
            return None
        return place


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
