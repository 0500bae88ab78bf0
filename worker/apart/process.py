"""One process that trains: how it is started, told something, ended, and how its end is noticed.

Decides that it never outlives the agent: it reads from a pipe whose end is its own, and where the system can be asked
to (Linux), it is killed with the thread that started it, which lives as long as the process does. In a session of its
own, so that Ctrl-C and a closed terminal reach the agent alone. Touches one log file, for what libraries print.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from protocol.parent import as_parent
from worker.apart.orders import ORDER, WORD
from worker.apart.pipe import MessagePipe

STARTED_WITH: Final = "from worker.apart.child import main; main()"
KEPT_CHARACTERS: Final = 400


class ProcessGone(Exception):  # no failure by itself: a pause ends it, too
    """The process ended before it had answered."""


class TrainerProcess:
    """Started at once; `on_word` is called in one thread, and `on_end` last of all."""

    def __init__(self, log: Path, on_word: Callable[[Any], None], on_end: Callable[[TrainerProcess], None]) -> None:
        self._log, self._on_word, self._on_end = log, on_word, on_end
        self._started, self._gone = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: MessagePipe | None = None
        self.was_ended = False
        """Whether we ended it."""
        self.trouble: OSError | None = None
        """Why it could not be started."""
        threading.Thread(target=self._live, name="trainer-process", daemon=True).start()

    def tell(self, order: Any) -> None:
        """ProcessGone where it is gone."""
        self._started.wait()
        if self._pipe is None:
            raise ProcessGone
        try:
            self._pipe.send(order)
        except (OSError, ValueError):
            raise ProcessGone from None

    def end(self) -> None:
        """Kill it: what it writes is whole or is not there, so that it may end at any moment."""
        self.was_ended = True
        self._started.wait()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is gone."""
        return self._gone.wait(timeout_s)

    @property
    def is_gone(self) -> bool:
        """Whether it is."""
        return self._gone.is_set()

    @property
    def pid(self) -> int | None:
        """None: it could not be started."""
        self._started.wait()
        return None if self._process is None else self._process.pid

    @property
    def was_killed(self) -> bool:
        """Whether somebody else did: the system, most likely, for want of memory."""
        return self._process is not None and self._process.returncode == -9 and not self.was_ended

    def last_words(self) -> str:
        """What it printed last, and how it ended: for whoever has to find out more."""
        code = None if self._process is None else self._process.returncode
        text = ""
        with contextlib.suppress(OSError):
            text = self._log.read_text(encoding="utf-8", errors="replace")[-KEPT_CHARACTERS:]
        return f"exit code {code}: {self.trouble or text}"

    def _live(self) -> None:
        try:
            self._process = process = self._start()
        except OSError as error:
            self.trouble = error
            self._gone.set()
            self._started.set()
            self._on_end(self)
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._pipe = MessagePipe(process.stdout, process.stdin, ORDER, WORD)
        self._started.set()
        try:
            while (word := self._pipe.receive()) is not None:
                self._on_word(word)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            self._gone.set()
            self._on_end(self)

    def _start(self) -> subprocess.Popen[bytes]:
        # what this process would import, whatever folder it stands in
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **as_parent(), "PYTHONPATH": paths}
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", STARTED_WITH],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            )
