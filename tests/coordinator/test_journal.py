"""The journal: what was appended is there, in order, once; a snapshot cuts it; nothing is overwritten."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from coordinator.store.journal import Journal, Moment
from coordinator.store.journal_file import SCHEMA_VERSION
from coordinator.store.ports import Snapshot
from protocol.errors import ConfigError, LocalError, StorageTrouble


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
    def dies(moment: Moment, records: Sequence[str]) -> None:
        if moment is Moment.INSERTED and "b" in records:
            raise KeyboardInterrupt

    Journal.create(tmp_path / "journal.sqlite", engine_version=1).close()
    journal = Journal.open(tmp_path / "journal.sqlite", observer=dies)
    journal.append(["a"])
    with pytest.raises(KeyboardInterrupt):
        journal.append(["b", "c"])
    assert list(journal.read()) == [(1, "a")]
    assert journal.append(["c"]) == 2
    assert list(journal.read()) == [(1, "a"), (2, "c")]
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
    with pytest.raises(ConfigError, match="expected event 2, got 3"):
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
    with pytest.raises(ConfigError, match="barnraise coordinator restore"):
        Journal.open(tmp_path / "text")


def test_small_values_beside_the_events(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=1)
    assert journal.meta("traffic") is None
    journal.set_meta("traffic", "1")
    journal.set_meta("traffic", "2")
    assert journal.meta("traffic") == "2"
    journal.close()


def journal_of(path: Path, count: int) -> Path:
    journal = Journal.create(path, engine_version=1)
    journal.append([f"event {number}" for number in range(count)])
    journal.close()
    return path


@pytest.mark.parametrize("cut", [1, 4096, 20000])
def test_a_tail_that_was_cut_off_is_noticed(tmp_path: Path, cut: int) -> None:
    source = tmp_path / "running.sqlite"
    running = Journal.create(source, engine_version=1)
    for number in range(20):
        running.append([f"event {number}"])
    copied = tmp_path / "journal.sqlite"  # as a killed process leaves it: most of it in the write-ahead log
    for suffix in ("", "-wal", ".mark"):
        shutil.copy(f"{source}{suffix}", f"{copied}{suffix}")
    running.close()
    wal = Path(f"{copied}-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - cut)
    with pytest.raises(ConfigError, match="but event 20 was written: its tail was cut off or damaged"):
        Journal.open(copied)
    Path(f"{copied}.mark").unlink()  # what the sentence offers to the operator who has no backup
    journal = Journal.open(copied)
    assert [record for _, record in journal.read()] == [f"event {number}" for number in range(journal.last_position)]
    journal.close()


def test_a_torn_commit_that_nobody_was_told_of_is_simply_not_there(tmp_path: Path) -> None:
    source = tmp_path / "running.sqlite"
    running = Journal.create(source, engine_version=1)
    running.append(["told"])
    copied = tmp_path / "journal.sqlite"
    shutil.copy(f"{source}.mark", f"{copied}.mark")
    running.append(["not told"])
    shutil.copy(source, copied)
    shutil.copy(f"{source}-wal", f"{copied}-wal")
    running.close()
    wal = Path(f"{copied}-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - 100)
    journal = Journal.open(copied)
    assert list(journal.read()) == [(1, "told")]
    assert journal.append(["again"]) == 2
    journal.close()


def test_a_changed_record_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.sqlite", 5)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET record = 'event X' WHERE position = 3")
    connection.commit()
    connection.close()
    journal = Journal.open(path)
    with pytest.raises(ConfigError, match="event 3 is not what was written"):
        list(journal.read())
    journal.close()


def test_a_changed_snapshot_is_not_believed(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.sqlite", 5)
    journal = Journal.open(path)
    journal.save_snapshot(Snapshot(position=5, engine_version=1, state="{}"))
    journal._connection.execute("UPDATE snapshots SET state = '[]'")
    with pytest.raises(ConfigError, match="snapshot at event 5"):
        journal.latest_snapshot()
    journal.close()


def test_damaged_pages_are_told_in_a_sentence(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.sqlite", 2000)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 30000)
    with pytest.raises(ConfigError, match="barnraise coordinator restore"):  # noqa: PT012  # whichever notices first
        journal = Journal.open(path)
        list(journal.read())


def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("""
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE events (position INTEGER PRIMARY KEY, record TEXT NOT NULL);
        CREATE TABLE snapshots (position INTEGER PRIMARY KEY, engine_version INTEGER NOT NULL, state TEXT NOT NULL);
        INSERT INTO meta VALUES ('schema_version', '1'), ('engine_version', '1');
        INSERT INTO snapshots VALUES (3, 1, '{}');
        INSERT INTO events VALUES (4, 'd'), (5, 'e');
    """)
    connection.close()
    journal = Journal.open(path)
    assert journal.latest_snapshot() == Snapshot(position=3, engine_version=1, state="{}")
    assert list(journal.read(after=3)) == [(4, "d"), (5, "e")]
    assert journal.append(["f"]) == 6
    assert journal.meta("schema_version") == str(SCHEMA_VERSION)
    journal.close()
    journal = Journal.open(path)
    assert [record for _, record in journal.read(after=3)] == ["d", "e", "f"]
    journal.close()


_APPEND_UNTIL_FULL = """
import resource, signal, sys
from pathlib import Path
from coordinator.store.journal import Journal
from protocol.errors import StorageTrouble
journal = Journal.open(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
told = 0
try:
    while True:
        told = journal.append(["x" * 2000])
except StorageTrouble as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.append(["after"]) == told + 1
print(told)
"""


def test_a_disk_that_takes_no_more_is_told_and_what_was_promised_is_there(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.sqlite", 1)
    done = subprocess.run([sys.executable, "-c", _APPEND_UNTIL_FULL, path], capture_output=True, text=True, check=True)
    sentence, told = done.stdout.splitlines()
    assert sentence.startswith(f"cannot write {path}: the disk")
    journal = Journal.open(path)
    records = [record for _, record in journal.read()]
    assert len(records) == int(told) + 1
    assert records[-1] == "after"
    journal.close()


def test_a_folder_without_writing_is_told(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.sqlite", 3)
    journal = Journal.open(path, writable=False)
    with pytest.raises(StorageTrouble, match="read-only: mount it for writing"):
        journal.append(["d"])
    assert len(list(journal.read())) == 3
    journal.close()
