"""SIGKILL at every kind of place: a dozen by default, some hundreds in `make soak`. What was acknowledged is there."""

from __future__ import annotations

import random
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings
from tests.soak.coordinator_kills import Outcome, kill_again_and_again
from tests.soak.dooms import Doom, all_dooms
from tests.soak.worker_kills import WorkerOutcome, all_worker_dooms, kill_workers

ENGINE: dict[str, Any] = {
    "max_rounds": 100_000,
    "replicas": 1,
    "quorum": 1,
    "gather_s": 0.0,
    "min_grace_s": 0.2,
    "grace_share": 0.2,
    "min_lease_s": 1.0,
    "lease_ttl_s": 4.0,
    "heartbeat_interval_s": 0.2,
    "heartbeat_misses": 4.0,
    "checkpoint_every": 2,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}
PATIENT = {"heartbeat_misses": 150.0, "lease_ttl_s": 60.0, "inner": {"inner_steps": 6, "batch_sequences": 2}}
"""For workers that die: their leases wait for them."""


ONCE_A_LIFE = ("CoordinatorResumed", "CommandFailed", "Ticked")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("ast.py", "calendar.py", "codecs.py", "csv.py", "dis.py", "enum.py", "inspect.py", "locale.py"):
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, folder / name)
    return folder


def make_run(folder: Path, text_folder: Path, **changes: Any) -> RunFolder:
    settings = RunSettings(
        preset="tiny", data=str(text_folder), port=0, sequence_length=16, codec="bf16", heldout_limit=2,
        screening_sequences=2, keep_checkpoints=1, engine=ENGINE | changes,
    )  # fmt: skip
    return init_run(folder, settings)


def tell(outcome: Outcome) -> None:
    history, told = outcome.history, outcome.acknowledged
    print(
        f"\ncoordinator: {outcome.kills} kills ({outcome.elsewhere} from outside) at {len(outcome.as_planned)} kinds "
        f"of place in {outcome.wall_s:.0f} s; {history.events} events, {history.versions[-1]} versions; "
        f"{len(told.commits)} commits and {len(told.uploads)} submissions acknowledged, 0 lost; "
        f"{sum(history.counted.values())} counted, none twice; 0 outer steps repeated"
    )


def tell_workers(outcome: WorkerOutcome) -> None:
    print(
        f"\nworkers: {outcome.kills} kills ({outcome.elsewhere} from outside) at {len(outcome.as_planned)} kinds "
        f"of place in {outcome.wall_s:.0f} s; {outcome.finished_before_death} finished submissions lay in a killed "
        f"worker's outbox, {outcome.delivered_after} of them came from its next life; "
        f"{outcome.history.versions[-1]} versions"
    )


async def test_a_few_deaths_of_a_coordinator(tmp_path: Path, text_folder: Path) -> None:
    dooms = [
        Doom(moment="committed", kind="SubmissionCommitted"),
        Doom(moment="inserted", kind="SubmissionUploaded"),
        Doom(moment="applied", kind="SubmissionUploaded"),
        Doom(moment="version in place"),
        Doom(moment="committed", kind="RoundAggregated"),
        Doom(moment="cutting"),
        Doom(moment="applying", kind="LeaseRequested"),
    ]
    outcome = await kill_again_and_again(make_run(tmp_path / "run", text_folder), tmp_path, dooms)
    tell(outcome)
    assert outcome.elsewhere <= 1
    assert outcome.acknowledged.commits


async def test_a_few_deaths_of_a_worker(tmp_path: Path, text_folder: Path) -> None:
    dooms = [Doom(moment=moment) for moment in ("progress kept", "state training", "outbox kept", "state uploading")]
    outcome = await kill_workers(make_run(tmp_path / "run", text_folder, **PATIENT), tmp_path, dooms)
    tell_workers(outcome)
    assert outcome.elsewhere == 0
    assert outcome.finished_before_death == outcome.delivered_after >= 1


@pytest.mark.soak
async def test_hundreds_of_deaths_of_a_coordinator(tmp_path: Path, text_folder: Path) -> None:
    order = random.Random(3)
    dooms = [
        Doom(moment=one.moment, kind=one.kind, nth=1 if one.kind in ONCE_A_LIFE else nth)
        for nth in (1, 2, 1, 2)
        for one in all_dooms()
    ]
    order.shuffle(dooms)
    outcome = await kill_again_and_again(make_run(tmp_path / "run", text_folder), tmp_path, dooms)
    tell(outcome)
    assert outcome.kills >= 220
    missed = {str(one) for one in dooms} - {name for name, count in outcome.as_planned.items() if count}
    assert not missed, f"no death at {sorted(missed)}"


@pytest.mark.soak
async def test_deaths_of_a_worker_at_every_state(tmp_path: Path, text_folder: Path) -> None:
    order = random.Random(4)
    dooms = [one for _ in range(5) for one in all_worker_dooms()]
    order.shuffle(dooms)
    outcome = await kill_workers(make_run(tmp_path / "run", text_folder, **PATIENT), tmp_path, dooms)
    tell_workers(outcome)
    assert outcome.kills >= 80
    assert outcome.finished_before_death == outcome.delivered_after
    missed = {one.moment for one in dooms} - {name for name, count in outcome.as_planned.items() if count}
    assert not missed, f"no death at {sorted(missed)}"
