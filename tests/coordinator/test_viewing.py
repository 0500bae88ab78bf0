"""What the public may see of a served run: who takes part, why the round is open, and nothing that is private."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator.edge.publicly import PublicReasons, display_name, public_standing, round_reasons
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.showing import card_of
from coordinator.edge.status import WaitStatus
from coordinator.edge.viewing import MOST_WORKERS, RunViews
from coordinator.engine.history import Failure, RoundRecord
from coordinator.engine.hold import Hold, HoldKind
from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import Ban, Quarantine, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.page.view import RunView, Tone
from protocol.ids import LeaseId, RoundNumber, Version, WorkerId
from protocol.pseudonyms import pseudonym

OWNER, PATH, OPERATOR = "Ilse Mustermann", "/home/ilse/runs", "the operator of the barn"


def state_of(server: CoordinatorServer) -> EngineState:
    assert server._run is not None
    return server._run.pump.engine.state


def views(server: CoordinatorServer) -> RunViews:
    run = server._run
    assert run is not None
    return RunViews(run, server._status, card_of(run), certificate_expires_at_s=2e9, folder="/")


def person(number: int, **facts: Any) -> WorkerRecord:
    fields: dict[str, Any] = {
        "worker": WorkerId(f"{number:064x}"),
        "name": f"otter-{number}",
        "owner": OWNER,
        "trusted": False,
        "max_columns": 2,
        "tokens_per_s": 1000.0,
        "heard_at_s": 0.0,
    }
    return WorkerRecord(**(fields | facts))


def closed_round() -> RoundRecord:
    return RoundRecord(
        round=RoundNumber(1), base_version=Version(0), version=None, opened_at_s=0.0, closed_at_s=9.0, accepted=1,
        rejected=1, expired=0, returned=0, late_used=0, update_norm_l2=None, val_loss=None, val_loss_se=None,
        closed=reason(Case.GRACE_OVER),
    )  # fmt: skip


def everybody() -> list[WorkerRecord]:
    aside = Quarantine(
        until_round=RoundNumber(9), until_s=1e12, why=reason(Case.NORM_OVER_MEDIAN, "trunk", norm=17.25, most=3.0)
    )
    banned = Ban(at_s=0.0, by=OPERATOR, why=reason(Case.AS_TOLD, f"{OWNER} lied, see {PATH}"))
    return [
        person(1),
        person(2, name=""),
        person(3, quarantine=aside),
        person(4, ban=banned),
        person(5, present=False),
        person(6, accused=LeaseId("r1.1")),
        person(7, cooling_until_s=1e12),
        person(8, max_columns=0),
    ]


async def test_nothing_private_is_in_a_picture(server: CoordinatorServer, join: Callable[..., Any]) -> None:
    await join()
    state = state_of(server)
    for record in everybody():
        state.put_worker(record)
    worse = reason(Case.HARMS_ALONE, "r1.7", loss_rise=23.5)
    state.history = (replace(closed_round(), withheld=(worse,)),)
    state.failures["validate:v0"] = Failure(count=1, error=f"no room in {PATH} for 10.1.2.3")
    view = await views(server).picture()
    text = view.model_dump_json()
    assert "otter-1" in text
    for private in (OWNER, PATH, OPERATOR, "10.1.2.3", "17.25", "23.5", "r1.7", "127.0.0.1", "accused", "contradicted"):
        assert private not in text, private
    assert not re.search(r"[0-9a-f]{20}", text), "no key, and no digest"
    rows = {row.name: row for row in view.workers}
    assert rows[pseudonym(person(2).worker)].place == 3, "who has no name is called by two words"
    assert rows["otter-4"].why == "takes no part any more"
    assert rows["otter-3"].standing == "set aside"
    assert [row.state for row in view.workers][:2] == ["banned", "set aside"], "those first that need a look"


async def test_a_picture_counts_what_the_status_counts(server: CoordinatorServer, join: Callable[..., Any]) -> None:
    await join()
    view, status = await views(server).picture(), server.summary()
    assert (view.enrolled, view.connected) == (status.enrolled, status.connected) == (1, 1)
    assert view.open_round.number == status.round
    assert view.card.columns == len(view.columns)
    assert view.card.parameters > 100_000
    assert view.headline.tone in (Tone.HEALTHY, Tone.WAITING)
    assert view.health.disk_size_bytes > view.health.disk_free_bytes > 0
    assert RunView.model_validate_json(view.model_dump_json()) == view


async def test_how_long_yet_is_told_at_the_pace_of_the_latest_rounds(server: CoordinatorServer) -> None:
    state = state_of(server)
    assert (await views(server).picture()).left_s is None
    state.history = (closed_round(),)  # of 9 s; two are planned
    state.update_round(round=RoundNumber(2))
    assert (await views(server).picture()).left_s == server.summary().left_s == 9.0


async def test_of_very_many_workers_so_many_are_shown(server: CoordinatorServer) -> None:
    state = state_of(server)
    for number in range(MOST_WORKERS + 5):
        state.put_worker(person(number, present=number % 2 == 0))
    view = await views(server).picture()
    assert len(view.workers) == MOST_WORKERS
    assert view.more_workers == 5
    assert view.enrolled == MOST_WORKERS + 5
    assert view.workers[0].state != "absent"


async def test_a_name_is_short_and_printable(server: CoordinatorServer) -> None:
    state, worker = state_of(server), person(1).worker
    state.put_worker(person(1, name=""))

    def shown(said: str) -> str:
        state.names = {worker: said}
        return display_name(state, worker, 4)

    assert shown(" barn\n\x1b[31m owl ") == "barn  [31m owl"
    assert shown("\u202e") == "worker 4"
    assert len(shown("x" * 500)) <= 48
    assert shown(worker) == "worker 4", "a key is no name"
    assert re.fullmatch("[a-z]+-[a-z]+", shown("")), "who says nothing is called by two words"


async def test_who_audits_whom_is_in_no_reason(server: CoordinatorServer) -> None:
    state = state_of(server)
    waits = (
        WaitStatus(subject="column 5", reason="1 of 3 replicas reported"),
        WaitStatus(subject="trunk", reason="2 of 3 owners reported"),
        WaitStatus(subject="audit of lease r1.2", reason="otter-1 computes it again"),
        WaitStatus(subject="lease r1.3", reason="otter-2 trains 10 steps"),
        WaitStatus(subject="replay:r1.2", reason="auditing lease r1.2"),
    )
    assert [subject for subject, _ in round_reasons(state, waits)] == ["column 5", "trunk"]


@pytest.mark.parametrize(
    ("facts", "standing"),
    [({"trusted": True}, "counts in full"), ({"accused": LeaseId("r1.1")}, "on probation"), ({}, "counts in part")],
)
async def test_an_accusation_shows_as_any_loss_of_weight(
    server: CoordinatorServer, facts: dict[str, Any], standing: str
) -> None:
    state = state_of(server)
    record = state.put_worker(person(1, **facts))
    assert public_standing(state, record) == standing
    assert "r1.1" not in PublicReasons(state).of(record, None, 0)


@pytest.mark.parametrize("kind", HoldKind)
async def test_in_a_pause_deadlines_stand_before_the_reader_as_time_does(
    server: CoordinatorServer, join: Callable[..., Any], kind: HoldKind
) -> None:
    client = await join()
    await client.acquire()
    before, state = await views(server).picture(), state_of(server)
    assert before.health.held is False
    gone_s = 7200.0
    state.hold = Hold(kind=kind, since_s=state.now_s - gone_s, actor=OPERATOR, why="")
    view = await views(server).picture()
    assert view.health.held is True
    later_s = gone_s if kind is HoldKind.PAUSED else 0.0
    (bar,), (was,) = view.open_round.leases, before.open_round.leases
    assert bar.deadline_at_s == pytest.approx(was.deadline_at_s + later_s, abs=10.0)
    assert bar.granted_at_s == pytest.approx(was.granted_at_s)
    assert view.open_round.closes_at_s == pytest.approx((before.open_round.closes_at_s or 0.0) + later_s, abs=10.0)


@pytest.mark.parametrize("kind", HoldKind)
async def test_a_held_run_is_shown_with_who_waits_in_it(server: CoordinatorServer, kind: HoldKind) -> None:
    state = state_of(server)
    state.put_worker(person(1))
    state.hold = Hold(kind=kind, since_s=0.0, actor=OPERATOR, why=PATH)
    (row,) = (await views(server).picture()).workers
    assert row.why in ("the run is paused", "no more work is given out for now")
