"""Which records hold, and which of two stays: nobody but the run's authority can move it, or move it back."""

from __future__ import annotations

import dataclasses
import math
import ssl
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peering.keeping import MOST_CHECKS, RecordKeeper
from peering.record import CLOCK_SKEW_S, MAX_LIFE_S, MAX_RECORD_BYTES, RecordSigner, age_of, read_record
from protocol.errors import MalformedMessage, RateLimited, RemoteError, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId
from protocol.tls import CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb

RUN = RunId("run-1")
AUTHORITY = CertificateAuthority.create(RUN)
MANIFESTS = PrivateIdentity.generate()
SIGNER = RecordSigner.of(RUN, AUTHORITY, MANIFESTS)
HERE = Digest(AUTHORITY.fingerprint)
NOW_S = 1_000_000.0
PLACE = "train.example.org:7465"


def signed(signer: RecordSigner = SIGNER, **changes: Any) -> bytes:
    said = {"epoch": 1, "sequence": 5, "addresses": (PLACE,), "issued_s": NOW_S, **changes}
    return signer.sign(**said)


def keeper(now_s: float = NOW_S) -> RecordKeeper:
    return RecordKeeper(HERE, lambda: now_s, lambda: 0.0)


def test_a_record_is_what_was_signed() -> None:
    record = read_record(signed(addresses=(PLACE, "[2001:db8::5]:443")), HERE, NOW_S)
    assert record.places == (("train.example.org", 7465), ("2001:db8::5", 443))
    assert (record.run_id, record.age, record.fingerprint) == (RUN, (1, 5), HERE)


def test_the_longest_record_fits() -> None:
    label = "a" * 63
    host = ".".join([label, label, label, "b" * 61])
    assert len(signed(addresses=tuple(f"{host}:6553{n}" for n in range(4)), sequence=2**62)) <= MAX_RECORD_BYTES


@given(where=st.integers(0, 10_000), bits=st.integers(1, 255))
def test_a_record_with_a_changed_byte_does_not_hold(where: int, bits: int) -> None:
    content = bytearray(signed())
    content[where % len(content)] ^= bits
    with pytest.raises(RemoteError):
        read_record(bytes(content), HERE, NOW_S)


@given(content=st.binary(min_size=1, max_size=3000))
@settings(max_examples=50)
def test_junk_is_no_record(content: bytes) -> None:
    for step in (lambda: read_record(content, HERE, NOW_S), lambda: keeper().offer(content), lambda: age_of(content)):
        with pytest.raises(RemoteError):
            step()


def test_nobody_else_can_sign_one() -> None:
    strangers = CertificateAuthority.create(RUN)
    other = PrivateIdentity.generate()
    der = ssl.PEM_cert_to_DER_cert(AUTHORITY.cert_pem.decode())
    for signer in (
        RecordSigner.of(RUN, strangers, MANIFESTS),  # of another authority
        dataclasses.replace(SIGNER, identity=other),  # with a key that nobody vouched for
        dataclasses.replace(RecordSigner.of(RUN, strangers, other), ca_certificate=der),  # under a borrowed certificate
        dataclasses.replace(SIGNER, run_id=RunId("run-2")),  # of another run
        dataclasses.replace(SIGNER, vouch=b""),
        dataclasses.replace(SIGNER, ca_certificate=b"no certificate"),
    ):
        with pytest.raises((Unauthenticated, MalformedMessage)):
            read_record(signed(signer), HERE, NOW_S)
    body = pb.SignedRecord.FromString(signed())
    body.signature = other.sign(body.record)
    with pytest.raises(Unauthenticated):
        read_record(body.SerializeToString(), HERE, NOW_S)


@pytest.mark.parametrize(
    ("changes", "now_s"),
    [
        ({}, NOW_S + MAX_LIFE_S),  # expired
        ({"life_s": MAX_LIFE_S + 1}, NOW_S),
        ({"life_s": 0.0}, NOW_S),
        ({"life_s": -1.0}, NOW_S - 2),
        ({"life_s": math.inf}, NOW_S),
        ({"issued_s": math.nan}, NOW_S),
        ({"issued_s": -math.inf}, NOW_S),
        ({"issued_s": NOW_S + CLOCK_SKEW_S + 1}, NOW_S),
        ({"epoch": 2**63}, NOW_S),
        ({"sequence": 2**63}, NOW_S),
        ({"addresses": ()}, NOW_S),
        ({"addresses": ("train.example.org",)}, NOW_S),
        ({"addresses": ("0.0.0.0:7465",)}, NOW_S),
        ({"addresses": ("train.example.org:0",)}, NOW_S),
        ({"addresses": ("a b:1",)}, NOW_S),
    ],
)
def test_what_is_out_of_bounds_does_not_hold_though_it_is_signed(changes: dict[str, Any], now_s: float) -> None:
    with pytest.raises(RemoteError):
        read_record(signed(**changes), HERE, now_s)


def test_a_clock_that_is_some_minutes_off_does_not_matter() -> None:
    for now_s in (NOW_S - CLOCK_SKEW_S, NOW_S + MAX_LIFE_S - 1):
        assert read_record(signed(), HERE, now_s).sequence == 5


@given(ages=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
@settings(max_examples=50)
def test_in_whatever_order_records_come_the_newest_stays(ages: list[tuple[int, int]]) -> None:
    kept, heard = keeper(), list[tuple[int, int]]()
    kept.on_newer = lambda record, _content: heard.append(record.age)
    for epoch, sequence in ages:
        kept.offer(signed(epoch=epoch, sequence=sequence))
    assert kept.newest is not None
    assert kept.newest.age == max(ages)
    assert heard == sorted(set(heard))  # each newer than the one before: an old one came back never


def test_an_older_record_is_refused_even_when_the_newer_has_expired() -> None:
    kept = keeper(NOW_S + MAX_LIFE_S)
    kept.recall(signed(sequence=7))
    assert kept.newest is not None
    assert kept.told == b""  # nobody else is told what has expired
    assert not kept.offer(signed(sequence=6, issued_s=NOW_S + 10))
    assert kept.offer(signed(sequence=8, issued_s=NOW_S + MAX_LIFE_S))
    assert kept.told


def test_what_was_written_down_is_checked_like_anything_else() -> None:
    kept = keeper()
    for content in (b"", b"junk", signed(RecordSigner.of(RUN, CertificateAuthority.create(RUN), MANIFESTS))):
        kept.recall(content)
        assert kept.newest is None


def test_strangers_cannot_keep_a_machine_busy_with_records() -> None:
    kept = keeper()
    foreign = signed(dataclasses.replace(SIGNER, identity=PrivateIdentity.generate()))
    refused = 0
    for _ in range(int(MOST_CHECKS) + 5):
        try:
            kept.offer_of_stranger(foreign)
        except RateLimited:
            refused += 1
        except RemoteError:
            pass
    assert refused == 5
