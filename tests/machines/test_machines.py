"""Real processes under the same faults as the simulation's: the run goes on to its end, and nothing counts twice."""

from __future__ import annotations

import shutil
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.pump import load_engine
from coordinator.settings import RunSettings
from coordinator.store.journal import Journal
from protocol.errors import ConfigError, LocalError
from simulator import faults as f
from simulator.faults import COORDINATOR, Fault
from simulator.seeds import derived_stream
from tests.machines.machines import Machines

LIMIT_S = 180.0
"""For a machine that is busy with other things; on a quiet one it takes a tenth."""
ENGINE: dict[str, Any] = {
    "max_rounds": 3,
    "replicas": 2,
    "quorum": 2,
    "min_workers": 2,
    "gather_s": 0.0,
    "min_grace_s": 0.2,
    "min_lease_s": 20.0,
    "heartbeat_interval_s": 0.5,
    "heartbeat_misses": 20.0,
    "checkpoint_every": 0,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 4, "batch_sequences": 2, "warmup_steps": 0},
}


def make_run(tmp_path: Path, **changes: Any) -> RunFolder:
    text = tmp_path / "text"
    text.mkdir()
    for name in ("ast.py", "calendar.py", "codecs.py", "csv.py", "enum.py"):
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, text / name)
    settings = RunSettings(
        preset="tiny", data=str(text), port=0, sequence_length=16, codec="bf16", heldout_limit=2,
        screening_sequences=2, engine=ENGINE | changes,
        advertised_hosts=("127.0.0.1:1",),  # else a worker whose link breaks finds the way round it (worker/finding.py)
    )  # fmt: skip
    return init_run(tmp_path / "run", settings)


def check(run: RunFolder, rounds: int) -> None:
    """It is over, after one outer step a round; what was accepted is in one of them, or was told that it is not."""
    journal = Journal.open(run.journal_path, writable=False)
    engine, _ = load_engine(journal, run.draw_secret())
    journal.close()
    state = engine.state
    assert (state.phase, state.version) == (Phase.OVER, rounds)
    assert [row.round for row in state.history] == list(range(1, rounds + 1))
    accepted = [record for record in state.leases.values() if record.status is LeaseStatus.ACCEPTED]
    assert accepted
    assert all(record.counted_in is not None for record in accepted)


async def run_under(run: RunFolder, tmp_path: Path, *faults: Fault) -> Counter[Fault]:
    machines = Machines(folder=run.root, work=tmp_path / "work", workers=2, faults=faults)
    await machines.run(LIMIT_S)
    return Counter(fault for _, fault in machines.fired)


async def test_a_run_of_real_processes_survives_every_kind_of_fault_that_can_be_real(tmp_path: Path) -> None:
    run = make_run(tmp_path, gather_s=3.0)  # else worker 0 may end round 2 before worker 1 has asked for a lease of it
    faults = (
        f.kill(0.1, worker=0, round=1, call="step:3"),
        f.stall(0.3, worker=1, call="state:committing"),
        f.kill(0.1, worker=COORDINATOR, journal_position=8, durable=False),
        f.kill(0.1, worker=COORDINATOR, call="execute:AggregateRound"),
        f.duplicate(worker=COORDINATOR, call="execute:ValidateVersion"),
        f.fail_at(worker=1, round=2),
        f.drop(worker=0, nth=2),
        f.truncate(worker=1, after_bytes=60_000),
        f.delay(0.3, worker=1, nth=2),
        f.partition(0.5, worker=0, after_bytes=150_000),
        f.stall(0.2, worker=0, after_s=2.0),
    )
    struck = await run_under(run, tmp_path, *faults)
    assert struck == Counter(faults)
    check(run, 3)


async def test_a_fault_that_is_not_real_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TCP keeps the order"):
        Machines(folder=tmp_path, work=tmp_path, workers=1, faults=[f.reorder(worker=0)])
    assert list(tmp_path.iterdir()) == []


async def test_a_process_that_ends_by_itself_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.journal_path.unlink()
    with pytest.raises(ExceptionGroup) as raised:
        await Machines(folder=run.root, work=tmp_path / "work", workers=1, faults=()).run(LIMIT_S)
    assert raised.group_contains(LocalError, match=r"a process ended with 1: see .*coordinator\.log")


@pytest.mark.soak
async def test_a_long_run_of_real_processes_under_many_drawn_faults(tmp_path: Path) -> None:
    rounds = 12
    run = make_run(tmp_path, max_rounds=rounds)
    draw = derived_stream(0, "machines")
    states = ("opening", "fetching", "training", "committing", "uploading")
    faults: list[Fault] = []
    for number in range(rounds):
        worker, at_bytes = draw.randrange(2), draw.randrange(10_000, 2_000_000)
        faults += [
            f.kill(draw.random(), worker=worker, round=number + 1, call=f"step:{draw.randint(1, 4)}"),
            f.stall(draw.random(), worker=draw.randrange(2), call=f"state:{draw.choice(states)}"),
            f.kill(0.2, worker=COORDINATOR, journal_position=10 * (number + 1), durable=draw.random() < 0.5),
            f.truncate(worker=worker, after_bytes=at_bytes),
            f.drop(worker=draw.randrange(2), nth=3 * number + 3),
            f.partition(draw.random(), worker=draw.randrange(2), after_bytes=at_bytes),
            f.delay(draw.random(), worker=draw.randrange(2), after_bytes=at_bytes // 2),
        ]
    struck = await run_under(run, tmp_path, *faults)
    print(f"\n{struck.total()} of {len(faults)} faults struck: {Counter(one.kind.value for one in struck.elements())}")
    assert struck.total() > len(faults) / 2
    check(run, rounds)
