"""A run of the engine before goes on under this one: every step, from a snapshot as that engine wrote it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.engine import Engine
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.migrations import MIGRATIONS
from protocol.ids import LeaseId

SNAPSHOTS = Path(__file__).parent / "snapshots"


def migrated(version: int) -> Engine:
    state: dict[str, Any] = json.loads((SNAPSHOTS / f"engine_{version}.json").read_text())
    assert state["engine_version"] == version
    for step in range(version, ENGINE_VERSION):
        state = MIGRATIONS[step](state)
    return Engine.restore({**state, "engine_version": ENGINE_VERSION}, b"a secret of the tests")


def test_sentences_of_version_2_are_kept_as_they_were_told() -> None:
    """A worker set aside, one accepted, one handed back, one overdue; two rounds closed, one of nothing."""
    state = migrated(2).state
    under_quorum = "every lease is resolved; 4 columns stay under quorum and nobody idle can serve them"
    assert [row.close_reason for row in state.history] == [
        f"nobody returned anything acceptable; {under_quorum}",
        under_quorum,
    ]
    ended = {record.lease.worker: record.end_reason for record in state.leases.values() if record.ended}
    assert ended == {"b": "handed back: leaving", "c": "no submission within 15 s, the lease's deadline"}
    quarantine = state.workers["x"].quarantine  # type: ignore[index]
    assert quarantine is not None
    assert quarantine.why.about.startswith("1 submissions refused in a row (the last: heldout_loss_rose)")
    verdicts = {record.verdict.key: record.verdict for record in state.leases.values() if record.verdict}
    assert verdicts[""].accepted
    assert verdicts[""].reason == "half a step along it lowers held-out loss by 0.05 nats a token"
    assert not verdicts["heldout_loss_rose"].accepted


def test_leases_of_version_3_keep_their_recipes() -> None:
    """In the second round: one accepted, one uploaded whose measurement waits, one in training."""
    engine = migrated(3)
    lease = engine.state.leases[LeaseId("r2.3")].lease
    assert (lease.worker, lease.inner_steps, lease.batch_sequences) == ("c", 8, 4)
    old = json.loads((SNAPSHOTS / "engine_3.json").read_text())["leases"]["r2.3"]["lease"]
    kept = {name: value for name, value in old.items() if hasattr(lease.recipe, name)}
    assert len(kept) == 11
    assert kept.items() <= dataclasses.asdict(lease.recipe).items()
    assert lease.recipe.weight_decay == 0.02  # not a recipe's default
    measure = next(command for command in engine.pending if isinstance(command, MeasureSubmission))
    assert measure.lease == engine.state.leases[LeaseId("r2.2")].lease
