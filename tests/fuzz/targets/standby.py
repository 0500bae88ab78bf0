"""What a coordinator reads from the machine that follows it: the two calls' requests, and what the stream answers.

The world's run is followed by the stranger, who has a standby link. One record and one file are held for it, and are
again after each input.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from functools import partial
from random import Random
from typing import Any

from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.base import OfferedFile
from coordinator.run.seats import admit, new_standby_invite
from coordinator.run.shipping import HeldRecords
from coordinator.store.journal_file import chained
from protocol.ids import Digest, digest_of
from protocol.limits import PROTOCOL_VERSION
from protocol.services import STANDBY_SERVICE
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import Aborted
from tests.fuzz.mutate import joined, message_mutated, pieces_mutated, split
from tests.fuzz.target import Target
from tests.fuzz.targets.coordinator_world import NOW_S, World, world
from tests.fuzz.targets.protocol import PAYLOAD

METHODS = ("Follow", "Fetch")
SENT_BYTES = 4 << 20
"""The tiny run's base is copied and told."""
_FILE = OfferedFile(
    name="held", digest=Digest(digest_of(PAYLOAD)), size_bytes=len(PAYLOAD), open=partial(io.BytesIO, PAYLOAD)
)
_RECORD = '{"type": "held"}'
_invites: list[str] = []


def _invite(there: World) -> str:
    if not _invites:
        _invites.append(new_standby_invite(there.run_folder.root, NOW_S))
    return _invites[0]


@contextlib.contextmanager
def followed(there: World) -> Iterator[None]:
    """Inside, nobody has redeemed the link yet, and one record is held; afterwards the leader is as it was."""
    replication: Any = there.parts.replication
    _invite(there)
    leading, admission = copy.deepcopy(replication._leading), there.run_folder.root / "secret" / "standby.json"
    link = admission.read_bytes()
    at = replication.committed
    replication.shipment.begin(at)
    chain = chained(there.parts.journal.chain, _RECORD)
    replication.shipment.add(
        HeldRecords(first=at + 1, records=(_RECORD,), chain=chain, files=(_FILE,), pins=contextlib.ExitStack())
    )
    try:
        yield
    finally:
        replication.shipment.end()
        replication._leading = leading
        if admission.read_bytes() != link:
            admission.write_bytes(link)


def call(there: World, name: str, messages: Sequence[bytes]) -> int:
    """Bytes that the stranger is answered with. Fetch is asked by whoever has redeemed the link."""
    with followed(there):
        if name == "Fetch":
            admit(there.run_folder.root, there.stranger.public_key, _invite(there), 0.0)
        return there.call(f"/{STANDBY_SERVICE}/{name}", there.stranger, messages, keyed=True)


def follows(there: World, numbers: range) -> list[pb.FollowRequest]:
    """One goes on from what it has, all others begin anew; each with a nonce of its own."""
    journal = there.parts.journal
    return [
        pb.FollowRequest(
            protocol_version=PROTOCOL_VERSION,
            engine_version=ENGINE_VERSION,
            public_key=there.stranger.public_key,
            nonce=bytes([number]) * 16,
            invite=_invite(there),
            follower="a follower",
            epoch=1,
            position=0 if number % 8 else journal.last_position,
            chain=b"" if number % 8 else journal.chain,
        )
        for number in numbers
    ]


def fetches(there: World, numbers: range) -> list[pb.FetchRequest]:
    """Of the file that is held."""
    held = pb.HeldFile(name=_FILE.name, digest=bytes.fromhex(_FILE.digest), size_bytes=_FILE.size_bytes)
    return [
        pb.FetchRequest(
            public_key=there.stranger.public_key, nonce=bytes([number]) * 16, file=held, offset=64 * (number % 2)
        )
        for number in numbers
    ]


def _stream(data: bytes) -> object:
    """The opening, and what the follower acknowledges."""
    return call(world(), "Follow", split(data))


def _streams() -> list[bytes]:
    there = world()
    last = there.parts.journal.last_position
    acks = [pb.FollowAck(position=position).SerializeToString() for position in (last, last + 1)]
    return [joined([request.SerializeToString(), *acks]) for request in follows(there, range(160, 200))]


def _stream_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """Now and then the opening by its fields, and the acknowledgement by its own."""
    what = random.random()
    if what < 0.5:
        return pieces_mutated(random, samples)
    opening, *acks = split(random.choice(samples))
    if what < 0.75:
        return joined([message_mutated(random, pb.FollowRequest, opening), *acks])
    # with a nonce that no other input has, so that it is listened to
    request = pb.FollowRequest.FromString(opening)
    request.nonce = random.randbytes(16)
    return joined([request.SerializeToString(), *(message_mutated(random, pb.FollowAck, ack) for ack in acks)])


TARGETS = (
    Target(
        name="follow-stream",
        decode=_stream,
        refusals=(Aborted,),
        samples=_streams,
        mutate=_stream_mutated,
        base_bytes=SENT_BYTES,
    ),
)
