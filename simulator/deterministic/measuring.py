"""What simulated workers measure for the coordinator, some of whom lie, and what must hold of what comes of it.

Decides what a submission of hashes gains: losses follow from exactly what an item is made of, so that a measurer that
was given another version, other sequences or other bytes is found out. Keeps its book outside of every simulated
process, and knows from the scenario who lies.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from numpy.typing import NDArray

from coordinator.engine.commands import AggregateRound, Command, GrantLease, MeasureSubmission
from coordinator.engine.config import EngineConfig
from coordinator.engine.delegation_config import DelegationConfig
from coordinator.engine.events import Event, SubmissionMeasured, VersionValidated
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import HELDOUT_GAIN_TOO_SMALL, HELDOUT_LOSS_ROSE
from coordinator.engine.state import EngineState
from protocol.ids import BlockId, Digest, LeaseId, WorkerId
from protocol.lease import DataRange
from simulator.deterministic.broken import InvariantBroken
from simulator.seeds import derived_stream
from worker.fetched import FetchedItem

if TYPE_CHECKING:
    from simulator.deterministic.volunteer_spec import VolunteerSpec

LIE = 0.4
"""Nats a token by which a liar's losses after are off."""
_BY_GAIN = {HELDOUT_GAIN_TOO_SMALL, HELDOUT_LOSS_ROSE}

Parts = Sequence[tuple[float, int, int]]
"""Share, first sequence, and the one after the last."""


def hashed_losses(
    base: Mapping[BlockId, Digest], sequences_NL: NDArray[Any], payload: bytes, parts: Parts
) -> tuple[list[float], list[float]]:
    """Losses before, of all N sequences, and after, of each part's: they fall by what the payload says."""
    version = hashlib.sha256(repr(sorted(base.items())).encode()).digest()
    before = [5.0 + _share(version + row.astype("<u8").tobytes()) for row in sequences_NL]
    gain = 0.1 + _share(payload) / 40
    return before, [before[row] - gain for _, start, stop in parts for row in range(start, stop)]


def _share(content: bytes) -> float:
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32


class HashMeasurer:
    """What a simulated worker measures with; one that lies does so in about every other item."""

    def __init__(self, *, lies: bool) -> None:
        self._lies = lies

    def measure(self, item: FetchedItem) -> tuple[list[float], list[float]]:
        """Losses before and after."""
        parts = [(part.share, part.start, part.stop) for part in item.parts]
        before, after = hashed_losses(item.digests, item.sequences, item.payload, parts)
        draw = random.Random(item.item_id)
        if self._lies and draw.random() < 0.5:
            off = draw.choice((-LIE, LIE))
            if not item.parts:
                return [loss + off for loss in before], after
            after = [loss + off for loss in after]
        return before, after


def some_measuring(
    seed: int, config: EngineConfig, volunteers: tuple[VolunteerSpec, ...]
) -> tuple[EngineConfig, tuple[VolunteerSpec, ...]]:
    """In every fifth world trusted workers measure for the coordinator, and some lie; from draws of their own."""
    draw = derived_stream(seed, "measuring")
    if draw.random() < 0.8:
        return config, volunteers
    delegation = DelegationConfig(
        sequences=draw.choice((8, 32)), checked_share=draw.choice((0.125, 0.5, 1.0)), wait_s=draw.choice((3.0, 60.0))
    )
    lying = draw.choice((0.0, 0.3, 0.6))
    people = tuple(
        replace(
            one,
            trusted=one.trusted or draw.random() < 0.6,
            measures=draw.random() < 0.8,
            lies_measuring=draw.random() < lying,
        )
        for one in volunteers
    )
    return replace(config, delegation=delegation), people


class MeasuringBook:
    """Everything that was measured by others in one simulated run."""

    def __init__(self, people: Mapping[WorkerId, VolunteerSpec]) -> None:
        self._people = people
        self._given: dict[DataRange, tuple[float, LeaseId]] = {}
        """Sequences that others were given, when first, and for which lease's submission."""
        self._caught: set[str] = set()

    def commanded(self, command: Command, state: EngineState) -> None:
        """`command` follows from an event."""
        if isinstance(command, MeasureSubmission):
            self._check_given(command, state)
        elif isinstance(command, GrantLease):
            lease = command.lease
            if any(_overlap(rows, lease.data) for rows in self._given):
                _broken(f"lease {lease.lease_id} names {lease.data}, on some of which others were to measure")
        elif isinstance(command, AggregateRound):
            for one in command.contributions:
                word = state.leases[one.lease_id].measured_by
                if word is not None and self._person(word) in self._caught:
                    _broken(f"lease {one.lease_id} is to be aggregated on the word of {word[:8]}, who was caught")

    def applied(self, event: Event, state: EngineState) -> None:
        """`event` was handled."""
        if isinstance(event, VersionValidated):
            self._check_said(event, event.command_id, None)
            self._note_caught(event, state)
        elif isinstance(event, SubmissionMeasured):
            self._measured(event, state)
        else:
            return
        for one in state.validations:
            if one.measured_by is not None and self._person(one.measured_by) in self._caught:
                _broken(f"version {one.version} has the loss that {one.measured_by[:8]} said, who was caught")

    def _note_caught(self, event: SubmissionMeasured | VersionValidated, state: EngineState) -> None:
        for liar in event.false:
            self._caught.add(self._person(liar))
            if state.workers[liar].trusted:
                _broken(f"worker {liar[:8]} lied of {event.command_id}, and is trusted")

    def _measured(self, event: SubmissionMeasured, state: EngineState) -> None:
        record = state.leases.get(event.lease_id)
        if record is None:
            return
        self._check_said(event, f"measure:{event.lease_id}", record.lease.worker)
        self._note_caught(event, state)
        refused = record.status is LeaseStatus.REJECTED and record.verdict is not None
        if refused and record.verdict is not None and record.verdict.key in _BY_GAIN and event.measured_by is not None:
            _broken(f"lease {event.lease_id} was refused on the word of {event.measured_by[:8]} alone")

    def _check_given(self, command: MeasureSubmission, state: EngineState) -> None:
        rows, lease_id = command.rows, command.lease.lease_id
        if rows is None:
            return
        committed_s = state.leases[lease_id].committed_at_s
        since_s, first = self._given.setdefault(rows, (state.now_s, lease_id))
        assert committed_s is not None
        if first != lease_id and committed_s >= since_s:
            _broken(f"lease {lease_id} was committed at {committed_s:.3f} s, and others had {rows} at {since_s:.3f} s")
        for record in state.leases.values():
            if _overlap(rows, record.lease.data):
                _broken(f"lease {lease_id} is measured on {rows}, of which lease {record.lease.lease_id} was trained")

    def _check_said(self, event: SubmissionMeasured | VersionValidated, item_id: str, worker: WorkerId | None) -> None:
        own = None if worker is None else self._person(worker)
        people = [self._person(answer.worker) for answer in event.answers]
        if own in people or len(set(people)) < len(people):
            _broken(f"{item_id} of {own} was measured by {people}")
        for liar in event.false:
            if not self._people[liar].lies_measuring:
                _broken(f"worker {liar[:8]} is honest, and was found to have lied of {item_id}")
        lies = {answer.worker: self._is_lie(item_id, answer.worker) for answer in event.answers}
        if event.measured_by is None and {one for one, is_lie in lies.items() if is_lie} != set(event.false):
            _broken(f"of {lies} on {item_id} the coordinator found {event.false}")
        if event.measured_by is not None and len(set(lies.values())) > 1:
            _broken(f"answers that differ were taken for {item_id}: {lies}")

    def _is_lie(self, item_id: str, worker: WorkerId) -> bool:
        return self._people[worker].lies_measuring and random.Random(item_id).random() < 0.5

    def _person(self, worker: WorkerId) -> str:
        owner = self._people[worker].owner
        return f"owner {owner}" if owner else worker


def _overlap(one: DataRange, other: DataRange) -> bool:
    apart = one.start + one.count <= other.start or other.start + other.count <= one.start
    return one.seed == other.seed and not apart


def _broken(what: str) -> NoReturn:
    raise InvariantBroken(what)
