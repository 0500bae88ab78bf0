"""What a run's whole history must show after any number of deaths, from the ledger of everything that was committed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.engine.commands import AggregateRound, AnnounceVerdict
from coordinator.engine.engine import Engine
from coordinator.engine.events import RoundAggregated, RunCreated, SubmissionCommitted, SubmissionUploaded
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.records import event_from_json
from coordinator.run.folder import RunFolder
from coordinator.run.pump import load_engine
from coordinator.run.verify import verify_run
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from protocol.errors import IllegalEvent


@dataclass(slots=True)
class Acknowledged:
    """What clients were told is safe: pairs of lease and digest."""

    commits: set[tuple[str, str]] = field(default_factory=set)
    uploads: set[tuple[str, str]] = field(default_factory=set)
    version: int = 0
    """The newest that a lease began from: so the outer step that made it was told."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the ledger says."""

    events: int
    commits: set[tuple[str, str]]
    uploads: set[tuple[str, str]]
    refused: dict[str, str]
    counted: Counter[str]
    """How often each lease was part of a published version."""
    versions: list[int]
    engine: Engine


def tally(first: str, ledger: Path, secret: bytes) -> Tally:
    """Replay everything that was ever committed."""
    created = event_from_json(first)
    assert isinstance(created, RunCreated)
    engine, _ = Engine.create(created, secret)
    rounds: dict[str, AggregateRound] = {}
    found = Tally(events=1, commits=set(), uploads=set(), refused={}, counted=Counter(), versions=[0], engine=engine)
    for line in ledger.read_text("utf-8").splitlines():
        event = event_from_json(line)
        found.events += 1
        try:
            commands = engine.handle(event)
        except IllegalEvent:
            continue
        match event:
            case SubmissionCommitted():
                found.commits.add((event.lease_id, event.digest))
            case SubmissionUploaded():
                found.uploads.add((event.lease_id, event.digest))
            case RoundAggregated() if engine.state.manifest == event.manifest:
                found.versions.append(event.version)
                found.counted.update(one.lease_id for one in rounds[event.command_id].contributions)
        for command in commands:
            if isinstance(command, AggregateRound):
                rounds[command.command_id] = command
                found.refused.update(_superseded(engine, command))
            elif isinstance(command, AnnounceVerdict) and not command.accepted:
                found.refused[command.lease_id] = command.reason
    return found


def _superseded(engine: Engine, command: AggregateRound) -> dict[str, str]:
    """Late submissions whose worker has a newer one in this round: one vote each, and the record says why."""
    counting = {one.lease_id for one in command.contributions}
    records = (record for record in engine.state.leases.values() if record.counted_in == command.round)
    return {record.lease.lease_id: record.end_reason for record in records if record.lease.lease_id not in counting}


def check(run: RunFolder, first: str, ledger: Path, acknowledged: Acknowledged) -> Tally:
    """Raise AssertionError unless nothing acknowledged was lost and nothing was done twice."""
    found = tally(first, ledger, run.draw_secret())
    journal = Journal.open(run.journal_path)
    engine, _ = load_engine(journal, run.draw_secret())
    assert journal.last_position == found.events, "the journal holds exactly what was committed, in number"
    journal.close()
    assert json.dumps(engine.snapshot()) == json.dumps(found.engine.snapshot()), "and in content"
    assert acknowledged.commits <= found.commits
    assert acknowledged.uploads <= found.uploads
    assert acknowledged.version <= found.versions[-1]
    assert found.versions == list(range(len(found.versions))), "each outer step once, in order"
    assert all(count == 1 for count in found.counted.values()), "no submission counts twice"
    state = engine.state
    for lease_id, _ in acknowledged.uploads:
        record = state.leases.get(lease_id)  # type: ignore[call-overload]  # a NewType of str
        waiting = record is not None and record.status in {LeaseStatus.UPLOADED, LeaseStatus.ACCEPTED}
        assert lease_id in found.counted or found.refused.get(lease_id) or waiting, f"{lease_id} was lost"
    _check_descent(run, found.versions[-1])
    assert [problem for one in verify_run(run) for problem in one.problems] == []
    return found


def _check_descent(run: RunFolder, newest: int) -> None:
    versions = Versions(run.root / "versions", run.artifacts().blocks, run.layout())
    for version in (one for one in versions.kept() if 0 < one <= newest):
        digest = versions.manifest_digest(version)
        assert digest is not None
        assert versions.manifest(digest).parent_version == version - 1
