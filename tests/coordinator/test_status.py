"""A status goes over the wire as JSON and comes back as it was; its size is bounded, however large the run is."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from barnraise.cli.app import run as barnraise
from coordinator.edge.operator_client import OperatorClient, fetch_status
from coordinator.edge.pages import LOOKED_AT, PAGE_BYTES, PAGE_ROWS, PageKind, Query, Wanted
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.status import ValidationStatus, WorkerState
from coordinator.engine.history import KEPT_ROWS, LeftOut, RoundRecord
from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import Quarantine, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.run.folder import RunFolder
from protocol.errors import MalformedMessage
from protocol.ids import LeaseId, RoundNumber, Version, WorkerId

MANY = 10_000
SET_ASIDE = 7777
"""Whose number is set aside: far behind the first page."""
SUMMARY_BYTES = 24_000


def test_a_loss_that_is_no_finite_number_survives_the_wire() -> None:
    for loss in (math.inf, math.nan, 5.5):
        sent = ValidationStatus(version=1, val_loss=loss, val_loss_se=0.1).model_dump_json()
        json.loads(sent, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        got = ValidationStatus.model_validate_json(sent).val_loss
        assert got == loss or (math.isnan(got) and math.isnan(loss))


def state_of(server: CoordinatorServer) -> EngineState:
    assert server._run is not None
    return server._run.pump.engine.state


def name_of(number: int) -> WorkerId:
    return WorkerId(f"{number:064x}")


def enrol(state: EngineState, count: int) -> None:
    """So many workers in the engine itself."""
    aside = Quarantine(until_round=RoundNumber(9), until_s=1e12, why=reason(Case.SET_ASIDE))
    for number in range(count):
        state.put_worker(
            WorkerRecord(
                worker=name_of(number),
                name=f"volunteer {number}",
                trusted=False,
                max_columns=2,
                tokens_per_s=1000.0,
                heard_at_s=state.now_s,
                quarantine=aside if number == SET_ASIDE else None,
            )
        )


def closed(number: int, left_out: int = 0) -> RoundRecord:
    lost = [
        LeftOut(lease_id=LeaseId(f"r{number}.{n}"), worker=name_of(n), why=reason(Case.BYTES_LOST, "x" * 200))
        for n in range(left_out)
    ]
    return RoundRecord(
        round=RoundNumber(number),
        base_version=Version(number - 1),
        version=Version(number),
        opened_at_s=10.0 * number,
        closed_at_s=10.0 * number + 8.0,
        accepted=3,
        rejected=0,
        expired=0,
        returned=0,
        late_used=0,
        update_norm_l2=1.0,
        val_loss=3.0,
        val_loss_se=0.01,
        closed=reason(Case.ALL_RESOLVED),
        left_out=tuple(lost),
    )


@pytest.fixture
def crowded(server: CoordinatorServer) -> CoordinatorServer:
    """Ten thousand workers, and as many closed rounds as are remembered, the last with everybody left out of it."""
    state = state_of(server)
    enrol(state, MANY)
    state.history = (*map(closed, range(1, KEPT_ROWS)), closed(KEPT_ROWS, left_out=MANY))
    return server


async def test_ten_thousand_workers_are_told_of_in_pages_that_fit(run: RunFolder, crowded: CoordinatorServer) -> None:
    operator = OperatorClient(run)
    summary = await operator.summary()
    assert len(summary.model_dump_json()) < SUMMARY_BYTES
    assert (summary.enrolled, summary.rounds_closed) == (MANY, KEPT_ROWS)
    assert summary.worker_states == {WorkerState.QUARANTINED: 1, WorkerState.IDLE: MANY - 1}
    assert summary.left_out[-1] == f"and {MANY - 20} more"
    for kind, count in ((PageKind.WORKERS, MANY), (PageKind.ROUNDS, KEPT_ROWS)):
        rows: list[str] = []
        query = Query(kind=kind)
        while True:
            page = await operator.page(query)
            assert len(page.rows) <= PAGE_ROWS
            assert sum(map(len, page.rows)) <= PAGE_BYTES
            rows += page.rows
            if not page.next:
                break
            query = replace(query, after=page.next)
        assert len(rows) == len(set(rows)) == count
    status = await asyncio.to_thread(fetch_status, run)
    assert [one.worker for one in status.workers] == [name_of(number) for number in range(MANY)]
    assert [one.round for one in status.history] == list(range(1, KEPT_ROWS + 1))


async def test_a_page_looks_at_no_more_workers_than_it_may(run: RunFolder, crowded: CoordinatorServer) -> None:
    query = Query(kind=PageKind.WORKERS, states=frozenset({WorkerState.QUARANTINED}))
    operator = OperatorClient(run)
    page = await operator.page(query)
    assert (page.rows, page.next) == ((), name_of(LOOKED_AT - 1))
    few = await operator.status(Wanted(workers=2, rounds=False, rest=False))
    assert [one.worker for one in few.workers] == [name_of(SET_ASIDE), name_of(0)], "whoever is in trouble comes first"
    assert few.history == ()


async def test_rows_that_are_large_make_pages_short(run: RunFolder, server: CoordinatorServer) -> None:
    enrol(state_of(server), 100)
    state_of(server).history = tuple(closed(number, left_out=100) for number in range(1, 41))
    operator = OperatorClient(run)
    page = await operator.page(Query(kind=PageKind.ROUNDS))
    assert 1 < len(page.rows) < 40
    assert sum(map(len, page.rows)) <= PAGE_BYTES
    assert len((await operator.status()).history) == 40


@pytest.mark.parametrize(
    ("kind", "after"), [(PageKind.WORKERS, "nobody"), (PageKind.ROUNDS, "-1"), (PageKind.ROUNDS, "9" * 99)]
)
async def test_a_page_after_what_is_not_there_is_refused(
    run: RunFolder, server: CoordinatorServer, kind: PageKind, after: str
) -> None:
    operator = OperatorClient(run)
    with pytest.raises(MalformedMessage, match="a page is asked for after"):
        await operator.page(Query(kind=kind, after=after))


async def test_the_command_shows_a_few_workers_and_all_when_asked(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await join()
    enrol(state_of(server), 30)

    async def told(*options: str) -> str:
        assert await asyncio.to_thread(barnraise, ["status", str(run.root), *options]) == 0
        return capsys.readouterr().out

    few = await told()
    assert few.count("volunteer") == 19, "and the one that has come"
    assert "and 11 more: `barnraise status" in few
    assert (await told("--workers")).count("volunteer") == 30
    assert "volunteer" not in await told("--state", "absent")
    everything = json.loads(await told("--json"))
    assert len(everything["workers"]) == 31
    assert await asyncio.to_thread(barnraise, ["status", str(run.root), "--state", "asleep"]) == 2
    assert "'asleep' is not a worker's state" in capsys.readouterr().err
