"""Real worker processes that die at every state of their session and around every file they write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coordinator.run.folder import RunFolder
from coordinator.store.journal import Journal
from protocol.joinlink import JoinLink
from simulator.processes.launcher import ProcessGroup
from tests.soak.coordinator_kills import _link, _port
from tests.soak.dooms import Doom, coordinator_life
from tests.soak.history import Acknowledged, Tally, check
from worker.home import open_home

LIFE_LIMIT_S = 25.0
STATES = ("enrolling", "opening", "idle", "fetching", "training", "resuming", "committing", "uploading", "returning",
          "leaving", "over")  # fmt: skip
FILE_MOMENTS = ("step done", "progress begun", "progress kept", "outbox begun", "outbox kept", "submission dropped")


def all_worker_dooms() -> list[Doom]:
    """Every state of a session, and every moment of a worker's files."""
    return [Doom(moment=f"state {state}") for state in STATES] + [Doom(moment=moment) for moment in FILE_MOMENTS]


def worker_life(link: str, home: Path, doom: Doom) -> None:
    """One worker until death."""
    import torch

    from worker.join import WorkerOptions, run_worker

    torch.set_num_threads(1)
    left = doom.nth

    def reach(moment: str) -> None:
        nonlocal left
        if moment == doom.moment:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if moment == "state training" and doom.moment in {"state leaving", "state over"}:
            os.kill(os.getpid(), signal.SIGTERM)

    _watch(reach)
    _slow_down(0.15 if doom.moment in {"state resuming", "state leaving", "state over"} else 0.0)

    def fail(_lease: Any, result: Any) -> Any:
        if doom.moment == "state returning":
            raise RuntimeError("a device that fails")
        return result

    run_worker(
        WorkerOptions(
            link=link, home=home, device="cpu", threads=1, output="plain", measure_speed=False, trainer_hook=fail,
            keep_progress_every_s=0.0, first_backoff_s=0.05, max_backoff_s=0.2,
        )
    )  # fmt: skip


def _watch(reach: Any) -> None:
    from worker.outbox import Outbox
    from worker.sending import Sending
    from worker.session import Session
    from worker.train.lease_state import LeaseStates
    from worker.train.trainer import _InnerLoop

    move, send, step = Session._move, Sending._send, _InnerLoop.step
    keep, store, drop = LeaseStates.save, Outbox.record, Outbox.drop

    def moved(self: Any, state: Any) -> None:
        move(self, state)
        reach(f"state {state.value}")

    def sent(self: Any, *arguments: Any) -> Any:
        commands = send(self, *arguments)
        reach(f"state {self.state.value}")
        return commands

    def stepped(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        reach("step done")

    def kept(self: Any, *arguments: Any) -> None:
        reach("progress begun")
        keep(self, *arguments)
        reach("progress kept")

    def stored(self: Any, *arguments: Any) -> None:
        reach("outbox begun")
        store(self, *arguments)
        reach("outbox kept")

    def dropped(self: Any, *arguments: Any) -> None:
        drop(self, *arguments)
        reach("submission dropped")

    Session._move, Sending._send = moved, sent  # type: ignore[method-assign, assignment]
    _InnerLoop.step = stepped  # type: ignore[method-assign, assignment]
    LeaseStates.save, Outbox.record, Outbox.drop = kept, stored, dropped  # type: ignore[method-assign, assignment]


def _slow_down(step_s: float) -> None:
    """Long steps, where the death waits for something that takes a while to come in from outside."""
    from worker.train.trainer import _InnerLoop

    step = _InnerLoop.step

    def slow(self: Any, *arguments: Any) -> None:
        time.sleep(step_s)
        step(self, *arguments)

    if step_s:
        _InnerLoop.step = slow  # type: ignore[method-assign, assignment]


@dataclass(slots=True, kw_only=True)
class WorkerOutcome:
    """What a series of deaths came to."""

    kills: int
    as_planned: Counter[str]
    elsewhere: int
    finished_before_death: int
    """Submissions that lay in the outbox of a killed worker."""
    delivered_after: int
    """Of those, received from its next life."""
    history: Tally
    wall_s: float


class Coordinator:
    """A real coordinator process, restarted where a worker is to lose its session."""

    def __init__(self, group: ProcessGroup, run: RunFolder, work: Path) -> None:
        self._group, self._run, self._work = group, run, work
        self.ledger = work / "ledger.jsonl"
        self.ledger.touch()
        self._pipe: Connection | None = None
        self._process: Any = None

    async def start(self) -> None:
        self._pipe, theirs = self._group.pipe()
        never = Doom(moment="never")
        log = self._work / "coordinator.log"
        self._process = self._group.start("coord", log, coordinator_life, self._run.root, self.ledger, never, theirs)
        while not self._pipe.poll():
            assert self._process.is_alive(), f"see {log}"
            await asyncio.sleep(0.01)
        self._pipe.recv()

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.join)


async def kill_workers(run: RunFolder, work: Path, dooms: Sequence[Doom]) -> WorkerOutcome:
    """One life for each doom, one after another in one home (a new one where the worker is to enrol)."""
    started_s = time.monotonic()
    journal = Journal.open(run.journal_path)
    ((_, first),) = journal.read()
    journal.close()
    group = ProcessGroup()
    coordinator = Coordinator(group, run, work)
    await coordinator.start()
    planned, elsewhere, homes, unsent = Counter[str](), 0, 0, dict[str, str]()
    link, home = "", work / "home"
    try:
        for number, doom in enumerate([*dooms, Doom(moment="submission dropped")], start=1):
            if not link or doom.moment == "state enrolling":
                homes += 1
                home = work / f"home-{homes}"
                link = str(_on_port(JoinLink.parse(_link(run)), _port(run)))
            process = group.start(f"worker-{number}", work / "worker.log", worker_life, link, home, doom)
            if doom.moment == "state resuming":
                await _training(home, link)
                await coordinator.kill()
                await coordinator.start()
            as_planned = await _dead(process)
            planned[doom.moment] += as_planned
            elsewhere += not as_planned
            left = open_home(home, JoinLink.parse(link).fingerprint).outbox.load()
            if left is not None:
                unsent[left.digest] = left.lease_id
    finally:
        with contextlib.suppress(Exception):
            await coordinator.kill()
        group.stop(grace_s=0.0)
    history = check(run, first, coordinator.ledger, Acknowledged())
    got = {digest for _, digest in history.uploads}
    return WorkerOutcome(
        kills=len(dooms) + 1, as_planned=planned, elsewhere=elsewhere, finished_before_death=len(unsent),
        delivered_after=len(got & set(unsent)), history=history, wall_s=time.monotonic() - started_s,
    )  # fmt: skip


async def _training(home: Path, link: str) -> None:
    """Until the worker has done a step: then it trains."""
    progress = home / "runs" / JoinLink.parse(link).fingerprint[:32] / "progress"
    stale = {path.name for path in progress.glob("*.safetensors")}
    async with asyncio.timeout(LIFE_LIMIT_S):
        while not {path.name for path in progress.glob("*.safetensors")} - stale:
            await asyncio.sleep(0.02)


async def _dead(process: Any) -> bool:
    """Whether it died by itself, as planned."""
    deadline_s = time.monotonic() + LIFE_LIMIT_S
    while process.is_alive() and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    as_planned = process.exitcode == -signal.SIGKILL
    process.kill()
    await asyncio.to_thread(process.join)
    return as_planned


def _on_port(link: JoinLink, port: int) -> JoinLink:
    return JoinLink(host=link.host, port=port, fingerprint=link.fingerprint, invite=link.invite)
