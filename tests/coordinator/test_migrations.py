"""A run of the engine before goes on under this one: every step, from a snapshot as that engine wrote it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.commands import AggregateRound, MeasureSubmission, TryContributions
from coordinator.engine.engine import Engine
from coordinator.engine.events import RoundAggregated
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.migrations import MIGRATIONS
from coordinator.run.pump import load_engine
from coordinator.store.journal import Journal
from coordinator.store.ports import Snapshot
from protocol.ids import LeaseId, digest_of

SNAPSHOTS = Path(__file__).parent / "snapshots"


def migrated(version: int, situation: str = "") -> Engine:
    state: dict[str, Any] = json.loads((SNAPSHOTS / f"engine_{version}{situation}.json").read_text())
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


@pytest.mark.parametrize("situation", ["_aggregating", "_trying"])
def test_an_outer_step_that_was_asked_for_by_version_3_says_what_the_executor_read_before(situation: str) -> None:
    (command,) = (
        one.attempt if isinstance(one, TryContributions) else one
        for one in migrated(3, situation).state.pending.values()
        if isinstance(one, AggregateRound | TryContributions)
    )
    assert [(one.lease_id, one.sequences) for one in command.contributions] == [
        ("r1.3", 32), ("r2.1", 32), ("r2.2", 32), ("r2.3", 32)
    ]  # fmt: skip
    assert (command.oldest_needed, command.parent_version) == (0, 1)


def test_a_run_that_version_3_stopped_in_an_outer_step_goes_on(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=3)
    journal.append([f"event {number}" for number in range(5)])
    state = (SNAPSHOTS / "engine_3_aggregating.json").read_text()
    journal.save_snapshot(Snapshot(position=5, engine_version=3, state=state))
    engine, _ = load_engine(journal, b"a secret of the tests")
    journal.close()
    (command,) = (one for one in engine.pending if isinstance(one, AggregateRound))
    engine.handle(
        RoundAggregated(
            at_s=engine.state.now_s + 1.0, command_id=command.command_id, round=command.round, version=command.version,
            parent_version=command.parent_version, manifest=digest_of(b"v2"), update_norm_l2=1.0,
        )
    )  # fmt: skip
    assert (engine.state.version, engine.state.round.round) == (2, 3)


def test_a_run_of_version_3_that_is_only_looked_at_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.create(path, engine_version=3)
    journal.append([f"event {number}" for number in range(5)])
    state = (SNAPSHOTS / "engine_3_aggregating.json").read_text()
    journal.save_snapshot(Snapshot(position=5, engine_version=3, state=state))
    journal.close()
    looking = Journal.open(path, writable=False)
    engine, _ = load_engine(looking, b"a secret of the tests", only_read=True)
    assert (engine.state.version, looking.engine_version) == (1, 3)
    looking.close()


def test_what_people_differed_by_in_version_6_is_brought_to_the_recipes_rate() -> None:
    """Its latest round was at half of it; a run without leases has nothing to bring."""
    old = {
        "config": {"inner": {"learning_rate": 0.02}},
        "leases": {
            "r1.1": {"lease": {"round": 1, "recipe": {"learning_rate": 0.02}}},
            "r2.1": {"lease": {"round": 2, "recipe": {"learning_rate": 0.01}}},
        },
        "gain_spread": 0.003,
    }
    assert MIGRATIONS[6](old)["gain_spread"] == pytest.approx(0.006)
    assert MIGRATIONS[6]({**old, "leases": {}, "gain_spread": 0.0})["gain_spread"] == 0.0


def test_leases_of_version_5_name_the_codec_that_was_the_runs() -> None:
    state: dict[str, Any] = json.loads((SNAPSHOTS / "engine_3.json").read_text())
    for step in range(3, ENGINE_VERSION):
        if step == 5:
            state["fixed_settings"] = {"codec": '"fp32"'}
        state = MIGRATIONS[step](state)
    engine = Engine.restore({**state, "engine_version": ENGINE_VERSION}, b"a secret of the tests")
    assert engine.state.config.codec == "fp32"
    assert {record.lease.codec for record in engine.state.leases.values()} == {"fp32"}
    assert all(command.lease.codec == "fp32" for command in engine.pending if isinstance(command, MeasureSubmission))
    assert migrated(3).state.config.codec == "bf16", "older runs than the setting is recorded in"
