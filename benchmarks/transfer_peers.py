"""What moving bytes costs without this project: raw TCP, a TLS socket that hashes and keeps them, and bare grpc.aio.

Decides nothing; `benchmarks.transfers` and `benchmarks.round_trip` start these as processes. Each peer is a server and
a worker. A server tells its port over its pipe and then, whenever it is asked, the processor seconds that it has used;
a worker does what it is told (`down`, `up`, `both`) and answers when that is done. `tcp` moves bytes and no more.
`floor` is what nobody can leave out: TLS, SHA-256 on both sides, the server's file of every upload synced before it is
answered. `grpc.aio` is `floor` over gRPC's own streams, with identity serializers, messages as large as our frames,
everything on the event loop but the sync.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from protocol.ids import RunId
from protocol.limits import FRAME_BYTES, channel_options, server_options
from protocol.tls import COORDINATOR_NAME, CertificateAuthority

DOWN, UP, BOTH = "down", "up", "both"
_METHOD = "/peer/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way of moving bytes, and what both of its sides need."""

    folder: Path
    """With `chain.pem` and `key.pem` of the server, `ca.pem` for the workers, and room for what is uploaded."""
    payload_bytes: int
    tls: bool = True

    @classmethod
    def make(cls, folder: Path, payload_bytes: int, *, tls: bool = True) -> Peer:
        """With a certificate of its own, and the payload that everybody fetches."""
        authority = CertificateAuthority.create(RunId("peer"))
        leaf = authority.issue_leaf(["127.0.0.1"])
        (folder / "chain.pem").write_bytes(leaf.cert_pem)
        (folder / "key.pem").write_bytes(leaf.key_pem)
        (folder / "ca.pem").write_bytes(authority.cert_pem)
        (folder / "payload").write_bytes(os.urandom(payload_bytes))
        return cls(folder=folder, payload_bytes=payload_bytes, tls=tls)


def tell_cpu(pipe: Connection, act: Callable[[str], None] = lambda _: None) -> None:
    """In a thread: whatever is said is done (`act`), and answered by this process's processor seconds."""

    def answer() -> None:
        while True:
            try:
                act(pipe.recv())
                pipe.send(time.process_time())
            except (EOFError, OSError):
                return

    threading.Thread(target=answer, daemon=True).start()


# ---- sockets --------------------------------------------------------------------------------------------------------


def serve_sockets(peer: Peer, pipe: Connection) -> None:
    """`tcp` or `floor`: a thread for each connection, until killed."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    pipe.send(listening.getsockname()[1])
    tell_cpu(pipe)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(peer, connection), daemon=True).start()


def _answer(peer: Peer, connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if peer.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(peer.folder / "chain.pem", peer.folder / "key.pem")
        connection = context.wrap_socket(connection, server_side=True)
    buffer = bytearray(FRAME_BYTES)
    whole = (peer.folder / "payload").read_bytes() if not peer.tls else b""
    while way := connection.recv(1):
        if way == b"d":
            _send(peer, connection, buffer, whole)
        else:
            _receive(peer, connection, buffer, keep=peer.tls)
            connection.sendall(b".")


def _send(peer: Peer, connection: socket.socket, buffer: bytearray, whole: bytes) -> None:
    if whole:
        return connection.sendall(whole)
    with (peer.folder / "payload").open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            connection.sendall(memoryview(buffer)[:count])
    return None


def _receive(peer: Peer, connection: socket.socket, buffer: bytearray, *, keep: bool) -> None:
    """`keep`: into a file, which is whole and durable when this returns."""
    hasher, missing, view = hashlib.sha256(), peer.payload_bytes, memoryview(buffer)
    with tempfile.TemporaryFile(dir=peer.folder, buffering=0) as file:
        while missing:
            filled, want = 0, min(len(buffer), missing)
            while filled < want:
                count = connection.recv_into(view[filled:want])
                if count == 0:
                    raise ConnectionError("the other side hung up")
                filled += count
            missing -= want
            if peer.tls:
                hasher.update(view[:want])
            if keep:
                file.write(view[:want])
        if keep:
            os.fsync(file.fileno())


def work_sockets(peer: Peer, port: int, pipe: Connection) -> None:
    """The other side of `serve_sockets`, until the pipe is closed."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if peer.tls:
        context = ssl.create_default_context(cafile=str(peer.folder / "ca.pem"))
        connection = context.wrap_socket(connection, server_hostname=COORDINATOR_NAME)
    payload, buffer = os.urandom(peer.payload_bytes), bytearray(FRAME_BYTES)

    def move(way: str) -> None:
        connection.sendall(b"d" if way == DOWN else b"u")
        if way == DOWN:
            return _receive(peer, connection, buffer, keep=False)
        if peer.tls:
            hashlib.sha256(payload).digest()
        connection.sendall(payload)
        assert connection.recv(1) == b"."
        return None

    pipe.send("ready")
    obey(pipe, move)


def obey(pipe: Connection, move: Callable[[str], None]) -> None:
    """Do what is said and answer with the processor seconds used, until nobody says anything any more."""
    while True:
        try:
            way = pipe.recv()
        except EOFError:
            return
        for one in ways_of(way):
            move(one)
        pipe.send(time.process_time())


def ways_of(way: str) -> tuple[str, ...]:
    """What one word means."""
    return (DOWN, UP) if way == BOTH else (way,)


# ---- grpc.aio -------------------------------------------------------------------------------------------------------


def serve_grpc(peer: Peer, pipe: Connection) -> None:
    """Streams of bytes with identity serializers, until killed."""

    async def up(messages: AsyncIterator[bytes], _: Any) -> bytes:
        hasher = hashlib.sha256()
        with tempfile.TemporaryFile(dir=peer.folder, buffering=0) as file:
            async for message in messages:
                hasher.update(message)
                file.write(message)
            await asyncio.to_thread(os.fsync, file.fileno())
        return hasher.digest()

    async def down(_: bytes, __: Any) -> AsyncIterator[bytes]:
        with (peer.folder / "payload").open("rb", buffering=0) as file:
            while piece := file.read(FRAME_BYTES):
                yield piece

    async def run() -> None:
        server: Any = grpc.aio.server(options=server_options())
        handlers = {
            UP: grpc.stream_unary_rpc_method_handler(up),
            DOWN: grpc.unary_stream_rpc_method_handler(down),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer", handlers),))
        key, chain = (peer.folder / "key.pem").read_bytes(), (peer.folder / "chain.pem").read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        await server.start()
        pipe.send(port)
        tell_cpu(pipe)
        await asyncio.Event().wait()

    asyncio.run(run())


def work_grpc(peer: Peer, port: int, pipe: Connection) -> None:
    """The other side of `serve_grpc`, until the pipe is closed."""
    payload = os.urandom(peer.payload_bytes)

    async def messages() -> AsyncIterator[bytes]:
        for start in range(0, len(payload), FRAME_BYTES):
            yield payload[start : start + FRAME_BYTES]

    async def move(channel: Any, way: str) -> None:
        hasher = hashlib.sha256()
        if way == DOWN:
            async for message in channel.unary_stream(_METHOD + DOWN)(b""):
                hasher.update(message)
        else:
            hasher.update(payload)
            assert await channel.stream_unary(_METHOD + UP)(messages()) == hasher.digest()

    async def run() -> None:
        credentials = grpc.ssl_channel_credentials((peer.folder / "ca.pem").read_bytes())
        options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            await channel.channel_ready()
            pipe.send("ready")
            while True:
                try:
                    way = await asyncio.to_thread(pipe.recv)
                except EOFError:
                    return
                for one in ways_of(way):
                    await move(channel, one)
                pipe.send(time.process_time())

    asyncio.run(run())
