"""What is kept of people: names, teams and addresses in the registry alone; and how they leave, or change their key."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from barnraise.cli.app import run as run_command
from coordinator.edge.retention import forget_addresses
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.credit import CreditOf
from coordinator.run.credit import credit_of
from coordinator.run.folder import RunFolder
from coordinator.store.people import ADDRESSES_KEPT_S, said_in
from coordinator.store.registry import RangeQuota, Registry
from protocol.errors import Refused, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import worker_id_of
from protocol.pseudonyms import pseudonym
from protocol.receipt_files import checked_receipts
from protocol.receipts import verified_receipt, verified_revocations
from protocol.rotation import agree_to_replace
from protocol.signing import CallSigner
from protocol.v1 import barnraise_pb2 as pb
from tests.served import Refusal

Join = Callable[..., Any]
Code = grpc.StatusCode
NAME, TEAM = "Ann Sullivan's tower", "The Quilting Bee"


def key() -> bytes:
    return PrivateIdentity.generate().public_key


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry.sqlite")


def enrolled(registry: Registry, name: str = NAME, *, now_s: float = 0.0, uses: int = 1) -> tuple[bytes, str]:
    invite = registry.create_invite(trusted=False, expires_at_s=1e12, uses=uses)
    public_key = key()
    registry.redeem(invite, public_key, name, now_s, RangeQuota(range="192.0.2.0/24", most=99))
    return public_key, invite


def test_a_name_that_is_forgotten_is_nowhere_in_the_file(registry, tmp_path):
    public_key, _ = enrolled(registry)
    worker = worker_id_of(public_key)
    registry.people.set_team(worker, TEAM)
    assert (registry.people.names[worker], registry.people.teams[worker]) == (NAME, TEAM)
    registry.people.leave(worker, forget=True)
    assert worker not in registry.people.names
    assert worker not in registry.people.teams
    assert registry.find(public_key) is None
    registry.close()
    content = b"".join(path.read_bytes() for path in tmp_path.glob("registry.sqlite*"))
    for said in (NAME, TEAM, "192.0.2.0"):
        assert said.encode() not in content


def test_whoever_left_may_come_back_and_a_revoked_key_may_not(registry):
    public_key, invite = enrolled(registry)
    worker = worker_id_of(public_key)
    registry.people.leave(worker, forget=True)
    assert registry.redeem(invite, public_key, "anew", 0.0).name == "anew"
    assert registry.people.names[worker] == "anew"
    registry.people.leave(worker, revoke=True)
    registry.people.leave(worker)
    for link in (invite, registry.create_invite(trusted=True, expires_at_s=1e12)):
        with pytest.raises(Refused, match="revoked"):
            registry.redeem(link, public_key, "anew", 0.0)
    assert registry.find(public_key) is None


def test_another_key_takes_over_and_the_old_one_is_worth_nothing(registry):
    old, invite = enrolled(registry)
    new = key()
    worker = registry.people.rotate(old, new)
    assert worker == worker_id_of(old)
    assert registry.people.rotate(old, new) == worker, "again, since the answer may be lost"
    assert registry.find(old) is None
    found = registry.find(new)
    assert found is not None
    assert (found.worker, found.name) == (worker, NAME)
    with pytest.raises(Refused):
        registry.redeem(invite, old, "thief", 0.0)
    another = registry.create_invite(trusted=True, expires_at_s=1e12)
    assert registry.redeem(another, new, "me", 0.0).worker == worker, "one key is never two workers"
    with pytest.raises(Unauthenticated):
        registry.people.rotate(old, key())
    other, _ = enrolled(registry)
    with pytest.raises(Refused, match="known to this run"):
        registry.people.rotate(other, new)
    assert registry.people.rotate(new, third := key()) == worker
    assert registry.worker_of(third) == worker


def test_addresses_are_kept_for_two_weeks(registry, tmp_path):
    enrolled(registry, now_s=0.0)
    enrolled(registry, now_s=100.0)
    assert registry.people.forget_addresses(50.0) == 1
    assert registry.people.forget_addresses(50.0) == 0
    registry.close()
    rows = sqlite3.connect(tmp_path / "registry.sqlite").execute("SELECT came_from FROM members").fetchall()
    assert sorted(rows) == [("",), ("192.0.2.0/24",)]


async def test_a_coordinator_looks_every_hour_and_forgets_what_is_two_weeks_old(registry):
    enrolled(registry, now_s=1000.0)
    told: list[int] = []
    forget, now_s = registry.people.forget_addresses, [ADDRESSES_KEPT_S]

    def forgets(before_s: float) -> int:
        told.append(forget(before_s))
        return told[-1]

    registry.people.forget_addresses = forgets

    async def sleep(seconds: float) -> None:
        now_s[0] += seconds
        if len(told) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await forget_addresses(registry.people, lambda: now_s[0], sleep)
    assert told == [0, 1, 0]


def test_a_file_of_an_older_release_has_names_and_no_teams(tmp_path):
    path = tmp_path / "registry.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE members (worker TEXT PRIMARY KEY, public_key BLOB NOT NULL, name TEXT NOT NULL,"
        " trusted INTEGER NOT NULL, enrolled_at_s REAL NOT NULL) WITHOUT ROWID"
    )
    connection.execute("INSERT INTO members VALUES ('w', x'00', 'ann', 0, 0)")
    connection.commit()
    connection.close()
    said = said_in(path)
    assert (said.names, said.teams) == ({"w": "ann"}, {})
    assert said_in(tmp_path / "none.sqlite").names == {}
    registry = Registry.open(path)
    assert registry.people.names == {"w": "ann"}


# ---- over the wire --------------------------------------------------------------------------------------------------


async def test_no_name_no_team_and_no_address_is_in_the_journal_or_in_any_log(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    client = await join(enrolled=False)
    await client.enrol(name=NAME)
    await client.open(team=TEAM)
    unnamed = await join(enrolled=False)
    await unnamed.enrol(name="")
    status = await server.status()
    called = {one.worker: one.name for one in status.workers}
    assert called == {
        client.identity.worker_id: NAME,
        unnamed.identity.worker_id: pseudonym(unnamed.identity.worker_id),
    }
    assert said_in(run.registry_path).teams == {client.identity.worker_id: TEAM}
    await client.open()
    assert said_in(run.registry_path).teams == {client.identity.worker_id: TEAM}, "not said anew: as before"
    await server.stop(0.0)
    for pattern in ("journal.sqlite*", "audit.sqlite*", "credit.sqlite*", "events.jsonl"):
        for path in run.root.glob(pattern):
            content = path.read_bytes()
            assert NAME.encode() not in content, path
            assert TEAM.encode() not in content, path


def leaving(client: Any, **how: bool) -> Any:
    client.signer = CallSigner(client.identity, audience=client.audience)
    request = pb.LeaveRequest(public_key=client.identity.public_key, nonce=secrets.token_bytes(16), **how)
    return client.call("Leave", request, pb.LeaveReply)


async def test_whoever_leaves_frees_its_lease_at_once_and_keeps_what_it_earned(
    server: CoordinatorServer, join: Join
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    worker = client.identity.worker_id
    await leaving(client, forget=True)
    state = server._opened().pump.engine.state
    assert state.leases[lease.lease_id].status == "returned"
    assert not state.workers[worker].present
    assert state.called(worker) == pseudonym(worker)
    await Refusal(Code.UNAUTHENTICATED, "not enrolled").of(client.open())
    await client.enrol(name="back")
    await client.open()
    assert state.called(worker) == "back"


async def finished(client: Any) -> pb.Lease:
    """A lease whose work was accepted."""
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    await client.upload(lease, payload)
    for _ in range(200):
        reply = await client.commit(lease, payload)
        if reply.HasField("verdict"):
            assert reply.verdict.outcome == pb.Verdict.ACCEPTED
            return lease
        await client.acquire(0.05)
    raise AssertionError("no verdict")


def check_commands(run: RunFolder, worker: str, tokens: int) -> None:
    """What is shown beside a coordinator that serves the run."""
    (row,) = credit_of(run, CreditOf.WORKER)
    assert (row.key, row.tokens, row.leases, row.rounds, row.rank) == (worker, tokens, 1, 1, 1)
    assert credit_of(run, CreditOf.TEAM) == ()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        listed = run.root.parent / "revoked.jsonl"
        assert run_command(["coordinator", "credit", str(run.root), "--csv", "--revocations", str(listed)]) == 0
        assert run_command(["coordinator", "credit", str(run.root), "--by", "team"]) == 0
        assert run_command(["coordinator", "credit", str(run.root), "--by", "nobody"]) == 2
    header, line, said = shown.getvalue().splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["tokens"] == str(tokens)
    assert said == "nobody is in a team yet"
    found = checked_receipts(listed.read_bytes())
    assert found.fingerprint == run.authority().fingerprint
    assert found.revocations is not None
    assert found.revocations.lease_ids == ()


async def test_receipts_are_the_same_whenever_asked_for_and_follow_the_worker_to_another_key(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    client = await join()
    lease = await finished(client)

    async def asked(after: int = 0) -> pb.ListReceiptsReply:
        return await client.call("ListReceipts", pb.ListReceiptsRequest(after=after), pb.ListReceiptsReply)

    first = await asked()
    manifest_key = run.manifest_identity().public_key
    (signed,) = first.receipts
    receipt = verified_receipt(manifest_key, signed.receipt_json, signed.signature)
    assert (receipt.lease_id, receipt.round, receipt.run_id) == (lease.lease_id, lease.round, run.run_id)
    assert receipt.worker_key == client.identity.public_key.hex()
    assert receipt.tokens == lease.inner_steps * lease.batch_sequences * run.settings().sequence_length
    assert set(json.loads(signed.receipt_json)) == {"run_id", "round", "lease_id", "worker_key", "tokens"}
    assert (await asked()).receipts[0] == signed
    rest = await asked(first.next)
    assert (list(rest.receipts), rest.next) == ([], first.next)
    none = verified_revocations(manifest_key, rest.revocations_json, rest.revocations_signature)
    assert none.lease_ids == ()
    assert list((await asked(2**64 - 1)).receipts) == []

    old, client.identity = client.identity, PrivateIdentity.generate()
    client.signer = CallSigner(old, audience=client.audience)
    request = pb.RotateKeyRequest(
        public_key=old.public_key,
        nonce=secrets.token_bytes(16),
        new_public_key=client.identity.public_key,
        new_signature=agree_to_replace(client.identity, old.public_key, client.audience),
    )
    stolen = pb.RotateKeyRequest()
    stolen.CopyFrom(request)
    stolen.new_public_key = key()
    await Refusal(Code.UNAUTHENTICATED, "does not hold").of(client.call("RotateKey", stolen, pb.RotateKeyReply))
    reply = await client.call("RotateKey", request, pb.RotateKeyReply)
    assert reply.worker_id == old.worker_id
    await Refusal(Code.UNAUTHENTICATED, "used before").of(client.call("RotateKey", request, pb.RotateKeyReply))
    await client.open()
    (again,) = (await asked()).receipts
    moved = verified_receipt(manifest_key, again.receipt_json, again.signature)
    assert (moved.worker_key, moved.lease_id) == (client.identity.public_key.hex(), lease.lease_id)

    await asyncio.to_thread(check_commands, run, old.worker_id, receipt.tokens)
    server_state = server._opened().pump.engine.state
    assert server_state.workers[old.worker_id].credit.leases == 1
    await server.stop(0.0)
    (run.root / "credit.sqlite").unlink()
    restarted = CoordinatorServer(run)
    await restarted.start()
    try:
        ledger = restarted._parts.ledger  # type: ignore[union-attr]
        assert [one.lease_id for one in ledger.credits_of(old.worker_id, after=0, most=9)] == [lease.lease_id]
    finally:
        await restarted.stop(0.0)
