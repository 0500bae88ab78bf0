"""Asking another process where the run is, over loopback TLS: both sides end with the newer record, and no ticket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from peering.certificate import new_certificate
from peering.finding import answer, asked
from peering.keeping import RecordKeeper
from peering.record import RecordSigner
from peering.serving import PeerServer
from protocol.errors import MalformedMessage, RemoteError, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId
from protocol.tls import CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb

RUN = RunId("run-1")
AUTHORITY = CertificateAuthority.create(RUN)
SIGNER = RecordSigner.of(RUN, AUTHORITY, PrivateIdentity.generate())
HERE = Digest(AUTHORITY.fingerprint)
CERTIFICATE = new_certificate()


def signed(sequence: int) -> bytes:
    return SIGNER.sign(epoch=0, sequence=sequence, addresses=("127.0.0.1:1",), issued_s=0.0)


class Empty:
    def open(self, _digest: Digest) -> None:
        return None


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    servers: list[PeerServer] = []

    async def start(records: RecordKeeper | None) -> int:
        server = PeerServer(
            Empty(), CERTIFICATE.leaf, CERTIFICATE.name, run_id=RUN, ca_pem=AUTHORITY.cert_pem, now_s=lambda: 0.0,
            bytes_per_s=1e9, records=records,
        )  # fmt: skip
        servers.append(server)
        return await server.start("127.0.0.1", 0)

    yield start
    for server in servers:
        await server.stop()


def keeper() -> RecordKeeper:
    return RecordKeeper(HERE, lambda: 1.0, lambda: 0.0)


async def test_the_newer_of_two_records_is_with_both_afterwards(serve: Callable[..., Any]) -> None:
    kept = keeper()
    port = await serve(kept)
    assert await asked("127.0.0.1", port, CERTIFICATE.der, HERE) == b""
    assert await asked("127.0.0.1", port, CERTIFICATE.der, HERE, signed(2)) == signed(2)
    assert kept.content == signed(2)
    assert await asked("127.0.0.1", port, CERTIFICATE.der, HERE, signed(1)) == signed(2)
    assert await asked("127.0.0.1", port, CERTIFICATE.der, HERE, b"junk") == signed(2)
    assert await asked("127.0.0.1", port, CERTIFICATE.der, Digest("0" * 64)) == b""  # another run


async def test_whoever_has_nothing_to_say_says_so(serve: Callable[..., Any]) -> None:
    assert await asked("127.0.0.1", await serve(None), CERTIFICATE.der, HERE) == b""


async def test_somebody_else_at_that_address_is_not_asked(serve: Callable[..., Any]) -> None:
    port = await serve(keeper())
    with pytest.raises(Unavailable):
        await asked("127.0.0.1", port, new_certificate().der, HERE, limit_s=2.0)
    with pytest.raises(RemoteError):
        await asked("127.0.0.1", port, b"no certificate", HERE, limit_s=2.0)


def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        answer(b"\xff", keeper())
    assert answer(pb.FindRequest().SerializeToString(), keeper()) == b""
