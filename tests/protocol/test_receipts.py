"""Receipts: signed bytes, files of them that anybody checks alone, and badges as a pure function of both."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, RemoteError, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import LeaseId, RoundNumber, RunId
from protocol.receipt_checks import checked_together
from protocol.receipt_files import ReceiptAuthority, checked_receipts, receipt_line, revocations_line
from protocol.receipts import (
    Receipt,
    Revocations,
    earned,
    sign_receipt,
    sign_revocations,
    verified_receipt,
    verified_revocations,
)
from protocol.tls import CertificateAuthority, manifest_key_message

RUN = RunId("run-1")
CA = CertificateAuthority.create(RUN)
SIGNER, WORKER = PrivateIdentity.from_seed(b"s" * 32), PrivateIdentity.from_seed(b"w" * 32)
AUTHORITY = ReceiptAuthority(
    run_id=RUN,
    ca_pem=CA.cert_pem,
    manifest_key=SIGNER.public_key,
    vouch=CA.sign(manifest_key_message(RUN, SIGNER.public_key)),
)


def receipt(number: int = 1, round_: int = 1, tokens: int = 2048) -> Receipt:
    return Receipt(
        run_id=RUN,
        round=RoundNumber(round_),
        lease_id=LeaseId(f"r{round_}.{number}"),
        worker_key=WORKER.public_key.hex(),
        tokens=tokens,
    )


def line(one: Receipt, signer: PrivateIdentity = SIGNER) -> bytes:
    return receipt_line(one.to_json(), sign_receipt(signer, one.to_json()))


def revoking(*leases: str, at_s: int = 5) -> bytes:
    content = Revocations(run_id=RUN, issued_at_s=at_s, lease_ids=tuple(map(LeaseId, sorted(leases)))).to_json()
    return revocations_line(content, sign_revocations(SIGNER, content))


def test_a_receipt_is_one_byte_string_that_names_nobody():
    content = receipt().to_json()
    assert Receipt.from_json(content) == receipt()
    assert sorted(json.loads(content)) == ["lease_id", "round", "run_id", "tokens", "worker_key"]
    assert verified_receipt(SIGNER.public_key, content, sign_receipt(SIGNER, content)) == receipt()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        receipt().to_json() + b" ",
        receipt().to_json().replace(b'"tokens":2048', b'"tokens":2048.0'),
        receipt().to_json().replace(b'"tokens":2048', b'"tokens":-1'),
        receipt().to_json().replace(b'"tokens":2048', b'"tokens":true'),
        receipt().to_json().replace(b'"round":1', b'"round":1,"round":1'),
        receipt().to_json().replace(WORKER.public_key.hex().encode(), b"ab"),
        receipt().to_json().replace(b'"run-1"', b'"\\u001b"'),
        b"[" * 5000,
    ],
)
def test_bytes_that_are_no_receipt_are_refused(content):
    with pytest.raises(MalformedMessage):
        verified_receipt(SIGNER.public_key, content, sign_receipt(SIGNER, content))


def test_a_signature_is_over_these_bytes_for_this_purpose_by_this_key():
    content = receipt().to_json()
    changed = replace(receipt(), tokens=4096).to_json()
    for body, signature in (
        (changed, sign_receipt(SIGNER, content)),
        (content, sign_receipt(WORKER, content)),
        (content, sign_revocations(SIGNER, content)),
    ):
        with pytest.raises(Unauthenticated):
            verified_receipt(SIGNER.public_key, body, signature)
    with pytest.raises(Unauthenticated):
        verified_revocations(SIGNER.public_key, content, sign_receipt(SIGNER, content))


def test_a_file_is_believed_line_by_line_and_only_by_its_authority():
    forged = line(receipt(9, tokens=10**9), WORKER)
    other_run = replace(receipt(3), run_id=RunId("run-2"))
    content = AUTHORITY.to_line() + line(receipt(1)) + forged + line(other_run) + b"nonsense\n" + line(receipt(2))
    found = checked_receipts(content + line(receipt(4))[:-9])
    assert found.receipts == (receipt(1), receipt(2)), "a line without its end is not there yet"
    assert [one.split(":")[0] for one in found.wrong] == ["line 3", "line 4", "line 5"]
    assert (found.fingerprint, found.run_id) == (CA.fingerprint, RUN)


def test_an_authority_that_vouches_for_another_key_is_none():
    for wrong in (
        replace(AUTHORITY, manifest_key=WORKER.public_key),
        replace(AUTHORITY, run_id=RunId("run-2")),
        replace(AUTHORITY, ca_pem=CertificateAuthority.create(RUN).cert_pem),
        replace(AUTHORITY, vouch=b""),
    ):
        with pytest.raises(RemoteError):
            checked_receipts(wrong.to_line() + line(receipt()))
    for nothing in (b"", b"\n", b"[]\n", b'{"authority": 1}\n'):
        with pytest.raises(RemoteError):
            checked_receipts(nothing)


def test_the_later_list_of_revocations_counts():
    content = AUTHORITY.to_line() + revoking("r1.1", "r1.2", at_s=9) + line(receipt()) + revoking("r1.1", at_s=5)
    found = checked_receipts(content)
    assert found.revocations is not None
    assert found.revocations.lease_ids == ("r1.1", "r1.2")


def test_files_are_added_up_each_lease_once_and_less_what_any_list_says():
    first = checked_receipts(AUTHORITY.to_line() + line(receipt(1)) + line(receipt(2)))
    second = checked_receipts(AUTHORITY.to_line() + line(receipt(2)) + line(receipt(3, round_=2)))
    lists = checked_receipts(AUTHORITY.to_line() + revoking("r1.1"))
    report = checked_together([("a", first), ("b", second)], [("list", lists)], CA.fingerprint[:12].upper())
    assert report.holds
    (run,) = report.runs
    assert (run.earned.leases, run.earned.tokens, run.earned.rounds, run.earned.revoked) == (2, 4096, 2, 1)
    assert run.earned.badges == ("first plank",)
    assert run.worker_keys == (WORKER.public_key.hex(),)
    other = checked_together([("a", first), ("c", "it is not JSON")], [], "0" * 12)
    assert not other.holds
    assert other.runs == ()
    assert len(other.wrong) == 2
    assert not checked_together([("a", first)], [], CA.fingerprint[:4]).holds, "so few characters anybody can make"


@given(
    leases=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5), st.integers(0, 10**7)), max_size=30),
    revoked=st.sets(st.integers(1, 30)),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_earned_follows_from_the_receipts_and_not_from_their_order(leases, revoked, data):
    known = {f"r{round_}.{number}": receipt(number, round_, tokens) for round_, number, tokens in leases}
    receipts = list(known.values())
    gone = {LeaseId(f"r{round_}.0") for round_ in revoked}
    found = earned(receipts, gone)
    assert earned(data.draw(st.permutations(receipts)) + receipts[:3], gone) == found
    stand = [one for one in receipts if one.lease_id not in gone]
    assert (found.tokens, found.leases) == (sum(one.tokens for one in stand), len(stand))
    assert found.leases + found.revoked == len(receipts)
    more = earned([*receipts, receipt(99, 99)], gone)
    assert set(found.badges) <= set(more.badges), "work that is added takes no badge away"
