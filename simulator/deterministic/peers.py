"""Lines between simulated volunteers, and what the bad ones among them give to whoever asks for a block.

Decides when messages between two workers arrive, and what each kind of liar does. The listener and the line, with
tickets, proofs, slots and frames, are the product's (peering/serving.py, peering/line.py); below them are no sockets
and no TLS: a listener is found by its port, and only under the certificate that was asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

import grpc

from peering.certificate import PeerCertificate
from peering.line import PeerLine, holder_name
from peering.pace import Spend
from peering.serving import PeerServer
from protocol.errors import Unavailable
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.tls import LeafCertificate
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.disk import Disk
from simulator.deterministic.loop import PROCESS, Process, VirtualLoop
from simulator.holders import LIES, Gives
from worker.blocks import BlockCache
from worker.home import Enrolment
from worker.sharing import Sharing

FIRST_PORT = 7100
FRAME_BYTES = 256
"""Several for a block of a KB or two."""
SHARED_BYTES_PER_S = 1500.0
"""So slow that slots are taken and others have to wait."""
FOR_EVER_S = 1e9
NO_LEAF = LeafCertificate(key_pem=b"", cert_pem=b"")


class PeerLines:
    """All lines between the volunteers of one world."""

    def __init__(
        self,
        loop: VirtualLoop,
        disk: Disk,
        draw: random.Random,
        *,
        is_cut: Callable[[int], bool],
        drop_share: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        """`drop_share`: of the messages, those with which a connection breaks at this moment."""
        self.loop, self.disk, self.draw, self.is_cut, self.drop_share, self.note = (
            loop, disk, draw, is_cut, drop_share, note,
        )  # fmt: skip
        self._listening: dict[int, SimulatedListener] = {}
        self._by_name: dict[Digest, int] = {}
        self._made = 0
        self.given = 0
        """Blocks, whole or to the end, that one worker has sent to another."""

    def certificate(self, worker: int) -> PeerCertificate:
        """A new process's."""
        self._made += 1
        der = f"certificate {self._made} of volunteer {worker}".encode()
        name = holder_name(der)
        self._by_name[name] = worker
        return PeerCertificate(der=der, name=name, leaf=NO_LEAF)

    def listen(self, worker: int, listener: SimulatedListener) -> int:
        """It is reached from here on."""
        self._listening[FIRST_PORT + worker] = listener
        return FIRST_PORT + worker

    def listener(self, port: int, name: Digest) -> SimulatedListener | None:
        """Whoever lives there under that certificate."""
        found = self._listening.get(port)
        return found if found is not None and found.name == name and found.process.alive else None

    def holder(self, name: Digest) -> int | None:
        """The volunteer whose certificate this is, where its process still lives."""
        worker = self._by_name.get(name)
        return worker if worker is not None and self.listener(FIRST_PORT + worker, name) is not None else None

    def dial(self, worker: int, holder: pb.Holder, identity: PrivateIdentity) -> PeerLine:
        """The line from a volunteer to a holder."""
        channel = _Channel(self, worker, holder.port, holder_name(holder.certificate))
        own: dict[str, Any] = {"channel": channel, "frame_bytes": FRAME_BYTES}
        return PeerLine(holder.host, holder.port, holder.certificate, identity, **own)

    def latency_s(self) -> float:
        """Of one message."""
        return self.draw.uniform(0.01, 0.2)


class SimulatedSharing(Sharing):
    """The real one, but for where it listens, and for what liars tell and give."""

    def __init__(self, lines: PeerLines, worker: int, gives: Gives, blocks: BlockCache) -> None:
        shelf: Any = _Boasting(blocks, lines.disk) if gives in LIES else blocks
        super().__init__(shelf, int(SHARED_BYTES_PER_S), clock=lines.loop.time, certificate=lines.certificate(worker))
        self._lines, self._worker, self._gives, self._cache = lines, worker, gives, blocks

    def _server_for(self, enrolment: Enrolment) -> PeerServer:
        return SimulatedListener(
            self._lines,
            self._worker,
            self._gives,
            self,
            NO_LEAF,
            self._certificate.name,
            run_id=enrolment.run_id,
            ca_pem=enrolment.ca_pem.encode(),
            now_s=lambda: self._clock() + self._behind_s,
            bytes_per_s=SHARED_BYTES_PER_S,
            clock=self._clock,
        )

    def open(self, digest: Digest) -> BinaryIO | None:
        """From the volunteer's disk; of a liar, what it makes up."""
        if self._gives is Gives.REFUSALS:
            return None
        if self._gives in LIES:
            stored = self._lines.disk.blocks.get(digest)
            content = bytearray(b"" if stored is None else stored.payload)
            if self._gives is Gives.GARBAGE and content:
                content[self._lines.draw.randrange(len(content))] ^= 1
            return io.BytesIO(bytes(content))
        return self._cache.reading(digest) if digest in self._cache.checked else None


class _Boasting:
    """A cache whose owner says that everything is in it."""

    def __init__(self, blocks: BlockCache, disk: Disk) -> None:
        self._blocks, self._disk = blocks, disk

    @property
    def checked(self) -> frozenset[Digest]:
        """All that the run has."""
        return self._blocks.checked.union(*(blocks.values() for blocks in self._disk.manifests.values()))


class SimulatedListener(PeerServer):
    """The real one, without a socket."""

    def __init__(self, lines: PeerLines, worker: int, gives: Gives, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lines, self.worker, self._gives = lines, worker, gives
        process = PROCESS.get()
        assert process is not None
        self.process: Process = process
        self.name = self._name
        self._context = contextvars.copy_context()

    async def start(self, host: str, port: int) -> int:
        """At a port that is its volunteer's."""
        del host, port
        return self._lines.listen(self.worker, self)

    async def stop(self) -> None:
        """Its process ends with it."""

    def serve(self, call: _PeerCall) -> None:
        """Answer one call, in this process."""
        self._lines.loop.create_task(self._take(call.asked(), _Context(self._lines, self, call)), context=self._context)

    def _opened(self, digest: Digest, request: pb.TakeRequest) -> Any:
        file = self._shelf.open(digest)
        if file is None:
            return super()._opened(digest, request)
        with file:
            content = file.read()
        return _Frames(content, request.offset)

    async def _send(self, frames: Any, context: Any, spend: Spend) -> None:
        if self._gives is Gives.SILENCE:
            await asyncio.sleep(FOR_EVER_S)
        if self._gives is Gives.HALVES:
            frames.halve()
            await super()._send(frames, context, spend)
            raise Unavailable("gone")
        await super()._send(frames, context, spend)
        self._lines.given += 1


class _Frames:
    """As `protocol.file_frames.FileFrames`, of small frames."""

    def __init__(self, content: bytes, offset: int) -> None:
        self._frames = deque(_cut(content, offset))

    @property
    def ended(self) -> bool:
        """Whether there are no more."""
        return not self._frames

    async def read(self) -> bytes:
        """The next."""
        return self._frames.popleft()

    def halve(self) -> None:
        """Only the first half is left."""
        for _ in range((len(self._frames) + 1) // 2):
            self._frames.pop()

    def close(self) -> None:
        """Nothing is open."""


class _Channel:
    """As much of a gRPC channel as `PeerLine` asks for."""

    def __init__(self, lines: PeerLines, worker: int, port: int, name: Digest) -> None:
        self._lines, self._worker, self._port, self._name = lines, worker, port, name

    def stream_stream(self, _method: str, *_: Any) -> Callable[..., _PeerCall]:
        """A call, as soon as it is called."""
        return self._begin

    async def close(self, grace: float | None) -> None:
        """Nothing is kept open."""

    def _begin(self, *, timeout: float) -> _PeerCall:
        lines, worker = self._lines, self._worker
        call = _PeerCall(lines, worker, timeout)

        def arrive() -> None:
            listener = lines.listener(self._port, self._name)
            if listener is None:
                call.put(_error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
            elif not lines.is_cut(worker) and not lines.is_cut(listener.worker):
                listener.serve(call)

        lines.loop.call_later(lines.latency_s(), arrive, context=contextvars.Context())
        return call


class _PeerCall:
    """The caller's end."""

    def __init__(self, lines: PeerLines, worker: int, timeout_s: float) -> None:
        self.worker, self._lines, self.is_over = worker, lines, False
        process = PROCESS.get()
        assert process is not None
        self.process = process
        self._came, self._said = asyncio.Queue[Any](), asyncio.Queue[bytes]()
        late = _error(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
        self._timer = lines.loop.call_later(timeout_s, self.put, late)

    def put(self, came: Any) -> None:
        """A message, an error, or the end."""
        if not self.is_over:
            self._came.put_nowait(came)

    async def read(self) -> Any:
        """The next message."""
        came = await self._came.get()
        if isinstance(came, grpc.aio.AioRpcError):
            raise came
        return came

    async def write(self, message: bytes) -> None:
        """It leaves at once."""
        self._lines.loop.call_later(
            self._lines.latency_s(), self._said.put_nowait, message, context=contextvars.Context()
        )

    async def done_writing(self) -> None:
        """One message is all."""

    def cancel(self) -> None:
        """The caller waits no more."""
        self.is_over = True
        self._timer.cancel()

    async def asked(self) -> AsyncIterator[bytes]:
        """What the caller sends, as the listener has it."""
        while True:
            yield await self._said.get()


class _Context:
    """What gRPC gives the listener's handler, as far as it asks."""

    def __init__(self, lines: PeerLines, listener: SimulatedListener, call: _PeerCall) -> None:
        self._lines, self._listener, self._call = lines, listener, call

    async def send_initial_metadata(self, _: Any) -> None:
        """Nobody reads it."""

    async def write(self, message: bytes) -> None:
        """One message; cancelled where the caller is gone, as gRPC does it."""
        lines, call = self._lines, self._call
        await asyncio.sleep(lines.latency_s())
        if call.is_over or not call.process.alive:
            raise asyncio.CancelledError
        if lines.is_cut(call.worker) or lines.is_cut(self._listener.worker):
            return
        if lines.draw.random() < lines.drop_share():
            lines.note(f"a line between volunteers {call.worker} and {self._listener.worker} breaks")
            call.put(_error(grpc.StatusCode.UNAVAILABLE, "the connection was reset"))
            raise asyncio.CancelledError
        call.put(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End with an error."""
        await asyncio.sleep(self._lines.latency_s())
        self._call.put(_error(code, details))


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def _cut(content: bytes, offset: int) -> Iterator[bytes]:
    return frames_of(lambda start, length: content[start : start + length], len(content), offset, FRAME_BYTES)
