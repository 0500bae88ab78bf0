"""From one worker to another over loopback TLS: what is given to whom, and what anybody else is told."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO

import grpc
import pytest

from peering.certificate import PeerCertificate, new_certificate
from peering.limits import PEER_METHOD, peer_channel_options
from peering.line import PeerLine
from peering.pace import Slots, UplinkPace
from peering.serving import PeerServer
from protocol.errors import ConfigError, RateLimited, Refused, RemoteError, Unauthenticated, Unavailable
from protocol.file_frames import FileFrames
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId, digest_of
from protocol.limits import FRAME_BYTES
from protocol.messages import fill
from protocol.tickets import TICKET_S, Ticket, check_ticket, prove, sign_ticket
from protocol.tls import COORDINATOR_NAME, CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb

RUN = RunId("run-1")
CONTENT = os.urandom(2 * FRAME_BYTES + 77)
BLOCK = digest_of(CONTENT)
AUTHORITY = CertificateAuthority.create(RUN)
CERTIFICATE = new_certificate()
FAST = 1e12


class Memory:
    """A shelf in memory."""

    def open(self, digest: Digest) -> BinaryIO | None:
        return io.BytesIO(CONTENT) if digest == BLOCK else None


Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server; gives its port."""
    servers: list[PeerServer] = []

    async def start(certificate: PeerCertificate = CERTIFICATE, now_s: float = 0.0, **options: Any) -> int:
        server = PeerServer(
            Memory(), certificate.leaf, certificate.name, run_id=RUN, ca_pem=AUTHORITY.cert_pem, now_s=lambda: now_s,
            **{"bytes_per_s": FAST, **options},
        )  # fmt: skip
        servers.append(server)
        return await server.start("127.0.0.1", 0)

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def dial() -> AsyncIterator[Callable[..., PeerLine]]:
    lines: list[PeerLine] = []

    def make(port: int, *, ticket: Ticket | None = None, identity: PrivateIdentity | None = None) -> PeerLine:
        identity = identity or PrivateIdentity.generate()
        line = PeerLine("127.0.0.1", port, CERTIFICATE.der, identity)
        line.ticket = ticket or sign_ticket(AUTHORITY, RUN, identity.public_key, TICKET_S)
        lines.append(line)
        return line

    yield make
    for line in lines:
        await line.close()


def channel_to(port: int) -> grpc.aio.Channel:
    """A line on which a test says what it likes."""
    pem = ssl.DER_cert_to_PEM_cert(CERTIFICATE.der).encode()
    options = [*peer_channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    credentials = grpc.ssl_channel_credentials(root_certificates=pem)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def taken(line: PeerLine, digest: Digest = BLOCK, size: int = len(CONTENT), offset: int = 0) -> bytes:
    return b"".join([bytes(piece) async for piece in line.block(digest, size, offset)])


async def test_a_block_comes_from_wherever_it_is_asked(serve: Serve, dial: Callable[..., PeerLine]) -> None:
    line = dial(await serve())
    assert await taken(line) == CONTENT
    for offset in (1, FRAME_BYTES, len(CONTENT) - 1):
        assert await taken(line, offset=offset) == CONTENT[offset:]


async def test_what_is_not_here_is_said_so(serve: Serve, dial: Callable[..., PeerLine]) -> None:
    with pytest.raises(Refused, match="not there"):
        await taken(dial(await serve()), digest_of(b"something else"))


async def test_whoever_has_no_ticket_of_this_run_gets_nothing(serve: Serve, dial: Callable[..., PeerLine]) -> None:
    port, identity = await serve(), PrivateIdentity.generate()
    good = sign_ticket(AUTHORITY, RUN, identity.public_key, TICKET_S)
    strangers = CertificateAuthority.create(RUN)
    for ticket in (
        Ticket(public_key=b"", run_id=RUN, expires_s=0.0, signature=b""),
        sign_ticket(strangers, RUN, identity.public_key, TICKET_S),  # of another authority
        sign_ticket(AUTHORITY, RunId("run-2"), identity.public_key, TICKET_S),
        sign_ticket(AUTHORITY, RUN, identity.public_key, 0.0),  # expired
        dataclasses.replace(good, expires_s=2 * TICKET_S),  # longer than it was signed for
        sign_ticket(AUTHORITY, RUN, PrivateIdentity.generate().public_key, TICKET_S),  # somebody else's
    ):
        with pytest.raises(RemoteError):
            await taken(dial(port, ticket=ticket, identity=identity))
    assert await taken(dial(port, ticket=good, identity=identity)) == CONTENT


def test_a_ticket_for_ever_is_none() -> None:
    ticket = sign_ticket(AUTHORITY, RUN, PrivateIdentity.generate().public_key, 1e9)
    with pytest.raises(Unauthenticated, match="expired"):
        check_ticket(ticket, AUTHORITY.cert_pem, RUN, 0.0)
    nan = sign_ticket(AUTHORITY, RUN, PrivateIdentity.generate().public_key, float("nan"))
    with pytest.raises(Unauthenticated, match="expired"):
        check_ticket(nan, AUTHORITY.cert_pem, RUN, 0.0)


async def test_a_holder_that_the_coordinator_did_not_name_is_not_spoken_to(
    serve: Serve, dial: Callable[..., PeerLine]
) -> None:
    with pytest.raises(Unavailable):
        await taken(dial(await serve(new_certificate())))


async def test_a_certificate_that_is_none_is_a_holder_that_cannot_be_reached(serve: Serve) -> None:
    line = PeerLine("127.0.0.1", await serve(), b"no certificate", PrivateIdentity.generate())
    with pytest.raises(Unavailable):
        await taken(line)
    await line.close()


async def test_a_proof_cannot_be_passed_on(serve: Serve, dial: Callable[..., PeerLine]) -> None:
    """A holder that asks another one in somebody's name: the signature covers whom it was meant for."""
    port, identity = await serve(), PrivateIdentity.generate()
    line = dial(port, identity=identity)
    line.name = digest_of(b"the holder in between")
    with pytest.raises(RemoteError, match="signature"):
        await taken(line)


@pytest.mark.parametrize("changed", ["nonce", "digest", "offset"])
async def test_a_proof_is_for_one_call_one_block_and_one_place_in_it(serve: Serve, changed: str) -> None:
    """Of what a proof covers, one thing is another in the request: an earlier call's nonce, a block, an offset."""
    identity = PrivateIdentity.generate()
    async with channel_to(await serve()) as channel:
        call = channel.stream_stream(PEER_METHOD)(timeout=10.0)
        nonce = pb.PeerGreeting.FromString(await call.read()).nonce
        proved: dict[str, Any] = {"nonce": nonce, "digest": BLOCK, "offset": 3}
        other = {"nonce": bytes(32), "digest": digest_of(b"another"), "offset": 0}
        proof = prove(identity, holder=CERTIFICATE.name, **{**proved, changed: other[changed]})
        request = pb.TakeRequest(digest=bytes.fromhex(BLOCK), payload_bytes=len(CONTENT), offset=3, proof=proof)
        fill(request.ticket, sign_ticket(AUTHORITY, RUN, identity.public_key, TICKET_S), Ticket)
        await call.write(request.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_third_one_at_once_and_a_second_of_one_key_are_told_to_come_again(
    serve: Serve, dial: Callable[..., PeerLine]
) -> None:
    port, identity = await serve(bytes_per_s=1e6, slots=Slots(2, queue=0)), PrivateIdentity.generate()
    first, second = dial(port, identity=identity), dial(port)
    one, two = first.block(BLOCK, len(CONTENT), 0), second.block(BLOCK, len(CONTENT), 0)
    await anext(one)
    with pytest.raises(RateLimited):
        await taken(dial(port, identity=identity))
    await anext(two)
    with pytest.raises(RateLimited):
        await taken(dial(port))
    await one.aclose()
    await two.aclose()


async def test_the_rate_holds_for_all_together() -> None:
    slept: list[float] = []
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = UplinkPace(1000.0, lambda: now_s, sleep)
    for _ in range(3):
        await pace.spend(500)
    assert slept == [0.5, 1.0]
    now_s = 10.0  # what was not used is not saved up
    await pace.spend(500)
    assert len(slept) == 2


async def test_slots_go_in_the_order_of_asking_and_whoever_had_one_comes_last() -> None:
    slots, order = Slots(1, queue=2, patience_s=5.0), list[str]()

    async def take(name: str) -> None:
        async with slots.of(name.encode()):
            order.append(name)
            await asyncio.sleep(0)

    async with slots.of(b"first"):
        waiting = [asyncio.create_task(take(name)) for name in ("second", "third")]
        await asyncio.sleep(0)
        for key in (b"first", b"second", b"fourth"):  # one that has a slot, one that waits, one too many
            with pytest.raises(RateLimited):
                await slots.of(key).__aenter__()
    again = asyncio.create_task(take("first"))
    await asyncio.gather(*waiting, again)
    assert order == ["second", "third", "first"]


async def test_nobody_waits_long_for_a_slot_and_a_slot_is_free_again() -> None:
    slots = Slots(1, patience_s=0.01)
    for _ in range(2):
        async with slots.of(b"a"):
            with pytest.raises(RateLimited):
                await slots.of(b"b").__aenter__()


async def test_whoever_says_nothing_is_hung_up_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peering.serving.OPENING_S", 0.05)
    async with channel_to(await serve()) as channel:
        call = channel.stream_stream(PEER_METHOD)(timeout=10.0)
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_port_that_is_taken_is_told(serve: Serve) -> None:
    port = await serve()
    server = PeerServer(
        Memory(), CERTIFICATE.leaf, CERTIFICATE.name, run_id=RUN, ca_pem=AUTHORITY.cert_pem, now_s=lambda: 0.0,
        bytes_per_s=FAST,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--share-port"):
        await server.start("127.0.0.1", port)
    await server.stop()


# ---- liars ----------------------------------------------------------------------------------------------------------


async def liar(answer: Callable[[AsyncIterator[bytes], Any], Any]) -> tuple[Any, int]:
    """A holder under the right certificate that answers as it likes."""
    server: Any = grpc.aio.server()
    service, _, method = PEER_METHOD[1:].partition("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    leaf = CERTIFICATE.leaf
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(leaf.key_pem, leaf.cert_pem)]))
    await server.start()
    return server, port


async def no_greeting(_: Any, context: Any) -> None:
    await context.write(b"\xff" * 50)


async def short_nonce(_: Any, context: Any) -> None:
    await context.write(pb.PeerGreeting(nonce=b"1").SerializeToString())


async def no_frames(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.write(pb.PeerGreeting(nonce=bytes(32)).SerializeToString())
    await anext(messages)
    await context.write(b"what is this")


async def too_much(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.write(pb.PeerGreeting(nonce=bytes(32)).SerializeToString())
    await anext(messages)
    content = CONTENT + bytes(FRAME_BYTES)
    for frame in frames_of(lambda start, length: content[start : start + length], len(content)):
        await context.write(frame)


async def silence(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.write(pb.PeerGreeting(nonce=bytes(32)).SerializeToString())
    await anext(messages)
    await asyncio.Event().wait()


async def ends_early(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.write(pb.PeerGreeting(nonce=bytes(32)).SerializeToString())
    await anext(messages)


@pytest.mark.parametrize("answer", [no_greeting, short_nonce, no_frames, too_much, silence, ends_early])
async def test_a_holder_that_answers_nonsense_or_nothing_is_an_error_soon(answer: Any) -> None:
    server, port = await liar(answer)
    line = PeerLine("127.0.0.1", port, CERTIFICATE.der, PrivateIdentity.generate(), stall_s=0.1)
    try:
        with pytest.raises(RemoteError):
            await taken(line)
    finally:
        await line.close()
        await server.stop(None)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_a_person_reads_our_words_and_no_others_whatever_ends_a_call(code: grpc.StatusCode) -> None:
    async def refuses(_: Any, context: Any) -> None:
        await context.abort(code, "ipv4:127.0.0.1:1: tcp handshaker shutdown")

    server, port = await liar(refuses)
    line = PeerLine("127.0.0.1", port, CERTIFICATE.der, PrivateIdentity.generate())
    try:
        with pytest.raises(RemoteError, match="another worker") as caught:
            await taken(line)
        assert "handshaker" not in str(caught.value)
        assert code.name not in str(caught.value)
        assert isinstance(caught.value, RateLimited) == (code is grpc.StatusCode.RESOURCE_EXHAUSTED)
    finally:
        await line.close()
        await server.stop(None)


async def test_every_frame_is_read_where_all_files_frames_are(
    serve: Serve, dial: Callable[..., PeerLine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which thread a file is read, `FileFrames.read` alone decides."""
    read, frames = FileFrames.read, list[int]()

    async def counted(self: FileFrames) -> bytes:
        frames.append(1)
        return await read(self)

    monkeypatch.setattr(FileFrames, "read", counted)
    assert await taken(dial(await serve())) == CONTENT
    assert len(frames) == 3
