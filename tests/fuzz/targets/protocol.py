"""Decoders of the wire contract itself: tensors, frames, sequences, manifests, links, signed calls, certificates."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import protocol.bootstrap
import protocol.framing
from moe.config import config_to_json
from moe.presets import preset
from peering.finding import answer
from peering.keeping import RecordKeeper
from peering.record import RecordSigner, _message, read_record
from protocol.bootstrap import fetch_ca
from protocol.codecs import CODECS, Codec
from protocol.errors import ConfigError, DigestMismatch, MalformedMessage, Unauthenticated, Unavailable
from protocol.framing import FrameReader, frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, Digest, RoundNumber, RunId, Version, column_block, digest_of
from protocol.joinlink import JoinLink
from protocol.manifest import BlockRef, DeltaRef, FrozenRefs, Manifest
from protocol.sequences import decode_sequences, encode_sequences
from protocol.signing import CallSigner, CounterWindow, SignedCall, _signed_bytes, parse_metadata, verify_call
from protocol.specs import TensorSpec
from protocol.tensors import decode_tensors, encode_tensors
from protocol.tls import CertificateAuthority, fingerprint_of, verify_vouch
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.mutate import after_head, joined, pieces_mutated, split
from tests.fuzz.target import Target, scratch

SEED = b"barnraise's fuzzer, and no other"
IDENTITY = PrivateIdentity.from_seed(SEED)
PAYLOAD = bytes(range(256)) + bytes(80)
SHORT_FRAME_BYTES = 64
"""A frame holds half a MiB on the wire; with this many, an input holds some, and payloads end within a frame."""


@contextmanager
def short_frames() -> Iterator[None]:
    """Inside, transfers are cut into frames of SHORT_FRAME_BYTES."""
    framing: Any = protocol.framing
    whole = framing.FRAME_BYTES
    framing.FRAME_BYTES = SHORT_FRAME_BYTES
    try:
        yield
    finally:
        framing.FRAME_BYTES = whole


def frames(payload: bytes, offset: int = 0) -> list[bytes]:
    """Short frames of `payload`."""
    with short_frames():
        return list(frames_of(lambda start, length: payload[start : start + length], len(payload), offset))


# ---- tensors, frames, sequences

SPECS = [TensorSpec("layer/weight", (8, 4)), TensorSpec("layer/bias", (4,)), TensorSpec("gate", (2, 2, 2))]


def _tensors(codec: Codec) -> bytes:
    return encode_tensors({spec.name: torch.ones(spec.shape) for spec in SPECS}, codec)


def _tensor_samples(codec: Codec) -> list[bytes]:
    return [_tensors(codec)]


def _tensor_decoder(codec: Codec) -> Callable[[bytes], object]:
    def outcome(payload: Any) -> object:
        try:
            return {name: tensor.numpy().tobytes() for name, tensor in decode_tensors(payload, SPECS, codec).items()}
        except MalformedMessage as refusal:
            return refusal

    def decode(data: bytes) -> object:
        """From memory as the worker does, and from a file as the coordinator does: both must say the same."""
        path = scratch() / "payload"
        path.write_bytes(data)
        result, from_file = outcome(data), outcome(path)
        assert repr(result) == repr(from_file)
        if isinstance(result, MalformedMessage):
            raise result
        return result

    return decode


def _feed_frames(data: bytes) -> object:
    """The first byte says where the transfer resumes and who hashed what came before; then the frames of a stream."""
    head, offset = data[0] if data else 0, 0
    if head % 3:
        offset = min(head, len(PAYLOAD))
    hasher = hashlib.sha256(PAYLOAD[:offset]) if head % 3 == 2 else None
    with short_frames():
        reader = FrameReader(len(PAYLOAD), digest_of(PAYLOAD), offset, hasher)
        if hasher is None:
            reader.skip(PAYLOAD[:offset])
        for frame in split(data[1:]):
            reader.feed(frame)
        reader.finish()
    return reader


def _frames() -> list[bytes]:
    return [bytes([head]) + joined(frames(PAYLOAD, head if head % 3 else 0)) for head in (0, 64, 65, 128, 200)]


def _sequences() -> list[bytes]:
    kinds = (np.uint8, np.uint16, np.uint32)
    return [encode_sequences(np.arange(4 * 9, dtype=kind).reshape(4, 9) % 250) for kind in kinds]


# ---- manifests, links


def a_manifest() -> Manifest:
    """A manifest of version 1 with two blocks."""
    blocks = (TRUNK, column_block(0))
    refs = {block: BlockRef(digest=digest_of(block.encode()), payload_bytes=100) for block in blocks}
    return Manifest(
        run_id=RunId("run"),
        version=Version(1),
        parent_version=Version(0),
        round=RoundNumber(1),
        created_at_s=1.5,
        model=config_to_json(preset("tiny")),
        residency="frozen",
        blocks=refs,
        momenta={TRUNK: refs[TRUNK]},
        val_loss=3.5,
        tokens_trained=1000,
        deltas={
            TRUNK: (DeltaRef(base=digest_of(b"before"), digest=digest_of(b"step"), payload_bytes=9, codec="bf16"),)
        },
        masters={TRUNK: refs[TRUNK]},
        frozen=FrozenRefs(version=Version(0), codec="bf16", blocks={column_block(0): refs[column_block(0)]}),
    )


def _links() -> list[bytes]:
    tail = f"/#{'0f' * 32}.{'A-_9' * 8}"
    hosts = ("example.org", "[2001:db8::1]", "192.0.2.7")
    several = ",".join(f"{host}:50051" for host in hosts)
    peer = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp@example.org:7467"
    return [
        *(f"barnraise://{host}:50051{tail}".encode() for host in hosts),
        f"barnraise://{several}/?through={peer},{peer}{tail[1:]}".encode(),
    ]


# ---- discovery records

_NOW_S = 1_000_000.0


@cache
def _signer() -> RecordSigner:
    return RecordSigner.of(RunId("run"), authority(), IDENTITY)


def _records() -> list[bytes]:
    several = ("example.org:7465", "[2001:db8::1]:7465", "192.0.2.7:443")
    signed = [
        _signer().sign(epoch=epoch, sequence=2**40, addresses=several[: 1 + epoch], issued_s=_NOW_S)
        for epoch in range(3)
    ]
    return [pb.SignedRecord.FromString(one).record for one in signed]


def _record_signed(body: bytes) -> bytes:
    return bytes(pb.SignedRecord(record=body, signature=IDENTITY.sign(_message(body))).SerializeToString())


def _found(data: bytes) -> object:
    """As whoever shares is asked for the run's record, and told one."""
    keeper = RecordKeeper(digest_here(), lambda: _NOW_S, lambda: 0.0)
    return answer(pb.FindRequest(fingerprint=bytes.fromhex(digest_here()), record=data).SerializeToString(), keeper)


def digest_here() -> Digest:
    """The run's fingerprint."""
    return Digest(authority().fingerprint)


# ---- signed calls

_KEYS = tuple(f"barnraise-{name}-bin" for name in ("session", "counter", "request", "signature"))
_METHOD, _BODY = "/method", b"body"


def _call_metadata(data: bytes) -> object:
    """Pairs of key and value, as gRPC gives them. The session has seen counters before."""
    pairs: list[tuple[str, str | bytes]] = []
    for place, value in enumerate(split(data)):
        pairs.append((_KEYS[place % 4], value if len(value) < 200 else value.decode("latin-1")))
    call = parse_metadata([("user-agent", "x"), *pairs])
    verify_call(IDENTITY.public_key, call, _METHOD, _BODY)
    window = CounterWindow()
    for used in (1, 70, 2000, 1990):
        window.accept(used)
    window.accept(call.counter)
    return call


def _signed_again(data: bytes) -> bytes:
    session, counter, request, *rest = [*split(data), b"", b"", b""]
    call = SignedCall(session_id=session, counter=int.from_bytes(counter[:8], "big"), request_id=request, signature=b"")
    signature = IDENTITY.sign(_signed_bytes(call, _METHOD, _BODY, b""))
    return joined([session, counter, request, signature, *[value for value in rest[1:] if value]])


def _metadata() -> list[bytes]:
    signer = CallSigner(IDENTITY, bytes(16))
    signed = dict(signer.metadata(_METHOD, _BODY, bytes(16)))
    counters = (1, 2, 1000, 1500, 1990, 2000, 2001, 2**40)
    return [
        joined([signed[_KEYS[0]], counter.to_bytes(8, "big"), signed[_KEYS[2]], signed[_KEYS[3]]])
        for counter in counters
    ]


# ---- what a worker believes of a certificate authority


@cache
def authority() -> CertificateAuthority:
    """The run's."""
    return CertificateAuthority.create(RunId("run"))


def _certificate(data: bytes) -> object:
    """A certificate out of a TLS chain, and a signature by its key. Who made the join link chose its fingerprint."""
    signature, der, *_ = [*split(data), b"", b""]
    pem = ssl.DER_cert_to_PEM_cert(der).encode("ascii")
    verify_vouch(pem, b"message", signature)
    return fingerprint_of(pem)


def _certificates() -> list[bytes]:
    certificate = x509.load_pem_x509_certificate(authority().cert_pem)
    leaf = x509.load_pem_x509_certificates(authority().issue_leaf(("example.org",)).cert_pem)[0]
    signature = authority().sign(b"message")
    return [joined([signature, found.public_bytes(Encoding.DER)]) for found in (certificate, leaf)]


def _bootstrap(data: bytes) -> object:
    """Whatever answers the bootstrap connection, over a real socket: TLS, or anything else."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        bootstrap: Any = protocol.bootstrap
        whole = bootstrap.socket
        bootstrap.socket = SimpleNamespace(create_connection=lambda *_, **__: ours)
        try:
            return fetch_ca("example.org", 443, authority().fingerprint, 2.0)
        finally:
            bootstrap.socket = whole
            ours.close()


def _server_flight(version: ssl.TLSVersion) -> bytes:
    """What a coordinator answers a ClientHello with: in TLS 1.2 its certificates are in the clear."""
    leaf = authority().issue_leaf(("example.org",))
    (scratch() / "chain.pem").write_bytes(leaf.cert_pem)
    (scratch() / "leaf.key").write_bytes(leaf.key_pem)
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    serving.load_cert_chain(scratch() / "chain.pem", scratch() / "leaf.key")
    serving.maximum_version = asking.maximum_version = version
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    for side in (asking.wrap_bio(back, there), serving.wrap_bio(there, back, server_side=True)):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return back.read()


def _flights() -> list[bytes]:
    flights = [_server_flight(version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    return [*flights, bytes.fromhex("15030300020228"), b"HTTP/1.1 400 Bad Request\r\n\r\n"]


TARGETS = (
    *(
        Target(
            name=f"tensors-{codec.name}",
            decode=_tensor_decoder(codec),
            refusals=(MalformedMessage,),
            samples=partial(_tensor_samples, codec),
        )
        for codec in CODECS.values()
    ),
    Target(
        name="frames",
        decode=_feed_frames,
        refusals=(MalformedMessage, DigestMismatch),
        samples=_frames,
        mutate=after_head(pieces_mutated),
    ),
    Target(
        name="sequences",
        decode=lambda data: decode_sequences(data, 4, 9, 256),
        refusals=(MalformedMessage,),
        samples=_sequences,
    ),
    Target(
        name="manifest",
        decode=Manifest.from_json,
        refusals=(MalformedMessage,),
        samples=lambda: [a_manifest().to_json()],
    ),
    Target(
        name="join-link",
        decode=lambda data: JoinLink.parse(data.decode("utf-8", "replace")),
        refusals=(ConfigError,),
        samples=_links,
    ),
    Target(
        name="run-record",
        decode=lambda data: read_record(data, digest_here(), _NOW_S),
        refusals=(MalformedMessage, Unauthenticated),
        samples=_records,
        seal=_record_signed,
    ),
    Target(name="find", decode=_found, refusals=(MalformedMessage,), samples=_records, seal=_record_signed),
    Target(
        name="metadata",
        decode=_call_metadata,
        refusals=(Unauthenticated,),
        samples=_metadata,
        mutate=pieces_mutated,
        seal=_signed_again,
    ),
    Target(
        name="certificate",
        decode=_certificate,
        refusals=(MalformedMessage, Unauthenticated),
        samples=_certificates,
        mutate=pieces_mutated,
    ),
    Target(name="bootstrap", decode=_bootstrap, refusals=(Unavailable, Unauthenticated), samples=_flights),
)
