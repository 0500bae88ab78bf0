"""Submissions measured by trusted workers, over loopback TLS: what they find is what the coordinator would."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordinator.edge.measures import Measures
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import Command, Item, MeasureSubmission, ValidateVersion
from coordinator.engine.events import Event, SubmissionMeasured, VersionValidated
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.state import EngineState
from coordinator.run.delegation import Delegation
from coordinator.run.folder import init_run
from coordinator.run.opened import work_settings
from coordinator.settings import RunSettings
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from coordinator.work.measured import gains_from, parts_of, sequences_of
from moe.layout import Layout
from protocol.codecs import codec_named
from protocol.errors import MalformedMessage, Refused
from protocol.ids import Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import DataRange
from protocol.recipe import Recipe
from protocol.submission import encode_submission
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import Swarm, served
from worker.fetched import FetchedItem, MeasuredPart
from worker.measuring import check_item
from worker.ports import Measurer
from worker.train.measuring import LossMeasurer

Settings = Callable[..., RunSettings]


@pytest.fixture
def settings(corpus: Path) -> Settings:
    def make(max_rounds: int = 2, **delegation: Any) -> RunSettings:
        table = {
            "max_rounds": max_rounds, "gather_s": 0.0, "min_workers": 3,
            "heartbeat_interval_s": 0.1, "heartbeat_misses": 100.0,
            "inner": {"inner_steps": 4, "batch_sequences": 4, "learning_rate": 0.003, "warmup_steps": 0},
            "delegation": {"sequences": 32, "wait_s": 20.0, **delegation},
        }  # fmt: skip
        small: dict[str, Any] = {"heldout_limit": 4, "screening_sequences": 32, "sequence_length": 32, "port": 0}
        return RunSettings(preset="tiny", data=str(corpus), codec="int8", **small, engine=table)

    return make


class Lying:
    """Says that each submission is worse than it is."""

    def __init__(self, honest: Measurer) -> None:
        self._honest = honest

    def measure(self, item: FetchedItem) -> tuple[list[float], list[float]]:
        before, after = self._honest.measure(item)
        return before, [loss + 1.0 for loss in after]


async def made(root: Path, settings: RunSettings) -> Swarm:
    return Swarm(await asyncio.to_thread(init_run, root / "run", settings), root)


async def crew(swarm: Swarm, lies: str = "") -> list[asyncio.Task[Any]]:
    """One whom nobody knows, and two trusted ones of different owners who offer to measure, one of whom may lie."""
    assert swarm.server is not None
    found = []
    for name, trusted in (("stranger", False), ("anna", True), ("ben", True)):
        (swarm.link,) = await swarm.server.create_invites(trusted=trusted)
        agent, _, task = swarm.agent(name, name=name, measures=trusted)
        if name == lies:
            measuring = agent._calls._measuring
            assert measuring is not None
            measuring._measurer = Lying(measuring._measurer)
        found.append(task)
    return found


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)


def watched(swarm: Swarm) -> tuple[EngineState, list[SubmissionMeasured]]:
    """The engine's state, and what is measured from now on."""
    assert swarm.server is not None
    engine, seen = swarm.server._opened().pump.engine, list[SubmissionMeasured]()
    handle = engine.handle

    def handled(event: Event) -> list[Command]:
        if isinstance(event, SubmissionMeasured):
            seen.append(event)
        return handle(event)

    vars(engine)["handle"] = handled
    return engine.state, seen


async def test_all_gains_are_measured_by_others_and_all_twice(tmp_path: Path, settings: Settings) -> None:
    async with served(await made(tmp_path, settings(checked_share=1.0))) as swarm:
        state, measured = watched(swarm)
        await ended(await crew(swarm))
    assert len(measured) == 6
    by_stranger = [event for event in measured if event.measured_by is not None and len(event.answers) == 2]
    assert by_stranger, "two trusted workers of other owners measure a stranger's"
    assert state.totals.gains_false == 0
    assert state.totals.gains_checked >= 2
    assert state.totals.gains_delegated >= 2
    assert all(record.status is LeaseStatus.ACCEPTED for record in state.leases.values())
    assert all(worker.trusted for worker in state.workers.values() if state.called(worker.worker) != "stranger")


async def test_a_worker_that_lies_of_what_it_measured_is_found_out_and_nobody_pays_for_it(
    tmp_path: Path, settings: Settings
) -> None:
    async with served(await made(tmp_path, settings(checked_share=1.0))) as swarm:
        state, measured = watched(swarm)
        tasks = await crew(swarm, lies="anna")
        await ended(tasks)
    names = {state.called(worker.worker): worker for worker in state.workers.values()}
    assert not names["anna"].trusted
    assert names["ben"].trusted
    assert any(event.false == (names["anna"].worker,) for event in measured)
    assert all(names["anna"].worker != event.measured_by for event in measured if len(event.answers) == 1)
    assert {record.status for record in state.leases.values()} == {LeaseStatus.ACCEPTED}


async def test_what_a_worker_measures_is_what_the_coordinator_does(tmp_path: Path, settings: Settings) -> None:
    """Nobody offers, so the coordinator measures; then the same item in a worker's hands."""
    run = await asyncio.to_thread(init_run, tmp_path / "run", settings())
    layout, dataset, store = run.layout(), run.dataset(), run.artifacts()
    versions = Versions(run.root / "versions", store.blocks, layout)
    manifest = versions.manifest_digest(Version(0))
    assert manifest is not None
    base = versions.load_blocks(versions.manifest(manifest))
    torch.manual_seed(1)
    step = {block: {n: 0.01 * torch.randn_like(t) for n, t in tensors.items()} for block, tensors in base.items()}
    digest = store.payloads.put(encode_submission(step, codec_named("int8")))
    command = measure_command(layout, digest, store.payloads.stat(digest) or 0)
    measured = Executor(
        settings=work_settings(run.settings()), layout=layout, payloads=store.payloads, versions=versions,
        dataset=dataset, companions={}, dtype="fp32", checkpoints=run.checkpoints, clock=lambda: 0.0,
    )  # fmt: skip
    item = FetchedItem(
        item_id=command.command_id, run=SimpleNamespace(layout=layout), columns=command.lease.columns, codec="int8",  # type: ignore[arg-type]
        digests={block: ref.digest for block, ref in versions.manifest(manifest).blocks.items()},
        payload=bytes(store.payloads.view(digest)), sequences=sequences_of(dataset, command, 32, 4).astype("int64"),
        parts=tuple(MeasuredPart(share=p.share, start=p.start, stop=p.stop) for p in parts_of(command)),
    )  # fmt: skip
    blocks = SimpleNamespace(path=lambda digest: Path(store.blocks.place(digest)))
    measurer = LossMeasurer(blocks, "cpu")
    for _ in range(2):  # the second time with what it kept of the first
        before, after = measurer.measure(item)
        honest = GainAnswer(worker=WorkerId("anna"), before=tuple(before), after=tuple(after))
        lie = replace(honest, worker=WorkerId("ben"), after=(honest.after[0] + 0.01, *honest.after[1:]))
        event = measured.execute(replace(command, answers=(honest, lie), tolerance=1e-6))
        assert isinstance(event, SubmissionMeasured)
        assert event.false == ("ben",)
        gains = gains_from(command, before, after)
        assert (event.heldout_gain, event.full_gain, event.own_gain) == pytest.approx(
            (gains.part, gains.full, gains.own), abs=1e-6
        )


def measure_command(layout: Layout, digest: Digest, payload_bytes: int) -> MeasureSubmission:
    lease = GrantedLease(
        lease_id=LeaseId("r1.1"), round=RoundNumber(1), worker=WorkerId("kim"), base_version=Version(0),
        columns=tuple(range(layout.columns)), data=DataRange(seed=1, start=0, count=8), seed=1, inner_steps=2,
        batch_sequences=4, recipe=Recipe(), codec="int8", granted_at_s=0.0, deadline_s=1.0,
    )  # fmt: skip
    return MeasureSubmission(
        command_id="measure:r1.1", lease=lease, digest=digest, payload_bytes=payload_bytes, codec="int8",
        heldout_seed=1, measure_gain=True, own_data=True, rows=DataRange(seed=1, start=64, count=32),
    )  # fmt: skip


async def test_what_a_worker_says_of_a_version_is_what_the_coordinator_does(tmp_path: Path, settings: Settings) -> None:
    run = await asyncio.to_thread(init_run, tmp_path / "run", settings())
    layout, dataset, store = run.layout(), run.dataset(), run.artifacts()
    versions = Versions(run.root / "versions", store.blocks, layout)
    manifest = versions.manifest_digest(Version(0))
    assert manifest is not None
    item = FetchedItem(
        item_id="validate:v0", run=SimpleNamespace(layout=layout), columns=(), codec="", payload=b"", parts=(),  # type: ignore[arg-type]
        digests={block: ref.digest for block, ref in versions.manifest(manifest).blocks.items()},
        sequences=dataset.heldout_all(32, 4).astype("int64"),
    )  # fmt: skip
    before, after = LossMeasurer(SimpleNamespace(path=lambda digest: Path(store.blocks.place(digest))), "cpu").measure(
        item
    )
    assert (len(before), after) == (4, [])
    honest = GainAnswer(worker=WorkerId("anna"), before=tuple(before), after=())
    lie = replace(honest, worker=WorkerId("ben"), before=(before[0] - 0.01, *before[1:]))
    command = ValidateVersion(
        command_id="validate:v0", version=Version(0), manifest=manifest, answers=(honest, lie), tolerance=1e-6
    )
    event = Executor(
        settings=work_settings(run.settings()), layout=layout, payloads=store.payloads, versions=versions,
        dataset=dataset, companions={}, dtype="fp32", checkpoints=run.checkpoints, clock=lambda: 0.0,
    ).execute(command)  # fmt: skip
    assert isinstance(event, VersionValidated)
    assert event.false == ("ben",)
    assert event.val_loss == pytest.approx(sum(before) / 4)


async def test_versions_are_validated_by_whoever_measures(tmp_path: Path, settings: Settings) -> None:
    async with served(await made(tmp_path, settings(max_rounds=4))) as swarm:
        state, _ = watched(swarm)
        await ended(await crew(swarm))
    by = {int(one.version): one.measured_by for one in state.validations}
    assert set(by) == {0, 1, 2, 3, 4}
    assert by[0] is None and by[4] is None, "nobody is there yet, and nobody need stay"  # noqa: PT018
    trusted = {worker.worker for worker in state.workers.values() if worker.trusted}
    assert {by[1], by[2], by[3]} & trusted, "one at least, while it waited for the others of its round"
    assert all(0.0 < one.val_loss < 10.0 for one in state.validations)


VERSION = ValidateVersion(command_id="validate:v1", version=Version(1), manifest=Digest("0" * 64), delegate=True)


async def test_a_version_is_answered_by_a_loss_of_each_held_out_sequence(frozen_layout: Layout) -> None:
    measures, delegation = at_the_edge(frozen_layout, VERSION)
    run: Any = SimpleNamespace(layout=frozen_layout, sequences=SimpleNamespace(tokens=33))
    message = measures.message(VERSION)
    check_item(message, run)
    assert (message.sequences, message.base_version, len(message.parts)) == (4, 1, 0)
    with pytest.raises(Refused, match="is a version"):
        measures.submission(WorkerId("anna"), "validate:v1")
    with pytest.raises(MalformedMessage, match="expected 4 losses before and 0 after"):
        await measures.answer(SESSION, pb.AnswerMeasureRequest(item_id="validate:v1", before=[5.0] * 4, after=[4.0]))
    assert (await measures.answer(SESSION, pb.AnswerMeasureRequest(item_id="validate:v1", before=[5.0] * 4))).taken
    assert [answer.before for answer in delegation.answers] == [(5.0,) * 4]


class Held(Delegation):
    """One item, in anna's hands."""

    def __init__(self, command: Item) -> None:
        self.command, self.answers, self.failed = command, list[GainAnswer](), list[WorkerId]()

    def held(self, worker: WorkerId, item_id: str) -> Item | None:
        return self.command if (worker, item_id) == ("anna", self.command.command_id) else None

    def answer(self, answer: GainAnswer, item_id: str) -> bool:
        self.answers.append(answer)
        return True

    def fail(self, worker: WorkerId, item_id: str) -> None:
        self.failed.append(worker)


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [(35, 36, True), (36, 37, True), (0, 0, True), (36, 36, False)],
)
async def test_an_answer_of_another_length_is_none(
    frozen_layout: Layout, before: int, after: int, refused: bool
) -> None:
    measures, delegation = at_the_edge(frozen_layout)
    request = pb.AnswerMeasureRequest(item_id="measure:r1.1", before=[5.0] * before, after=[4.0] * after)
    with pytest.raises(MalformedMessage, match="expected 36") if refused else contextlib.nullcontext():
        await measures.answer(SESSION, request)
    assert delegation.failed == (["anna"] if refused else [])
    assert len(delegation.answers) == (not refused)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_losses_that_are_no_numbers_are_measured_elsewhere(frozen_layout: Layout, value: float) -> None:
    measures, delegation = at_the_edge(frozen_layout)
    request = pb.AnswerMeasureRequest(item_id="measure:r1.1", before=[5.0] * 36, after=[*[4.0] * 35, value])
    assert (await measures.answer(SESSION, request)).taken
    assert delegation.failed == ["anna"]
    assert not delegation.answers


async def test_an_item_is_for_whoever_has_it_alone(frozen_layout: Layout) -> None:
    measures, _ = at_the_edge(frozen_layout)
    assert not (await measures.answer(SESSION, pb.AnswerMeasureRequest(item_id="measure:r1.2"))).taken
    with pytest.raises(Refused, match="is not this worker's to measure"):
        measures.submission(WorkerId("ben"), "measure:r1.1")
    with pytest.raises(Refused, match="is not this worker's to measure"):
        await measures.sequences(WorkerId("anna"), "measure:r9.9")


SESSION: Any = SimpleNamespace(worker=WorkerId("anna"))


def at_the_edge(layout: Layout, command: Item | None = None) -> tuple[Measures, Held]:
    delegation = Held(command or measure_command(layout, Digest("0" * 64), 1000))
    settings = SimpleNamespace(sequence_length=32, heldout_limit=4)
    dataset = SimpleNamespace(heldout_sequences=lambda _: 100)
    run: Any = SimpleNamespace(pump=SimpleNamespace(delegation=delegation), settings=settings, dataset=dataset)
    return Measures(run), delegation


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"item_id": ""}, "item_id"), ({"item_id": "x" * 65}, "item_id"), ({"columns": [1, 0]}, "columns"),
        ({"columns": [0, 99]}, "columns"), ({"columns": []}, "columns"), ({"digest": b"short"}, "digest"),
        ({"sequences": 0}, "sequences"), ({"sequences": 1 << 31}, "sequences"), ({"parts": []}, "columns"),
        ({"parts": [], "columns": []}, "codec"), ({"parts": [], "columns": [], "codec": ""}, "digest"),
        ({"parts": [pb.MeasurePart(share=1.0, start=0, stop=1)] * 9}, "parts"),
        ({"parts": [pb.MeasurePart(share=math.nan, start=0, stop=1)]}, "share"),
        ({"parts": [pb.MeasurePart(share=1.0, start=1, stop=1)]}, "part"),
        ({"parts": [pb.MeasurePart(share=1.0, start=0, stop=99)]}, "part"),
    ],
)  # fmt: skip
def test_what_no_item_is_is_refused_before_anything_is_fetched(
    frozen_layout: Layout, changes: dict[str, Any], field: str
) -> None:
    measures, delegation = at_the_edge(frozen_layout)
    run: Any = SimpleNamespace(layout=frozen_layout, sequences=SimpleNamespace(tokens=33))
    message = measures.message(delegation.command)
    check_item(message, run)
    sane = {name.name: value for name, value in message.ListFields()}
    with pytest.raises(MalformedMessage, match=f"an item with {field} ="):
        check_item(pb.MeasureItem(**{**sane, **changes}), run)
