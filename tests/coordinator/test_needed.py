"""What a run needs on disk: what may still count, and nothing else; opening, backup and verify agree about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.engine.phases import Phase
from coordinator.run.backup import back_up
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder
from coordinator.run.needed import Needed, needed_by
from coordinator.run.opened import OpenedRun
from coordinator.run.pump import load_engine
from coordinator.run.verify import verify_run
from coordinator.store.artifacts import blob_name
from coordinator.store.journal import Journal
from protocol.errors import ConfigError, Unavailable
from protocol.ids import LeaseId
from tests.coordinator.engine.conftest import Swarm, small_config


def kept(s: Swarm) -> set[str]:
    return {str(lease_id) for lease_id, _ in needed_by(s.engine.state).submissions}


def test_a_submission_is_kept_until_its_outer_step_is_taken_and_not_longer() -> None:
    s = Swarm(small_config())
    s.join("a", "b", "c")
    assert kept(s) == set()
    s.at(10)
    s.commit("a")
    assert kept(s) == {"r1.1"}  # its upload may go on where it broke
    s.upload("a")
    s.submit("b")
    assert kept(s) == {"r1.1", "r1.2"}
    s.measured("r1.1")
    s.submit("c")
    assert s.phase is Phase.AGGREGATING
    assert kept(s) == {"r1.1", "r1.2", "r1.3"} == set(needed_by(s.engine.state).payloads)
    s.aggregated()
    assert kept(s) == set()


def test_a_late_one_is_kept_for_the_round_that_takes_it() -> None:
    s = Swarm(small_config())
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    s.commit("c")
    s.at(16)
    s.aggregated()
    s.upload("c")
    assert kept(s) == {"r1.3"}
    s.measured("r1.3")
    assert kept(s) == {"r1.3"}


def test_a_version_that_was_written_and_not_published_is_not_the_runs() -> None:
    s = Swarm(small_config())
    assert needed_by(s.engine.state).versions_among([1]) == [0], "the present one, whatever the index says"
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b", "c")
    s.aggregated()
    assert needed_by(s.engine.state).versions_among([0, 1, 2]) == [0, 1]


def needed_on(run: RunFolder) -> Needed:
    journal = Journal.open(run.journal_path)
    try:
        return needed_by(load_engine(journal, run.draw_secret())[0].state)
    finally:
        journal.close()


async def test_opening_backup_and_verify_agree_about_what_is_needed(
    run: RunFolder,
    server: CoordinatorServer,
    join: Callable[..., Any],
    submission: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)

    def later(_: Any) -> Any:
        raise Unavailable("not now")

    assert server._parts is not None
    monkeypatch.setattr(server._parts.executor, "execute", later)
    assert (await client.upload(lease, payload)).complete
    await server.stop(0.0)
    needed = needed_on(run)
    assert list(needed.payloads) == [LeaseId(lease.lease_id)]
    store = run.artifacts()
    (digest,) = needed.payloads.values()
    stray = store.payloads.put(b"of a lease that the journal does not know")
    OpenedRun.open(run, Clocks()).close()
    assert store.payloads.has(digest), "opening keeps it"
    assert not store.payloads.has(stray), "and nothing else"
    back_up(run, tmp_path / "backup")
    assert (tmp_path / "backup" / "artifacts" / "payloads" / blob_name(digest)).is_file()
    assert not [check for check in verify_run(run) if check.problems]
    store.payloads.drop(digest)
    (found,) = [check for check in verify_run(run) if check.problems]
    assert found.name == "submissions"
    with pytest.raises(ConfigError, match="a file that the run needs is missing"):
        back_up(run, tmp_path / "other")
