"""What every `EventStore` must do, over SQLite and over the simulation's memory; kills and power losses included.

An implementation is one `Kind` below: how a process opens it, and what its death leaves to the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.engine.version import ENGINE_VERSION
from coordinator.store.journal import Journal, Moment
from coordinator.store.ports import EventStore, Snapshot
from protocol.errors import LocalError
from simulator.deterministic.disk import Disk, MemoryJournal
from simulator.deterministic.loop import Process


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Kind:
    """One implementation, over one disk."""

    open: Callable[[], EventStore]
    """As a new process does, while older ones may still think that they live."""
    append_killed: Callable[[Sequence[str], bool], None]
    """A process dies in an append: before its commit, or, where the flag says so, right after it."""
    lose_power: Callable[[], None]


def sqlite(folder: Path) -> Kind:
    Journal.create(folder / "journal.sqlite", engine_version=ENGINE_VERSION).close()
    places = iter(range(1000))
    current = [folder]

    def opened() -> EventStore:
        return Journal.open(current[0] / "journal.sqlite")

    def killed(records: Sequence[str], after_commit: bool) -> None:
        def dies(moment: Moment, _: Sequence[str]) -> None:
            if moment is (Moment.COMMITTED if after_commit else Moment.INSERTED):
                lose_power()
                raise Killed

        with pytest.raises(Killed):
            Journal.open(current[0] / "journal.sqlite", observer=dies).append(records)

    def lose_power() -> None:
        """Files as they are at this moment, without their writers: nothing is closed, rolled back or checkpointed."""
        target = folder / f"after-{next(places)}"
        target.mkdir()
        for path in current[0].glob("journal.sqlite*"):
            if not path.name.endswith("-shm"):  # shared memory of processes that are gone
                shutil.copy(path, target / path.name)
        current[0] = target

    return Kind(opened, killed, lose_power)


def memory(_: Path) -> Kind:
    disk = Disk()

    def opened() -> EventStore:
        return MemoryJournal(disk, Process("one"), lambda *_: None)

    def killed(records: Sequence[str], after_commit: bool) -> None:
        process = Process("dying")

        def dies(_: int, durable: bool, __: Sequence[str]) -> None:
            if durable is after_commit:
                process.kill()

        MemoryJournal(disk, process, dies).append(records)

    return Kind(opened, killed, lambda: disk.lose_power(0.0))


@pytest.fixture(params=[sqlite, memory], ids=lambda make: make.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    made: Kind = request.param(tmp_path)
    return made


def entries(store: EventStore, after: int = 0) -> list[tuple[int, str]]:
    return list(store.read(after))


def test_events_come_back_in_order_and_above_a_position(kind: Kind) -> None:
    store = kind.open()
    assert (store.last_position, entries(store), store.latest_snapshot()) == (0, [], None)
    assert store.append(["a", "b"]) == 2
    assert store.append([]) == 2
    assert store.append(["ć \x1f\n"]) == store.last_position == 3
    assert entries(store) == [(1, "a"), (2, "b"), (3, "ć \x1f\n")]
    assert entries(store, after=2) == [(3, "ć \x1f\n")]
    assert store.engine_version == ENGINE_VERSION


def test_what_was_acknowledged_is_there_after_a_kill_and_a_power_loss(kind: Kind) -> None:
    kind.open().append(["a", "b"])
    assert entries(kind.open()) == [(1, "a"), (2, "b")]  # the first was never closed
    kind.lose_power()
    again = kind.open()
    assert entries(again) == [(1, "a"), (2, "b")]
    assert again.append(["c"]) == 3


@pytest.mark.parametrize("after_commit", [False, True])
def test_an_append_that_is_interrupted_is_there_whole_or_not_at_all(kind: Kind, after_commit: bool) -> None:
    kind.open().append(["a"])
    kind.append_killed(["b", "c"], after_commit)
    kind.lose_power()
    assert entries(kind.open()) == [(1, "a")] + ([(2, "b"), (3, "c")] if after_commit else [])


def test_a_snapshot_replaces_what_it_covers_and_positions_go_on(kind: Kind) -> None:
    store = kind.open()
    store.append(["a", "b", "c"])
    snapshot = Snapshot(position=2, engine_version=ENGINE_VERSION, state='{"x":1}')
    store.save_snapshot(snapshot)
    assert (store.latest_snapshot(), entries(store)) == (snapshot, [(3, "c")])
    whole = Snapshot(position=3, engine_version=ENGINE_VERSION, state='{"x":2}')
    store.save_snapshot(whole)
    kind.lose_power()
    again = kind.open()
    assert (again.latest_snapshot(), entries(again, after=3), again.last_position) == (whole, [], 3)
    assert again.append(["d"]) == 4
    assert entries(again, after=3) == [(4, "d")]


def test_a_snapshot_of_what_did_not_happen_yet_is_refused(kind: Kind) -> None:
    store = kind.open()
    store.append(["a"])
    with pytest.raises(LocalError, match="ahead"):
        store.save_snapshot(Snapshot(position=2, engine_version=ENGINE_VERSION, state="{}"))
    assert store.latest_snapshot() is None


def test_whoever_was_there_before_a_fence_writes_nothing_any_more(kind: Kind) -> None:
    """Where a lock on a file does not hold, as on some network file systems, two processes meet here."""
    older = kind.open()
    older.fence()
    older.append(["a"])
    newer = kind.open()
    older.append(["b"])
    newer.fence()
    assert newer.last_position == 2
    with pytest.raises(LocalError, match="taken over"):
        older.append(["c"])
    with pytest.raises(LocalError, match="taken over"):
        older.save_snapshot(Snapshot(position=1, engine_version=ENGINE_VERSION, state="{}"))
    assert newer.append(["d"]) == 3
    assert entries(newer) == [(1, "a"), (2, "b"), (3, "d")]
    kind.lose_power()
    assert entries(kind.open()) == [(1, "a"), (2, "b"), (3, "d")]
