"""Who may be refused for what: only whose bytes were spoilt, or whose company's were. Decides nothing about the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coordinator.engine.reasons import HELDOUT_LOSS_ROSE, UNAGGREGATABLE, UNUSABLE
from coordinator.engine.rows import LeaseRecord
from protocol.ids import WorkerId
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.work import Spoils

if TYPE_CHECKING:
    from simulator.deterministic.volunteer_spec import VolunteerSpec


def check_blame(record: LeaseRecord, key: str, people: Mapping[WorkerId, VolunteerSpec]) -> None:
    """Only who makes an outer step impossible is refused for that, or has made the others' work of no use."""
    lease_id, spoils = record.lease.lease_id, people[record.lease.worker].spoils
    everybodys = {one.spoils for one in people.values()}
    if key == UNAGGREGATABLE and spoils is not Spoils.ALONE:
        raise InvariantBroken(f"lease {lease_id} was refused as {key}, and nothing was wrong with it")
    if key == HELDOUT_LOSS_ROSE and spoils is not Spoils.MODEL:
        raise InvariantBroken(f"lease {lease_id} was refused as {key}, and makes no version worse")
    if key == UNUSABLE and not {Spoils.STUBBORN, Spoils.MODEL}.intersection(everybodys):
        raise InvariantBroken(f"lease {lease_id} was refused as {key}, and its round could have been aggregated")
