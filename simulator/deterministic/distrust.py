"""Worlds in which leases are computed again, some lie, and the operator has something to say about it.

Decides all of it from the seed, by draws of its own: what else a seed stands for (scenario.py) is as it was without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from coordinator.engine.config import AuditConfig, EngineConfig
from coordinator.engine.events import Event, RollbackOrdered, WorkerBanned, WorkerPardoned, WorkerUnbanned
from coordinator.engine.trust_config import ReputationConfig
from protocol.ids import WorkerId
from simulator import faults as f
from simulator.arithmetic import EVERYBODYS_ARITHMETIC, OTHERS, ROUNDING_GROWS_FROM
from simulator.deterministic.work import Spoils
from simulator.faults import Fault
from simulator.seeds import derived_stream

if TYPE_CHECKING:
    from simulator.deterministic.volunteer_spec import VolunteerSpec

WORK = ("AggregateRound", "FindHarmful", "ReplayLease", "CompareSubmissions", "RebuildVersion")
AUDITS = ("ReplayLease", "CompareSubmissions", "RebuildVersion")


class Order(StrEnum):
    """What the operator may say about a worker."""

    BAN = "ban"
    UNBAN = "unban"
    PARDON = "pardon"
    ROLL_BACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPlan:
    """The operator says something about a volunteer."""

    after_s: float
    order: Order
    volunteer: int
    during: str = ""
    """Where it is given: said while the first such work after that time is being done, not at the time itself."""


def some_audited(
    seed: int, config: EngineConfig, volunteers: tuple[VolunteerSpec, ...]
) -> tuple[EngineConfig, tuple[VolunteerSpec, ...]]:
    """In half of the worlds leases are computed again, and some lie: about their own, or as auditors of others'."""
    draw = derived_stream(seed, "audits")
    if draw.random() < 0.5:
        return config, volunteers
    audits = AuditConfig(
        budget=draw.choice((0.5, 2.0, 8.0)),
        by_coordinator=draw.random() < 0.7,
        first=draw.choice((1, 10)),
        wait_s=draw.choice((5.0, 60.0, 300.0)),
        keep_rounds=draw.choice((1, 3)),
    )
    trusted, lying, auditing = draw.choice((0.0, 0.4, 0.8)), draw.choice((0.0, 0.4, 0.7)), draw.choice((0.0, 0.5))
    config = replace(
        config,
        audits=audits,
        open_run=draw.random() < 0.5,
        rollback_rounds=draw.choice((0, 2, 4)),
        rollback_least_change=draw.choice((0.1, 0.1, 2.0)),
        max_rounds=draw.randint(2, 6),
        reputation=ReputationConfig(vouched_after=draw.choice((1, 2)), probation=draw.choice((1, 3))),
    )
    people = []
    for volunteer in volunteers:
        spoils = Spoils.REPLAY if draw.random() < lying else volunteer.spoils
        is_trusted, lies = draw.random() < trusted, draw.random() < auditing
        people.append(
            replace(
                volunteer,
                spoils=spoils,
                lies_from=draw.choice((1, 2, 4)),
                trusted=is_trusted,
                lies_as_auditor=is_trusted and lies,
            )
        )
    return _some_rounding_otherwise(seed, config, tuple(people))


def _some_rounding_otherwise(
    seed: int, config: EngineConfig, volunteers: tuple[VolunteerSpec, ...]
) -> tuple[EngineConfig, tuple[VolunteerSpec, ...]]:
    """In half of these, machines of several kinds, and leases so long that an honest one is as far off as a lie."""
    draw = derived_stream(seed, "arithmetic")
    if draw.random() < 0.5:
        return config, volunteers
    classes = [EVERYBODYS_ARITHMETIC, *OTHERS]
    steps = draw.choice((2, ROUNDING_GROWS_FROM))
    config = replace(config, audits=replace(config.audits, decisive_steps=steps))
    return config, tuple(replace(volunteer, arithmetic=str(draw.choice(classes))) for volunteer in volunteers)


def audit_faults(seed: int) -> list[Fault]:
    """In a third of the worlds, from draws of their own; they strike where there are audits or rollbacks."""
    draw = derived_stream(seed, "audit faults")
    if draw.random() < 0.66:
        return []
    call, nth, power_loss = f"execute:{draw.choice(AUDITS)}", draw.randint(1, 3), draw.random() < 0.5
    kill = f.kill(draw.choice((0.5, 5.0, 60.0)), worker=f.COORDINATOR, call=call, nth=nth, power_loss=power_loss)
    return [
        draw.choice((kill, f.fail_at(call=call, nth=nth, times=draw.randint(1, 4)), f.duplicate(call=call, nth=nth)))
    ]


def words_of(seed: int, volunteers: int) -> tuple[OrderPlan, ...]:
    """In half of these worlds the operator has something to say, from draws of its own."""
    draw = derived_stream(seed, "words")
    return tuple(
        OrderPlan(
            after_s=draw.uniform(0.0, 90.0),
            order=draw.choice((Order.BAN, Order.BAN, Order.UNBAN, Order.PARDON, Order.ROLL_BACK, Order.ROLL_BACK)),
            volunteer=draw.randrange(volunteers),
            during=draw.choice(("", "", *WORK)),
        )
        for _ in range(draw.choice((0, 1, 2, 4)))
    )


def said(order: Order, worker: WorkerId, at_s: float) -> Event:
    """The operator's word, as the coordinator hears it."""
    events: dict[Order, Callable[..., Event]] = {
        Order.BAN: WorkerBanned,
        Order.UNBAN: WorkerUnbanned,
        Order.PARDON: WorkerPardoned,
        Order.ROLL_BACK: RollbackOrdered,
    }
    return events[order](at_s=at_s, worker=worker, by="the operator", why="as I see it")
