"""What the volunteer sees: one line for each thing that happened, and how far the present lease is.

Decides the form only: a live bar on a terminal, plain lines elsewhere, JSON lines for programs, or nothing. Each thing
has a stable name and fields beside its sentence. Writes to standard output.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from worker import sentences
from worker.lease import printable
from worker.options import Output

PLAIN_STEP_EVERY_S = 15.0
MAX_LINE_CHARACTERS = 2000  # whatever a coordinator makes us say, it is one line, and it cannot steer a terminal
Field = str | int | float | bool | None | list[int] | list[float]


class Reporter(Protocol):
    """Where a worker's news goes."""

    def say(self, event: str, text: str, **fields: Field) -> None:
        """Something happened."""

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """An inner step ended. Called from the training thread."""

    def close(self) -> None:
        """Nothing follows."""


class QuietReporter:
    """Says nothing."""

    def say(self, event: str, text: str, **fields: Field) -> None:
        """Nothing."""

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainReporter:
    """Lines for a log: time and sentence; steps only every so often."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_step_s = 0.0

    def say(self, event: str, text: str, **fields: Field) -> None:
        """One line."""
        print(f"{time.strftime('%H:%M:%S')} {printable(text, MAX_LINE_CHARACTERS)}", file=self._stream, flush=True)

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """A line, if the last one is long ago."""
        now_s = time.monotonic()
        if now_s - self._last_step_s >= PLAIN_STEP_EVERY_S:
            self._last_step_s = now_s
            self.say("step", sentences.step(done, total, loss, tokens_per_s))

    def close(self) -> None:
        """Nothing."""


class JsonReporter:
    """One JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, event: str, text: str, **fields: Field) -> None:
        """One object."""
        line = json.dumps({"at_s": round(time.time(), 3), "event": event, "text": text, **fields})
        print(line, file=self._stream, flush=True)

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """An object for each step whose loss was read."""
        if loss is not None:
            text = sentences.step(done, total, loss, tokens_per_s)
            self.say("step", text, done=done, total=total, loss=loss, tokens_per_s=round(tokens_per_s, 1))

    def close(self) -> None:
        """Nothing."""


class LiveReporter:
    """Lines, with a bar for the present lease below them."""

    def __init__(self) -> None:
        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._line: Status | None = None
        self._loss = "loss …"

    def say(self, event: str, text: str, **fields: Field) -> None:
        """One line above the bar."""
        line = Text.assemble((f"{time.strftime('%H:%M:%S')} ", "dim"), printable(text, MAX_LINE_CHARACTERS))
        self._console.print(line, highlight=False)  # in one piece: the live line below would break it

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """Move the bar; it goes away with the last step."""
        if loss is not None:
            self._loss = f"loss {loss:.3f}"
        if self._task is None:
            self._hide()
            self._progress.start()
            self._task = self._progress.add_task("", total=total)
        self._progress.update(
            self._task, completed=done, total=total, description=f"{self._loss}  {tokens_per_s:,.0f} tokens/s"
        )
        if done >= total:
            self.close()

    def stand(self, sentence: str) -> None:
        """The live line, where there is no bar."""
        if self._task is not None:
            return
        text = Text(printable(sentence, MAX_LINE_CHARACTERS), overflow="ellipsis", no_wrap=True)
        if self._line is None:
            self._line = self._console.status(text, spinner="line")
            self._line.start()
        else:
            self._line.update(text)

    def _hide(self) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None

    def close(self) -> None:
        """Take the bar away."""
        self._hide()
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.stop()


def make_reporter(output: Output, stream: TextIO | None = None) -> Reporter:
    """The reporter for `output`; `auto` is live on a terminal and plain elsewhere."""
    target = stream or sys.stdout
    if output == "quiet":
        return QuietReporter()
    if output == "json":
        return JsonReporter(target)
    if output == "auto" and target.isatty():
        return LiveReporter()
    return PlainReporter(target)
