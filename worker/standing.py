"""How a worker stands, for whoever asks: in one sentence with why and until when, in figures, and in a log.

Decides the sentence, and what is remembered of what was told: the last verdicts, what the coordinator said last, how
far the present lease is. Listens as a `Reporter` and passes everything on. Holds always: the log is private to its
owner and of two parts, each of 1 MiB at most. Touches the log's two files.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.policy import Permission
from worker.progress import Field, Reporter
from worker.sentences import rough_duration, step
from worker.states import State
from worker.words import Words, foreign, say

LOG_FILE: Final = "worker.log"
LOG_BYTES: Final = 1 << 20
KEPT_VERDICTS: Final = 5
_VERDICTS: Final = {"submission_accepted", "submission_rejected"}
_LOOKING: Final = {State.DISCONNECTED, State.ENROLLING, State.OPENING}
_TRAINING: Final = {State.TRAINING, State.RESUMING}
_SENDING: Final = {State.COMMITTING, State.HELD_UP}


@dataclass(slots=True)
class Present:
    """How far the present lease is."""

    lease: str = ""
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    begun_s: float = 0.0
    """By the monotonic clock, when the first step that this process saw had ended."""
    begun_step: int = 0

    def left_s(self, now_s: float) -> float | None:
        """Seconds until the last step, at the speed so far; None: too early to say."""
        done = self.step - self.begun_step
        return None if done < 1 or not self.begun_s else (now_s - self.begun_s) / done * (self.steps - self.step)


class WorkerStanding:
    """A `Reporter` that remembers, in front of another."""

    def __init__(self, shown: Reporter, log: Path | None = None) -> None:
        self._shown, self._log = shown, log
        self._lock = threading.Lock()
        self.verdicts: deque[dict[str, str]] = deque(maxlen=KEPT_VERDICTS)
        self.accepted = self.rejected = 0
        """Verdicts that came to this process."""
        self.waiting = self.trouble = self.no_room = ""
        """What the coordinator said last about why there is no work; why it is not reached; what the disk refuses."""
        self.is_measuring = False
        """Whether this machine's speed is being measured, which comes before the first lease."""
        self.present: Present | None = None
        self.machine = ""
        self.credit: dict[str, Field] | None = None
        """Validated tokens, rank among how many, and the run's latest losses, as the coordinator said last."""

    def say(self, event: str, text: str, **fields: Field) -> None:
        """One thing that happened."""
        self._note(event, text, fields)
        self._write(event, text, fields)
        self._shown.say(event, text, **fields)

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """An inner step ended."""
        present = self.present
        if present is not None:
            if not present.begun_s:
                present.begun_s, present.begun_step = time.monotonic(), done
            present.step, present.steps, present.tokens_per_s = done, total, tokens_per_s
            present.loss = loss if loss is not None else present.loss
        self._shown.step(done, total, loss, tokens_per_s)

    def close(self) -> None:
        """Nothing follows for now."""
        self._shown.close()

    def _note(self, event: str, text: str, fields: dict[str, Field]) -> None:
        if event == "waiting":
            self.waiting, self.trouble = str(fields.get("reason", "")), ""
        elif event == "unavailable":
            self.trouble = text
        elif event in {"reached_again", "session_opened", "measured"}:
            self.trouble, self.is_measuring = "", False
        elif event == "planned":
            self.is_measuring = True
        elif event == "lease_granted":
            self.present = Present(lease=str(fields.get("lease", "")), round=int(str(fields.get("round", 0))))
            self.waiting = ""
        elif event == "no_room":
            self.no_room = text
        elif event == "fetched":
            self.no_room = ""
            if self.present is not None:
                self.present.begun_s = 0.0  # it may go on after a pause, in which nothing was done
        elif event == "trained":
            self.present = None
        elif event == "machine":
            self.machine = text
        elif event == "credit":
            self.credit = {name: fields.get(name) for name in ("tokens", "rank", "ranked", "losses")}
        elif event in _VERDICTS:
            self.accepted += event == "submission_accepted"
            self.rejected += event == "submission_rejected"
            outcome = event.removeprefix("submission_")
            self.verdicts.append({"lease": str(fields.get("lease", "")), "outcome": outcome, "text": text})

    def _write(self, event: str, text: str, fields: dict[str, Field]) -> None:
        if self._log is None:
            return
        line = json.dumps({"at_s": round(time.time(), 3), "event": event, "text": text, **fields}) + "\n"
        with self._lock, contextlib.suppress(OSError):  # a full disk costs the log, not the lease
            if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
                self._log.replace(self._log.with_name(f"{self._log.name}.1"))
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line)


def sentence(
    state: State,
    permission: Permission,
    standing: WorkerStanding,
    *,
    address: str,
    sends: bool = False,
    holds: bool = False,
    now_s: float = 0.0,
) -> str:
    """What the worker does, why, and until when, as far as that is known. `holds`: a lease; `sends`: finished work."""
    doing = _doing(state, standing, address, now_s)
    if permission.allowed:
        if permission.slowed and state in _TRAINING:
            doing = say("doing.slowed", doing=doing, share=f"{permission.share:.0%}", why=Words(permission.slowed))
        return say("doing.sending_too", doing=doing) if sends and state not in _SENDING else doing
    why = Words(permission.reason)
    if state is State.PAUSED or state in _LOOKING or (permission.stops_training and state in _TRAINING):
        return say("doing.paused.holding" if holds or state in _TRAINING else "doing.paused", why=why)
    return say("doing.last", doing=doing, why=why)


def _doing(state: State, standing: WorkerStanding, address: str, now_s: float) -> Words:
    if state in _LOOKING:
        if standing.is_measuring:
            return say("doing.measuring")
        return Words(standing.trouble) if standing.trouble else say("doing.looking", address=address)
    if state in _TRAINING:
        return _training(standing.present, now_s)
    if state is State.FETCHING:
        return Words(standing.no_room) if standing.no_room else say("doing.fetching")
    if state in _SENDING:
        return say("doing.sending")
    if state is State.RETURNING:
        return say("doing.returning")
    if state in {State.LEAVING, State.OVER}:
        return say("doing.leaving")
    return say("doing.waiting", why=foreign(standing.waiting)) if standing.waiting else say("doing.idle")


def _training(present: Present | None, now_s: float) -> Words:
    if present is None or not present.steps:
        return say("doing.training.first")
    how_far = step(present.step, present.steps, present.loss, present.tokens_per_s)
    left_s = present.left_s(now_s)
    if left_s is None:
        return say("doing.training", step=how_far)
    return say("doing.training.left", step=how_far, span=rough_duration(left_s))


def log_lines(folder: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` things that happened in a run's folder, the oldest first."""
    lines: list[str] = []
    for path in (folder / f"{LOG_FILE}.1", folder / LOG_FILE):
        with contextlib.suppress(OSError):
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [read for line in lines[-count:] if (read := log_entry(line)) is not None]


def log_entry(line: str) -> dict[str, Any] | None:
    """One line of the log; None where it is torn."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "text" in entry and "at_s" in entry else None
