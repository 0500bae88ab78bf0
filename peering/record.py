"""A run's discovery record: where its coordinator is, in at most 2 KiB: anybody passes it on, one key makes it.

Decides which records hold. One is called by the run's fingerprint, which every join link carries: the record has the
CA's certificate of that fingerprint in it, the certificate vouches for the key that signs the run's manifests, and that
key signs the record. So whoever has nothing but a link can check it, and whoever passes it on need not know the run.
Always: a record is a hint where to look; who may answer there is settled by the fingerprint. It lives for a day at
most; of two, the later epoch counts, and within one the later sequence. Sizes are looked at before anything is decoded.
Touches nothing.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from protocol.canonical import length_prefixed
from protocol.errors import BarnraiseError, ConfigError, MalformedMessage, Unauthenticated
from protocol.hosts import checked_port, dialable_host, split_port
from protocol.identity import PUBLIC_KEY_BYTES, PrivateIdentity, verify
from protocol.ids import Digest, RunId
from protocol.messages import record_of
from protocol.text import printable
from protocol.tls import CertificateAuthority, manifest_key_message, verify_vouch
from protocol.v1 import barnraise_pb2 as pb

MAX_RECORD_BYTES = 2048
MAX_LIFE_S = 24 * 3600.0
MOST_ADDRESSES = 4
CLOCK_SKEW_S = 600.0
"""A record may come from so far ahead: home computers' clocks are set by hand, too."""
_MOST_NUMBER = 2**62
_MAX_CERTIFICATE_BYTES = 1024
"""DER; ours has 400 bytes."""
_MAX_ID_CHARACTERS = 128
_DOMAIN = b"barnraise-run-record-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Where a run is, as its authority says."""

    run_id: RunId
    epoch: int
    sequence: int
    addresses: tuple[str, ...]
    """`HOST:PORT`, the likeliest first."""
    issued_s: float
    """Calendar time, as `expires_s`."""
    expires_s: float
    ca_certificate: bytes
    public_key: bytes
    vouch: bytes

    @property
    def age(self) -> tuple[int, int]:
        """By which of two the newer is told."""
        return (self.epoch, self.sequence)

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports, each in its one form; ConfigError where an address is none."""
        return tuple(map(_place, self.addresses))

    @property
    def fingerprint(self) -> Digest:
        """What the run is called by."""
        return Digest(hashlib.sha256(self.ca_certificate).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSigner:
    """What it takes to sign a run's records; the coordinator has it, and nobody else."""

    run_id: RunId
    ca_certificate: bytes
    vouch: bytes
    identity: PrivateIdentity

    @classmethod
    def of(cls, run_id: RunId, authority: CertificateAuthority, identity: PrivateIdentity) -> RecordSigner:
        """`identity`: the key that signs the run's manifests."""
        vouch = authority.sign(manifest_key_message(run_id, identity.public_key))
        der = ssl.PEM_cert_to_DER_cert(authority.cert_pem.decode("ascii"))
        return cls(run_id=run_id, ca_certificate=der, vouch=vouch, identity=identity)

    def sign(
        self, *, epoch: int, sequence: int, addresses: tuple[str, ...], issued_s: float, life_s: float = MAX_LIFE_S
    ) -> bytes:
        """A signed record; of the addresses, those that fit."""
        record = pb.RunRecord(
            run_id=self.run_id,
            epoch=epoch,
            sequence=sequence,
            addresses=addresses[:MOST_ADDRESSES],
            issued_s=issued_s,
            expires_s=issued_s + life_s,
            ca_certificate=self.ca_certificate,
            public_key=self.identity.public_key,
            vouch=self.vouch,
        )
        body = record.SerializeToString()
        signature = self.identity.sign(_message(body))
        return bytes(pb.SignedRecord(record=body, signature=signature).SerializeToString())


def read_record(content: bytes, fingerprint: Digest, now_s: float | None) -> RunRecord:
    """The record in `content`, if it is one of the run with `fingerprint` and holds at `now_s` (calendar time).

    `now_s` None: whether it has expired does not matter. MalformedMessage or Unauthenticated says what is wrong.
    """
    record, signed = _parsed(content)
    if record.fingerprint != fingerprint:
        raise Unauthenticated(f"a record of run {record.fingerprint[:16]}…, expected one of {fingerprint[:16]}…")
    _check_life(record, record.issued_s if now_s is None else now_s)
    _check_signatures(record, signed)
    return record


def age_of(content: bytes) -> tuple[int, int]:
    """Epoch and sequence that a record claims; nothing of it is checked. MalformedMessage where it is none."""
    return _parsed(content)[0].age


def _parsed(content: bytes) -> tuple[RunRecord, pb.SignedRecord]:
    """What `content` says, each field within its bounds."""
    if not 0 < len(content) <= MAX_RECORD_BYTES:
        raise MalformedMessage(f"a record has 1 to {MAX_RECORD_BYTES} bytes, got {len(content)}")
    try:
        signed = pb.SignedRecord.FromString(content)
        record = record_of(RunRecord, pb.RunRecord.FromString(signed.record))
    except DecodeError as error:
        raise MalformedMessage("what was given as a run's record is none") from error
    run_id = record.run_id
    if not (0 < len(run_id) <= _MAX_ID_CHARACTERS and run_id.isprintable()):
        raise MalformedMessage(f"a record's run id has 1 to {_MAX_ID_CHARACTERS} printable characters")
    if record.epoch > _MOST_NUMBER or record.sequence > _MOST_NUMBER:
        raise MalformedMessage(f"a record's epoch and sequence are at most {_MOST_NUMBER}")
    if len(record.public_key) != PUBLIC_KEY_BYTES or len(record.ca_certificate) > _MAX_CERTIFICATE_BYTES:
        raise MalformedMessage("a record's key has 32 bytes, and its certificate at most 1 KiB")
    if not 1 <= len(record.addresses) <= MOST_ADDRESSES:
        raise MalformedMessage(f"a record has 1 to {MOST_ADDRESSES} addresses, got {len(record.addresses)}")
    try:
        _ = record.places
    except ConfigError as error:
        raise MalformedMessage(f"a record's address cannot be dialled: {printable(str(error)[:200])}") from error
    return record, signed


def _check_life(record: RunRecord, now_s: float) -> None:
    life_s = record.expires_s - record.issued_s
    if not 0.0 < life_s <= MAX_LIFE_S:  # false for NaN too
        raise Unauthenticated(f"a record lives for up to {MAX_LIFE_S / 3600:g} h, got {life_s / 3600:g} h")
    if not record.issued_s <= now_s + CLOCK_SKEW_S:
        raise Unauthenticated("the record is from the future; is this machine's clock right?")
    if not now_s < record.expires_s:
        raise Unauthenticated("the record has expired")


def _check_signatures(record: RunRecord, signed: pb.SignedRecord) -> None:
    # the cheaper one first: 60 µs of Ed25519, before the CA's ECDSA
    verify(record.public_key, signed.signature, _message(signed.record))
    try:
        ca_pem = ssl.DER_cert_to_PEM_cert(record.ca_certificate).encode("ascii")
        verify_vouch(ca_pem, manifest_key_message(record.run_id, record.public_key), record.vouch)
    except BarnraiseError:
        raise
    except ValueError as error:
        raise MalformedMessage("a record's certificate is none") from error


def _place(address: str) -> tuple[str, int]:
    host, port = split_port(address)
    if port is None:
        raise ConfigError(f"{address[:80]!r} has no port")
    return dialable_host(host), checked_port(port)


def _message(body: bytes) -> bytes:
    return length_prefixed(_DOMAIN, body)
