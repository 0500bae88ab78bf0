"""Who measures what in the coordinator's place: items go to trusted workers that wait, and answers come back.

Decides which of those who wait is given an item, and when nobody is waited for any more: after
`DelegationConfig.wait_s`, with as many answers as there are by then. Holds always: an item goes to nobody of its
submission's person, and to two workers of one person never; one answer of each counts, and none of whoever was not
given the item; what is lost (a reply, a worker, this process) costs time at most, for the command stays pending and is
measured here in the end. Nothing of it is journalled, and none of it is part of the engine's state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.engine import measuring
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.engine import Engine
from coordinator.engine.rows import WorkerRecord
from protocol.ids import WorkerId

Item = asyncio.Future[MeasureSubmission]


@dataclass(slots=True)
class _Job:
    """One submission that others measure."""

    command: MeasureSubmission
    person: str
    """Whose it is."""
    done: asyncio.Future[None]
    holders: set[WorkerId] = field(default_factory=set)
    """Who has it and has not answered."""
    asked: set[str] = field(default_factory=set)
    """People who were given it, whatever came of that."""
    answers: list[GainAnswer] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        """Answers that are still to come from somebody who does not have it yet."""
        return 1 + self.command.check - len(self.answers) - len(self.holders)


class Delegation:
    """One pump's. Used from its event loop alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[WorkerId, Item] = {}

    # ---- for the pump ------------------------------------------------------------------------------------------

    def takes(self, command: MeasureSubmission) -> bool:
        """Whether somebody is here who may measure it."""
        return command.delegate and bool(measuring.measurers(self._engine.state, self._person(command)))

    async def measured(self, command: MeasureSubmission) -> tuple[GainAnswer, ...]:
        """What trusted workers say of it, as many as it wants or fewer; no more than two."""
        job = _Job(command, self._person(command), asyncio.get_running_loop().create_future())
        self._jobs[command.command_id] = job
        try:
            self._hand_out()
            await asyncio.wait({job.done}, timeout=self._engine.state.config.delegation.wait_s)
            return tuple(job.answers)
        finally:
            del self._jobs[command.command_id]

    def _person(self, command: MeasureSubmission) -> str:
        return self._engine.state.person_of(command.lease)

    # ---- for workers' calls ------------------------------------------------------------------------------------

    def expect(self, worker: WorkerId) -> Item:
        """The next item for a worker that waits: at once where it has one, or there is one for it."""
        item: Item = asyncio.get_running_loop().create_future()
        self._waiting[worker] = item
        self._hand_out()
        return item

    def forget(self, worker: WorkerId, item: Item, *, taken: bool) -> None:
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

    def held(self, worker: WorkerId, item_id: str) -> MeasureSubmission | None:
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
            job = job or next((job for job in self._jobs.values() if self._is_for(job, record)), None)
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
