"""What one seed stands for: a swarm, its run's settings, how bad its network is, and which faults strike where.

Decides all of it from the seed alone. Noise and faults end at `calm_s`; after that every process is up and every
message arrives, so a run that still does not end has no excuse.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from coordinator.engine.config import EngineConfig, InnerRecipe
from protocol.identity import PrivateIdentity
from protocol.ids import RunId, WorkerId, worker_id_of
from simulator import faults as f
from simulator.deterministic.distrust import OrderPlan, audit_faults, some_audited, words_of
from simulator.deterministic.measuring import some_measuring
from simulator.deterministic.volunteer_spec import VolunteerSpec
from simulator.deterministic.work import Spoils
from simulator.faults import Fault
from simulator.holders import LIES, Gives
from simulator.seeds import derived_stream

START_S = 1000.0
CALLS = (
    "Enrol",
    "OpenSession",
    "AcquireLease",
    "GetManifest",
    "Download",
    "CommitSubmission",
    "Upload",
    "ReturnLease",
    "Heartbeat",
)
SLOW_WORK = ("MeasureSubmission", "AggregateRound", "ValidateVersion", "WriteCheckpoint")
WORKER_STATES = ("enrolling", "opening", "idle", "fetching", "training", "resuming", "committing", "uploading")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingPlan:
    """The operator changes a setting."""

    after_s: float
    key: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One seed's whole world."""

    seed: int
    config: EngineConfig
    volunteers: tuple[VolunteerSpec, ...]
    faults: tuple[Fault, ...]
    drop_share: float
    duplicate_share: float
    late_share: float
    late_s: float
    commit_s: float
    """Usual time of a commit on the coordinator's disk."""
    snapshot_every: int
    calm_s: float
    limit_s: float
    stop_after_s: float | None
    """When the operator stops the run."""
    changes: tuple[SettingPlan, ...] = ()
    words: tuple[OrderPlan, ...] = ()
    holds: tuple[tuple[float, str], ...] = ()
    """When the operator says `pause`, `drain` or `resume`, after the start."""
    rot_share: float = 0.0
    """Of the blocks that the coordinator's disk gives, those with a wrong byte."""
    copies: int = 2
    """Workers that take a block from the coordinator, where workers share."""
    clear: bool = False
    """Workers share, and nothing goes wrong but what liars among them do."""

    @property
    def people(self) -> dict[WorkerId, VolunteerSpec]:
        """Whose key each is, as the simulation alone knows."""
        return {worker_id_of(key_of(self.seed, index)): spec for index, spec in enumerate(self.volunteers)}


def identity_of(seed: int, index: int, nth: int = 0) -> PrivateIdentity:
    """The `nth` key that one volunteer makes; an honest worker makes one."""
    return PrivateIdentity.from_seed(hashlib.sha256(f"volunteer {seed} {index} {nth}".encode()).digest())


@functools.lru_cache(maxsize=64)
def key_of(seed: int, index: int) -> bytes:
    """The public key of one volunteer."""
    return identity_of(seed, index).public_key


def scenario_of(seed: int) -> Scenario:
    """The world of `seed`."""
    draw = derived_stream(seed, "scenario")
    volunteers = draw.randint(1, 5)
    config = _config(draw, volunteers)
    calm_s = START_S + draw.uniform(60.0, 400.0)
    rough = draw.random() < 0.7
    owners = draw.choice((("",), ("",), ("anna", "anna", "ben", "")))
    drawn = [_volunteer(draw, config, owners) for _ in range(volunteers)]
    config, people = some_audited(seed, config, _some_harmful(seed, _some_spoiling(seed, drawn)))
    config, people = some_measuring(seed, config, people)
    scenario = Scenario(
        seed=seed,
        config=config,
        volunteers=_some_apart(seed, calm_s, people),
        faults=(
            *(_fault(draw, volunteers) for _ in range(draw.choice((0, 1, 2, 4, 6, 9)))),
            *_clock_faults(seed),
            *audit_faults(seed),
        ),
        drop_share=draw.choice((0.0, 0.02, 0.1)) if rough else 0.0,
        duplicate_share=draw.choice((0.0, 0.05, 0.2)) if rough else 0.0,
        late_share=draw.choice((0.0, 0.05, 0.2)) if rough else 0.0,
        late_s=draw.choice((2.0, 15.0, 60.0)),
        commit_s=draw.choice((0.001, 0.02, 0.5)),
        snapshot_every=draw.choice((4, 10, 30, 2000)),
        calm_s=calm_s,
        limit_s=calm_s + 6 * 3600.0,
        stop_after_s=draw.uniform(30.0, 300.0) if draw.random() < 0.1 else None,
        changes=_changes(seed),
        words=words_of(seed, volunteers) if config.audits.budget > 0 or config.rollback_rounds else (),
        holds=_holds(seed, calm_s),
        rot_share=derived_stream(seed, "rot").choice((0.0, 0.0, 0.05)),
    )
    return _some_sharing(scenario)


def _some_sharing(scenario: Scenario) -> Scenario:
    """In every sixth world workers give blocks to one another, and some of them lie; every other of these is clear."""
    draw = derived_stream(scenario.seed, "neighbours")
    if draw.random() < 5 / 6:
        return scenario
    copies = draw.choice((1, 2, 2))
    if draw.random() < 0.5:
        kinds = (Gives.BLOCKS,) * 4 + (Gives.NOTHING,) * 2 + LIES
        people = tuple(replace(volunteer, gives=draw.choice(kinds)) for volunteer in scenario.volunteers)
        return replace(scenario, volunteers=people, copies=copies)
    count = draw.randint(max(4, scenario.config.min_workers), 8)
    gives = [draw.choice(LIES) for _ in range(draw.choice((0, 1, 2) if count > 5 else (0, 1)))]
    gives += [Gives.BLOCKS] * (count - len(gives))
    draw.shuffle(gives)
    drawn = scenario.volunteers
    crowd = [drawn[number % len(drawn)] for number in range(count)]
    return replace(
        scenario,
        volunteers=tuple(
            replace(one, gives=given, arrives_s=START_S + draw.uniform(0.0, 20.0), hiccup_s=0.0, frame_s=0.0, pauses=())
            for one, given in zip(crowd, gives, strict=True)
        ),
        copies=copies,
        clear=True,
        faults=(),
        drop_share=0.0,
        duplicate_share=0.0,
        late_share=0.0,
        rot_share=0.0,
    )


def _changes(seed: int) -> tuple[SettingPlan, ...]:
    """In every third world the operator changes settings, from draws of their own."""
    draw = derived_stream(seed, "settings")
    if draw.random() < 0.66:
        return ()
    kinds = (("outer_learning_rate", 0.5, 0.7), ("inner.learning_rate", 0.004, 0.02), ("quorum", 1, 2))
    drawn = [draw.choice(kinds) for _ in range(draw.randint(1, 3))]
    plans = (SettingPlan(after_s=draw.uniform(0.0, 150.0), key=key, value=draw.choice(of)) for key, *of in drawn)
    return tuple(plans)


def _holds(seed: int, calm_s: float) -> tuple[tuple[float, str], ...]:
    """In every fifth world the run is held once or twice, for seconds or minutes, from draws of their own."""
    draw = derived_stream(seed, "holds")
    if draw.random() < 0.8:
        return ()
    said: list[tuple[float, str]] = []
    for _ in range(draw.randint(1, 2)):
        after_s = draw.uniform(0.0, calm_s - START_S)
        said.append((after_s, draw.choice(("pause", "pause", "drain"))))
        said.append((after_s + draw.choice((3.0, 30.0, 300.0)), "resume"))
    return tuple(said)


def _clock_faults(seed: int) -> list[Fault]:
    """Two seeds in five have some, from draws of their own: a step of hours, for a while or for good, and sleep."""
    draw = derived_stream(seed, "clocks")
    if draw.random() < 0.6:
        return []
    faults = []
    after_s, by_s = START_S + draw.uniform(0.0, 150.0), draw.choice((1.0, -1.0)) * draw.uniform(600.0, 36_000.0)
    if draw.random() < 0.7:
        faults.append(f.step(by_s, after_s=after_s))
        faults += [f.step(-by_s, after_s=after_s + draw.uniform(5.0, 60.0))] if draw.random() < 0.5 else []
    if draw.random() < 0.6:
        sleeps_s = draw.choice((20.0, 200.0, 1000.0, 10_800.0))
        faults.append(f.suspend(sleeps_s, after_s=START_S + draw.uniform(0.0, 150.0)))
    return faults


def _config(draw: random.Random, volunteers: int) -> EngineConfig:
    columns = draw.randint(2, 4)
    return EngineConfig(
        run_id=RunId("simulated"),
        columns=columns,
        train_sequences=draw.choice((40, 500, 10_000)),
        max_rounds=draw.randint(1, 3),
        replicas=draw.randint(1, 3),
        quorum=draw.randint(1, 2),
        min_workers=draw.randint(1, volunteers),
        most_grants=draw.choice((1, 2, 256)),
        gather_s=draw.choice((0.0, 5.0)),
        min_lease_s=draw.choice((10.0, 30.0)),
        lease_ttl_s=120.0,
        round_deadline_s=draw.choice((120.0, 600.0)),
        max_staleness=draw.randint(0, 2),
        quarantine_s=120.0,
        checkpoint_every=draw.randint(0, 2),
        validate_every=draw.randint(0, 1),
        inner=InnerRecipe(inner_steps=8, batch_sequences=draw.choice((1, 2))),
    )


def _volunteer(draw: random.Random, config: EngineConfig, owners: tuple[str, ...]) -> VolunteerSpec:
    return VolunteerSpec(
        max_columns=draw.randint(1, config.columns),
        step_s=draw.choice((0.5, 1.0, 1.0, 2.0, 6.0)),
        arrives_s=START_S + draw.choice((0.0, 1.0, 30.0)) * draw.random(),
        liar=draw.random() < 0.08,
        owner=draw.choice(owners),
    )


def _some_spoiling(seed: int, volunteers: list[VolunteerSpec]) -> tuple[VolunteerSpec, ...]:
    """In every fourth world, each volunteer may be one of whose submissions no outer step can be made."""
    draw = derived_stream(seed, "spoilers")
    if draw.random() < 0.75:
        return tuple(volunteers)
    kinds = (*(kind for kind in Spoils if kind not in {Spoils.MODEL, Spoils.REPLAY}), *[Spoils.NOTHING] * 3)
    return tuple(replace(volunteer, spoils=draw.choice(kinds)) for volunteer in volunteers)


def _some_harmful(seed: int, volunteers: tuple[VolunteerSpec, ...]) -> tuple[VolunteerSpec, ...]:
    """In every eighth world, volunteers whose submissions pass every check and make each version worse."""
    draw = derived_stream(seed, "harmful")
    if draw.random() < 0.875:
        return volunteers
    share = draw.choice((0.2, 0.4, 1.0))
    return tuple(
        replace(volunteer, spoils=Spoils.MODEL) if draw.random() < share else volunteer for volunteer in volunteers
    )


def _some_apart(seed: int, calm_s: float, volunteers: tuple[VolunteerSpec, ...]) -> tuple[VolunteerSpec, ...]:
    """A few have slow lines, a few swap, and a few have rules about when to work."""
    draw = derived_stream(seed, "lines and rules")
    apart = []
    for volunteer in volunteers:
        pauses = _pauses(draw, calm_s) if draw.random() < 0.15 else ()
        swaps = draw.random() < (0.7 if pauses else 0.15)
        apart.append(
            replace(
                volunteer,
                frame_s=draw.uniform(2.0, 12.0) if draw.random() < 0.12 else 0.0,
                hiccup_s=draw.choice((1.0, 5.0, 20.0)) if swaps else 0.0,
                pauses=pauses,
            )
        )
    return tuple(apart)


def _pauses(draw: random.Random, calm_s: float) -> tuple[tuple[float, float, bool], ...]:
    begins_s = [draw.uniform(START_S, calm_s) for _ in range(draw.randint(1, 3))]
    return tuple((at_s, min(calm_s, at_s + draw.choice((5.0, 40.0, 200.0))), draw.random() < 0.5) for at_s in begins_s)


def _fault(draw: random.Random, volunteers: int) -> Fault:
    """One fault with an address that such a run is likely to come by."""
    worker, makers = draw.randrange(volunteers), _makers(draw)
    weights = [weight for weight, _ in makers]
    make = draw.choices([make for _, make in makers], weights)[0]
    return make(worker)


def _makers(draw: random.Random) -> list[tuple[int, Callable[[int], Fault]]]:
    nth = draw.randint(1, 3)
    call, work = draw.choice(CALLS), draw.choice(SLOW_WORK)
    back_s, position = draw.choice((0.5, 5.0, 60.0)), draw.randint(2, 60)
    after_s = START_S + draw.uniform(0.0, 150.0)
    here = {"durable": draw.random() < 0.5, "power_loss": draw.random() < 0.5}
    state = draw.choice(WORKER_STATES)
    return [
        (6, lambda _: f.kill(back_s, worker=f.COORDINATOR, journal_position=position, **here)),
        (2, lambda _: f.kill(back_s, worker=f.COORDINATOR, after_s=after_s, **here)),
        (4, lambda _: f.kill(back_s, worker=f.COORDINATOR, call=f"execute:{work}", nth=nth, **here)),
        (4, lambda worker: f.kill(back_s, worker=worker, call=f"state:{state}", nth=nth)),
        (2, lambda worker: f.kill(back_s, worker=worker, after_s=after_s)),
        (1, lambda _: f.fail_at(worker=f.COORDINATOR, journal_position=position)),
        (2, lambda _: f.fail_at(call=f"execute:{work}", nth=nth, times=draw.randint(1, 4))),
        (2, lambda _: f.duplicate(call=f"execute:{work}", nth=nth)),
        (2, lambda worker: f.delay(draw.choice((3.0, 40.0, 90.0)), worker=worker, call=call, nth=nth)),
        (2, lambda worker: f.drop(worker=worker, call=call, nth=nth, times=draw.randint(1, 3))),
        (2, lambda worker: f.duplicate(worker=worker, call=call, nth=nth)),
        (2, lambda worker: f.reorder(worker=worker, call=call, nth=nth)),
        (2, lambda worker: f.truncate(draw.random(), worker=worker, call="Upload", nth=1)),
        (2, lambda worker: f.stall(draw.choice((5.0, 45.0, 200.0)), worker=worker, after_s=after_s)),
        (2, lambda worker: f.partition(draw.choice((5.0, 45.0, 200.0)), worker=worker, after_s=after_s)),
        (1, lambda _: f.stall(draw.choice((5.0, 45.0)), worker=f.COORDINATOR, after_s=after_s)),
    ]
