"""When there is a trainer's process, and what becomes of orders when it goes.

Decides that it is started with the first order that needs one and ended when nothing has needed it for a while, or at
once when a pause begins. Holds always: an order that a pause interrupted is given again after its end; a process that
goes by itself is started again, three times in a row at the most, so that trouble which stays is told. Touches the
run's folder for the process, and what the agent keeps of its disk.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from protocol import errors
from protocol.causes import Cause
from protocol.errors import BarnraiseError
from worker.apart import orders as o
from worker.apart.process import ProcessGone, TrainerProcess
from worker.disk import private_folder
from worker.home import RunHome
from worker.options import WorkerOptions
from worker.progress import Reporter
from worker.trouble import Trouble
from worker.words import say

LINGERS_S: Final = 60.0
"""A wait between two rounds is shorter, and loading torch and opening a GPU again takes seconds."""
MOST_IN_A_ROW: Final = 3
SOON_S: Final = 600.0
"""A process that lived longer was good for something."""
LOOK_EVERY_S: Final = 1.0
FOLDER: Final = "trainer"

OnWord = Callable[[Any], None]
"""Hears what is said about one number; None: the process is gone."""


class WorkerLeaves(BarnraiseError):
    """No order is carried out any more."""


class ProcessKeeper:
    """Owns the process. `ready` and `ask` may wait, for a pause's end, too."""

    def __init__(
        self, options: WorkerOptions, home: RunHome, reporter: Reporter, *, lingers_s: float = LINGERS_S
    ) -> None:
        self._options, self._home, self._reporter, self._lingers_s = options, home, reporter, lingers_s
        self.folder = home.folder / FOLDER
        self._changed = threading.Condition()
        self._process: TrainerProcess | None = None
        self._born_s, self._crashes = 0.0, 0
        self._is_resting = self._is_closed = False
        self._numbers = itertools.count(1)
        self._talks: dict[int, tuple[TrainerProcess, OnWord]] = {}
        self._idle: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None: there is none."""
        process = self._process
        return None if process is None or process.is_gone else process.pid

    def next_number(self) -> int:
        """For an order."""
        return next(self._numbers)

    def ready(self) -> TrainerProcess:
        """The process; waits for a pause's end, and starts one where there is none. WorkerLeaves at the end of all."""
        with self._changed:
            while self._is_resting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise WorkerLeaves
            if self._process is None or self._process.is_gone:
                private_folder(self.folder)
                self._process = TrainerProcess(self.folder / "log", self._on_word, self._on_end)
                self._born_s = time.monotonic()
                with contextlib.suppress(ProcessGone):  # whoever orders something finds out
                    self._process.tell(self._begin())
            return self._process

    @contextlib.contextmanager
    def talk(self, number: int, process: TrainerProcess, on_word: OnWord) -> Iterator[None]:
        """Inside, `on_word` hears of `number`, and the process is not idle."""
        self._talks[number] = process, on_word
        try:
            if process.is_gone:
                on_word(None)
            yield
        finally:
            self._talks.pop(number, None)
            self._look_idle()

    def ask(self, order: Callable[[int], Any]) -> Any:
        """Give an order and wait for what it comes to, again where the process went meanwhile.

        Raises what the order raised there; BarnraiseError where it cannot be carried out.
        """
        while True:
            number, process = self.next_number(), self.ready()
            settled, answers = threading.Event(), list[Any]()

            def on_word(word: Any, settled: threading.Event = settled, answers: list[Any] = answers) -> None:
                answers.append(word)
                settled.set()

            with self.talk(number, process, on_word), contextlib.suppress(ProcessGone):
                process.tell(order(number))
                settled.wait()
            answer = answers[0] if answers else None
            if isinstance(answer, o.Answered):
                return answer.found
            if isinstance(answer, o.NotAnswered) and not answer.device_lost:
                raise _error_of(answer)
            trouble = self.crashed(process)
            if trouble is not None:
                raise BarnraiseError(trouble.detail, cause=trouble.cause)

    def crashed(self, process: TrainerProcess) -> Trouble | None:
        """It went, or can use its device no more: None where another one may do better, what is wrong otherwise."""
        if process.was_ended:
            return None
        with self._changed:
            if process is self._process:
                self._process = None
                soon = time.monotonic() - self._born_s < SOON_S
                self._crashes = self._crashes + 1 if soon else 1
            again = self._crashes < MOST_IN_A_ROW and process.trouble is None
        was_killed, detail = process.was_killed, process.last_words()
        process.end()
        if again:
            self._reporter.say("trainer_gone", say("trainer_killed" if was_killed else "trainer_gone"), detail=detail)
            return None
        self._crashes = 0
        return Trouble(cause=Cause.OUT_OF_MEMORY if was_killed else Cause.DEVICE_FAILED, detail=detail)

    def came_through(self) -> None:
        """It has done what it is for."""
        self._crashes = 0

    def rest(self) -> None:
        """End the process now, and with it what it takes of the GPU; orders wait."""
        self._end(resting=True)

    def wake(self) -> None:
        """What waits goes on."""
        with self._changed:
            self._is_resting = False
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """End it for good; whether it is gone."""
        self._is_closed = True
        process = self._end()
        if self._idle is not None:
            self._idle.cancel()
        return process is None or process.wait(timeout_s)

    def _end(self, *, resting: bool = False) -> TrainerProcess | None:
        with self._changed:
            self._is_resting = self._is_resting or resting
            process, self._process = self._process, None
            self._changed.notify_all()
        if process is not None:
            process.end()
        return process

    def _begin(self) -> o.Begin:
        options = self._options
        return o.Begin(
            folder=str(self._home.folder),
            keep_progress_every_s=options.keep_progress_every_s,
            progress_bytes_a_day=options.progress_bytes_a_day,
            disk_pause_s=options.pauses.disk_s,
        )

    def _look_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if not self._is_closed:
            self._idle = threading.Timer(self._lingers_s, self._end_idle)
            self._idle.daemon = True
            self._idle.start()

    def _end_idle(self) -> None:
        if not self._talks:
            self._end()

    def _on_word(self, word: Any) -> None:
        match word:
            case o.NewsSaid():
                self._reporter.say(word.event, word.text, **word.fields)
            case o.RoomAsked():
                self._answer_room(word)
            case _:
                _, on_word = self._talks.get(word.number, (None, None))
                if on_word is not None:
                    on_word(word)

    def _on_end(self, process: TrainerProcess) -> None:
        for of, on_word in list(self._talks.values()):
            if of is process:
                on_word(None)

    def _answer_room(self, asked: o.RoomAsked) -> None:
        disk, process = self._home.disk, self._process
        match asked.want:
            case "room":
                given = disk.make_room(asked.coming_bytes)
            case "progress":
                given = disk.has_room_for_progress(asked.coming_bytes, asked.submission_bytes)
            case "way":
                given = disk.give_way()
        if process is not None:
            with contextlib.suppress(ProcessGone):
                process.tell(o.RoomSaid(number=asked.number, given=given))


def _error_of(answer: o.NotAnswered) -> Exception:
    if answer.disk_errno is not None:
        return OSError(answer.disk_errno, answer.text)
    kind = getattr(errors, answer.error, None)
    if isinstance(kind, type) and issubclass(kind, BarnraiseError):
        return kind(answer.text, cause=answer.cause)
    return BarnraiseError(answer.text, cause=answer.cause)
