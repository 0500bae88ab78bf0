"""A simulated volunteer's trainer: takes its virtual time, and gives what `SimulatedWork` says; a `ports.Trainer`.

Decides how long a lease takes. Always: the blocks are read from the volunteer's disk as the real trainer reads them,
and held against what was signed; the submission is in the outbox before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.ids import BlockId, Digest, digest_of
from simulator.deterministic.disk import stretched
from simulator.deterministic.loop import VirtualLoop
from simulator.deterministic.volunteer_spec import VolunteerSpec
from simulator.deterministic.work import SimulatedWork, TrainedLease
from worker.blocks import BlockCache
from worker.fetched import FetchedLease
from worker.files import Files
from worker.outbox import Outbox, Submission
from worker.ports import Progress
from worker.trouble import Trouble


class OnTraining(Protocol):
    """Told what a lease is trained from: the lease, and the digest of what each block really holds."""

    def __call__(self, fetched: FetchedLease, held: dict[BlockId, Digest], /) -> None:
        """Raises where that is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    fetched: FetchedLease
    started_s: float
    takes_s: float
    timer: asyncio.TimerHandle


class SimulatedTrainer:
    """One process's."""

    def __init__(
        self,
        index: int,
        spec: VolunteerSpec,
        loop: VirtualLoop,
        work: SimulatedWork,
        draw: random.Random,
        blocks: BlockCache,
        files: Files,
        outbox: Outbox,
        on_training: OnTraining,
    ) -> None:
        self._index, self._spec, self._loop, self._work, self._draw = index, spec, loop, work, draw
        self._blocks, self._files, self._outbox, self._on_training = blocks, files, outbox, on_training
        self._training: _Training | None = None
        self.progress = Progress()

    def start(
        self, fetched: FetchedLease, done: Callable[[Submission], None], failed: Callable[[Trouble], None]
    ) -> None:
        """Train."""
        del failed  # a device that fails is tests/worker's to try
        self.stop()
        held = {
            block: digest_of(self._files.read(self._blocks.path(digest))) for block, digest in fetched.digests.items()
        }
        self._on_training(fetched, held)
        whole_s = fetched.lease.inner_steps * self._spec.step_s * self._draw.uniform(0.8, 1.3)
        takes_s = whole_s * self._work.share_left(self._index, fetched)
        timer = self._loop.call_later(takes_s, self._end, fetched, whole_s, done)
        self._training = _Training(fetched=fetched, started_s=self._loop.now_s, takes_s=takes_s, timer=timer)

    def stop(self) -> None:
        """At once."""
        training, self._training = self._training, None
        if training is not None:
            training.timer.cancel()

    def rest(self) -> None:
        """Nothing is held."""

    def wake(self) -> None:
        """Nothing was given up."""

    def pace(self, share: float) -> None:
        """No rule makes it slower."""

    def join(self, timeout_s: float) -> bool:
        """Nothing goes on."""
        del timeout_s
        return True

    def kill(self) -> None:
        """The process died in the middle of it."""
        training = self._training
        self.stop()
        if training is not None:
            share = min(1.0, (self._loop.now_s - training.started_s) / training.takes_s)
            self._work.interrupted(self._index, training.fetched, share)

    def _end(self, fetched: FetchedLease, train_s: float, done: Callable[[Submission], None]) -> None:
        self._training = None
        lease, trained = fetched.lease, self._work.trained(self._index, fetched)
        if self._spec.liar:
            lie = stretched(f"{lease.lease_id} {self._index} lies", len(trained.payload))
            trained = TrainedLease(payload=lie)
        submission = Submission(
            lease_id=lease.lease_id,
            digest=digest_of(trained.payload),
            payload_bytes=len(trained.payload),
            codec=lease.codec,
            inner_steps_done=lease.inner_steps,
            tokens=lease.inner_steps,
            train_loss_first=trained.loss_first,
            train_loss_last=trained.loss_last,
            train_s=train_s,
            micro_batch=trained.micro_batch,
            arithmetic=self._spec.arithmetic,
        )
        self._outbox.save(submission, trained.payload)
        done(submission)
