"""One worker's way to the coordinator: a TCP proxy on loopback that holds, cuts and refuses as faults say.

Decides nothing about content: TLS passes through unread, so faults act on connections and bytes. `delay` holds a
connection's bytes, both ways; `drop` resets it; `truncate` cuts it after a number of the worker's bytes; `partition`
resets every connection and each new one until it is over. Always: what passes is what was sent, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from simulator.faults import Fault, FaultKind, FaultPlan, Point
from tests.machines.process_faults import ON_LINK

CHUNK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: closing sends RST, so the other side sees a broken connection, not an end."""


class _Connection:
    """Two streams, joined."""

    def __init__(self, nth: int, client: asyncio.StreamWriter) -> None:
        self.nth = nth
        self.sent_bytes = 0
        self.held_until_s = 0.0
        self.broken = asyncio.Event()
        self.task = asyncio.current_task()
        self.writers = [client]

    def close(self) -> None:
        """Both sides see it end, after all that was let through."""
        for writer in self.writers:
            writer.close()

    def reset(self) -> None:
        """Both sides see it break."""
        self.broken.set()
        for writer in self.writers:
            with contextlib.suppress(OSError):
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class FaultyLink:
    """One link. `start` once, `stop` once."""

    def __init__(
        self, worker: int, target_port: Callable[[], int], plan: FaultPlan, now_s: Callable[[], float]
    ) -> None:
        self._worker, self._target_port, self._plan, self._now_s = worker, target_port, plan, now_s
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._count = 0
        self._cut_until_s = self._held_until_s = 0.0
        self.port = 0

    async def start(self) -> int:
        """Listen on a free port of 127.0.0.1; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Reset what is open, and listen no more."""
        if self._server is not None:
            self._server.close()
        ending = [connection.task for connection in self._open if connection.task is not None]
        self._reset_all()
        await asyncio.gather(*ending, return_exceptions=True)

    def strike(self, fault: Fault) -> None:
        """A fault that was addressed to a time: it meets every connection."""
        if fault.kind is FaultKind.DELAY:
            self._held_until_s = self._now_s() + fault.seconds
        elif fault.kind is FaultKind.PARTITION:
            self._partition(fault.seconds)
        else:
            self._reset_all()

    def _partition(self, seconds: float) -> None:
        self._cut_until_s = self._now_s() + seconds
        self._reset_all()

    def _reset_all(self) -> None:
        for connection in list(self._open):
            connection.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        connection = _Connection(self._count, writer)
        self._open.add(connection)
        try:
            self._meet(connection, b"")
            if not connection.broken.is_set() and self._now_s() >= self._cut_until_s:
                await self._join(connection, reader, writer)
            else:
                connection.reset()
        except OSError:
            connection.reset()  # nobody listens there now, or one side is gone
        finally:
            self._open.discard(connection)
            connection.close()

    async def _join(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side has ended: HTTP/2 over TLS has no use for half a connection."""
        there, out = await asyncio.open_connection("127.0.0.1", self._target_port())
        connection.writers.append(out)
        both = [self._send(connection, reader, out), self._answer(connection, there, writer)]
        tasks = [asyncio.create_task(one) for one in both]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _send(self, connection: _Connection, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            kept = self._meet(connection, chunk)
            await self._wait_while_held(connection)
            out.write(kept)
            await out.drain()
            if connection.broken.is_set():
                return

    async def _answer(self, connection: _Connection, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await there.read(CHUNK_BYTES):
            await self._wait_while_held(connection)
            writer.write(chunk)
            await writer.drain()

    def _meet(self, connection: _Connection, chunk: bytes) -> bytes:
        """What is let through of a chunk of the worker's; afterwards the connection may be broken."""
        before = connection.sent_bytes
        connection.sent_bytes += len(chunk)
        now_s = self._now_s()
        point = Point(worker=self._worker, nth=connection.nth, sent_bytes=connection.sent_bytes, now_s=now_s)
        kept = chunk
        for fault in self._plan.take(point, ON_LINK):
            if fault.kind is FaultKind.DELAY:
                connection.held_until_s = now_s + fault.seconds
                continue
            connection.broken.set()
            if fault.kind is FaultKind.TRUNCATE and fault.at.after_bytes is not None:
                kept = kept[: max(0, fault.at.after_bytes - before)]
                continue
            kept = b""
            connection.reset()
            if fault.kind is FaultKind.PARTITION:
                self._partition(fault.seconds)
        return kept

    async def _wait_while_held(self, connection: _Connection) -> None:
        while (left_s := max(connection.held_until_s, self._held_until_s) - self._now_s()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.broken.wait(), left_s)
                return
