"""Who measures what in the coordinator's place: items go to trusted workers that wait, and answers come back.

Decides which of those who wait is given an item, submissions before versions, and when nobody is waited for any more:
after `DelegationConfig.wait_s` (`validation_wait_s`), with as many answers as there are by then, or when the item is
taken back. Holds always: an item goes to nobody of its submission's person, and to two workers of one person never; one
answer of each counts, and none of whoever was not given the item; what is lost (a reply, a worker, this process) costs
time at most, for the command stays pending and is measured here in the end. Nothing of it is journalled, and none of it
is part of the engine's state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.engine import measuring
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import Item, MeasureSubmission
from coordinator.engine.engine import Engine
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.validating import NOBODY
from protocol.ids import WorkerId

ComingItem = asyncio.Future[Item]


@dataclass(slots=True)
class _Job:
    """One submission, or version, that others measure."""

    command: Item
    person: str
    """Whose it is."""
    done: asyncio.Future[None]
    holders: set[WorkerId] = field(default_factory=set)
    """Who has it and has not answered."""
    asked: set[str] = field(default_factory=set)
    """People who were given it, whatever came of that."""
    answers: list[GainAnswer] = field(default_factory=list)
    withdrawn: bool = False
    """It is done here."""

    @property
    def wanted(self) -> int:
        """Answers that are still to come from somebody who does not have it yet."""
        return 1 + self.command.check - len(self.answers) - len(self.holders)


class Delegation:
    """One pump's. Used from its event loop alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[WorkerId, ComingItem] = {}

    # ---- for the pump ------------------------------------------------------------------------------------------

    def takes(self, command: Item) -> bool:
        """Whether somebody is here who may measure it."""
        return command.delegate and bool(measuring.measurers(self._engine.state, self._person(command)))

    async def measured(self, command: Item) -> tuple[GainAnswer, ...] | None:
        """What trusted workers say of it, as many as it wants or fewer; no more than two. None: it was taken back."""
        job = _Job(command, self._person(command), asyncio.get_running_loop().create_future())
        self._jobs[command.command_id] = job
        try:
            self._hand_out()
            config = self._engine.state.config.delegation
            is_gain = isinstance(command, MeasureSubmission)
            await asyncio.wait({job.done}, timeout=config.wait_s if is_gain else config.validation_wait_s)
            return None if job.withdrawn else tuple(job.answers)
        finally:
            del self._jobs[command.command_id]

    def take_back(self, command_id: str) -> None:
        """It is done here now, whoever has it; nothing where it is nobody's."""
        job = self._jobs.get(command_id)
        if job is not None and not job.done.done():
            job.withdrawn = True
            job.done.set_result(None)

    def _person(self, command: Item) -> str:
        return self._engine.state.person_of(command.lease) if isinstance(command, MeasureSubmission) else NOBODY

    # ---- for workers' calls ------------------------------------------------------------------------------------

    def expect(self, worker: WorkerId) -> ComingItem:
        """The next item for a worker that waits: at once where it has one, or there is one for it."""
        item: ComingItem = asyncio.get_running_loop().create_future()
        self._waiting[worker] = item
        self._hand_out()
        return item

    def forget(self, worker: WorkerId, item: ComingItem, *, taken: bool) -> None:
        """The worker waits no more. What it was to be given, and did not get, is for whoever comes."""
        if self._waiting.get(worker) is item:
            del self._waiting[worker]
        if taken or not item.done() or item.cancelled():
            return
        job = self._jobs.get(item.result().command_id)
        if job is not None and worker in job.holders:
            job.holders.discard(worker)
            job.asked.discard(self._engine.state.workers[worker].person)
            self._hand_out()

    def held(self, worker: WorkerId, item_id: str) -> Item | None:
        """The item, where this worker has it and has not answered."""
        job = self._jobs.get(item_id)
        return job.command if job is not None and worker in job.holders else None

    def answer(self, answer: GainAnswer, item_id: str) -> bool:
        """Take what a worker says of an item that it has; whether anybody still waits for it."""
        job = self._given_up(answer.worker, item_id)
        if job is None:
            return False
        if measuring.may_measure(self._engine.state.workers[answer.worker]):  # it may have lost that meanwhile
            job.answers.append(answer)
        self._look_at(job)
        return True

    def fail(self, worker: WorkerId, item_id: str) -> None:
        """A worker cannot measure an item, or its answer is none."""
        job = self._given_up(worker, item_id)
        if job is not None:
            self._look_at(job)

    def _given_up(self, worker: WorkerId, item_id: str) -> _Job | None:
        job = self._jobs.get(item_id)
        if job is None or worker not in job.holders:
            return None
        job.holders.discard(worker)
        return job

    # ---- handing out -------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """To those who wait: what they have already and may not have heard of, or the oldest that is for them."""
        for worker, item in list(self._waiting.items()):
            record = self._engine.state.workers.get(worker)
            if item.done() or record is None or not measuring.may_measure(record):
                continue
            job = next((job for job in self._jobs.values() if worker in job.holders), None)
            # a round waits for its submissions' gains, and nothing for a version's loss
            jobs = sorted(self._jobs.values(), key=lambda job: not isinstance(job.command, MeasureSubmission))
            job = job or next((job for job in jobs if self._is_for(job, record)), None)
            if job is not None:
                job.holders.add(worker)
                job.asked.add(record.person)
                item.set_result(job.command)

    def _is_for(self, job: _Job, record: WorkerRecord) -> bool:
        return not job.done.done() and job.wanted > 0 and record.person not in {job.person, *job.asked}

    def _look_at(self, job: _Job) -> None:
        """Whether more is to come of it."""
        if not job.done.done() and not job.holders and (job.wanted <= 0 or not self._others(job)):
            job.done.set_result(None)
        self._hand_out()

    def _others(self, job: _Job) -> Sequence[WorkerRecord]:
        here = measuring.measurers(self._engine.state, job.person)
        return [record for record in here if record.person not in job.asked]
