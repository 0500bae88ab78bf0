"""Admission to open runs: a proof of work for each key, and so many keys from one range of addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import tomlkit

from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import range_of
from coordinator.run.folder import RunFolder
from coordinator.store.registry import RangeQuota, Registry
from protocol.admission import MOST_WORK_BITS, has_worked, work_for
from protocol.errors import MalformedMessage, Refused
from protocol.private_files import write_private
from tests.served import Refusal

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.mark.parametrize("bits", [0, 1, 8, 12])
def test_work_proves_itself_for_one_key_in_one_run(bits: int) -> None:
    nonce = work_for("run", KEY, bits)
    assert has_worked("run", KEY, nonce, bits)
    if bits >= 8:
        assert not has_worked("run", OTHER, nonce, bits)
        assert not has_worked("another", KEY, nonce, bits)


def test_the_bits_are_those_of_the_hash() -> None:
    nonce = work_for("run", KEY, 10)
    digest = hashlib.sha256(b"barnraise admission 1\x00run\x00" + KEY + nonce).digest()
    assert int.from_bytes(digest, "big") < 2 ** (256 - 10)


@pytest.mark.parametrize("nonce", [b"", b"\x00" * 7, b"\x00" * 9, b"\x00" * 100_000])
def test_a_nonce_of_another_length_is_no_proof(nonce: bytes) -> None:
    assert not has_worked("run", KEY, nonce, 1)


@pytest.mark.parametrize("bits", [MOST_WORK_BITS + 1, 2**32 - 1])
def test_nobody_works_for_more_than_is_reasonable(bits: int) -> None:
    with pytest.raises(MalformedMessage, match="at most 30"):
        work_for("run", KEY, bits)


def test_work_can_be_stopped() -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_for("run", KEY, 30, stop)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("unknown", "unknown"),
    ],
)
def test_ranges_are_what_one_holder_has(address: str, expected: str) -> None:
    assert range_of(address) == expected


def test_so_many_keys_from_one_range_and_the_same_key_again() -> None:
    registry = Registry.in_memory()

    def redeem(key: bytes, where: str = "192.0.2.0/24") -> None:
        invite = registry.create_invite(trusted=False, expires_at_s=1e12)
        registry.redeem(invite, key * 32, "w", 0.0, RangeQuota(range=where, most=2))

    redeem(b"a")
    redeem(b"b")
    redeem(b"a")  # known
    with pytest.raises(Refused, match="takes 2 machines from one range"):
        redeem(b"c")
    redeem(b"c", "198.51.100.0/24")


@pytest.fixture
def priced(run: RunFolder) -> None:
    path = run.root / "settings.toml"
    document = tomlkit.parse(path.read_text())
    document["admission_work_bits"], document["most_per_range"] = 8, 2
    write_private(path, tomlkit.dumps(document).encode())


async def test_a_key_without_work_is_told_how_much_and_keeps_its_invite(
    priced: None, run: RunFolder, server: CoordinatorServer, join: Callable[..., Any]
) -> None:
    client = await join(enrolled=False)
    reply = await client.enrol()
    assert (reply.worker_id, reply.run_id, reply.work_bits) == ("", run.run_id, 8)
    assert not has_worked(run.run_id, client.identity.public_key, b"\x00" * 8, 64)
    assert (await client.enrol(work=b"\xff" * 1000)).work_bits == 8
    work = work_for(run.run_id, client.identity.public_key, 8)
    assert (await client.enrol(work=work)).worker_id == client.identity.worker_id
    for number in range(2):
        another = await join(enrolled=False)
        work = work_for(run.run_id, another.identity.public_key, 8)
        if number == 0:
            await another.enrol(work=work)
        else:
            refusal = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "takes 2 machines from one range of addresses")
            await refusal.of(another.enrol(work=work))
