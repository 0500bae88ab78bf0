"""Each alert fires where its cause is made, and no other does: a served run on a wound clock, and promtool.

By `make page`. `BarnraiseCoordinatorDown` is in `test_live.py`: there a real Prometheus finds nobody.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.edge.operator_client import OperatorClient
from coordinator.engine.commands import AggregateRound, FindHarmful, MeasureSubmission, SlowCommand
from coordinator.engine.events import Event, RoundAggregated
from coordinator.run.folder import RunFolder
from coordinator.work.port import Work
from simulator.virtual.canned import canned_result, compared_as
from tests.coordinator.page.recording import ALERTS, Watched, alerts_fire, watched
from tests.coordinator.pump_bench import FullDisk
from tests.served import ENGINE, RawClient, make_run

pytestmark = pytest.mark.page

DAY_S = 86400.0

Served = Callable[..., Any]


@pytest.fixture
async def serve(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    """Serves a run with these settings of the engine."""
    contexts: list[Any] = []

    async def start(**engine: Any) -> Watched:
        small = {**ENGINE, "max_rounds": 200, "min_grace_s": 0.0, "grace_share": 0.0, "checkpoint_every": 1, **engine}
        folder = await asyncio.to_thread(make_run, tmp_path / "run", text_folder, small)
        contexts.append(watched(RunFolder.open(folder), monkeypatch))
        one: Watched = await contexts[-1].__aenter__()
        await one.settled()
        return one

    yield start
    for context in contexts:
        await context.__aexit__(None, None, None)


@dataclass(frozen=True)
class OtherWork:
    """What the coordinator's own work comes to, where a test has something else for it."""

    work: Work
    other: Callable[[SlowCommand], Event | None]

    @classmethod
    def of(cls, run: Watched, other: Callable[[SlowCommand], Event | None]) -> None:
        slow = run.pump._slow
        slow._work = cls(slow._work, other)

    def execute(self, command: SlowCommand) -> Event:
        return self.other(command) or self.work.execute(command)


async def one_round(run: Watched, client: RawClient) -> None:
    closed = len(run.pump.engine.state.history)
    await sent(client, seed=closed)
    await run.settled()
    assert len(run.pump.engine.state.history) == closed + 1


async def sent(client: RawClient, **what: Any) -> None:
    """A lease, and a submission for it."""
    reply = await client.acquire()
    payload = client.submission(reply.lease, **what)
    await client.commit(reply.lease, payload)
    await client.upload(reply.lease, payload)


async def test_none_fires_in_a_run_that_is_well_and_ends(serve: Served, tmp_path: Path) -> None:
    run = await serve(max_rounds=8)
    client = await run.worker()
    for _ in range(8):
        await one_round(run, client)
        await run.minutes(9)
    await run.minutes(70)
    alerts_fire(run.scraped, set(), tmp_path)


@pytest.mark.parametrize("kind", ["pause", "drain"])
async def test_none_fires_in_a_run_that_is_held(serve: Served, tmp_path: Path, kind: str) -> None:
    run = await serve(round_deadline_s=300.0)
    client = await run.worker(columns=1)
    assert (await client.acquire()).lease.lease_id
    await OperatorClient(run.server._folder).hold(kind, "moving house")
    await run.minutes(80)
    alerts_fire(run.scraped, set(), tmp_path)


async def test_the_coordinator_hangs(serve: Served, tmp_path: Path) -> None:
    run = await serve()
    await run.worker()
    await run.minutes(2)
    for _ in range(4):  # its loop waits for this very function
        run.wound.past_s += 60.0
        run.scraped.append(run.read())
    alerts_fire(run.scraped, {"BarnraisePictureOld"}, tmp_path)


async def test_the_end_of_a_round_hangs(serve: Served, tmp_path: Path) -> None:
    goes_on = threading.Event()

    def hangs(command: SlowCommand) -> None:
        if isinstance(command, AggregateRound):
            goes_on.wait(300.0)

    run = await serve(round_deadline_s=300.0)
    OtherWork.of(run, hangs)
    client = await run.worker()
    await sent(client)
    await run.minutes(25)
    goes_on.set()
    alerts_fire(run.scraped, {"BarnraiseRoundStuck"}, tmp_path)


async def test_nobody_comes(serve: Served, tmp_path: Path) -> None:
    run = await serve()
    await run.minutes(70)
    alerts_fire(run.scraped, {"BarnraiseRoundStuck"}, tmp_path)


async def test_the_disk_takes_no_writes(serve: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await serve()
    await run.worker()
    await run.minutes(1)
    disk = FullDisk(run.parts.journal, monkeypatch)
    await run.minutes(4)
    disk.full = False
    await run.step()
    alerts_fire(run.scraped, {"BarnraiseNothingRecorded"}, tmp_path)


@pytest.mark.parametrize(("free", "an_hour"), [(0.04, 0.0), (0.9, 0.05)])
async def test_the_disk_is_full_or_will_be(
    serve: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, an_hour: float
) -> None:
    run = await serve()
    client = await run.worker()
    whole = shutil.disk_usage(tmp_path)

    def usage(_: object) -> Any:
        left = int(whole.total * (free - an_hour * run.wound.past_s / 3600.0))
        return whole._replace(free=left, used=whole.total - left)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    await one_round(run, client)
    await run.minutes(45)
    alerts_fire(run.scraped, {"BarnraiseDiskFills"}, tmp_path)


async def test_many_are_refused(serve: Served, tmp_path: Path) -> None:
    run = await serve()
    await run.minutes(1)
    for number in range(6):
        await sent(await run.worker(), scale=float("nan"), seed=number)
    await run.settled()
    assert run.pump.engine.state.totals.submissions_rejected
    await run.minutes(15)
    alerts_fire(run.scraped, {"BarnraiseManyRefused"}, tmp_path)


async def test_columns_that_nobody_holds(serve: Served, tmp_path: Path) -> None:
    run = await serve(replicas=2, quorum=2, round_deadline_s=7200.0, min_lease_s=3600.0, lease_ttl_s=7200.0)
    client = await run.worker(columns=1)
    assert (await client.acquire()).lease.lease_id
    await run.minutes(20)
    alerts_fire(run.scraped, {"BarnraiseQuorumShort"}, tmp_path)


async def test_two_rounds_make_the_model_worse(serve: Served, tmp_path: Path) -> None:
    run = await serve(screening={"enabled": True})

    def harms(command: SlowCommand) -> Event | None:
        if not isinstance(command, MeasureSubmission | FindHarmful | AggregateRound):
            return None
        found = canned_result(command, run.parts.clock.now_s())
        if isinstance(found, RoundAggregated) and isinstance(command, AggregateRound):
            return replace(found, compared=compared_as(command, gain=-1.0))
        return found

    OtherWork.of(run, harms)
    client = await run.worker()
    await run.minutes(1)
    for _ in range(2):
        await one_round(run, client)
        await run.minutes(1)
    assert run.pump.engine.state.version == 0
    alerts_fire(run.scraped, {"BarnraiseRoundsWithheld"}, tmp_path)


async def test_versions_cannot_be_exported(serve: Served, tmp_path: Path) -> None:
    run = await serve()
    client = await run.worker()
    await run.minutes(1)
    checkpoints = run.server._folder.checkpoints
    shutil.rmtree(checkpoints)
    checkpoints.touch()  # a file where there was a folder
    await sent(client)
    await run.settled()
    await run.minutes(20)
    alerts_fire(run.scraped, {"BarnraiseCommandsFail"}, tmp_path)


async def test_the_certificate_is_near_its_end(serve: Served, tmp_path: Path) -> None:
    run = await serve()
    await run.worker()
    await run.minutes(2)
    (ends_s,) = {one["barnraise_certificate_expiry_timestamp_seconds", ()] for one in run.scraped}
    run.wound.set_s += ends_s - 29 * DAY_S - run.wound.past_s
    aged = Watched(run.server, run.wound, run.join, run.here)  # years without a scrape are no minutes
    await aged.minutes(3)
    alerts_fire(aged.scraped, {"BarnraiseCertificateEnds"}, tmp_path)


def test_each_alert_has_its_cause_here() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    here = Path(__file__).read_text() + (Path(__file__).parent / "test_live.py").read_text()
    assert [rule["alert"] for rule in rules if f'{{"{rule["alert"]}"}}' not in here] == []
