"""What workers that give blocks to one another may cost, and whom they may hold it against.

Decides nothing about the run. Where nothing goes wrong but what holders do (`Scenario.clear`): a version leaves the
coordinator at most once more often than it is set to, or than there are liars, where these are more: each may take one
and pass nothing on. And no honest worker is avoided by another honest one. What is
fetched of a version that is past (to compute a lease of it again) counts for nothing: others have let go of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

from coordinator.edge.served import RunContext
from coordinator.edge.service import WorkerService
from coordinator.edge.sessions import CallerSession
from coordinator.edge.sources import Sources
from coordinator.edge.transfers import Transfers
from protocol.errors import Refused
from protocol.ids import Digest, WorkerId
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.broken import InvariantBroken
from simulator.holders import LIES, Gives

if TYPE_CHECKING:
    from simulator.deterministic.disk import Disk
    from simulator.deterministic.peers import PeerLines
    from simulator.deterministic.volunteer_spec import VolunteerSpec
    from simulator.deterministic.work import Served


class SharingBook:
    """One world's."""

    def __init__(self, people: dict[WorkerId, VolunteerSpec], *, copies: int, clear: bool) -> None:
        self._people, self._copies, self._clear = people, copies, clear
        self._by_number = [spec.gives for spec in people.values()]
        self._sent, self._sizes = Counter[Digest](), dict[Digest, int]()

    def sent(self, digest: Digest, payload_bytes: int, count: int) -> None:
        """So many bytes of a block leave the coordinator."""
        self._sizes[digest] = payload_bytes
        self._sent[digest] += count

    def failed(self, worker: WorkerId, holders: Collection[int]) -> None:
        """A worker says that these, who live, gave it something else than they should, or nothing."""
        if not self._clear or self._people[worker].gives in LIES:
            return
        for one in holders:
            if self._by_number[one] is Gives.BLOCKS:
                raise InvariantBroken(f"volunteer {one} gives what it should, and worker {worker[:8]} avoids it")

    def over(self) -> None:
        """The run ended."""
        if not self._clear:
            return
        sent, sizes = sum(self._sent.values()), sum(self._sizes.values())
        liars = sum(gives in LIES for gives in self._by_number)
        if sent > (max(self._copies, liars) + 1) * sizes:
            raise InvariantBroken(
                f"{sent} bytes of blocks left the coordinator, {sent / sizes:.1f} times all that there are, set to "
                f"{self._copies} copies, with {liars} that lie"
            )


class WatchedSources(Sources):
    """The real one, whose every question is told of first; shares are reached over simulated lines."""

    def __init__(self, run: RunContext, book: SharingBook, lines: PeerLines) -> None:
        super().__init__(
            run, reach=lambda shared: "" if lines.listener(shared.port, shared.name) is not None else "nobody is there"
        )
        self._sharing_book, self._lines = book, lines

    async def answer(self, session: CallerSession, request: pb.SourcesRequest) -> pb.SourcesReply:
        """As it does."""
        named = (self._lines.holder(Digest(name.hex())) for name in request.failed)
        self._sharing_book.failed(session.worker, [one for one in named if one is not None])
        return await super().answer(session, request)


class CountedTransfers(Transfers):
    """The real ones, but for where blocks lie."""

    def __init__(
        self,
        run: RunContext,
        service: WorkerService,
        frame_bytes: int,
        rots: Callable[[], bool],
        book: SharingBook,
        disk: Disk,
    ) -> None:
        super().__init__(run, service, frame_bytes)
        self._served, self._rots, self._book = cast("Served", run.versions), rots, book
        self._disk, self._engine = disk, run.pump.engine

    def _block_frames(self, digest: Digest, offset: int) -> Iterator[bytes]:
        content = self._served.block(digest)
        if content is None:
            raise Refused(f"block {digest[:16]} is not kept here; take the manifest of the version that is leased")
        if digest in self._disk.manifests.get(self._engine.state.manifest, {}).values():
            self._book.sent(digest, len(content), len(content) - offset)
        if self._rots():
            content = content[:-1] + bytes([content[-1] ^ 1])
        return self._frames_of(content, offset)

    def _file_frames(self, file: Any, offset: int) -> Iterator[bytes]:
        return self._frames_of(file.read(), offset)
