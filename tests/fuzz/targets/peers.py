"""What workers read of one another, and of whom the coordinator names: who has which block, records, requests, frames.

The fetching side is the real one, over lines on which nobody gives anything; each input is the coordinator's first
answer to it, and the second one is a refusal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from peering.companion import SidecarStatus, _peers_in, _record_in
from peering.finding import record_told
from peering.keeping import RecordKeeper
from peering.line import PeerLine, holder_name
from peering.record import RecordSigner
from peering.serving import PeerServer, _request
from protocol.errors import MalformedMessage, Refused, RemoteError, Unavailable
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId, digest_of
from protocol.joinlink import JoinLink
from protocol.manifest import BlockRef
from protocol.messages import fill
from protocol.tickets import NONCE_BYTES, Ticket, prove, sign_pass, sign_ticket
from protocol.tls import LeafCertificate
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import finish
from tests.fuzz.mutate import joined, message_mutations, mutated, pieces_mutated, split
from tests.fuzz.target import Target
from tests.fuzz.targets.protocol import IDENTITY, PAYLOAD, authority
from worker.acquaintances import MOST_KEPT
from worker.finding import Finder
from worker.ports import BlockSource
from worker.swarm import LANES, BlockSwarm
from worker.timing import Timing

Result = TypeVar("Result")

NOW_S = 1_000_000.0
NEAR = "192.168.1.9"
WANTED = [BlockRef(digest=digest_of(b"%d" % number), payload_bytes=100) for number in range(LANES + 2)]
REFUSED = (RemoteError,)


class _Desk:
    """A coordinator that says one thing about who has what."""

    def __init__(self, reply: bytes) -> None:
        self._replies = [reply]

    async def sources(self, _request: pb.SourcesRequest) -> pb.SourcesReply:
        """The input, and then no more."""
        if not self._replies:
            raise Refused("said once")
        try:
            return pb.SourcesReply.FromString(self._replies.pop())
        except DecodeError as error:
            raise MalformedMessage("not a SourcesReply") from error

    async def patiently(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Once."""
        return await step()

    async def block(self, _digest: Digest, _size: int, _offset: int) -> AsyncGenerator[bytes, None]:
        """Nothing."""
        if False:
            yield b""


class _Silent:
    """A line on which nothing comes, to whoever may be dialled."""

    ticket: Ticket | None = None

    def __init__(self, holder: pb.Holder) -> None:
        assert 1 <= holder.port <= 65_535
        self.name = holder_name(holder.certificate)

    async def block(self, _digest: Digest, _size: int, _offset: int) -> AsyncGenerator[bytes, None]:
        """It hangs up."""
        if False:
            yield b""
        raise Unavailable("nothing")

    async def close(self) -> None:
        """Nothing is open."""


class _Files:
    """Small files in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def keep(self, name: str, content: bytes) -> None:
        """Written."""
        self.files[name] = content

    def kept(self, name: str) -> bytes | None:
        """Read."""
        return self.files.get(name)


def _sources(data: bytes) -> object:
    link = JoinLink(host=NEAR, port=1, fingerprint=authority().fingerprint, invite=None)
    asked: list[Digest] = []

    async def take(ref: BlockRef, source: BlockSource) -> None:
        asked.append(ref.digest)
        async for _ in source.block(ref.digest, ref.payload_bytes, 0):
            pass

    async def bring_all() -> Finder:
        timing = Timing(clock=asyncio.get_running_loop().time)
        finder = Finder(link, _Files(), timing, wall_s=lambda: NOW_S)

        def heard(reply: pb.SourcesReply) -> None:
            finder.heard(reply.record)
            finder.met([*reply.holders, *reply.neighbours])

        desk: Any = _Desk(data)
        swarm = BlockSwarm(desk, _Silent, timing, near=NEAR, heard=heard)
        bringing = [swarm.bring(ref, lambda source, ref=ref: take(ref, source)) for ref in WANTED]  # type: ignore[misc]
        came = await asyncio.gather(*bringing, return_exceptions=True)
        await swarm.close()
        for one in came:
            if isinstance(one, BaseException) and not isinstance(one, Refused):
                raise one
        return finder

    finder = finish(bring_all())
    assert set(asked) <= {ref.digest for ref in WANTED}
    assert len(finder._acquaintances.known) <= MOST_KEPT
    return finder


def _replies() -> list[bytes]:
    ticket = sign_ticket(authority(), RunId("run"), IDENTITY.public_key, NOW_S)
    reply = pb.SourcesReply(now_s=1.0, retry_after_s=0.5, book=b"12345678", notice="nobody reaches it")
    fill(reply.ticket, ticket, Ticket)
    for number in range(3):
        reply.holders.add(host=f"192.168.1.{number}", port=7000 + number, certificate=b"certificate %d" % number)
        reply.neighbours.add(host=f"192.168.2.{number}", port=7000 + number, certificate=b"certificate %d" % number)
    for number, ref in enumerate(WANTED):
        reply.sources.add(digest=bytes.fromhex(ref.digest), holders=[number % 3, 2], granted=number % 2 == 0)
    reply.record = _record()
    reply.relays.append("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp@192.168.3.1:7001")
    reply.relay_pass = sign_pass(authority(), "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", NOW_S)
    behind = reply.holders.add(certificate=b"behind", peer_id="12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")
    behind.through.extend(reply.relays)
    reply.sources[0].holders.append(3)
    return [reply.SerializeToString(), pb.SourcesReply().SerializeToString()]


def _record() -> bytes:
    signer = RecordSigner.of(RunId("run"), authority(), IDENTITY)
    return signer.sign(epoch=1, sequence=2, addresses=("192.168.1.9:7070",), issued_s=NOW_S)


def _found(data: bytes) -> object:
    keeper = RecordKeeper(Digest(authority().fingerprint), lambda: NOW_S, lambda: 0.0)
    assert keeper.offer(record_told(data)) == (keeper.newest is not None)
    return keeper.newest


FRAME_BYTES = 40
NONCE = bytes(NONCE_BYTES)
HOLDER = digest_of(b"a holder")
ADDRESS = f"Qm{'a' * 44}@192.168.1.9:7070"


class _Shelf:
    def open(self, _digest: Digest) -> None:
        """Nothing."""


def _asked(data: bytes) -> object:
    """What a worker that shares makes of a request, up to whether it is answered."""
    server = PeerServer(
        _Shelf(), LeafCertificate(key_pem=b"", cert_pem=b""), HOLDER, run_id=RunId("run"), ca_pem=authority().cert_pem,
        now_s=lambda: 0.0, bytes_per_s=1e6,
    )  # fmt: skip
    request = _request(data)
    server._admit(request, NONCE, Digest(request.digest.hex()))
    return request


def _requests() -> list[bytes]:
    digest = digest_of(PAYLOAD)
    request = pb.TakeRequest(digest=bytes.fromhex(digest), payload_bytes=len(PAYLOAD), offset=3)
    fill(request.ticket, sign_ticket(authority(), RunId("run"), IDENTITY.public_key, 900.0), Ticket)
    return [_proved(request.SerializeToString())]


def _proved(data: bytes) -> bytes:
    """With a ticket's key's proof over whatever is asked."""
    try:
        request = pb.TakeRequest.FromString(data)
        request.proof = prove(IDENTITY, NONCE, HOLDER, Digest(request.digest.hex()), request.offset)
    except DecodeError:
        return data
    return request.SerializeToString()


class _Answering:
    """A channel on which another worker says what an input says."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages

    def stream_stream(self, *_: Any) -> Callable[..., Any]:
        """The call."""
        return lambda timeout: self

    async def read(self) -> Any:
        """The next message; at the end it hangs up."""
        import grpc

        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def write(self, _message: bytes) -> None:
        """Taken."""

    async def done_writing(self) -> None:
        """Noted."""

    def cancel(self) -> None:
        """Over."""


def _taken(data: bytes) -> object:
    own: dict[str, Any] = {"channel": _Answering(split(data)), "frame_bytes": FRAME_BYTES}
    line = PeerLine("127.0.0.1", 1, b"", PrivateIdentity.from_seed(bytes(32)), **own)

    async def take() -> int:
        pieces = [len(piece) async for piece in line.block(digest_of(PAYLOAD), len(PAYLOAD), 0)]
        return sum(pieces)

    count = finish(take())
    assert count == len(PAYLOAD)
    return count


def _streams() -> list[bytes]:
    frames = frames_of(lambda start, length: PAYLOAD[start : start + length], len(PAYLOAD), 0, FRAME_BYTES)
    return [joined([pb.PeerGreeting(nonce=NONCE).SerializeToString(), *map(bytes, frames)])]


def _said(data: bytes) -> object:
    """What the sidecar, which speaks with strangers, says to the worker that keeps it."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not JSON") from error
    if not isinstance(answer, dict):
        raise MalformedMessage("not an object")
    status = SidecarStatus(
        peer_id="", addresses=_peers_in(answer.get("addresses")), peers=_peers_in(answer.get("peers"))
    )
    assert len(status.addresses) <= 64
    return _record_in(answer)


TARGETS = (
    Target(
        name="sources-reply",
        decode=_sources,
        refusals=REFUSED,
        samples=_replies,
        mutate=message_mutations(pb.SourcesReply),
    ),
    Target(
        name="find-reply",
        decode=_found,
        refusals=REFUSED,
        samples=lambda: [pb.FindReply(record=_record()).SerializeToString()],
        mutate=message_mutations(pb.FindReply),
    ),
    Target(
        name="take-request",
        decode=_asked,
        refusals=REFUSED,
        samples=_requests,
        mutate=message_mutations(pb.TakeRequest),
        seal=_proved,
        base_bytes=2 << 20,
    ),
    Target(name="peer-stream", decode=_taken, refusals=REFUSED, samples=_streams, mutate=pieces_mutated),
    Target(
        name="sidecar-answer",
        decode=_said,
        refusals=REFUSED,
        samples=lambda: [
            json.dumps({"record": _record().hex(), "addresses": [ADDRESS], "peers": [ADDRESS] * 3}).encode()
        ],
        mutate=mutated,
    ),
)
