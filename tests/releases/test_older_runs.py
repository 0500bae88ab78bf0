"""A run of each release opens under this one: looked at without a change, served, verified and exported.

`engine_N.tar.xz` is a run folder as the tree with engine version N left it (make.py); 2 to 6 are the trees before each
change of version, and 7 is 0.1.0.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.pages import EVERYTHING
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.stopped import status_of_journal
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.folder import RunFolder
from coordinator.run.migrate import migrate
from coordinator.run.verify import verify_run
from coordinator.store.journal import Journal

HERE = Path(__file__).parent
RELEASES = tuple(sorted(int(path.name.split("_")[1].split(".")[0]) for path in HERE.glob("engine_*.tar.xz")))


def unpacked(engine: int, to: Path) -> tuple[RunFolder, dict[str, Any]]:
    """The run, and what its release said of it."""
    with tarfile.open(HERE / f"engine_{engine}.tar.xz") as packed:
        packed.extractall(to, filter="data")
    (to / "run" / "checkpoints").mkdir()
    return RunFolder.open(to / "run"), json.loads((to / "facts.json").read_text())


def engine_of(run: RunFolder) -> int:
    journal = Journal.open(run.journal_path, writable=False)
    try:
        return journal.engine_version
    finally:
        journal.close()


def test_every_engine_that_a_run_can_come_from_has_one() -> None:
    assert RELEASES[0] == 2
    assert tuple(range(2, RELEASES[-1] + 1)) == RELEASES
    assert RELEASES[-1] >= ENGINE_VERSION - 1, "make one of the release before (make.py)"


@pytest.mark.parametrize("engine", RELEASES)
async def test_it_is_served_as_it_was_left(engine: int, tmp_path: Path) -> None:
    run, facts = unpacked(engine, tmp_path)
    looked_at = await status_of_journal(run, "nobody serves it", EVERYTHING)
    assert (looked_at.run_id, looked_at.version >= facts["version"]) == (facts["run_id"], True)
    assert engine_of(run) == engine, "looking changes nothing"
    server = CoordinatorServer(run)
    await server.start()
    try:
        status = await server.status()
    finally:
        await server.stop(0.0)
    assert engine_of(run) == ENGINE_VERSION
    assert (status.run_id, status.version, status.name) == (facts["run_id"], looked_at.version, "an older run")
    assert status.round >= facts["round"]
    workers = {worker.name: worker.accepted for worker in status.workers}
    for worker in facts["workers"]:
        assert workers[worker["name"]] >= worker["accepted"]
    assert not [problem for check in verify_run(run) for problem in check.problems]


@pytest.mark.parametrize("engine", [RELEASES[0], RELEASES[-1]])
def test_migrating_keeps_a_backup_that_opens_alike(engine: int, tmp_path: Path) -> None:
    run, facts = unpacked(engine, tmp_path)
    told = migrate(run, backup=None, dry_run=True)
    assert (told.found, told.now, told.run_id) == (engine, ENGINE_VERSION, facts["run_id"])
    assert engine_of(run) == engine
    done = migrate(run, backup=tmp_path / "kept", dry_run=False)
    assert done.migrated == (engine != ENGINE_VERSION)
    assert engine_of(run) == ENGINE_VERSION
    if done.migrated:
        shutil.rmtree(run.root)
        kept = RunFolder.open(tmp_path / "kept")
        assert engine_of(kept) == engine
        assert migrate(kept, backup=None, dry_run=True).version == told.version
