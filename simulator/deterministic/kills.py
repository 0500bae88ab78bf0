"""A simulated run that is killed again and again, at every place where one of its processes can die.

Decides where the kills fall: spread over the run's rounds, and over the places, those that were hit least first. Always
the same for the same seed; every kill that struck is a `Fault` in the plan's `fired`. Each place is drawn at the moment
when the run comes by it, since nobody can know beforehand by which places a disturbed run comes.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.engine.commands import AggregateRound, MeasureSubmission, SlowCommand
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.records import event_from_json
from coordinator.work.threads import one_thread
from protocol.ids import RunId
from simulator.deterministic.language import TRAIN_SEQUENCES
from simulator.deterministic.loop import MOST_STEPS
from simulator.deterministic.outcome import Outcome, quiet
from simulator.deterministic.scenario import START_S, Scenario
from simulator.deterministic.training import RealWork
from simulator.deterministic.volunteer_spec import VolunteerSpec
from simulator.deterministic.world import World
from simulator.faults import COORDINATOR, Fault, FaultKind, FaultPlan, Point, kill
from simulator.seeds import derived_stream
from worker.sending import Line
from worker.states import State

VOLUNTEERS, REPLICAS = 6, 3
STEPS_A_ROUND = 100_000
"""Callbacks, with room for some hundred kills; a quiet round has a few thousand."""
WATCH_EVERY_S = 2.0
NEVER_S = 1e12
_LOW_CHANCE, _HIGH_CHANCE = 0.1, 0.9
_OFTEN_SHARE = 0.05
"""Share of the chance that is left to a place that was hit more often than the average."""
_BACK_AFTER_S = (0.2, 1.0, 5.0, 20.0)
_LONG_GONE_S = 60.0
"""A worker that stays away so long has lost its lease."""
_BUSY: frozenset[State | Line] = frozenset(
    {State.TRAINING, State.COMMITTING, State.HELD_UP, State.FETCHING, State.RESUMING, Line.OFFERING, Line.SENDING}
)


class MidWrite(BaseException):
    """The process died between two files: nothing after it happens, so nothing may catch it."""


@dataclass(slots=True)
class KillPlan(FaultPlan):
    """Draws one kill at a time, until `kills` have struck; `round` says how far the run is."""

    draw: random.Random = field(kw_only=True)
    kills: int = field(kw_only=True)
    rounds: int = field(kw_only=True)
    round: int = 0
    struck: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    """Places that the run came by, and those where it was killed."""

    @property
    def due(self) -> int:
        """Kills that should have struck by the end of this round; all of them by nine tenths of the run."""
        return math.ceil(self.kills * min(1.0, (self.round + 1) / max(1.0, 0.9 * self.rounds)))

    def take(self, point: Point, kinds: frozenset[FaultKind]) -> tuple[Fault, ...]:
        """A kill at `point`, more likely the further the run is behind its plan and the rarer the place was hit."""
        backlog = self.due - self.struck
        if FaultKind.KILL not in kinds or backlog <= 0 or point.call is None:
            return ()
        side = "coordinator" if point.worker == COORDINATOR else "worker"
        place = f"{side} {point.call}"
        self.seen[place] += 1
        is_rare = self.hits[place] * len(self.seen) <= self.struck
        chance = _LOW_CHANCE + (_HIGH_CHANCE - _LOW_CHANCE) * min(1.0, backlog * self.rounds / (4.0 * self.kills))
        if self.draw.random() >= (chance if is_rare else chance * _OFTEN_SHARE):
            return ()
        fault = kill(
            self.draw.choice(_BACK_AFTER_S if point.worker == COORDINATOR else (*_BACK_AFTER_S, _LONG_GONE_S)),
            durable=not point.call.startswith("before"),
            power_loss=self.draw.random() < 0.5,
            worker=point.worker,
            round=self.round,
            call=point.call,
            after_s=point.now_s,
        )
        self.hits[place] += 1
        return (fault,)

    def note(self, now_s: float, fault: Fault) -> None:
        """`fault` struck a process that was up."""
        self.struck += 1
        self.fired.append((now_s, fault))


@dataclass(frozen=True, slots=True, kw_only=True)
class KillOutcome:
    """What came of one run, killed or not."""

    outcome: Outcome
    kills: int
    places: Counter[str]
    """Kills by place."""
    interrupted: Counter[str]
    """Kills by what they cut short; one may cut several things."""
    fates: Counter[str]
    """Acknowledged submissions by what became of them."""
    leases_lost: int
    taken_up: int
    """Leases that went on from kept progress after a kill; further ones began anew."""
    retrained: int
    val_losses: dict[int, float]
    """Held-out loss by version, nats a token."""
    tokens_trained: int
    """Counted in outer steps."""
    entropy: float
    """The least loss that the language allows."""


OnVersion = Callable[[int, float, int], None]
"""Told each version that is validated: its number, its held-out loss, kills so far."""


def kill_scenario(seed: int, rounds: int, quorum: int) -> Scenario:
    """Six volunteers, four columns, three replicas each; a network without faults: kills are the only disturbance."""
    draw = derived_stream(seed, "kill scenario")
    inner = InnerRecipe(
        inner_steps=10, batch_sequences=8, optimizer="adamw", learning_rate=2e-2, final_lr_share=0.1, warmup_steps=3
    )
    config = EngineConfig(
        run_id=RunId("simulated"),
        columns=4,
        train_sequences=TRAIN_SEQUENCES,
        max_rounds=rounds,
        replicas=REPLICAS,
        quorum=quorum,
        min_workers=VOLUNTEERS,
        gather_s=5.0,
        min_lease_s=60.0,
        # Whoever was killed looks slow. Paced by that, a killed run would be leased less work, and be compared with
        # an undisturbed one that had more: here everybody's leases are the recipe's, killed or not.
        pace_tolerance=1e6,
        most_steps_share=1.0,
        checkpoint_every=10,
        inner=inner,
    )
    volunteers = tuple(
        VolunteerSpec(
            max_columns=2,
            step_s=draw.uniform(24.0, 36.0),  # a lease of minutes, as real ones: an absence costs a share of it
            arrives_s=START_S + draw.random(),
            liar=False,
            owner="",
        )
        for _ in range(VOLUNTEERS)
    )
    return Scenario(
        seed=seed,
        config=config,
        volunteers=volunteers,
        faults=(),
        drop_share=0.0,
        duplicate_share=0.0,
        late_share=0.0,
        late_s=0.0,
        commit_s=0.02,
        snapshot_every=25,
        calm_s=NEVER_S,
        limit_s=NEVER_S,
        stop_after_s=None,
    )


def run_with_kills(
    seed: int,
    *,
    rounds: int,
    kills: int,
    folder: Path,
    quorum: int = REPLICAS,
    trace: bool = False,
    progress: OnVersion | None = None,
) -> KillOutcome:
    """One whole run of real training in `folder`, which is empty; `kills=0` is the undisturbed one.

    With a quorum of all replicas a kill costs time; with less, the round goes on without what was killed.
    """
    with quiet(), one_thread():
        world = KillWorld(kill_scenario(seed, rounds, quorum), kills, folder, trace=trace)
        if progress is not None:
            world.tell(progress)
        return world.run_out()


class KillWorld(World):
    """A world whose processes are killed by a `KillPlan`."""

    def __init__(self, scenario: Scenario, kills: int, folder: Path, *, trace: bool = False) -> None:
        seed, rounds = scenario.seed, scenario.config.max_rounds
        plan = KillPlan((), draw=derived_stream(seed, "kills"), kills=kills, rounds=rounds)
        work = RealWork(seed, folder)
        steps = max(MOST_STEPS, STEPS_A_ROUND * rounds)
        super().__init__(scenario, trace=trace, work=work, plan=plan, most_steps=steps)
        self._kill_plan, self._real = plan, work
        self._interrupted: Counter[str] = Counter()
        self._is_committing = False
        self._is_aggregating = False
        work.on_write = self._on_write

    def tell(self, progress: OnVersion) -> None:
        """Report each validated version."""
        plan = self._kill_plan
        self._real.on_validated = lambda version, loss: progress(version, loss, plan.struck)

    def run_out(self) -> KillOutcome:
        """To the end."""
        outcome = self.run()
        engine = self._book.last[0] if self._book.last is not None else None
        return KillOutcome(
            outcome=outcome,
            kills=self._kill_plan.struck,
            places=self._kill_plan.hits,
            interrupted=self._interrupted,
            fates=self._book.fates,
            leases_lost=0 if engine is None else engine.state.totals.leases_expired,
            taken_up=self._real.taken_up,
            retrained=self._real.retrained,
            val_losses=dict(self._real.val_losses),
            tokens_trained=self._real.tokens_trained,
            entropy=self._real.language.entropy,
        )

    # ---- places --------------------------------------------------------------------------------------------------

    def _on_append(self, position: int, is_durable: bool, records: Sequence[str]) -> None:
        engine = self._node.engine
        if engine is not None:
            self._kill_plan.round = engine.state.round.round
        kinds = sorted({type(event_from_json(record)).__name__ for record in records})
        when = "after" if is_durable else "before"
        self._is_committing = True
        for kind in kinds:
            self._die_at(f"{when} {kind}")
        self._is_committing = False

    def _on_execute(self, command: SlowCommand) -> bool:
        self._is_aggregating = isinstance(command, AggregateRound)
        self._die_at(f"at the start of {type(command).__name__}")
        if not self._node.is_up:
            raise MidWrite
        return False

    def _on_executed(self, command: SlowCommand) -> None:
        self._die_at(f"at the end of {type(command).__name__}")

    def _on_write(self, what: str) -> None:
        if self._is_aggregating:
            self._die_at(f"before a {what} is written")
            if not self._node.is_up:
                raise MidWrite

    def _die_at(self, call: str) -> None:
        if not self._node.is_up:
            return
        point = Point(worker=COORDINATOR, call=call, now_s=self._loop.now_s)
        for fault in self._plan.take(point, frozenset({FaultKind.KILL})):
            self._strike(COORDINATOR, fault)

    def on_state(self, worker: int, state: State | Line) -> None:
        """At once, or in the middle of what begins here."""
        point = Point(worker=worker, call=f"state:{state.value}", now_s=self._loop.now_s)
        for fault in self._plan.take(point, frozenset({FaultKind.KILL})):
            longest_s = 10.0 if state is State.TRAINING else 0.5
            later_s = self._draw.choice((0.0, self._draw.uniform(0.0, longest_s)))
            self._loop.call_later(later_s, self._strike, worker, fault)

    def _watch(self) -> None:
        """Between the places that have a name: while somebody is at something."""
        self._loop.call_later(WATCH_EVERY_S, self._watch)
        self._die_at("while it runs")
        for worker, volunteer in enumerate(self._volunteers):
            for state in (volunteer.state, volunteer.line):
                if volunteer.process is None or state not in _BUSY:
                    continue
                point = Point(worker=worker, call=f"while {state.value}", now_s=self._loop.now_s)
                for fault in self._plan.take(point, frozenset({FaultKind.KILL})):
                    self._strike(worker, fault)

    # ---- kills ---------------------------------------------------------------------------------------------------

    def _kill(self, worker: int, fault: Fault) -> None:
        plan = self._kill_plan
        is_up = self._node.is_up if worker == COORDINATOR else self._volunteers[worker].process is not None
        if not is_up or plan.struck >= plan.kills:
            return
        plan.note(self._loop.now_s, fault)
        cut = self._cut_at_coordinator() if worker == COORDINATOR else self._cut_at_worker(worker)
        self._interrupted.update(cut or ("nothing",))
        super()._kill(worker, fault)

    def _cut_at_coordinator(self) -> list[str]:
        engine = self._node.engine
        assert engine is not None
        pending = list(engine.state.pending.values())
        cut = ["a commit"] if self._is_committing else []
        cut += ["an aggregation"] if any(isinstance(one, AggregateRound) for one in pending) else []
        cut += ["a measurement"] if any(isinstance(one, MeasureSubmission) for one in pending) else []
        cut += ["an upload"] if self._disk.uploads else []
        return cut

    def _cut_at_worker(self, worker: int) -> list[str]:
        volunteer = self._volunteers[worker]
        return [f"{state.value} (worker)" for state in (volunteer.state, volunteer.line) if state in _BUSY]
