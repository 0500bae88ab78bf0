"""What was judged is kept whole, once each, in bounds, and read while the run goes on or not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from barnraise.cli.app import run as run_command
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.commands import AnnounceVerdict
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import NORM_TOO_LARGE, Case, reason, rejected
from coordinator.engine.rows import AuditResult, Ban, Quarantine
from coordinator.run.audit_trail import AuditTrail
from coordinator.run.backup import back_up, restore
from coordinator.run.folder import RunFolder
from coordinator.store.audit_log import AuditLine, AuditLog
from protocol.errors import ConfigError
from protocol.ids import LeaseId, RoundNumber
from protocol.signing import CallSigner
from protocol.v1 import barnraise_pb2 as pb
from tests.served import clients_of

Join = Callable[..., Any]


def line(number: int, **changes: Any) -> AuditLine:
    base = AuditLine(
        key=f"verdict:{number}", at_s=float(number), wall_s=None, round=number // 10, worker=f"w{number % 3:03d}",
        lease=f"lease{number}", stage="norms", verdict="refused", figure=9.7, threshold=3.0,
        figures={"ratio": 9.7, "most": 3.0},
    )  # fmt: skip
    return replace(base, **changes)


def test_a_line_is_written_once_and_found_by_whom_when_and_where(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit.sqlite")
    lines = [line(number) for number in range(30)]
    log.add(lines)
    log.add(lines)
    assert log.latest(most=100) == lines
    assert log.latest(most=5) == lines[-5:]
    assert log.latest(most=100, worker="w001") == lines[1::3]
    assert log.workers()[:2] == ["w000", "w001"]
    assert log.latest(most=100, worker="w00") == lines
    assert log.latest(most=100, worker="w001", round_=1) == [one for one in lines[1::3] if one.round == 1]
    assert log.latest(most=100, lease="lease7") == [lines[7]]
    assert log.latest(most=100, stage="gain") == []
    reader = AuditLog.read_only(tmp_path / "audit.sqlite")
    assert reader.latest(most=1) == lines[-1:]
    with pytest.raises(sqlite3.OperationalError):
        reader.add([line(99)])
    assert stat.S_IMODE((tmp_path / "audit.sqlite").stat().st_mode) == 0o600


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit.sqlite", kept=100)
    for number in range(350):
        log.add([line(number)])
    kept = [one.at_s for one in log.latest(most=1000)]
    assert kept == [float(number) for number in range(200, 350)]
    log.close()


def test_there_is_nothing_to_read_before_anything_was_judged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was judged yet"):
        AuditLog.read_only(tmp_path / "audit.sqlite")


async def test_a_refusal_is_there_with_its_figures_and_its_worker_hears_none(
    run: RunFolder, server: CoordinatorServer, join: Join, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await join(columns=8)
    lease = (await client.acquire()).lease
    state = server._opened().pump.engine.state
    log = AuditLog.open(run.audit_path)
    trail = AuditTrail(log, lambda: state, lambda at_s: 1e9 + at_s)
    record = next(iter(state.leases.values()))
    worker, verdict = record.lease.worker, rejected(NORM_TOO_LARGE, Case.NORM_OVER_MEDIAN, "trunk", norm=9.7, ratio=9.7,
                                                    median=1.0, most=3.0)  # fmt: skip
    trail.command(AnnounceVerdict(worker=worker, lease_id=record.lease.lease_id, verdict=verdict), 5.0)
    audit = AuditResult(auditor="owner anna", trunk=0.4, columns=0.1, passed=False)
    state.leases[record.lease.lease_id] = replace(record, audits=(audit,))
    why = reason(Case.SET_ASIDE, NORM_TOO_LARGE, in_row=3, rounds=5, seconds=900.0)
    aside = Quarantine(until_round=RoundNumber(7), until_s=900.0, why=why)
    banned = Ban(at_s=6.0, by="anna", why=reason(Case.ENDED, "lied"))
    state.workers[worker] = replace(state.workers[worker], quarantine=aside, ban=banned)
    for _ in range(2):
        trail.catch_up()
    log.close()

    capsys.readouterr()
    assert run_command(["coordinator", "audit-log", str(run.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = [(one["stage"], one["verdict"], one["figure"], one["threshold"], one["judge"]) for one in found]
    assert told == [
        ("norms", "refused", 9.7, 3.0, "engine"),
        ("audit", "failed", 0.4, 0.02, "owner anna"),
        ("trust", "set aside", 3.0, None, "engine"),
        ("trust", "banned", None, None, "anna"),
    ]
    assert found[0]["why"].startswith("norm 9.7 of trunk")
    assert run_command(["coordinator", "audit-log", str(run.root), "--stage", "audit"]) == 0
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "banned" not in shown
    assert run_command(["coordinator", "audit-log", str(run.root), "--stage", "luck"]) == 2
    assert lease.lease_id == record.lease.lease_id


async def test_a_served_run_writes_what_it_judges_and_a_restart_repeats_nothing(run: RunFolder, tmp_path: Path) -> None:
    server = CoordinatorServer(run)
    await server.start()
    async with clients_of(run, server) as make:
        client = await make(columns=8)
        lease = (await client.acquire()).lease
        payload = client.submission(lease)
        await client.commit(lease, payload)
        assert (await client.upload(lease, payload)).complete
        async with asyncio.timeout(30):
            while not (reply := await client.commit(lease, payload)).HasField("verdict"):
                await asyncio.sleep(0.01)
        verdict = reply.verdict
    await server.stop(0.0)
    before = AuditLog.read_only(run.audit_path).latest(most=100)
    assert [(one.lease, one.verdict) for one in before if one.verdict != "withheld"] == [
        (lease.lease_id, "accepted" if verdict.outcome == pb.Verdict.ACCEPTED else "refused")
    ]
    run.audit_path.unlink()
    for leftover in run.root.glob("audit.sqlite-*"):
        leftover.unlink()
    for _ in range(2):
        again = CoordinatorServer(run)
        await again.start()
        await again.stop(0.0)
    after = AuditLog.read_only(run.audit_path).latest(most=100)
    assert [one.key for one in after] == [one.key for one in before]
    back_up(run, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again")
    assert AuditLog.read_only(tmp_path / "again" / "audit.sqlite").latest(most=100) == after


def test_a_disk_that_takes_nothing_costs_lines_and_not_the_run(tmp_path: Path) -> None:
    class Full:
        def add(self, lines: list[AuditLine]) -> None:
            raise sqlite3.OperationalError("disk full")

    nothing = SimpleNamespace(
        leases={}, workers={}, history=(), banned_owners={}, banned_invites={}, accusations=(), rollbacks=()
    )
    trail = AuditTrail(Full(), lambda: nothing, lambda at_s: None)  # type: ignore[arg-type,return-value]
    trail._add([line(1)])
    trail.catch_up()


async def test_a_worker_asks_over_the_wire_and_its_session_goes_on(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    client = await join(columns=8)

    async def ask(lease_id: str = "") -> pb.AskAuditReply:
        request = pb.AskAuditRequest(public_key=client.identity.public_key, lease_id=lease_id)
        body = request.SerializeToString()
        signer = CallSigner(client.identity, audience=client.audience)
        metadata = signer.metadata("/barnraise.protocol.v1.Coordinator/AskAudit", body)
        return pb.AskAuditReply.FromString(await client.raw("AskAudit", body, metadata=metadata))

    assert (await ask()).reason == "none of your latest submissions was refused"
    lease = (await client.acquire()).lease
    refused = await ask(lease.lease_id)
    assert not refused.taken
    assert "was not refused" in refused.reason
    state = server._opened().pump.engine.state
    verdict = rejected(NORM_TOO_LARGE, Case.NORM_OVER_MEDIAN, "trunk", ratio=9.7, most=3.0)
    state.set_status(LeaseId(lease.lease_id), LeaseStatus.COMMITTED)
    state.set_status(LeaseId(lease.lease_id), LeaseStatus.UPLOADED)
    state.set_status(LeaseId(lease.lease_id), LeaseStatus.REJECTED)
    state.update_lease(LeaseId(lease.lease_id), verdict=verdict)
    answer = await ask()
    assert answer.taken
    assert "no budget for computing work again" in answer.reason
    assert "once a day" in (await ask()).reason
    await client.beat()
    reader = AuditLog.read_only(run.audit_path)
    assert ("audit", "asked", lease.lease_id) in [(one.stage, one.verdict, one.lease) for one in reader.latest(most=9)]
