"""Leases trained in a process of their own, as the agent sees it: a `Trainer` that loads no torch.

Decides that a pause ends the process at once, and the GPU's memory goes with it; that a lease whose process went by
itself is trained again, from its last saved step. Holds always: a lease that was stopped is heard of no more. Touches
the file with the lease's sequences, and the outbox.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from protocol.ids import LeaseId
from worker.apart import orders as o
from worker.apart.keeper import ProcessKeeper, WorkerLeaves
from worker.apart.process import ProcessGone, TrainerProcess
from worker.apart.ruled import Ruled
from worker.disk import private_folder
from worker.fetched import FetchedLease
from worker.machine.machine import Machine
from worker.outbox import Outbox, Submission
from worker.ports import Progress
from worker.progress import Reporter
from worker.trouble import Trouble, training_trouble_of


class _Training:
    """One lease."""

    def __init__(self, number: int, lease_id: LeaseId) -> None:
        self.number, self.lease_id = number, lease_id
        self.stopped, self.settled = threading.Event(), threading.Event()
        self.progress = Progress()
        self.process: TrainerProcess | None = None
        self.outcome: o.LeaseTrained | o.LeaseNotTrained | None = None
        self.is_over = False

    @property
    def was_cut(self) -> bool:
        """Whether it was stopped, and its process with it: one that goes on looks after that itself."""
        return self.stopped.is_set() and self.process is not None and self.process.is_gone


class ApartTrainer:
    """See `worker.ports.Trainer`. `start`, `stop`, `rest` and `wake` return at once."""

    def __init__(
        self,
        keeper: ProcessKeeper,
        machine: Callable[[], Machine],
        outbox: Outbox,
        reporter: Reporter,
        *,
        ruled: Ruled,
    ) -> None:
        self._keeper, self._machine, self._outbox = keeper, machine, outbox
        self._reporter, self._ruled = reporter, ruled
        self._training: _Training | None = None
        self._share = 1.0

    @property
    def progress(self) -> Progress:
        """Of the present or last lease."""
        return self._training.progress if self._training else Progress()

    def start(
        self, fetched: FetchedLease, done: Callable[[Submission], None], failed: Callable[[Trouble], None]
    ) -> None:
        """Train `fetched`, in a thread that waits for it."""
        before = self._training
        training = self._training = _Training(self._keeper.next_number(), fetched.lease.lease_id)

        def work() -> None:
            outcome: Submission | Trouble | None
            try:
                if before is not None and before.was_cut:  # in its last moment it may have stored what nobody waits for
                    self._outbox.drop(before.lease_id)
                outcome = self._trained(training, fetched)
            except WorkerLeaves:
                return
            except Exception as error:  # whoever waits for this thread must hear of it
                outcome = training_trouble_of(error)
            finally:
                training.is_over = True
            if training.stopped.is_set() or outcome is None:
                return
            if isinstance(outcome, Submission):
                done(outcome)
            else:
                failed(outcome)

        threading.Thread(target=work, name="training", daemon=True).start()

    def stop(self) -> None:
        """Stop the present lease at the end of its micro-step."""
        training = self._training
        if training is None or training.is_over or training.stopped.is_set():
            return
        training.stopped.set()
        training.settled.set()
        if training.process is not None:
            with contextlib.suppress(ProcessGone):
                training.process.tell(o.StopLease(number=training.number))

    def rest(self) -> None:
        """End the process now; what is to be finished is let finish."""
        training = self._training
        if training is None or training.is_over or training.stopped.is_set():
            self._keeper.rest()

    def wake(self) -> None:
        """The pause is over."""
        self._keeper.wake()

    def pace(self, share: float) -> None:
        """Told with the next lease, too, whose process may be another."""
        self._share, training = share, self._training
        if training is not None and not training.is_over and training.process is not None:
            with contextlib.suppress(ProcessGone):
                training.process.tell(o.PaceTraining(share=share))

    def join(self, timeout_s: float) -> bool:
        """End it for good; whether it is gone."""
        self.stop()
        return self._keeper.close(timeout_s)

    def _trained(self, training: _Training, fetched: FetchedLease) -> Submission | Trouble | None:
        """What comes of it; None where it was stopped."""
        path = private_folder(self._keeper.folder) / f"lease-{training.number}.npy"
        try:
            np.save(path, fetched.sequences, allow_pickle=False)
            while not training.stopped.is_set():
                process = self._keeper.ready()
                outcome = self._tried(training, process, fetched, path)
                if training.stopped.is_set():
                    return None
                if isinstance(outcome, o.LeaseTrained):
                    self._keeper.came_through()
                    self._outbox.learn(outcome.submission)
                    return outcome.submission
                if outcome is not None and not outcome.device_lost:
                    return Trouble(cause=outcome.cause, detail=outcome.detail)
                if (trouble := self._keeper.crashed(process)) is not None:
                    return trouble
            return None
        finally:
            path.unlink(missing_ok=True)

    def _tried(
        self, training: _Training, process: TrainerProcess, fetched: FetchedLease, path: Path
    ) -> o.LeaseTrained | o.LeaseNotTrained | None:
        """In this process; None where it went, or the lease was stopped."""
        training.process, training.outcome = process, None
        training.settled.clear()
        order = o.TrainLease(
            number=training.number,
            description=fetched.run.description,
            machine=self._ruled.of_now(self._machine()),
            lease=fetched.lease,  # type: ignore[arg-type]  # an agent's leases are received ones
            digests=fetched.digests,
            sequences=str(path),
        )
        with (
            self._keeper.talk(training.number, process, lambda word: self._on_word(training, word)),
            contextlib.suppress(ProcessGone),
        ):
            process.tell(o.PaceTraining(share=self._share))
            process.tell(order)
            if training.stopped.is_set():  # between the look above and the order
                process.tell(o.StopLease(number=training.number))
                return None
            training.settled.wait()
        return training.outcome

    def _on_word(self, training: _Training, word: Any) -> None:
        if training.stopped.is_set():
            return
        if isinstance(word, o.LeaseStepped):
            progress = training.progress
            progress.inner_step, progress.tokens_per_s = word.done, word.tokens_per_s
            if word.loss is not None:
                progress.train_loss = word.loss
            self._reporter.step(word.done, word.total, word.loss, word.tokens_per_s)
            return
        training.outcome = word
        training.settled.set()
