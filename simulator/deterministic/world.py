"""Runs one seed from its scenario to the run's end, and says what was broken on the way.

Decides when faults strike processes. Always: everything that happens is a function of the seed (and of the planted
bug, where there is one), so a seed that fails can be run again with its trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from coordinator.engine.commands import SlowCommand
from coordinator.engine.phases import Phase
from protocol.errors import FinalRefusal, RemoteError, StorageTrouble
from protocol.ids import Digest, LeaseId
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.attendance import Attendance
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.calls import SimulatedCall
from simulator.deterministic.disk import Disk
from simulator.deterministic.hashwork import HashWork
from simulator.deterministic.invariants import Book
from simulator.deterministic.loop import MOST_STEPS, VirtualLoop
from simulator.deterministic.network import Network
from simulator.deterministic.node import CoordinatorNode
from simulator.deterministic.operator import Operator, quietly
from simulator.deterministic.outcome import Outcome, quiet
from simulator.deterministic.peers import PeerLines
from simulator.deterministic.scenario import START_S, Scenario, scenario_of
from simulator.deterministic.settings_book import SettingsBook
from simulator.deterministic.sharing_book import SharingBook
from simulator.deterministic.volunteer import SimulatedVolunteer
from simulator.deterministic.work import SimulatedWork
from simulator.faults import COORDINATOR, Fault, FaultKind, FaultPlan, Point
from simulator.seeds import derived_stream
from worker.sending import Line
from worker.states import State

RESTART_AFTER_FAILURE_S = 5.0
WATCH_EVERY_S = 5.0
POWER_LOSS_SHARE = 0.3
"""Of the deaths of a volunteer's process."""
GOODBYE_S = 200.0
"""Virtual seconds in which every volunteer has heard that the run is over."""
_KILL = frozenset({FaultKind.KILL})
_FAIL = frozenset({FaultKind.FAIL})
_TIMED = frozenset({FaultKind.KILL, FaultKind.STALL, FaultKind.PARTITION, FaultKind.STEP, FaultKind.SUSPEND})


def run_seed(seed: int, *, trace: bool = False) -> Outcome:
    """One seed, from the first event to the run's end or the first broken invariant."""
    with quiet():
        return World(scenario_of(seed), trace=trace).run()


class World:
    """One simulated run. `run` once."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        trace: bool = False,
        work: SimulatedWork | None = None,
        plan: FaultPlan | None = None,
        most_steps: int = MOST_STEPS,
    ) -> None:
        self._scenario = scenario
        self._work = work = HashWork(scenario.config.columns, scenario.copies) if work is None else work
        self._trace: list[str] | None = [f"scenario {scenario}"] if trace else None
        self._draw = derived_stream(scenario.seed, "world")
        self._plan = FaultPlan(scenario.faults) if plan is None else plan
        self._violation: str | None = None
        """Of the operator, about settings."""
        self._kills = {"coordinator": 0, "worker": 0}
        self._executions: dict[str, int] = {}
        self._states: dict[tuple[int, str], int] = {}
        self._over_since_s: float | None = None
        self._loop = VirtualLoop(START_S, self._work_latency, most_steps)  # type: ignore[abstract]
        self._disk = Disk()
        note = self._note if trace else _silent
        attendance = Attendance(lambda: self._loop.now_s)
        changes = SettingsBook(scenario.config, self._disk)
        self._book = Book(self._disk, scenario.config, scenario.people, attendance, changes, note)
        secret = hashlib.sha256(f"secret {scenario.seed}".encode()).digest()
        self._node = CoordinatorNode(
            self._loop,
            scenario,
            work,
            secret,
            self._book,
            self._disk,
            on_append=self._on_append,
            on_execute=self._on_execute,
            on_executed=self._on_executed,
            on_died=self._on_pump_failed,
            sharing=lambda: (self._sharing_book, self._lines),
            rots=self._rots,
            note=note,
        )
        self._network = Network(self._loop, scenario, self._node, self._plan, self._draw, note, self._on_refused)
        self._sharing_book = SharingBook(scenario.people, copies=work.copies, clear=scenario.clear)
        self._lines = PeerLines(
            self._loop,
            self._disk,
            derived_stream(scenario.seed, "lines between workers"),
            is_cut=self._network.is_cut,
            drop_share=lambda: scenario.drop_share if self._loop.now_s < scenario.calm_s else 0.0,
            note=note,
        )
        self._volunteers = [
            SimulatedVolunteer(
                index,
                spec,
                self._loop,
                scenario,
                self._network,
                self._lines,
                work,
                self._draw,
                self._node.invite(spec.owner, trusted=spec.trusted),
                watcher=self,
                on_training=self._book.trains,
                note=note,
            )
            for index, spec in enumerate(scenario.volunteers)
        ]

    def run(self) -> Outcome:
        """To the end."""
        scenario = self._scenario
        self._loop.call_soon(self._node.boot)
        for volunteer in self._volunteers:
            self._loop.call_at(volunteer.spec.arrives_s, volunteer.boot)
        Operator(self._loop, scenario, self._node).begin()
        self._loop.call_later(WATCH_EVERY_S, self._watch)
        ended = self._loop.run(self._has_ended, scenario.limit_s)
        self._conclude(ended)
        self._end_processes()
        return self._outcome()

    def _conclude(self, ended: bool) -> None:
        error = self._loop.error
        if self._violation is None and isinstance(error, InvariantBroken):
            self._violation = str(error)
        elif self._violation is None and error is not None:
            self._violation = f"unexpected {error!r}"
        elif self._violation is None and not ended:
            engine = self._node.engine
            shown = "it is down" if engine is None else "; ".join(f"{w.subject}: {w.reason}" for w in engine.explain())
            self._violation = f"the run did not end: {shown or 'and does not say why'}"
        if self._violation is not None:
            self._note(f"VIOLATION {self._violation}")

    def _end_processes(self) -> None:
        """Let every task end: one that is merely forgotten complains later."""
        self._node.crash(power_loss=False, keep_share=1.0)
        for volunteer in self._volunteers:
            volunteer.kill(power_loss=False)
        self._loop.error = None
        self._loop.catch_up()
        self._loop.run(lambda: True, self._loop.now_s)

    def _outcome(self) -> Outcome:
        return Outcome(
            seed=self._scenario.seed,
            violation=self._violation,
            history=self._disk.appended.hexdigest(),
            events=self._disk.last_position,
            acknowledged=self._book.acknowledged,
            versions=self._book.published,
            coordinator_kills=self._kills["coordinator"],
            worker_kills=self._kills["worker"],
            blocks_between_workers=self._lines.given,
            virtual_s=self._loop.now_s - START_S,
            trace=tuple(self._trace or ()),
        )

    def _note(self, *said: object) -> None:
        if self._trace is not None:
            self._trace.append(f"{self._loop.now_s - START_S:10.3f} {' '.join(map(str, said))}")

    # ---- the end -------------------------------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        if self._violation is not None:
            return True
        engine = self._node.engine
        if engine is None or engine.state.phase is not Phase.OVER:
            return False
        if self._over_since_s is None:
            self._over_since_s = self._loop.now_s
            try:
                self._book.over(engine)
                self._sharing_book.over()
            except InvariantBroken as broken:
                self._violation = str(broken)
                return True
        told = all(volunteer.told_over for volunteer in self._volunteers)
        return told or self._loop.now_s > self._over_since_s + GOODBYE_S

    # ---- faults --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Faults that are addressed to a time."""
        now_s = self._loop.now_s
        if now_s >= self._scenario.calm_s:
            return
        self._loop.call_later(WATCH_EVERY_S, self._watch)
        for worker in (COORDINATOR, *range(len(self._volunteers))):
            point = Point(worker=worker, call="watch", now_s=now_s)
            for fault in self._plan.take(point, _TIMED):
                self._strike(worker, fault)

    def _strike(self, worker: int, fault: Fault) -> None:
        self._note(f"FAULT {fault}")
        if fault.kind is FaultKind.KILL:
            self._kill(worker, fault)
        elif fault.kind is FaultKind.PARTITION:
            self._network.partition(worker, fault.seconds)
        elif fault.kind is FaultKind.STEP:
            self._node.wall_ahead_s += fault.seconds
        elif fault.kind is FaultKind.SUSPEND:
            self._node.sleep(fault.seconds)
            self._network.sleep(fault.seconds)
        elif worker == COORDINATOR:
            self._network.freeze(fault.seconds)
        else:
            self._volunteers[worker].stall(fault.seconds)

    def _kill(self, worker: int, fault: Fault) -> None:
        if worker == COORDINATOR:
            self._crash(back_after_s=fault.seconds, power_loss=fault.power_loss)
            return
        self._kills["worker"] += 1
        volunteer = self._volunteers[worker]
        volunteer.kill(power_loss=self._draw.random() < POWER_LOSS_SHARE)
        self._loop.call_later(fault.seconds, volunteer.boot)

    def _crash(self, *, back_after_s: float, power_loss: bool) -> None:
        if not self._node.is_up:
            return
        self._note(f"coordinator dies, power_loss={power_loss}")
        self._kills["coordinator"] += 1
        self._node.crash(power_loss=power_loss, keep_share=self._draw.random())
        self._network.break_connections()
        self._loop.call_later(back_after_s, self._node.boot)

    def _on_append(self, position: int, is_durable: bool, records: Sequence[str]) -> None:
        del records
        if self._loop.now_s >= self._scenario.calm_s:
            return
        point = Point(worker=COORDINATOR, call="append", journal_position=position, now_s=self._loop.now_s)
        if is_durable:
            for fault in self._plan.take(Point(worker=COORDINATOR, call="appended", now_s=point.now_s), _KILL):
                self._strike(COORDINATOR, fault)
            return
        if self._plan.take(point, _FAIL):
            self._note(f"FAULT the disk is full at journal position {position}")
            raise StorageTrouble("the journal: no space left on device")
        for fault in self._plan.take(point, _KILL):
            if fault.durable:
                self._loop.call_later(0.0, self._strike, COORDINATOR, fault)
            else:
                self._strike(COORDINATOR, fault)

    def _on_execute(self, command: SlowCommand) -> bool:
        name = f"execute:{type(command).__name__}"
        self._executions[name] = self._executions.get(name, 0) + 1
        return self._loop.now_s < self._scenario.calm_s and bool(self._plan.take(self._execution_point(name), _FAIL))

    def _on_executed(self, command: SlowCommand) -> None:
        name = f"execute:{type(command).__name__}"
        if self._loop.now_s >= self._scenario.calm_s:
            return
        if self._plan.take(self._execution_point(name), frozenset({FaultKind.DUPLICATE})):
            self._note(f"FAULT the result of {command.command_id} comes twice")
            for delay_s in (0.0, 10.0):
                self._loop.call_later(delay_s, self._result_again, command)
        for fault in self._plan.take(self._execution_point(name), _KILL):
            self._strike(COORDINATOR, fault)

    def _execution_point(self, name: str) -> Point:
        return Point(worker=COORDINATOR, call=name, nth=self._executions.get(name), now_s=self._loop.now_s)

    def _result_again(self, command: SlowCommand) -> None:
        if self._node.is_up:
            self._loop.create_task(quietly(lambda: self._node.submit_result(command)), context=self._node.context)

    def _rots(self) -> bool:
        """Whether a block comes off the coordinator's disk with a wrong byte."""
        share = self._scenario.rot_share if self._loop.now_s < self._scenario.calm_s else 0.0
        return share > 0.0 and self._draw.random() < share

    def _on_pump_failed(self, error: BaseException | None) -> None:
        """The process says why and leaves; its operator starts it again."""
        self._note(f"the pump failed: {error!r}")
        what = str(error) if isinstance(error, InvariantBroken) else f"the pump failed: {error!r}"
        self._violation = self._violation or what
        self._crash(back_after_s=RESTART_AFTER_FAILURE_S, power_loss=False)

    # ---- volunteers ------------------------------------------------------------------------------------------------

    def _on_refused(self, worker: int, call: SimulatedCall, error: RemoteError) -> None:
        del worker
        self._note(f"refused {call.name}: {type(error).__name__} {error}")
        if isinstance(error, FinalRefusal) and call.name == "CommitSubmission":
            self._book.refused(pb.CommitSubmissionRequest.FromString(call.messages[0]).lease_id)
        if isinstance(error, FinalRefusal) and call.name == "Upload":
            self._book.refused(pb.UploadHeader.FromString(call.messages[0]).lease_id)

    def acknowledged(self, lease_id: LeaseId, digest: Digest) -> None:
        """A worker was told that its submission is safe."""
        self._book.acknowledge(lease_id, digest)

    def forgotten(self, worker: int, lease_id: LeaseId) -> None:
        """A worker throws its submission away."""
        del worker
        state = None if self._node.engine is None else self._node.engine.state
        self._book.forgotten(lease_id, state)

    def on_identity(self, worker: int, public_key: bytes) -> None:
        """A worker's process signs with this key."""
        try:
            self._book.identity(worker, public_key)
        except InvariantBroken as broken:  # the task that dials is the worker's, and nobody looks at how it ends
            self._violation = self._violation or str(broken)

    def on_state(self, worker: int, state: State | Line) -> None:
        """A worker's session is in another state."""
        name = f"state:{state.value}"
        nth = self._states[worker, name] = self._states.get((worker, name), 0) + 1
        now_s = self._loop.now_s
        if now_s < self._scenario.calm_s:
            for fault in self._plan.take(Point(worker=worker, call=name, nth=nth, now_s=now_s), _KILL):
                self._strike(worker, fault)

    def _work_latency(self, pool: str) -> tuple[float, float]:
        draw = self._draw
        if pool.startswith("journal"):
            return draw.uniform(0.2, 2.0) * self._scenario.commit_s, draw.uniform(0.0, 0.002)
        if pool.startswith("executor"):
            return draw.uniform(0.1, 4.0), draw.uniform(0.0, 0.1)
        return draw.uniform(0.0, 0.01), draw.uniform(0.0, 0.002)


def _silent(*_: object) -> None:
    return None
