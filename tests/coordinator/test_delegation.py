"""Items in trusted workers' hands, and what is done where they die, lie, come late, or answer twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import MeasureSubmission, SlowCommand, ValidateVersion
from coordinator.engine.delegation_config import DelegationConfig
from coordinator.engine.sureness import gains_told
from coordinator.run.delegation import Delegation
from coordinator.run.slow import SlowCommands
from coordinator.work.measured import agree, gains_from, parts_of, sizes_of
from protocol.ids import Version, WorkerId, digest_of
from simulator.virtual.canned import canned_result
from tests.coordinator.engine.conftest import Swarm, small_config

NO_DATASET: Any = None
"""Nothing of it is asked for the sake of a submission."""
ANNA, BEN, TWIN = WorkerId("anna"), WorkerId("ben"), WorkerId("twin")
WAIT_S = 0.2


@pytest.fixture
def swarm() -> Swarm:
    """Somebody has submitted; anna, ben, and a second machine of ben's are trusted and offer to measure."""
    made = Swarm(
        small_config(
            delegation=DelegationConfig(sequences=32, checked_share=1.0, wait_s=WAIT_S, validation_wait_s=20.0)
        )
    )
    for worker, owner in ((ANNA, "anna"), (BEN, "ben"), (TWIN, "ben")):
        made.handle(
            ev.WorkerEnrolled(
                at_s=0.0, worker=worker, name=worker, trusted=True, max_columns=0, tokens_per_s=0.0, owner=owner,
                measures=True,
            )
        )  # fmt: skip
    made.join("kim")
    made.send("kim")
    return made


@pytest.fixture
def command(swarm: Swarm) -> MeasureSubmission:
    return swarm.waiting_for(MeasureSubmission)


def answer(command: MeasureSubmission, worker: WorkerId, off: float = 0.0) -> GainAnswer:
    before, after = sizes_of(command, NO_DATASET, 8, 4)
    return GainAnswer(worker=worker, before=(5.0,) * before, after=(4.9 + off,) * after)


class Slow:
    """The pump's slow work, of which nothing is done; what is reported goes into the engine."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm, self.executed, self.reported = swarm, list[SlowCommand](), list[ev.Event]()
        self.delegation = Delegation(swarm.engine)
        self.commands = SlowCommands(
            self, is_wanted=lambda _: True, report=self._report, clock=lambda: 1.0, retry_first_s=0.01,
            delegation=self.delegation,
        )  # fmt: skip
        self._news = asyncio.Event()

    def execute(self, command: SlowCommand) -> ev.Event:
        self.executed.append(command)
        result = canned_result(command, 1.0)
        if isinstance(command, ValidateVersion) and command.answers:
            assert isinstance(result, ev.VersionValidated)
            false = tuple(one.worker for one in command.answers if one.before[0] != result.val_loss)
            return replace(result, answers=command.answers, false=false)
        if isinstance(command, MeasureSubmission) and command.answers:
            assert isinstance(result, ev.SubmissionMeasured)
            false = tuple(one.worker for one in command.answers if one.after[0] != 4.9)
            return replace(result, answers=command.answers, false=false)
        return result

    async def _report(self, event: ev.Event) -> None:
        self.reported.append(event)
        self._news.set()

    async def measured(self) -> ev.SubmissionMeasured:
        event = await self.first(ev.SubmissionMeasured)
        assert isinstance(event, ev.SubmissionMeasured)
        return event

    async def validated(self) -> ev.VersionValidated:
        event = await self.first(ev.VersionValidated)
        assert isinstance(event, ev.VersionValidated)
        return event

    async def first(self, kind: type[ev.Event]) -> ev.Event:
        async with asyncio.timeout(20):
            while not (found := [one for one in self.reported if isinstance(one, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[0]


@contextlib.asynccontextmanager
async def going_on(swarm: Swarm) -> AsyncIterator[Slow]:
    made = Slow(swarm)
    running = asyncio.ensure_future(made.commands.run())
    try:
        yield made
    finally:
        made.commands.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        made.commands.close()


@pytest.fixture
async def slow(swarm: Swarm, command: MeasureSubmission) -> AsyncIterator[Slow]:
    async with going_on(swarm) as made:
        made.commands.push(command)
        yield made


async def test_two_who_agree_are_believed(slow: Slow, command: MeasureSubmission) -> None:
    for worker in (ANNA, BEN):
        item = await slow.delegation.expect(worker)
        assert slow.delegation.held(worker, item.command_id) == command
        assert slow.delegation.answer(answer(command, worker), command.command_id)
    event = await slow.measured()
    assert event.measured_by == ANNA
    assert [one.worker for one in event.answers] == [ANNA, BEN]
    assert event.heldout_gain == pytest.approx(0.1)
    assert [one.measure_gain for one in slow.executed if isinstance(one, MeasureSubmission)] == [False]
    assert len(event.norms) == len(command.lease.blocks)


async def test_two_who_differ_are_held_against_what_is_measured_here(slow: Slow, command: MeasureSubmission) -> None:
    for worker, off in ((ANNA, 0.0), (BEN, 0.01)):
        await slow.delegation.expect(worker)
        slow.delegation.answer(answer(command, worker, off), command.command_id)
    event = await slow.measured()
    assert event.measured_by is None
    assert event.false == (BEN,)


async def test_a_worker_that_dies_with_an_item_holds_nothing_up(slow: Slow, command: MeasureSubmission) -> None:
    await slow.delegation.expect(ANNA)
    slow.commands.push(ValidateVersion(command_id="validate:v0", version=command.lease.base_version, manifest="m"))  # type: ignore[arg-type]
    event = await slow.measured()
    assert event.measured_by is None
    assert not event.answers
    assert "validate:v0" in {one.command_id for one in slow.executed}
    assert [one.command_id for one in slow.executed].index("validate:v0") == 1, "others went on meanwhile"


async def test_where_the_second_never_answers_the_first_is_checked_here(slow: Slow, command: MeasureSubmission) -> None:
    await slow.delegation.expect(ANNA)
    slow.delegation.answer(answer(command, ANNA, 0.5), command.command_id)
    event = await slow.measured()
    assert (event.measured_by, event.false) == (None, (ANNA,))


async def test_answers_that_come_twice_late_or_from_others_are_nobodys(slow: Slow, command: MeasureSubmission) -> None:
    item_id = command.command_id
    assert not slow.delegation.answer(answer(command, BEN), item_id), "it was never given it"
    await slow.delegation.expect(ANNA)
    assert slow.delegation.answer(answer(command, ANNA), item_id)
    assert not slow.delegation.answer(answer(command, ANNA), item_id), "one answer of each counts"
    await slow.measured()
    assert not slow.delegation.answer(answer(command, BEN), item_id)
    assert slow.delegation.held(ANNA, item_id) is None


async def test_one_who_cannot_is_replaced_by_another(slow: Slow, command: MeasureSubmission) -> None:
    await slow.delegation.expect(ANNA)
    slow.delegation.fail(ANNA, command.command_id)
    await slow.delegation.expect(BEN)
    slow.delegation.answer(answer(command, BEN), command.command_id)
    event = await slow.measured()
    assert event.answers == (answer(command, BEN),), "nobody else is left to check it: measured here, at once"
    assert event.measured_by is None


async def test_nobody_checks_a_person_by_another_of_its_machines(slow: Slow, command: MeasureSubmission) -> None:
    await slow.delegation.expect(BEN)
    slow.delegation.answer(answer(command, BEN), command.command_id)
    twin = slow.delegation.expect(TWIN)
    await slow.measured()
    assert not twin.done()


async def test_a_reply_that_was_lost_is_given_again(slow: Slow, command: MeasureSubmission) -> None:
    first = slow.delegation.expect(ANNA)
    await first
    slow.delegation.forget(ANNA, first, taken=True)
    again = slow.delegation.expect(ANNA)
    assert (await again) == command


async def test_what_a_worker_was_not_there_for_goes_to_another(slow: Slow, command: MeasureSubmission) -> None:
    first = slow.delegation.expect(ANNA)
    await first
    slow.delegation.forget(ANNA, first, taken=False)  # a lease came with the same answer
    assert slow.delegation.held(ANNA, command.command_id) is None
    assert (await slow.delegation.expect(BEN)) == command


async def test_who_was_caught_meanwhile_is_not_heard(slow: Slow, command: MeasureSubmission) -> None:
    await slow.delegation.expect(ANNA)
    slow.swarm.engine.state.update_worker(ANNA, trusted=False)
    slow.delegation.answer(answer(command, ANNA), command.command_id)
    event = await slow.measured()
    assert not event.answers


async def test_a_restart_between_grant_and_answer_measures_once_more(swarm: Swarm, command: MeasureSubmission) -> None:
    before = Delegation(swarm.engine)
    old = asyncio.ensure_future(before.measured(command))
    await before.expect(ANNA)
    old.cancel()
    after = Delegation(swarm.engine)
    new = asyncio.ensure_future(after.measured(command))
    await asyncio.sleep(0)
    assert not after.answer(answer(command, ANNA), command.command_id), "this process gave it to nobody"
    assert (await after.expect(ANNA)) == command
    assert await new == ()


def test_an_answer_has_a_loss_for_each_sequence_of_each_part(command: MeasureSubmission) -> None:
    own = replace(command, own_data=True)
    assert sizes_of(command, NO_DATASET, 8, 4) == (32, 32)
    assert sizes_of(own, NO_DATASET, 8, 4) == (36, 36)
    assert [(part.start, part.stop) for part in parts_of(own)] == [(0, 8), (8, 32), (32, 36)]
    before, after = [5.0] * 36, [4.5] * 8 + [4.9, 4.8] * 12 + [4.0] * 4
    gains = gains_from(own, before, after)
    assert (gains.full, gains.part, gains.own) == pytest.approx((0.5, 0.15, 1.0))
    assert (gains.full_sequences, gains.part_sequences) == (8, 24)
    assert gains.part_se == pytest.approx(gains.part_spread / 24**0.5)


@pytest.mark.parametrize(("off", "alike"), [(0.0, True), (0.9e-3, True), (1.1e-3, False), (-1.1e-3, False)])
def test_what_is_within_the_tolerance_agrees(command: MeasureSubmission, off: float, alike: bool) -> None:
    honest, other = answer(command, ANNA), answer(command, BEN)
    after = (*other.after[:-1], other.after[-1] + off)  # in one sequence alone
    assert agree(honest, other.before, after, 1e-3) is alike


def test_a_status_says_who_measures(swarm: Swarm, command: MeasureSubmission) -> None:
    assert command.delegate
    state = swarm.engine.state
    assert gains_told(state).startswith("measured by 3 trusted workers, 1 of 1 checked")
    for worker in (ANNA, BEN, TWIN):
        state.update_worker(worker, measures=False)
    assert "no trusted worker offers" in gains_told(state)
    swarm.measured(command.lease.lease_id, gain=0.05, se=0.002)
    assert "0.05 nats a token, each known to ± 0.004" in gains_told(state)


# ---- versions -----------------------------------------------------------------------------------------------------

VERSION = ValidateVersion(
    command_id="validate:v1", version=Version(1), manifest=digest_of(b"v1"), delegate=True, tolerance=1e-3
)


def of_version(worker: WorkerId, loss: float = 3.0) -> GainAnswer:
    return GainAnswer(worker=worker, before=(loss, loss + 0.2), after=())


async def test_a_submission_is_given_out_before_a_version_that_came_first(
    slow: Slow, command: MeasureSubmission
) -> None:
    slow.commands.push(VERSION)
    await asyncio.sleep(0)
    while len(slow.delegation._jobs) < 2:
        await asyncio.sleep(0)
    slow.delegation._jobs = dict(reversed(slow.delegation._jobs.items()))
    assert (await slow.delegation.expect(ANNA)) == command
    assert (await slow.delegation.expect(BEN)) == command, "it is to be checked"
    assert (await slow.delegation.expect(TWIN)) == VERSION


async def test_a_version_is_validated_by_whoever_waits(swarm: Swarm) -> None:
    async with going_on(swarm) as slow:
        slow.commands.push(VERSION)
        item = await slow.delegation.expect(ANNA)
        assert slow.delegation.answer(of_version(ANNA), item.command_id)
        event = await slow.validated()
    assert (event.measured_by, event.val_loss, event.val_loss_se) == (ANNA, pytest.approx(3.1), pytest.approx(0.1))
    assert slow.executed == []


async def test_two_who_differ_on_a_version_are_held_against_what_is_measured_here(swarm: Swarm) -> None:
    async with going_on(swarm) as slow:
        slow.commands.push(replace(VERSION, check=True))
        for worker, loss in ((ANNA, 3.0), (BEN, 2.0)):
            await slow.delegation.expect(worker)
            slow.delegation.answer(of_version(worker, loss), VERSION.command_id)
        event = await slow.validated()
    assert (event.measured_by, event.false) == (None, (BEN,))
    (done,) = slow.executed
    assert isinstance(done, ValidateVersion)
    assert not done.delegate


async def test_a_version_that_is_to_be_validated_here_is_taken_back(swarm: Swarm) -> None:
    async with going_on(swarm) as slow:
        slow.commands.push(VERSION)
        await slow.delegation.expect(ANNA)
        slow.commands.push(replace(VERSION, delegate=False))
        event = await slow.validated()
        assert not slow.delegation.answer(of_version(ANNA), VERSION.command_id), "nobody waits for it any more"
    assert event.measured_by is None
    assert [type(one) for one in slow.reported] == [ev.VersionValidated]


async def test_a_version_that_nobody_validates_in_its_time_is_validated_here(swarm: Swarm) -> None:
    swarm.engine.state.config = replace(
        swarm.engine.state.config, delegation=DelegationConfig(wait_s=20.0, validation_wait_s=WAIT_S)
    )
    async with going_on(swarm) as slow:
        slow.commands.push(VERSION)
        await slow.delegation.expect(ANNA)
        event = await slow.validated()
    assert (event.measured_by, event.answers) == (None, ())
