"""Leases in the trainer's process: the room that trains them, and what it needs of the agent's disk.

Decides how often steps are told: so often that a person sees them move, and no oftener. Progress and outbox are written
here; whether there is room, and what gives way, the agent decides.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from worker.apart import orders as o
from worker.apart.answers import BLOCKS, end_measuring, run_of
from worker.apart.pipe import MessagePipe
from worker.blocks import BlockCache
from worker.fetched import FetchedLease
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.outbox import Outbox, Submission
from worker.pauses import Pauses
from worker.progress import Field
from worker.train.lease_state import LeaseStates
from worker.train.training import TrainingRoom
from worker.trouble import Trouble, training_trouble_of

STEP_EVERY_S: Final = 0.1


class DistantDisk:
    """The disk as training needs it; a `worker.ports.WorkDisk`. Deletes nothing."""

    def __init__(self, folder: Path, room: Callable[..., bool]) -> None:
        self.blocks, self.progress = BlockCache(folder / BLOCKS), LeaseStates(folder / "progress")
        self._room = room

    def make_room(self, coming_bytes: int) -> bool:
        """Whether so many bytes may be written."""
        return self._room("room", coming_bytes)

    def has_room_for_progress(self, state_bytes: int, submission_bytes: int) -> bool:
        """Whether progress may be."""
        return self._room("progress", state_bytes, submission_bytes)

    def give_way(self) -> bool:
        """Whether anything could be deleted for finished work."""
        return self._room("way")


class LeaseTaker:
    """Trains what the agent orders."""

    def __init__(self, begun: o.Begin, pipe: MessagePipe, room: Callable[..., bool]) -> None:
        self._folder = folder = Path(begun.folder)
        self._pipe = pipe
        self._disk, self._outbox = DistantDisk(folder, room), Outbox(folder / "outbox")
        self._options = WorkerOptions(
            keep_progress_every_s=begun.keep_progress_every_s,
            progress_bytes_a_day=begun.progress_bytes_a_day,
            pauses=dataclasses.replace(Pauses(), disk_s=begun.disk_pause_s),
        )
        self._room: TrainingRoom | None = None
        self._number, self._share = 0, 1.0

    def take(self, order: o.TrainLease | o.StopLease | o.PaceTraining) -> None:
        """Begin, stop, or go on at another pace; returns at once."""
        match order:
            case o.PaceTraining():
                self._share = order.share
                if self._room is not None:
                    self._room.pace(order.share)
            case o.StopLease():
                if self._room is not None and order.number == self._number:
                    self._room.stop()
            case o.TrainLease():
                self._begin(order)

    def rest(self) -> None:
        """Something else than a lease is coming: a model that is kept for the next one goes."""
        if self._room is not None:
            self._room.rest()

    def _begin(self, order: o.TrainLease) -> None:
        number = order.number

        def done(submission: Submission) -> None:
            self._pipe.send(o.LeaseTrained(number=number, submission=submission))

        def failed(trouble: Trouble) -> None:
            self._pipe.send(
                o.LeaseNotTrained(
                    number=number, cause=trouble.cause, detail=trouble.detail, device_lost=trouble.device_lost
                )
            )

        try:
            fetched = FetchedLease(
                lease=order.lease,
                run=run_of(order.description),
                digests=order.digests,
                sequences=np.load(order.sequences, allow_pickle=False),
            )
            news = LeaseNews(self._pipe, number)
            self._room_for(order.machine, news).start(fetched, done, failed, order.machine, news)
            self._number = number
        except Exception as error:  # whatever it was: the agent hears of it, and this process takes other orders
            failed(training_trouble_of(error))

    def _room_for(self, machine: Machine, news: LeaseNews) -> TrainingRoom:
        """One for all leases: the next waits there for the one before, whatever machine it is for."""
        if self._room is None:
            make_way = functools.partial(end_measuring, self._folder, machine.device)
            self._room = TrainingRoom(self._options, machine, self._disk, self._outbox, news, make_way=make_way)
            self._room.pace(self._share)
        return self._room


class LeaseNews:
    """A `Reporter` of how lease `number` goes."""

    def __init__(self, pipe: MessagePipe, number: int) -> None:
        self._pipe, self._number, self._told_s = pipe, number, 0.0

    def say(self, event: str, text: str, **fields: Field) -> None:
        """For the volunteer."""
        self._pipe.send(o.NewsSaid(event=event, text=text, fields=fields))

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """Told where it is news."""
        now_s = time.monotonic()
        if loss is None and done < total and now_s - self._told_s < STEP_EVERY_S:
            return
        self._told_s = now_s
        self._pipe.send(
            o.LeaseStepped(number=self._number, done=done, total=total, loss=loss, tokens_per_s=tokens_per_s)
        )

    def close(self) -> None:
        """Nothing."""
