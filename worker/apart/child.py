"""What runs in the trainer's process: orders are read, and torch carries them out.

Decides nothing that it is not told: one lease trains at a time (worker/train/training.py), and other orders are carried
out beside it. Holds always: the block cache is the agent's, so that nothing of it is deleted here but by asking; when
the agent is gone, so is this process. Touches the device, the run's progress and outbox, and the blocks that it makes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from protocol.allocator import keep_little
from protocol.collection import collect_as_usual, collect_rarely, keep_what_is_read
from protocol.errors import BarnraiseError
from protocol.parent import end_with_parent
from protocol.storage import disk_error_number
from worker.apart import orders as o
from worker.apart.pipe import MessagePipe

AT_ONCE: Final = 4
"""Orders beside training: as many blocks as come at once may be made of steps."""
KILLED_FIRST: Final = "500"
"""Where memory runs out, the system is to end this process, and not the agent, which can start another."""


def main() -> None:
    """Serve the agent at the other end of standard input and output until it is gone."""
    end_with_parent()
    _go_first()
    keep_little()
    collect_rarely()
    # what libraries print goes to the log, and never between two messages
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    pipe = MessagePipe(source, sink, o.WORD, o.ORDER)
    orders = OrderTaker(pipe)
    while (order := pipe.receive()) is not None:
        orders.take(order)
    os._exit(0)  # in the middle of whatever it is: all that it writes is whole or not there


def _go_first() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(KILLED_FIRST)


class OrderTaker:
    """Carries orders out. `take` returns at once."""

    def __init__(self, pipe: MessagePipe) -> None:
        self._pipe = pipe
        self._begun: o.Begin | None = None
        self._rooms: dict[int, tuple[threading.Event, list[bool]]] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, "orders")
        self._training: Any = None  # a `LeaseTaker`, once there was a lease

    def take(self, order: Any) -> None:
        """The next one."""
        match order:
            case o.Begin():
                self._begun = order
            case o.RoomSaid():
                answered, given = self._rooms[order.number]
                given.append(order.given)
                answered.set()
            case o.TrainLease() | o.StopLease() | o.PaceTraining():
                if self._training is None:
                    from worker.apart.taking import LeaseTaker

                    keep_what_is_read()
                    collect_as_usual()
                    self._training = LeaseTaker(self.begun, self._pipe, self.room)
                self._training.take(order)
            case _:
                if isinstance(order, o.MeasureLosses) and self._training is not None:
                    self._training.rest()
                self._pool.submit(self._answer, order)

    @property
    def begun(self) -> o.Begin:
        """The first order."""
        assert self._begun is not None
        return self._begun

    def room(self, want: o.RoomWanted, coming_bytes: int = 0, submission_bytes: int = 0) -> bool:
        """Ask the agent, who keeps the disk."""
        asked: tuple[threading.Event, list[bool]] = (threading.Event(), [])
        with self._lock:
            self._numbers += 1
            number = self._numbers
            self._rooms[number] = asked
        self._pipe.send(
            o.RoomAsked(number=number, want=want, coming_bytes=coming_bytes, submission_bytes=submission_bytes)
        )
        asked[0].wait()
        del self._rooms[number]
        return asked[1][0]

    def _answer(self, order: Any) -> None:
        from worker.apart.answers import answer
        from worker.trouble import training_trouble_of

        collect_as_usual()
        try:
            found = answer(order, Path(self.begun.folder))
        except Exception as error:
            trouble = training_trouble_of(error)
            ours = isinstance(error, BarnraiseError)
            said = o.NotAnswered(
                number=order.number,
                error=type(error).__name__,
                text=str(error) or type(error).__name__,
                cause=getattr(error, "cause", None) if ours else trouble.cause,
                disk_errno=None if ours else disk_error_number(error),
                device_lost=trouble.device_lost,
            )
            self._pipe.send(said)
            return
        self._pipe.send(o.Answered(number=order.number, found=found))
