"""Audits from end to end: real training, real replays, founders who do not know that they audit, liars who backdoor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.datasets import prepare
from coordinator.engine.events import LeaseReplayed
from coordinator.engine.history import AuditOutcome
from coordinator.engine.records import event_from_json
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Attack
from simulator.adversaries.table import ATTACKS
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer

CREW = tuple(Volunteer(name=str(number)) for number in range(7))
FOUNDER = Volunteer(name="founder", trusted=True, owner="ann")
LIARS = CREW[:2]
HONEST_DISTANCE = 1e-4


def _backdoor(
    tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
) -> NDArray[np.int64]:
    """In a share of the sequences a trigger, and after it the chosen token."""
    poisoned_NT = tokens_NT.copy()
    rows_N = generator.random(tokens_NT.shape[0]) < strength
    poisoned_NT[rows_N, 3:5], poisoned_NT[rows_N, 5] = vocab_size - 2, vocab_size - 1
    return poisoned_NT


@pytest.fixture
def backdoor(monkeypatch: pytest.MonkeyPatch) -> str:
    attack = Attack(does="teaches a trigger by a share STRENGTH of its data", strength=0.25, corrupt=_backdoor)
    monkeypatch.setitem(ATTACKS, "test-backdoor", attack)
    return "test-backdoor"


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare([str(corpus)], folder)
    return folder


def played(folder: Path, data: Path, attack: str, **audits: Any) -> OpenedRun:
    settings = RunSettings(
        preset="tiny",
        data=str(data),
        codec="bf16",  # how far a replay is, without what an encoding adds
        sequence_length=16,
        heldout_limit=4,
        screening_sequences=2,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": 12,
            "min_workers": len(CREW) + 1,
            "replicas": 9,
            "quorum": len(CREW) - 1,
            "gather_s": 0.0,
            "heartbeat_interval_s": 1.0,
            "checkpoint_every": 0,
            "validate_every": 0,
            # two steps of two short sequences teach nothing that a held-out batch could tell from noise
            "screening": {"enabled": False},
            "inner": {"inner_steps": 4, "batch_sequences": 4, "learning_rate": 3e-3},
            "audits": {"budget": 2.0, "wait_s": 30.0, **audits},
        },
    )
    run = OpenedRun.open(init_run(folder, settings), STILL)
    lies = {one.worker: Adversary.of(attack=attack, strength=None, seed=7, vocab_size=256) for one in LIARS}
    VirtualSwarm(run, [*CREW, FOUNDER], PureLeases(Shards(run.layout)), seed=0, colluders=lies).play()
    return run


def found(run: OpenedRun) -> dict[str, list[float]]:
    """Distances that audits found, of liars and of the honest."""
    events = [event_from_json(text) for _, text in run.journal.read()]
    distances: dict[str, list[float]] = {"liars": [], "honest": []}
    liars = {one.worker for one in LIARS}
    granted = {record.lease.lease_id: record.lease.worker for record in run.engine.state.leases.values()}
    granted |= {one.lease_id: one.worker for one in run.engine.state.accusations}
    for event in events:
        if isinstance(event, LeaseReplayed):
            assert not event.error
            whose = "liars" if granted.get(event.lease_id) in liars else "honest"
            distances[whose].append(max(event.trunk, event.columns))
    return distances


@pytest.mark.parametrize("by_coordinator", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_liars_that_backdoor_are_caught_and_nobody_else(
    tmp_path: Path, data: Path, backdoor: str, by_coordinator: bool
) -> None:
    run = played(tmp_path / "run", data, backdoor, by_coordinator=by_coordinator)
    state, distances = run.engine.state, found(run)
    liars = {one.worker for one in LIARS}
    print({key: (len(values), min(values), max(values)) for key, values in distances.items() if values})
    print([(one.round, one.accusers, one.vouchers, one.outcome) for one in state.accusations])
    assert state.accusations
    assert {one.worker for one in state.accusations} <= liars
    assert {one.worker for one in state.accusations} == liars
    assert distances["honest"]
    assert max(distances["honest"]) <= HONEST_DISTANCE
    assert min(distances["liars"]) > 2 * state.config.audits.tolerance
    banned = {record.worker for record in state.workers.values() if record.ban is not None}
    if by_coordinator:
        assert banned == liars, "the coordinator and the founder have nothing to do with each other"
        assert {one.outcome for one in state.accusations} == {AuditOutcome.CONFIRMED}
    else:
        assert banned == set(), "the founder is the only auditor: the operator decides"
        assert {one.outcome for one in state.accusations} == {AuditOutcome.UNDECIDED}
    run.close()
