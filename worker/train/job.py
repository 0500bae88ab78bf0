"""One lease in the training room: what stops it, how far it is, and who hears of that.

Decides that steps of an earlier process say nothing about this one's speed. Holds always: a step is told to whom the
lease was given with, and never as another lease's. Touches nothing; written by the training thread, read by heartbeats.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from worker.fetched import FetchedLease
from worker.ports import Progress
from worker.progress import Reporter


class TrainingJob:
    """One lease in training."""

    def __init__(self, fetched: FetchedLease, reporter: Reporter) -> None:
        self.fetched, self.reporter = fetched, reporter
        self.stop = threading.Event()
        self.progress = Progress()
        self.thread: threading.Thread | None = None
        self.rests = self.has_stopped = False
        """Whether its memory goes back when it has stopped; whether it has."""

    def stepping(self) -> Callable[[int, float | None], None]:
        """From now on: what is to be called after each step, with its number and its loss."""
        lease = self.fetched.lease
        tokens_a_step = lease.batch_sequences * self.fetched.run.description.sequence_length
        started_s = time.perf_counter()
        taken_up: int | None = None

        def on_step(done: int, loss: float | None) -> None:
            nonlocal taken_up
            if taken_up is None:
                taken_up = done - 1  # what an earlier process did says nothing about this one's speed
                if taken_up:
                    text = f"goes on after step {taken_up} of {lease.inner_steps}"
                    self.reporter.say("taken_up", text, step=taken_up)
            progress = self.progress
            progress.inner_step = done
            progress.tokens_per_s = (done - taken_up) * tokens_a_step / max(time.perf_counter() - started_s, 1e-9)
            if loss is not None:
                progress.train_loss = loss
            self.reporter.step(done, lease.inner_steps, loss, progress.tokens_per_s)

        return on_step
