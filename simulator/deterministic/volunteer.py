"""A simulated volunteer's machine: the real worker on it, with simulated ports, and a disk that outlives its processes.

Decides nothing about what a worker does: agent, fetcher, outbox, block cache, enrolment and client are the product's.
Simulated are the line (network.py), the disk (volunteer_disk.py), the trainer (trainer.py) and the clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocol.identity import PrivateIdentity
from protocol.ids import Digest, LeaseId
from protocol.joinlink import JoinLink
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.loop import PROCESS, Process, VirtualLoop
from simulator.deterministic.network import Network, SimulatedWire
from simulator.deterministic.node import authority
from simulator.deterministic.peers import PeerLines, SimulatedSharing
from simulator.deterministic.scenario import Scenario, identity_of
from simulator.deterministic.trainer import OnTraining, SimulatedTrainer
from simulator.deterministic.volunteer_disk import MemoryFiles, VolunteerDisk
from simulator.deterministic.volunteer_ports import Inline, Rules
from simulator.deterministic.volunteer_spec import VolunteerSpec
from simulator.deterministic.work import SimulatedWork
from simulator.holders import Gives
from worker import messages as m
from worker.agent import Agent
from worker.client import CoordinatorClient
from worker.fetched import Run, understand_run
from worker.handiwork import HERE
from worker.home import RunHome
from worker.joining import Joining
from worker.lease import RunDescription
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.outbox import Outbox
from worker.pauses import Pauses
from worker.policy import Circumstances
from worker.progress import QuietReporter
from worker.sending import Line
from worker.session import Session
from worker.states import State
from worker.timing import Timing

COMES_BACK_S = 60.0
"""After a process left by itself, its volunteer starts it again."""
LATE_SHARE = 0.3
"""Of the calls that are given up, those whose answer may still be there before that is noticed."""
MOST_UNSENT = 2
"""One is sent, and one is trained."""
SLACK_S = 1.0
"""Between a grant's arrival and its being handled."""
HOME = Path("/home/volunteer")
MACHINE = Machine(device="cpu", device_name="simulated", memory_bytes=1 << 40, threads=1, bf16=False)
QUIET = QuietReporter()


class Watcher(Protocol):
    """Whoever keeps the book of a simulated run."""

    def acknowledged(self, lease_id: LeaseId, digest: Digest) -> None:
        """A worker was told that its submission is safe."""

    def forgotten(self, worker: int, lease_id: LeaseId) -> None:
        """A worker throws its submission away."""

    def on_state(self, worker: int, state: State | Line) -> None:
        """A worker's session, or its line, is in another state."""

    def on_identity(self, worker: int, public_key: bytes) -> None:
        """A worker's process signs with this key."""


class WatchedSession(Session):
    """The real one, which tells what it is told and what it decides."""

    def __init__(self, volunteer: SimulatedVolunteer, outbox: Outbox) -> None:
        super().__init__()
        self._volunteer, self._outbox = volunteer, outbox

    def handle(self, event: m.SessionEvent) -> list[m.SessionCommand]:
        """As the session does."""
        before, line, unsent = self.state, self.line.state, (self.line.lease_id, self._trained)
        kept = [self._outbox.load(one) for one in unsent if one is not None] if _is_settling(event) else []
        commands = super().handle(event)
        for submission in kept:
            if submission is not None and submission.lease_id not in (self.line.lease_id, self._trained):
                self._volunteer.watcher.acknowledged(submission.lease_id, submission.digest)
        self._check_lanes(commands)
        self._volunteer.on_event(event, before, self.state, commands)
        self._volunteer.on_line(line, self.line.state)
        return commands

    def _check_lanes(self, commands: list[m.SessionCommand]) -> None:
        """Nothing is asked for before all that is trained is committed to, and two submissions are the most."""
        if self._trained is not None and any(isinstance(command, m.AcquireLease) for command in commands):
            raise InvariantBroken(f"a lease is asked for while {self._trained} is trained and not committed to")
        if self.has_unsent and commands and len(self._outbox.all()) > MOST_UNSENT:
            raise InvariantBroken("the outbox holds more than what is sent and what was trained beside it")


class SimulatedVolunteer:
    """One machine. `boot` starts a process on it, `kill` ends it."""

    def __init__(
        self,
        index: int,
        spec: VolunteerSpec,
        loop: VirtualLoop,
        scenario: Scenario,
        network: Network,
        lines: PeerLines,
        work: SimulatedWork,
        draw: random.Random,
        invite: str,
        *,
        watcher: Watcher,
        on_training: OnTraining,
        note: Callable[[str], None],
    ) -> None:
        self.index, self.spec, self.watcher = index, spec, watcher
        self.process: Process | None = None
        self.told_over = False
        self.state = State.DISCONNECTED
        """Of the session of the process that runs, or ran last."""
        self.line = Line.FREE
        """Of the same."""
        self._loop, self._scenario, self._network, self._work, self._draw = loop, scenario, network, work, draw
        self._on_training, self._note, self._lines = on_training, note, lines
        self._outside = contextvars.copy_context()
        self._disk = VolunteerDisk()
        self._identities = 0
        self._told_until_s: dict[LeaseId, float] = {}
        """When each lease ends, by what was told last."""
        ca = authority()
        self._link = JoinLink(host="coordinator.internal", port=7070, fingerprint=ca.fingerprint, invite=invite)
        self._options = WorkerOptions(
            name=f"volunteer {index}", max_columns=spec.max_columns, threads=1, measures=spec.measures
        )

    # ---- processes -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start a process; what an earlier one left on disk is there."""
        if self.process is not None or self.told_over:
            return
        self.process = process = Process(f"volunteer {self.index}")
        self._outside.copy().run(self._start, process)

    def _start(self, process: Process) -> None:
        PROCESS.set(process)
        files = MemoryFiles(self._disk, process)
        home = RunHome(
            HOME, self._link.fingerprint, self._work.progress(self.index), files=files, new_identity=self._new_identity
        )
        timing = Timing(clock=self._loop.time, draw=self._draw)
        joining = Joining(
            self._options,
            self._link,
            home,
            QUIET,
            timing=timing,
            dial=functools.partial(self._dial, timing),
            background=Inline(),
            dial_holder=lambda holder: self._lines.dial(self.index, holder, joining.identity),
            handiwork=dataclasses.replace(HERE, understand=understood, measure_speed=lambda *_: 8.0 / self.spec.step_s),
        )
        self._trainer = SimulatedTrainer(
            self.index,
            self.spec,
            self._loop,
            self._work,
            self._draw,
            home.disk.blocks,
            files,
            home.outbox,
            self._on_training,
        )
        gives, blocks = self.spec.gives, home.disk.blocks
        measurer = self._work.measurer(lies=self.spec.lies_measuring)
        self._agent = LateAgent(
            MACHINE,
            joining,
            home.outbox,
            self._trainer,
            QUIET,
            policy=Rules(self.spec.pauses) if self.spec.pauses else None,
            circumstances=lambda: Circumstances(wall_s=self._loop.now_s),
            session=WatchedSession(self, home.outbox),
            measurer=measurer,
            sharing=None if gives is Gives.NOTHING else SimulatedSharing(self._lines, self.index, gives, blocks),
        )
        self._agent.late_s = lambda: self._draw.uniform(0.0, 8.0) if self._draw.random() < LATE_SHARE else 0.0
        self._loop.create_task(self._live(process, self._agent))
        self._hiccup(process, first=True)

    def _dial(
        self,
        timing: Timing,
        link: JoinLink,
        identity: PrivateIdentity,
        on_trouble: Callable[[Exception, float], None],
    ) -> CoordinatorClient:
        self.watcher.on_identity(self.index, identity.public_key)
        wire = SimulatedWire(self._network, self.index, authority().cert_pem)
        return CoordinatorClient(
            link,
            identity,
            wire=wire,
            timing=timing,
            on_trouble=on_trouble,
            frame_bytes=self._work.frame_bytes,
        )

    def _new_identity(self) -> PrivateIdentity:
        self._identities += 1
        return identity_of(self._scenario.seed, self.index, self._identities - 1)

    async def _live(self, process: Process, agent: Agent) -> None:
        try:
            finish = await agent.run()
        except asyncio.CancelledError:
            raise
        except BaseException as bug:
            self._loop.error = self._loop.error or bug
            raise
        if process.alive:
            self._loop.call_soon(self._leave, finish, context=self._outside.copy())

    def _leave(self, finish: m.Finish) -> None:
        self._note(f"volunteer {self.index} leaves: {finish.reason}")
        self.told_over = finish.reason.startswith("the run is over")
        self.kill(power_loss=False)
        self._loop.call_later(COMES_BACK_S, self.boot)

    def kill(self, *, power_loss: bool) -> None:
        """Gone; the disk stays, but for what was not synced where the power went."""
        process, self.process = self.process, None
        if process is None:
            return
        self._trainer.kill()
        process.kill()
        if power_loss:
            self._disk.lose_power(self._draw)

    def stall(self, seconds: float) -> None:
        """The process stands still: whatever happens meanwhile, it sees afterwards."""
        if self.process is not None:
            self.process.asleep_until_s = self._loop.now_s + seconds

    def _hiccup(self, process: Process, *, first: bool = False) -> None:
        longest_s = self.spec.hiccup_s
        if longest_s > 0.0 and process is self.process and self._loop.now_s < self._scenario.calm_s:
            if not first:
                self.stall(self._draw.uniform(0.0, longest_s))
            self._loop.call_later(self._draw.uniform(0.5, 10.0), self._hiccup, process, context=self._outside.copy())

    # ---- what is watched -----------------------------------------------------------------------------------------

    def on_event(self, event: m.SessionEvent, before: State, after: State, commands: list[m.SessionCommand]) -> None:
        """The session has handled `event`."""
        self.state = after
        self._note(f"volunteer {self.index} {before.value} -> {after.value}: {type(event).__name__}")
        if isinstance(event, m.LeaseGranted):
            self._told_until_s[event.lease.lease_id] = self._loop.now_s + event.lease.ttl_s
        elif isinstance(event, m.LeaseCancelled) and before is State.FETCHING and after is not before:
            self._check_patience(event)
        for command in commands:
            if isinstance(command, m.DropSubmission) and not self._is_of_no_use(command.lease_id):
                self.watcher.forgotten(self.index, command.lease_id)
        if after is not before:
            # Soon, not now: what follows from the event is begun, and then the process may die of it.
            self._loop.call_soon(self.watcher.on_state, self.index, after, context=self._outside.copy())

    def on_line(self, before: Line, after: Line) -> None:
        """The line is, or is not, in another state."""
        self.line = after
        if after is not before:
            self._loop.call_soon(self.watcher.on_state, self.index, after, context=self._outside.copy())

    def _is_of_no_use(self, lease_id: LeaseId) -> bool:
        """Whether it was refused until it would count no more."""
        return self._loop.now_s >= self._told_until_s.get(lease_id, math.inf) + Pauses().kept_after_deadline_s

    def _check_patience(self, event: m.LeaseCancelled) -> None:
        left_s = self._told_until_s.get(event.lease_id, 0.0) - self._loop.now_s
        if "its deadline passed" in event.reason and left_s > SLACK_S:
            raise InvariantBroken(f"lease {event.lease_id} was given up {left_s:.1f} s before its deadline")


class LateAgent(Agent):
    """The real one, but for a race that virtual time hardly ever shows: an answer came before its call was given up.

    What was fetched is handed over beside its event, so a fetch is given up at once.
    """

    late_s: Callable[[], float] = staticmethod(lambda: 0.0)

    _fetches = False

    def _execute(self, command: m.SessionCommand) -> None:
        super()._execute(command)
        if isinstance(command, m.Call) and command.lane is m.Lane.WORK:
            self._fetches = isinstance(command, m.FetchShard)

    def _cancel_call(self, lane: m.Lane) -> None:
        call, late_s = self._lanes.get(lane), self.late_s()
        if call is None or late_s == 0.0 or (self._fetches and lane is m.Lane.WORK):
            super()._cancel_call(lane)
        else:
            asyncio.get_running_loop().call_later(late_s, call.cancel)


@functools.lru_cache(maxsize=32)
def understood(description: RunDescription) -> Run:
    """As `worker.fetch.understand_run`, once for each model."""
    return understand_run(description)


def _is_settling(event: m.SessionEvent) -> bool:
    return isinstance(event, m.Uploaded) or (isinstance(event, m.Committed) and event.settled)
