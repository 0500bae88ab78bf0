"""A run's status while no coordinator answers: out of its journal.

Decides nothing: the same engine reads the same journal. Always: nothing in the run folder is written or created (SQLite
makes files beside a database that it only reads), so a read-only disk will do; the journal is copied, and what an older
engine wrote is brought up to date in the copy. Touches a temporary folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coordinator.edge.ordered import order_row
from coordinator.edge.pages import Page, Query, StatusReader, Wanted, put_together
from coordinator.edge.status import RunStatus
from coordinator.engine.engine import Engine
from coordinator.run.folder import RunFolder
from coordinator.run.lease_length import LeaseLengths
from coordinator.run.pump import load_engine
from coordinator.run.traffic import TRAFFIC, Traffic
from coordinator.store.journal import Journal
from coordinator.store.people import said_in
from protocol.errors import ConfigError, Unavailable
from protocol.storage import telling_storage_trouble

ATTEMPTS = 10
"""Copies before giving up on a journal that is written to all the time; each lasts milliseconds."""
_SUFFIXES = ("", "-wal", ".mark")
"""The journal, what is not in it yet, and the mark that tells whether its end is all there."""


async def status_of_journal(folder: RunFolder, trouble: str, wanted: Wanted) -> RunStatus:
    """What is wanted of the run, as of its journal's last record; `trouble` says why nobody was asked."""
    reader, last_record_s = await asyncio.to_thread(_read, folder)

    async def ask(query: Query) -> Page:
        return reader.page(query)

    said = {"answering": False, "trouble": trouble, "last_record_s": last_record_s}
    return await put_together(reader.summary().model_copy(update=said), ask, wanted)


def orders_of_journal(folder: RunFolder) -> list[dict[str, Any]]:
    """What people ordered, with calendar times: from a copy of the journal, served or not."""
    engine, _, _ = _engine(folder)
    return [order_row(one, engine.state.wall_at_s(one.at_s)) for one in engine.state.orders]


def engine_of_journal(folder: RunFolder) -> tuple[Engine, float]:
    """The engine as of the journal's newest record, served or not, and the wall time of that record."""
    engine, _, last_record_s = _engine(folder)
    return engine, last_record_s


def _read(folder: RunFolder) -> tuple[StatusReader, float]:
    """What reads the journal's engine, and the wall time of its last record."""
    engine, traffic, last_record_s = _engine(folder)
    reader = StatusReader(
        engine,
        run_id=folder.run_id,
        name=folder.settings().name,
        run_time=lambda: engine.state.now_s,
        wall_time=lambda: last_record_s,
        traffic=traffic,
        connected=lambda _: False,
        lease_length=LeaseLengths(folder.settings(), folder.layout()).told,
    )
    return reader, last_record_s


def _engine(folder: RunFolder) -> tuple[Engine, Traffic, float]:
    """The journal's engine, the traffic, and the wall time of the last record."""
    place = _temporary_place()
    with (
        telling_storage_trouble(place),
        tempfile.TemporaryDirectory(prefix="barnraise-status-", dir=place) as temporary,
    ):
        copy, last_record_s = _copied(folder.journal_path, Path(temporary))
        journal = Journal.open(copy)
        try:
            engine, _ = load_engine(journal, folder.draw_secret())
            engine.state.names = said_in(_registry_copied(folder.registry_path, Path(temporary))).names
            traffic = Traffic.from_json(journal.meta(TRAFFIC))
        finally:
            journal.close()
    return engine, traffic, last_record_s


def _registry_copied(registry: Path, into: Path) -> Path:
    """A copy with what is not in it yet: SQLite makes files beside a database that it only reads."""
    for suffix in ("", "-wal"):
        source = registry.with_name(f"{registry.name}{suffix}")
        if source.is_file():
            shutil.copyfile(source, into / source.name)
    return into / registry.name


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(
            "a stopped run's journal is read from a copy, and no folder for temporary files can be written to: name "
            "one in the environment variable TMPDIR"
        ) from error


def _copied(journal: Path, into: Path) -> tuple[Path, float]:
    """A copy between two commits, and the wall time of the latest one."""
    for _ in range(ATTEMPTS):
        before = _stamps(journal)
        if "" not in before:
            raise ConfigError(f"{journal} is not there; put back a backup with `barnraise coordinator restore`")
        try:
            _copy_files(journal, into, before)
        except FileNotFoundError:
            continue  # gone since it was looked at: somebody has just opened or closed the journal
        if _stamps(journal) == before:
            # Whoever only reads leaves an empty log behind.
            return into / journal.name, max(changed_ns for changed_ns, size in before.values() if size) / 1e9
    raise Unavailable(f"{journal} is being written to, and whoever does it does not answer: try again in a moment")


def _copy_files(journal: Path, into: Path, suffixes: Iterable[str]) -> None:
    for stale in into.iterdir():
        stale.unlink()
    for suffix in suffixes:
        shutil.copyfile(journal.with_name(f"{journal.name}{suffix}"), into / f"{journal.name}{suffix}")


def _stamps(journal: Path) -> dict[str, tuple[int, int]]:
    """When each of the journal's files was last written, and its size; what is not there is left out."""
    found = {}
    for suffix in _SUFFIXES:
        path = journal.with_name(f"{journal.name}{suffix}")
        if path.is_file():
            stat = path.stat()
            found[suffix] = (stat.st_mtime_ns, stat.st_size)
    return found
