"""What is explained of a round, a worker and a lease, while a run is served and after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from barnraise.cli.app import run as barnraise
from coordinator.edge.accounts import lease_told, round_told
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.history import LeftOut, RoundRecord
from coordinator.engine.reasons import Case, reason
from coordinator.run.folder import RunFolder
from protocol.errors import ConfigError
from protocol.ids import LeaseId, RoundNumber, Version, WorkerId


async def explain(run: RunFolder, subject: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = await asyncio.to_thread(barnraise, ["coordinator", "explain", str(run.root), subject, "--json"])
    text = capsys.readouterr().out
    return code, json.loads(text) if text else {}


async def test_an_open_round_its_lease_and_its_worker_are_told_served_or_not(
    run: RunFolder, join: Callable[..., Any], server: CoordinatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    for served in (True, False):
        code, told = await explain(run, "1", capsys)
        assert (code, told["kind"], told["served"]) == (0 if served else 1, "round", served)
        assert told["lines"][0].startswith("Round 1 of 2 is open since ")
        assert any("replicas reported" in line for line in told["lines"][1:])
        code, told = await explain(run, lease.lease_id, capsys)
        assert (code, told["kind"]) == (0 if served else 1, "lease")
        assert f"of round 1: columns {', '.join(map(str, lease.columns))}" in told["lines"][0]
        code, told = await explain(run, "raw", capsys)
        assert (told["kind"], told["name"]) == ("worker", "raw")
        assert ("inner steps" if served else "raw") in told["lines"][0]
        assert f"{lease.lease_id}" in " ".join(told["lines"])
        if served:
            await server.stop(0.0)


async def test_what_is_not_there_is_refused_in_a_sentence(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for subject, words in (("7", "round 7 is not begun"), ("r9.9", "no lease is called r9.9"), ("x", "no worker")):
        assert await asyncio.to_thread(barnraise, ["coordinator", "explain", str(run.root), subject]) == 2
        assert words in capsys.readouterr().err


async def test_a_closed_round_says_how_it_ended_and_what_was_left_out(
    run: RunFolder, server: CoordinatorServer
) -> None:
    state = server._opened().pump.engine.state
    left = LeftOut(lease_id=LeaseId("r1.2"), worker=WorkerId("ab" * 16), why=reason(Case.BYTES_LOST, "gone"))
    state.history = (closed_round(left),)
    opened, closed, counts, last = round_told(state, 1)
    assert "lasted 60 s and made version 4, held-out loss 2.5000" in opened
    assert closed.startswith("It closed because ")
    assert "3 accepted, 1 refused, 0 expired" in counts
    assert "r1.2" in last
    assert lease_told(state, LeaseId("r1.2"), known=True)[0].startswith("Lease r1.2 is of a round long closed")
    with pytest.raises(ConfigError):
        lease_told(state, LeaseId("r1.2"), known=False)


def closed_round(left: LeftOut) -> RoundRecord:
    return RoundRecord(
        round=RoundNumber(1),
        base_version=Version(3),
        version=Version(4),
        opened_at_s=0.0,
        closed_at_s=60.0,
        accepted=3,
        rejected=1,
        expired=0,
        returned=0,
        late_used=0,
        update_norm_l2=None,
        val_loss=2.5,
        val_loss_se=0.1,
        closed=reason(Case.ALL_RESOLVED),
        left_out=(left,),
    )
