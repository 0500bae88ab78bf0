"""The journal: what was appended is there, in order, once; a snapshot cuts it; nothing is overwritten."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from coordinator.journal import Journal, Snapshot
from protocol.errors import ConfigError, LocalError


def test_appended_records_are_read_back_by_another_process_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.create(path, engine_version=7)
    assert journal.append(["a", "b"]) == 2
    assert journal.append([]) == 2
    assert journal.append(["c"]) == 3
    again = Journal.open(path)  # the first is still open: nothing depends on a clean close
    assert list(again.read()) == [(1, "a"), (2, "b"), (3, "c")]
    assert list(again.read(after=2)) == [(3, "c")]
    assert (again.last_position, again.engine_version) == (3, 7)
    again.close()
    journal.close()


def test_every_commit_is_synced(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=1)
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    journal.close()


def test_a_batch_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=1)
    journal.append(["a"])
    with pytest.raises(sqlite3.Error):
        journal.append(["b", object()])  # type: ignore[list-item]
    assert list(journal.read()) == [(1, "a")]
    assert journal.append(["c"]) == 2
    journal.close()


def test_a_snapshot_cuts_what_it_covers_and_positions_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.create(path, engine_version=1)
    journal.append(["a", "b"])
    journal.save_snapshot(Snapshot(position=2, engine_version=1, state="{}"))
    journal.close()
    journal = Journal.open(path)
    assert list(journal.read()) == []
    assert journal.latest_snapshot() == Snapshot(position=2, engine_version=1, state="{}")
    assert journal.append(["c"]) == 3
    journal.save_snapshot(Snapshot(position=3, engine_version=1, state="[]"))
    assert journal._connection.execute("SELECT count(*) FROM snapshots").fetchone() == (1,)
    with pytest.raises(LocalError, match="ahead"):
        journal.save_snapshot(Snapshot(position=9, engine_version=1, state=""))
    journal.close()


def test_a_gap_is_found(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=1)
    journal.append(["a", "b", "c"])
    journal._connection.execute("DELETE FROM events WHERE position = 2")
    with pytest.raises(LocalError, match="expected event 2, got 3"):
        list(journal.read())
    journal.close()


def test_files_are_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal.create(path, engine_version=1).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        Journal.create(path, engine_version=1)
    with pytest.raises(ConfigError, match="not there"):
        Journal.open(tmp_path / "other")
    (tmp_path / "text").write_text("no database at all, but long enough to look like one" * 20)
    with pytest.raises((ConfigError, sqlite3.DatabaseError)):
        Journal.open(tmp_path / "text")


def test_small_values_beside_the_events(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=1)
    assert journal.meta("traffic") is None
    journal.set_meta("traffic", "1")
    journal.set_meta("traffic", "2")
    assert journal.meta("traffic") == "2"
    journal.close()
